"""Ensembles: several captioners write together, in every search and every command."""

import json
from dataclasses import replace

import pytest
import torch

from captioning.__main__ import main
from captioning.commands.serve import caption_picture
from captioning.data.images import load_image
from captioning.data.vocabulary import PAD, START, UNK, Vocabulary
from captioning.errors import CaptioningError
from captioning.image_captioner import ImageCaptioner
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import load_checkpoint, load_ensemble
from captioning.model.neighbors import Neighbors
from captioning.results.attention_maps import attention_weights
from captioning.search.generate import decode_batch
from captioning.settings import DecodeConfig


def another(checkpoint, seed=1, **sizes):
    """Makes a captioner with the same words and CNN, and with other, larger weights."""
    torch.manual_seed(seed)
    model = Captioner(replace(checkpoint.model.config, **sizes)).eval()
    for parameter in model.parameters():
        parameter.data *= 2
    return replace(checkpoint, models=[model], training={"history": []})


def together(*checkpoints):
    return replace(checkpoints[0], models=[checkpoint.model for checkpoint in checkpoints])


@pytest.fixture(params=["lstm", "attention"])
def pair(request, new_checkpoint, data, attention_checkpoint):
    """Two captioners with different sizes, and features that both can read."""
    one, sizes, features = new_checkpoint(), {"image_at": "every"}, data.val.read()
    if request.param == "attention":
        one, sizes = attention_checkpoint, {"hidden_size": 12}
        features = torch.randn(5, 256, 48, generator=torch.Generator().manual_seed(0))
    return another(one, 3), another(one, embed_size=8, **sizes), features


def test_the_probability_of_a_word_is_the_mean_of_the_members(pair):
    one, two, features = pair
    for method in ("greedy", "sample"):
        found = decode_batch(together(one, two), features, DecodeConfig(method))
        for i, group in enumerate(found):
            for hypothesis in group:
                members = one.model, two.model
                image = features[i : i + 1]
                states = [(m.decoder, m.decoder.start(m.encoder.embed(image))) for m in members]
                word, expected = torch.tensor([START]), []
                for token in hypothesis.tokens:
                    steps = [decoder.step(word, state) for decoder, state in states]
                    mean = sum(scores.softmax(1) for scores, _ in steps) / 2
                    mean[:, [PAD, START, UNK]] = 0
                    expected.append((mean[0, token] / mean.sum()).log().item())
                    states = [(d, s) for (d, _), (_, s) in zip(states, steps, strict=True)]
                    word = torch.tensor([token])
                assert hypothesis.log_probs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_members_write_other_captions_together_than_alone(pair, method):
    one, two, features = pair

    def words(checkpoint):
        generator = torch.Generator().manual_seed(0)
        found = decode_batch(checkpoint, features, DecodeConfig(method), generator)
        return [[hypothesis.tokens for hypothesis in group] for group in found]

    both, alone = words(together(one, two)), words(one)
    assert both != alone and both != words(two) and words(together(one, one)) == alone


def test_beam_search_ranks_all_that_the_members_find(pair):
    """A caption's score is the mean over the members; one that lacks it counts its worst score."""
    one, two, features = pair
    config = DecodeConfig("beam", 3, 0.7)
    both, *alone = (decode_batch(c, features, config) for c in (together(one, two), one, two))
    for group, *parts in zip(both, *alone, strict=True):
        found = [{tuple(h.tokens): h for h in part} for part in parts]
        assert {tuple(h.tokens) for h in group} == found[0].keys() | found[1].keys()
        assert len(group) == len(found[0].keys() | found[1].keys())
        for hypothesis in group:
            members = [f.get(tuple(hypothesis.tokens)) for f in found]
            scores = [(h or part[-1]).score for h, part in zip(members, parts, strict=True)]
            assert hypothesis.score == pytest.approx(sum(scores) / 2)
            assert hypothesis.log_probs in [h.log_probs for h in members if h]
        scores = [hypothesis.score for hypothesis in group]
        assert scores == sorted(scores, reverse=True)


def test_an_attention_map_is_the_mean_of_the_members(attention_checkpoint, grid_cnn, data):
    one, two = another(attention_checkpoint, 3), another(attention_checkpoint)
    picture, both = data.val.images[0].path, together(one, two)
    words, features = "two small circles".split(), grid_cnn.encode(load_image(picture))
    maps = [attention_weights(c, features, words) for c in (one, two, both)]
    torch.testing.assert_close(maps[2], (maps[0] + maps[1]) / 2)
    assert caption_picture(ImageCaptioner(both, grid_cnn), picture, 2)[1]


def test_the_search_combines_the_searches_of_the_members(files, data):
    one, two = map(load_checkpoint, files)
    one.search, two.search = DecodeConfig("beam", 20, 0.4), DecodeConfig("beam", 5, 1.0, 4.0)
    two.neighbors = Neighbors.from_table(data.train, data.vocabulary)
    for checkpoint, path in zip((one, two), files, strict=True):
        checkpoint.save(path)
    both = load_ensemble(files)
    assert both.search == DecodeConfig("beam", 20, 0.7, 2.0) and both.neighbors
    assert len(both.models) == 2


@pytest.fixture
def files(new_checkpoint, tmp_path):
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for seed, path in enumerate(paths):
        another(new_checkpoint(), seed).save(path)
    return paths


def test_every_command_takes_several_captioners(files, scenes_root, tmp_path, data, capsys):
    names, results = [str(path) for path in files], tmp_path / "r.json"
    pictures, val = str(scenes_root / "val"), scenes_root / "annotations" / "captions_val.json"
    found = {}
    for weights in ("float32", "bfloat16"):
        for method in ("greedy", "beam"):
            options = ["--method", method, "--lstm-weights", weights, "--json", str(results)]
            assert main(["caption", *names, pictures, *options]) == 0
            found[method] = [row["caption"] for row in json.loads(results.read_text())]
            assert len(found[method]) == 12
    expected = decode_batch(load_ensemble(files), data.val.read(), DecodeConfig("beam"))
    assert main(["caption", *names, pictures, "--method", "beam", "--json", str(results)]) == 0
    written = [row["caption"] for row in json.loads(results.read_text())]
    by_name = dict(zip((image.path.name for image in data.val.images), expected, strict=True))
    order = sorted(by_name)
    assert written == [data.vocabulary.decode(by_name[name][0].tokens) for name in order]
    options = ["--annotations", str(val), "--json", str(results)]
    assert main(["caption", *names, *options]) == 0
    report = tmp_path / "report.html"
    evaluate = ["evaluate", *names, str(val), "--report", str(report)]
    assert main(evaluate) == 0 and "Evaluation of captions" in report.read_text()
    capsys.readouterr()
    assert main(["evaluate", *names, str(val)]) == 0
    scored = capsys.readouterr().out
    assert main(["evaluate", str(results), str(val)]) == 0
    assert capsys.readouterr().out == scored


def test_other_words_and_another_cnn_are_refused(files):
    other = load_checkpoint(files[1])
    words = Vocabulary([*other.vocabulary.words[:-1], "another"])
    for change in ({"vocabulary": words}, {"cnn": replace(other.cnn, fingerprint="0" * 32)}):
        replace(other, **change).save(files[1])
        with pytest.raises(CaptioningError, match=r"b\.pt: expected the words and .* of .*a\.pt"):
            load_ensemble(files)
    assert len(load_ensemble(files[:1]).models) == 1
