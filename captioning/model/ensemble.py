"""Several captioners as one, whose probability of each word is the mean of theirs.

Beam search lets each search alone, and ranks what they find by the mean of their scores
(search/generate.py).
"""

from collections.abc import Iterator, Sequence
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


class Ensemble(nn.Module):
    """What writing needs of a `Captioner`; it is its own encoder and `Decoder`.

    Images stand side by side, and a state is those of the members. It has as many beams as the
    member with most; its length penalty and weight of similar pictures are the mean of theirs.
    """

    encoder = decoder = property(lambda self: self)

    def __init__(self, members: Sequence[Captioner]) -> None:
        super().__init__()
        self.members: Any = nn.ModuleList(members)
        self.config = members[0].config
        self.sizes = [member.config.embed_size for member in members]
        self.max_seq_length = min(member.decoder.max_seq_length for member in members)
        beams = [member.beam for member in members]
        penalty = fmean(beam.length_penalty for beam in beams)
        self.beam = BeamConfig(max(beam.beam_size for beam in beams), penalty)
        near = [member.neighbors for member in members]
        weight = fmean(n.weight if n else 0.0 for n in near)
        self.neighbors = next((replace(n, weight=weight) for n in near if n), None)
        if all(isinstance(member.decoder, Attentive) for member in members):
            self.attention = self._attention

    def embed(self, features: Tensor) -> Tensor:
        return torch.cat([member.encoder.embed(features) for member in self.members], -1)

    def parts(self, image: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Each member with its part of what `embed` gave."""
        return zip(self.members, image.split(self.sizes, -1), strict=True)

    def start(self, image: Tensor) -> list[Any]:
        return [member.decoder.start(part) for member, part in self.parts(image)]

    def step(self, words: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        pairs = zip(self.members, state, strict=True)
        found = [member.decoder.step(words, own) for member, own in pairs]
        log_probs = torch.stack([scores.float().log_softmax(1) for scores, _ in found])
        return log_probs.logsumexp(0), [own for _, own in found]

    def select(self, state: list[Any], rows: Tensor) -> list[Any]:
        pairs = zip(self.members, state, strict=True)
        return [member.decoder.select(own, rows) for member, own in pairs]

    def _attention(self, image: Tensor, tokens: Tensor) -> Tensor:
        maps = [member.decoder.attention(part, tokens) for member, part in self.parts(image)]
        return torch.stack(maps).mean(0)


def load_ensemble(
    paths: Sequence[str | Path], lstm: str = "fastlstm", device: str = "cpu"
) -> Checkpoint:
    """Read a checkpoint, or several as one captioner; its history is that of the first.

    Raises:
        CaptioningError: as of `load_checkpoint`, or their words or CNNs are not the same.
    """
    found = [load_checkpoint(path, lstm, device) for path in paths]
    first, cnn = found[0], found[0].cnn
    for path, other in zip(paths, found, strict=True):
        words, got = len(other.vocabulary), other.cnn.config
        if other.vocabulary.words != first.vocabulary.words:
            told = f"the {len(first.vocabulary)} words of {paths[0]}, got {words}, not the same"
            raise CaptioningError(f"{path}: expected {told} (train --members makes fitting ones)")
        if other.cnn.fingerprint != cnn.fingerprint:
            told = f"{path}: expected the CNN of {paths[0]}, {cnn.config.name}, with its weights, "
            raise CaptioningError(
                f"{told}pooled by {cnn.config.pool}; got {got.name}, pooled by {got.pool}"
            )
    if len(found) == 1:
        return first
    model = cast(Captioner, Ensemble([checkpoint.model for checkpoint in found]).eval())
    return replace(first, model=model)
