"""Neighbors: similar training pictures rank captions; training chooses the search; files."""

import math
from types import SimpleNamespace

import pytest
import torch

from captioning.model import neighbors
from captioning.model.checkpoint import load_checkpoint
from captioning.model.cider import CiderD
from captioning.model.neighbors import Neighbors
from captioning.results.metrics import score_captions
from captioning.search import tune
from captioning.search.decoding import Hypothesis, write_tokens
from captioning.search.generate import best_captions, decode_batch, generate_captions, rerank
from captioning.settings import DecodeConfig

A, B, C = [5, 6, 7, 2], [8, 9, 10, 2], [11, 12, 13, 2]


def hypothesis(tokens, score):
    return Hypothesis(tokens, [score / len(tokens)] * len(tokens), score)


@pytest.fixture
def pictures():
    """Three training pictures with features in three directions and different captions."""
    directions = torch.eye(3) - 1 / 3
    directions /= directions.norm(dim=1, keepdim=True)
    mean, captions = torch.full((3,), 1 / 3), [[A, A], [B, B], [C]]
    return Neighbors(mean, torch.eye(3), directions, captions)


def test_agreement_is_the_mean_cider_d_weighed_by_similarity(pictures, monkeypatch):
    monkeypatch.setattr(neighbors, "NEAREST", 2)
    features = torch.tensor([0.9, 0.4, 0.0])
    found, offset = pictures.agreement(features[None], [[A, B]])[0], features - 1 / 3
    cosines = (pictures.directions @ (offset / offset.norm())).tolist()
    assert cosines[0] > cosines[1] > cosines[2]
    parts = [math.exp(cosine / 0.15) for cosine in cosines[:2]]
    cider = CiderD([[A, A], [B, B], [C]])
    scores = [cider.scores(picture, [A, B]) for picture in (0, 1)]
    expected = [sum(p * s[i] for p, s in zip(parts, scores, strict=True)) for i in range(2)]
    assert found == pytest.approx([value / sum(parts) for value in expected], rel=1e-5)
    assert found[0] > found[1] > 0
    cells = torch.stack([2 * features, 0 * features])  # their mean is compared
    assert pictures.agreement(cells[None], [[A, B]])[0] == found


@pytest.mark.parametrize("place", [99, 100])
def test_only_the_hundred_most_similar_pictures_count(place):
    x, y, _ = torch.eye(3)
    directions, captions = torch.stack([x] * 99 + [y, -x]), [[B]] * 101
    captions[place] = [A]
    many = Neighbors(0 * x, torch.eye(3), directions, captions)
    assert (many.agreement(x[None], [[A]])[0][0] > 0) == (place == 99)


def test_lists_of_different_lengths_are_refused(pictures, new_checkpoint, data):
    one = new_checkpoint()
    for call in (
        lambda: pictures.agreement(torch.eye(3), [[A]]),
        lambda: rerank([[], []], [[]], 1.0),
        lambda: write_tokens([one.model.decoder] * 2, [torch.zeros(1, 16)], None),
        lambda: best_captions(one, data.val.read(), data.val.ids[1:]),
    ):
        pytest.raises(ValueError, call).match("argument 2 is")


def test_agreement_with_the_other_captions_counts_a_little(pictures):
    picture = torch.eye(3)[:1]
    alone, pair = pictures.agreement(picture, [[A]])[0], pictures.agreement(picture, [[A, A]])[0]
    other = pictures.cider.consensus([A, A])[0]
    assert other > 0 and pair == pytest.approx([alone[0] + 0.02 * other] * 2)


def test_the_caption_that_agrees_comes_first(pictures):
    beams, first = [hypothesis(B, -1.0), hypothesis(A, -2.0)], torch.eye(3)[:1]
    found = pictures.agreement(first, [[B, A]])
    assert [h.tokens for h in rerank([beams], found, 2.0)[0]] == [A, B]
    ranked = rerank([beams], found, 1e-3)[0]
    assert [h.tokens for h in ranked] == [B, A]
    assert [h.score for h in ranked] == [-1 + 1e-3 * found[0][0], -2 + 1e-3 * found[0][1]]


def test_only_beam_search_uses_neighbors(new_checkpoint, data):
    one, features, near = new_checkpoint(), data.val.read(), {"neighbors": 5.0}
    plain = {m: decode_batch(one, features, DecodeConfig(m)) for m in ("greedy", "beam")}
    assert decode_batch(one, features, DecodeConfig("beam", **near)) == plain["beam"]
    one.neighbors = Neighbors.from_table(data.train, data.vocabulary)
    assert decode_batch(one, features, DecodeConfig("greedy", **near)) == plain["greedy"]
    assert decode_batch(one, features, DecodeConfig("beam")) == plain["beam"]
    found = decode_batch(one, features, DecodeConfig("beam", **near))
    agreed = one.neighbors.agreement(features, [[h.tokens for h in g] for g in plain["beam"]])
    assert found == rerank(plain["beam"], agreed, 5.0) != plain["beam"]


def test_neighbors_are_all_training_pictures_with_whitened_features(data):
    found, features = Neighbors.from_table(data.train, data.vocabulary), data.train.read()
    torch.testing.assert_close(found.mean, features.mean(0))
    numbers = (features - features.mean(0)) @ found.axes.float()
    covariance = numbers.T.cov()
    assert numbers.size(1) == neighbors.LEAST_AXES
    torch.testing.assert_close(covariance / covariance[0, 0], torch.eye(16), rtol=0, atol=5e-3)
    directions = numbers / numbers.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.directions.float(), directions, rtol=0, atol=5e-4)
    assert len(found.captions) == len(features)
    for tokens, caption in zip(found.captions[3], data.train.images[3].captions, strict=True):
        assert tokens == data.vocabulary.encode(caption)[1:]


def test_directions_without_variance_are_ignored():
    features = torch.randn(100, 3) @ torch.randn(3, 20)
    features -= features.mean(0)
    axes, again = (neighbors._axes(features) for _ in map(torch.manual_seed, (1, 2)))
    assert torch.equal(axes, again)
    assert axes.shape == (20, 16) and (axes.norm(dim=0) > 0).sum() == 3
    assert axes.isfinite().all() and axes.abs().max() == 1
    assert torch.equal(neighbors._axes(torch.zeros(5, 4)), torch.zeros(4, 4))


def test_many_pictures_have_more_axes(monkeypatch):
    svd = lambda features, most, niter: (None, torch.ones(most), torch.ones(999, most))
    monkeypatch.setattr(torch, "svd_lowrank", svd)
    counts = [neighbors._axes(torch.empty(n, 999)).size(1) for n in (319, 359, 360, 9999)]
    assert counts == [16, 17, 18, 256]


def test_a_checkpoint_keeps_neighbors(new_checkpoint, data, tmp_path):
    checkpoint = new_checkpoint()
    checkpoint.save(tmp_path / "without.pt")
    assert load_checkpoint(tmp_path / "without.pt").neighbors is None
    before = checkpoint.neighbors = Neighbors.from_table(data.train, data.vocabulary)
    checkpoint.save(tmp_path / "c.pt")
    after = load_checkpoint(tmp_path / "c.pt").neighbors
    assert after != before and after.captions == before.captions  # compared by identity
    for name in ("mean", "axes", "directions"):
        assert torch.equal(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("weight", [0, 1, 2, 4, 6, 8, 12, 16])
def test_training_keeps_neighbors_if_they_help_on_val(new_checkpoint, data, monkeypatch, weight):
    """Only this weight of the agreement ranks the right caption of each picture first."""
    checkpoint, val = new_checkpoint(), data.val
    right = [data.vocabulary.encode(image.captions[0])[1:] for image in val.images]

    def beams(checkpoint, features, config):
        assert checkpoint.neighbors is None
        groups = zip(right, right[1:] + right[:1], strict=True)
        scores = 0.0, weight - 0.5, -weight - 0.5
        return [[*map(hypothesis, (one, two, two), scores)] for one, two in groups]

    def agreement(features, captions):
        assert torch.equal(features, val.read()) and [group[0] for group in captions] == right
        return [[0.0, -1.0, 1.0]] * len(captions)

    monkeypatch.setattr(tune, "decode_batch", beams)
    line = tune.choose_search(checkpoint, val, near := SimpleNamespace(agreement=agreement))
    assert checkpoint.neighbors is (near if weight else None)
    assert ("captions of similar training pictures" in line) == (weight > 0)
    assert checkpoint.search == DecodeConfig(neighbors=weight)  # of equal searches the first


@pytest.mark.parametrize(("size", "penalty"), [(5, 0.5), (20, 0.9), (20, 1.1)])
def test_training_chooses_the_best_search(data, monkeypatch, capsys, new_checkpoint, size, penalty):
    """Only this number of beams finds the right caption, and only this penalty ranks it first."""
    checkpoint, val = new_checkpoint(), data.val
    right = [data.vocabulary.encode(image.captions[0])[1:] for image in val.images]
    # A smaller penalty ranks the short one first, and a larger penalty the long one.
    short, long = [4, 2], [4] * 40 + [2]

    def beams(checkpoint, features, config):
        score = lambda tokens, factor: -factor * len(tokens) ** (penalty - config.length_penalty)
        others = [hypothesis(tokens, score(tokens, 1)) for tokens in (short, long)]
        found = [[hypothesis(tokens, score(tokens, 0.98))] for tokens in right]
        return [(one if config.beam_size == size else []) + others for one in found]

    monkeypatch.setattr(tune, "decode_batch", beams)
    line = tune.choose_search(checkpoint, val)
    assert checkpoint.neighbors is None and checkpoint.search == DecodeConfig("beam", size, penalty)
    texts = dict(zip(val.ids, map(data.vocabulary.decode, right), strict=True))
    score = score_captions(texts, val.references).overall["CIDEr-D"]
    told = f"search chosen on --val: {size} beams, length penalty {penalty}: CIDEr-D {score:.3f}"
    assert line == told and "choose the search: 24/24 in " in capsys.readouterr().err


def test_captions_are_written_by_the_chosen_search(new_checkpoint, data, tmp_path, capsys):
    checkpoint, features = new_checkpoint(), data.val.read()
    checkpoint.search = DecodeConfig("beam", 3, 2.0)
    checkpoint.save(tmp_path / "c.pt")
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert loaded.search == DecodeConfig("beam", 3, 2.0)
    loaded.model.train()
    found = generate_captions(loaded, features, progress="write")
    assert not loaded.model.training and "write: 12/12 in " in capsys.readouterr().err
    assert found == generate_captions(loaded, features, loaded.search)
    assert found != generate_captions(loaded, features, DecodeConfig("beam", 2, 0.0))
