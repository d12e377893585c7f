"""Captions of similar training pictures rank what beam search finds; a checkpoint keeps them."""

import math
from types import SimpleNamespace

import pytest
import torch

from captioning.config import BeamConfig
from captioning.errors import CaptioningError
from captioning.model import neighbors
from captioning.model.checkpoint import load_checkpoint
from captioning.model.cider import CiderD
from captioning.model.neighbors import Neighbors
from captioning.search.decoding import Hypothesis
from captioning.search.generate import DecodeConfig, decode_batch, rank
from captioning.training import pipeline

A, B, C = [5, 6, 7, 2], [8, 9, 10, 2], [11, 12, 13, 2]


def hypothesis(tokens: list[int], score: float) -> Hypothesis:
    return Hypothesis(tokens, [score / len(tokens)] * len(tokens), score)


@pytest.fixture
def three() -> Neighbors:
    """Three training pictures in three directions, each with captions of its own."""
    directions = torch.eye(3) - 1 / 3
    directions /= directions.norm(dim=1, keepdim=True)
    mean, captions = torch.full((3,), 1 / 3), [[A, A], [B, B], [C]]
    return Neighbors(mean, torch.eye(3), directions, captions, 2.0)


def test_agreement_is_the_mean_cider_d_weighed_by_similarity(three, monkeypatch):
    monkeypatch.setattr(neighbors, "NEAREST", 2)
    features = torch.tensor([0.9, 0.4, 0.0])
    found = three.agreement(features[None], [[A, B]])[0]
    offset = features - 1 / 3
    cosines = (three.directions @ (offset / offset.norm())).tolist()
    assert cosines[0] > cosines[1] > cosines[2]
    parts = [math.exp(cosine / neighbors.TEMPERATURE) for cosine in cosines[:2]]
    cider = CiderD([[A, A], [B, B], [C]])
    scores = [cider.scores(picture, [A, B]) for picture in (0, 1)]
    expected = [sum(p * s[i] for p, s in zip(parts, scores, strict=True)) for i in range(2)]
    assert found == pytest.approx([value / sum(parts) for value in expected], rel=1e-5)
    assert found[0] > found[1] > 0


def test_agreement_with_the_other_captions_counts_a_little(three):
    picture = torch.eye(3)[:1]
    alone, pair = three.agreement(picture, [[A]])[0], three.agreement(picture, [[A, A]])[0]
    other = three.cider.consensus([A, A])[0]
    assert other > 0 and pair == pytest.approx([alone[0] + neighbors.OTHERS * other] * 2)


def test_the_caption_that_agrees_comes_first(three):
    beams = [hypothesis(B, -1.0), hypothesis(A, -2.0)]
    first = torch.eye(3)[:1]
    found = three.agreement(first, [[B, A]])
    assert [h.tokens for h in rank([beams], found, three.weight)[0]] == [A, B]
    ranked = rank([beams], found, 1e-3)[0]
    assert [h.tokens for h in ranked] == [B, A]
    assert [h.score for h in ranked] == [-1 + 1e-3 * found[0][0], -2 + 1e-3 * found[0][1]]


def test_cells_count_by_their_mean(three):
    cells = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    assert three.agreement(cells, [[A, B]]) == three.agreement(cells.mean(1), [[A, B]])


def test_only_beam_search_reads_them(new_checkpoint, data):
    model, features = new_checkpoint().model, data.val.read()
    plain = {m: decode_batch(model, features, DecodeConfig(m)) for m in ("greedy", "beam")}
    model.neighbors = Neighbors.of(data.train, data.vocabulary, 5.0)
    assert decode_batch(model, features, DecodeConfig("greedy")) == plain["greedy"]
    assert decode_batch(model, features, DecodeConfig("beam", neighbors=0.0)) == plain["beam"]
    found = decode_batch(model, features, DecodeConfig("beam"))
    agreed = model.neighbors.agreement(features, [[h.tokens for h in g] for g in plain["beam"]])
    assert found == rank(plain["beam"], agreed, 5.0) != plain["beam"]
    assert found == decode_batch(model, features, DecodeConfig("beam", neighbors=5.0))


def test_they_are_all_training_pictures(data):
    found = Neighbors.of(data.train, data.vocabulary)
    features = data.train.read()
    torch.testing.assert_close(found.mean, features.mean(0))
    numbers = (features - features.mean(0)) @ found.axes
    covariance = numbers.T.cov()
    assert numbers.size(1) == neighbors.LEAST_AXES
    torch.testing.assert_close(covariance / covariance[0, 0], torch.eye(16), rtol=0, atol=5e-3)
    directions = numbers / numbers.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.directions, directions, rtol=0, atol=5e-4)
    assert len(found.captions) == len(features)
    for tokens, caption in zip(found.captions[3], data.train.images[3].captions, strict=True):
        assert tokens == data.vocabulary.encode(caption)[1:]


def test_what_no_training_picture_has_makes_none_different():
    """Features of rank 3: what is new in a picture counts for nothing, not for all."""
    features = torch.randn(100, 3) @ torch.randn(3, 20)
    axes = neighbors._axes(features - features.mean(0))
    assert axes.shape == (20, 16) and (axes.norm(dim=0) > 0).sum() == 3
    assert axes.isfinite().all() and axes.abs().max() == 1
    assert torch.equal(neighbors._axes(torch.zeros(5, 4)), torch.zeros(4, 4))


def test_axes_are_those_of_the_largest_variance():
    features = torch.randn(2000, 300) * torch.linspace(3, 1, 300) @ torch.randn(300, 300)
    features -= features.mean(0)
    axes = neighbors._axes(features)
    _, _, exact = torch.linalg.svd(features, full_matrices=False)
    assert axes.shape == (300, 100)
    inside = exact[:90] @ torch.linalg.qr(axes)[0]  # the last ones are as large as their next
    torch.testing.assert_close(inside.norm(dim=1), torch.ones(90), rtol=0, atol=0.02)


def test_a_checkpoint_keeps_them(new_checkpoint, data, tmp_path):
    checkpoint = new_checkpoint()
    checkpoint.save(tmp_path / "without.pt")
    assert load_checkpoint(tmp_path / "without.pt").model.neighbors is None
    before = checkpoint.model.neighbors = Neighbors.of(data.train, data.vocabulary, 3.0)
    checkpoint.save(tmp_path / "c.pt")
    after = load_checkpoint(tmp_path / "c.pt").model.neighbors
    assert after.weight == 3.0 and after.captions == before.captions
    assert torch.equal(after.mean, before.mean)
    assert torch.equal(after.axes, before.axes)
    assert torch.equal(after.directions, before.directions)


def test_one_of_an_older_version_compares_all_features(three):
    state, picture = three.state_dict(), torch.eye(3)[1:2]
    del state["axes"]
    old = Neighbors.from_state_dict(state, 3)
    expected = three.agreement(picture, [[A, B]])[0]
    assert old.agreement(picture, [[A, B]])[0] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("weight"),
        lambda state: state.update(weight=-1.0),
        lambda state: state.update(weight=math.nan),
        lambda state: state.update(mean=state["mean"][1:]),
        lambda state: state.update(directions=state["directions"][1:]),
        lambda state: state.update(axes=state["axes"][1:]),
        lambda state: state.update(axes=state["axes"][:, 1:]),
        lambda state: state.pop("axes"),
        lambda state: state.update(directions=state["directions"].tolist()),
        lambda state: state.update(captions=state["captions"] + 1),
        lambda state: state["captions"][:2].copy_(torch.tensor([-1, 11])),
        lambda state: state.update(lengths=state["lengths"] + 1),
        lambda state: state["lengths"][:2].copy_(torch.tensor([-1, 99])),
        lambda state: state.update(tokens=None),
        lambda state: state.update(tokens=state["tokens"].unsqueeze(1)),
        lambda state: state.update(captions=state["captions"].float()),
        lambda state: state.update(weight=10**400),
        lambda state: state["directions"][3].fill_(math.nan),
        lambda state: state["mean"].fill_(math.inf),
        lambda state: state.update(directions=state["directions"].to(torch.complex64)),
        lambda state: state.update({n: state[n][:0] for n in state if n not in ("weight", "mean")}),
    ],
)
def test_damaged_ones_are_refused(new_checkpoint, data, tmp_path, change):
    checkpoint, path = new_checkpoint(), tmp_path / "c.pt"
    checkpoint.model.neighbors = Neighbors.of(data.train, data.vocabulary, 3.0)
    checkpoint.save(path)
    content = torch.load(path, weights_only=True)
    change(content["neighbors"])
    torch.save(content, path)
    with pytest.raises(CaptioningError, match="c.pt: neighbors: expected (pictures|numbers)"):
        load_checkpoint(path)


@pytest.mark.parametrize("helps", [True, False])
def test_training_keeps_them_if_they_help_on_val(new_checkpoint, data, monkeypatch, helps):
    """The right caption is the second of two beams, or the first already."""
    model, val = new_checkpoint().model, data.val
    right = [data.vocabulary.encode(image.captions[0])[1:] for image in val.images]

    def beams(model, features, config):
        assert model.neighbors is None
        pairs = zip(right, right[1:] + right[:1], strict=True)
        found = [pair[::-1] if helps else pair for pair in pairs]
        return [[hypothesis(one, -1.0), hypothesis(two, -1.5)] for one, two in found]

    monkeypatch.setattr(pipeline, "decode_batch", beams)
    # The training pictures are those of val.
    checkpoint = SimpleNamespace(model=model, vocabulary=data.vocabulary)
    line = pipeline.choose_search(checkpoint, val, val)
    assert (model.neighbors is not None) == helps
    assert ("the captions of similar training pictures" in line) == helps
    assert not helps or model.neighbors.weight in pipeline.NEIGHBOR_WEIGHTS[1:]
    assert model.beam == BeamConfig()  # the first of what is equal


@pytest.mark.parametrize(("size", "penalty"), [(5, 0.5), (20, 0.9), (20, 1.1)])
def test_the_number_of_beams_and_the_penalty_are_what_is_best_on_val(
    new_checkpoint, data, monkeypatch, size, penalty
):
    """Only so many beams have the right caption, and only this penalty ranks it first."""
    model, val = new_checkpoint().model, data.val
    right = [data.vocabulary.encode(image.captions[0])[1:] for image in val.images]
    short, long = [4, 2], [4] * 40 + [2]  # smaller penalties prefer the one, larger ones the other

    def beams(model, features, config):
        groups = []
        power = penalty - config.length_penalty
        for tokens in right:
            group = [hypothesis(t, -(len(t) ** power)) for t in (short, long)]
            if config.beam_size == size:
                group.append(hypothesis(tokens, -0.98 * len(tokens) ** power))
            groups.append(group)
        return groups

    monkeypatch.setattr(pipeline, "decode_batch", beams)
    pipeline.choose_search(SimpleNamespace(model=model, vocabulary=data.vocabulary), val)
    assert model.neighbors is None and model.beam == BeamConfig(size, penalty)


def test_beam_search_is_as_the_captioner_has_it_unless_told_otherwise(
    new_checkpoint, data, tmp_path
):
    checkpoint, features = new_checkpoint(), data.val.read()
    checkpoint.model.beam = BeamConfig(3, 2.0)
    checkpoint.save(tmp_path / "c.pt")
    model = load_checkpoint(tmp_path / "c.pt").model
    assert model.beam == BeamConfig(3, 2.0)
    found = decode_batch(model, features, DecodeConfig("beam"))
    assert found == decode_batch(model, features, DecodeConfig("beam", 3, 2.0))
    other = decode_batch(model, features, DecodeConfig("beam", 2, 0.0))
    model.beam = BeamConfig(2, 0.0)
    assert decode_batch(model, features, DecodeConfig("beam")) == other != found
