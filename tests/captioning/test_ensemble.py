"""Several captioners as one: the mean of their probabilities, in every search and command."""

import json
from dataclasses import replace

import pytest
import torch

from captioning.__main__ import main
from captioning.commands.serve import answer
from captioning.config import BeamConfig
from captioning.data.images import load_image
from captioning.data.vocabulary import PAD, START, UNK, Vocabulary
from captioning.errors import CaptioningError
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import load_checkpoint
from captioning.model.ensemble import Ensemble, load_ensemble
from captioning.model.neighbors import Neighbors
from captioning.results.attention_maps import compute_maps
from captioning.search.generate import DecodeConfig, decode_batch

METHODS = ("greedy", "beam", "sample")


def another(checkpoint, seed: int = 1, **sizes):
    """A captioner of the same words and CNN, with other weights and opinions."""
    torch.manual_seed(seed)
    model = Captioner(replace(checkpoint.model.config, **sizes)).eval()
    for parameter in model.parameters():
        parameter.data *= 2
    return replace(checkpoint, model=model, training={"history": []})


@pytest.fixture(params=["lstm", "attention"])
def pair(request, new_checkpoint, data, attentive):
    """Two captioners of other sizes, and features that they read."""
    if request.param == "attention":
        cells = torch.randn(5, 256, 48, generator=torch.Generator().manual_seed(0))
        return another(attentive, 3), another(attentive, embed_size=8, hidden_size=12), cells
    one = new_checkpoint()
    return another(one, 3), another(one, embed_size=8, image_at="every"), data.val.read()


def test_the_probability_of_a_word_is_the_mean_of_theirs(pair):
    """In greedy search and sampling: it tells those of the members, fed its words."""
    one, two, features = pair
    for method in ("greedy", "sample"):
        config = DecodeConfig(method, max_seq_length=6)
        found = decode_batch(Ensemble([one.model, two.model]), features, config)
        for i, group in enumerate(found):
            for hypothesis in group:
                states = [
                    (m.decoder, m.decoder.start(m.encoder.embed(features[i : i + 1])))
                    for m in (one.model, two.model)
                ]
                word, expected = torch.tensor([START]), []
                for token in hypothesis.tokens:
                    steps = [decoder.step(word, state) for decoder, state in states]
                    mean = sum(scores.softmax(1) for scores, _ in steps) / 2
                    mean[:, [PAD, START, UNK]] = 0
                    expected.append((mean[0, token] / mean.sum()).log().item())
                    states = [(d, s) for (d, _), (_, s) in zip(states, steps, strict=True)]
                    word = torch.tensor([token])
                assert hypothesis.log_probs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_it_writes_neither_what_the_one_nor_what_the_other_writes(pair, method):
    one, two, features = pair

    def words(model) -> list[list[list[int]]]:
        same = torch.Generator().manual_seed(0)
        found = decode_batch(model, features, DecodeConfig(method), same)
        return [[hypothesis.tokens for hypothesis in group] for group in found]

    both, alone = words(Ensemble([one.model, two.model])), words(one.model)
    assert both != alone and both != words(two.model)
    assert words(Ensemble([one.model, one.model])) == alone


def test_beam_search_ranks_all_that_the_members_find(pair):
    """By the mean of their scores; who has not found a caption gives it that of its worst."""
    one, two, features = pair
    config = DecodeConfig("beam", 3, 0.7)
    both, *alone = (
        decode_batch(model, features, config)
        for model in (Ensemble([one.model, two.model]), one.model, two.model)
    )
    for group, *parts in zip(both, *alone, strict=True):
        found = [{tuple(h.tokens): h for h in part} for part in parts]
        assert {tuple(h.tokens) for h in group} == found[0].keys() | found[1].keys()
        assert len(group) == len(found[0].keys() | found[1].keys())
        for hypothesis in group:
            own = [f.get(tuple(hypothesis.tokens)) for f in found]
            scores = [(h or part[-1]).score for h, part in zip(own, parts, strict=True)]
            assert hypothesis.score == pytest.approx(sum(scores) / 2)
            assert hypothesis.log_probs in [h.log_probs for h in own if h]
        scores = [hypothesis.score for hypothesis in group]
        assert scores == sorted(scores, reverse=True)


def test_its_search_is_what_was_best_for_its_members(new_checkpoint, data):
    members = [new_checkpoint().model for _ in range(3)]
    assert Ensemble(members).neighbors is None
    members[0].beam, members[1].beam = BeamConfig(20, 0.7), BeamConfig(5, 1.0)
    members[2].beam = BeamConfig(5, 0.4)
    members[1].neighbors = Neighbors.of(data.train, data.vocabulary, 4.0)
    members[2].neighbors = Neighbors.of(data.train, data.vocabulary, 2.0)
    both = Ensemble(members)
    assert both.beam.beam_size == 20 and both.beam.length_penalty == pytest.approx(0.7)
    assert both.neighbors.weight == 2.0 and members[1].neighbors.weight == 4.0
    features = data.val.read()
    plain = decode_batch(both, features, DecodeConfig("beam", neighbors=0.0))
    assert len(plain[0]) >= 20 and decode_batch(both, features, DecodeConfig("beam")) != plain


def test_the_map_is_the_mean_of_theirs(attentive, grid_cnn, data):
    one, two = another(attentive, 3), another(attentive)
    words = ["two", "small", "circles"]
    picture = data.val.images[0].path
    image = load_image(picture, 256)
    together = replace(one, model=Ensemble([one.model, two.model]))
    maps = [compute_maps(c, grid_cnn, image, words).weights for c in (one, two, together)]
    torch.testing.assert_close(maps[2], (maps[0] + maps[1]) / 2)
    assert compute_maps(replace(one, model=Ensemble([one.model])), grid_cnn, image, words)
    assert all(search["maps"] for search in answer(together, grid_cnn, picture, 2))


@pytest.fixture
def files(new_checkpoint, tmp_path):
    one = new_checkpoint()
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for seed, path in enumerate(paths):
        another(one, seed).save(path)
    return paths


def test_every_command_takes_several(files, scenes_root, tmp_path, data, capsys):
    names, results = [str(path) for path in files], tmp_path / "r.json"
    pictures, val = str(scenes_root / "val"), scenes_root / "annotations" / "captions_val.json"
    found = {}
    for weights in ("float32", "bfloat16"):
        for method in ("greedy", "beam"):
            options = ["--method", method, "--weights", weights, "--json", str(results)]
            assert main(["caption", *names, pictures, *options]) == 0
            found[method] = [row["caption"] for row in json.loads(results.read_text())]
            assert len(found[method]) == 12
    together = load_ensemble(files)
    config = DecodeConfig("beam")
    expected = decode_batch(together.model, data.val.read(), config)
    assert main(["caption", *names, pictures, "--method", "beam", "--json", str(results)]) == 0
    written = [row["caption"] for row in json.loads(results.read_text())]
    by_name = dict(zip((image.path.name for image in data.val.images), expected, strict=True))
    order = sorted(by_name)
    assert written == [data.vocabulary.decode(by_name[name][0].tokens) for name in order]
    options = ["--annotations", str(val), "--json", str(results)]
    assert main(["caption", *names, *options]) == 0
    report = tmp_path / "report.html"
    evaluate = ["evaluate", str(results), "--references", str(val), "--report", str(report)]
    assert main([*evaluate, "--checkpoint", names[0], "--checkpoint", names[1]]) == 0
    assert "Evaluation of captions" in report.read_text()


def test_other_words_and_another_cnn_are_refused(files):
    other = load_checkpoint(files[1])
    words = [*other.vocabulary.words[:-1], "another"]
    replace(other, vocabulary=Vocabulary(words)).save(files[1])
    with pytest.raises(CaptioningError, match=r"b\.pt: expected the \d+ words of .*a\.pt, got \d+"):
        load_ensemble(files)
    identity = replace(other.cnn, fingerprint="0" * 32)
    replace(other, cnn=identity).save(files[1])
    with pytest.raises(
        CaptioningError, match=r"b\.pt: expected the CNN of .*a\.pt, scenes_cnn, with"
    ):
        load_ensemble(files)
    assert type(load_ensemble(files[:1]).model) is Captioner
