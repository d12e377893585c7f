"""Several captioners as one, which writes by the mean of their probabilities of each word."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor, nn

from captioning.config import BeamConfig
from captioning.errors import CaptioningError
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint, load_checkpoint
from captioning.model.decoders import Attentive


class Ensemble(Captioner):
    """Captioners of the same words and features; to write with, not to train.

    It has as many beams as the member that has most. The length penalty and the weight of similar
    pictures are the mean of what was best for each.
    """

    def __init__(self, members: Sequence[Captioner]) -> None:
        nn.Module.__init__(self)
        self.config = members[0].config
        self.encoder = cast(Any, _Encoders(members))
        self.decoder = cast(Any, _Decoders(members))
        sizes = [member.beam.beam_size for member in members]
        self.beam = BeamConfig(max(sizes), fmean(m.beam.length_penalty for m in members))
        near = [member.neighbors for member in members]
        weight = fmean(n.weight if n else 0.0 for n in near)
        self.neighbors = next((replace(n, weight=weight) for n in near if n), None)


class _Encoders(nn.Module):
    """The members' vectors of a picture, side by side."""

    def __init__(self, members: Sequence[Captioner]) -> None:
        super().__init__()
        self.members: Any = nn.ModuleList(member.encoder for member in members)

    def embed(self, features: Tensor) -> Tensor:
        return torch.cat([member.embed(features) for member in self.members], -1)


class _Decoders(nn.Module):
    """A `Decoder` whose state is the states of its members."""

    def __init__(self, members: Sequence[Captioner]) -> None:
        super().__init__()
        self.members: Any = nn.ModuleList(cast(Any, member.decoder) for member in members)
        self.sizes = [member.config.embed_size for member in members]
        self.max_seq_length = min(member.decoder.max_seq_length for member in members)
        if all(isinstance(member.decoder, Attentive) for member in members):
            self.attention = self._attention

    def start(self, image: Tensor) -> list[Any]:
        parts = image.split(self.sizes, -1)
        return [member.start(part) for member, part in zip(self.members, parts, strict=True)]

    def step(self, words: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        found = [member.step(words, own) for member, own in zip(self.members, state, strict=True)]
        scores = torch.stack([scores.float().log_softmax(1) for scores, _ in found])
        return scores.logsumexp(0), [own for _, own in found]

    def select(self, state: list[Any], rows: Tensor) -> list[Any]:
        return [member.select(own, rows) for member, own in zip(self.members, state, strict=True)]

    def _attention(self, image: Tensor, tokens: Tensor) -> Tensor:
        parts = zip(self.members, image.split(self.sizes, -1), strict=True)
        return torch.stack([member.attention(part, tokens) for member, part in parts]).mean(0)


def load_ensemble(
    paths: Sequence[str | Path], lstm: str = "fastlstm", device: str = "cpu"
) -> Checkpoint:
    """Read a checkpoint, or several as one captioner; its history is that of the first.

    Raises:
        CaptioningError: as of `load_checkpoint`, or the words or the CNNs are not the same.
    """
    first, *others = found = [load_checkpoint(path, lstm, device) for path in paths]
    for path, other in zip(paths[1:], others, strict=True):
        if other.vocabulary.words != first.vocabulary.words:
            raise CaptioningError(
                f"{path}: expected the {len(first.vocabulary)} words of {paths[0]}, got "
                f"{len(other.vocabulary)} words that are not the same (train --members N trains "
                "captioners that fit)"
            )
        if other.cnn.fingerprint != first.cnn.fingerprint:
            cnn, got = first.cnn.config, other.cnn.config
            raise CaptioningError(
                f"{path}: expected the CNN of {paths[0]}, {cnn.name} pooled by {cnn.pool}, with "
                f"the same weights; got {got.name} pooled by {got.pool}"
            )
    if not others:
        return first
    model = Ensemble([checkpoint.model for checkpoint in found]).eval()
    return replace(first, model=model)
