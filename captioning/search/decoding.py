"""Decoding: greedy, beam search, sampling. It uses `start`, `step` and `select` of a decoder.

All three write at most `max_seq_length` tokens, <end> included, and never <pad>, <start>, <unk>.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.data import END, PAD, START, UNK
from captioning.model import Decoder
from captioning.settings import BeamConfig, check_settings


@dataclass(frozen=True)
class DecodeConfig:
    """How captions are written; what is None is as training chose it.

    Args:
        method: "beam": keeps several captions; "greedy": the best word each time; "sample": draws.
        beam_size: number of beams.
        length_penalty: captions are ranked by log probability / length^length_penalty.
        neighbors: weight of the agreement with captions of similar training pictures; 0: none.
        temperature: of sampling; below 1 prefers probable words.
        seed: of sampling; the same seed gives the same captions.
    """

    method: str = "beam"
    beam_size: int | None = None
    length_penalty: float | None = None
    neighbors: float | None = None
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)


class Hypothesis(NamedTuple):
    """One caption: `tokens` (with <end> if it ended) and the log-probability of each."""

    tokens: list[int]
    log_probs: list[float]
    score: float  # by which it was ranked


def _log_probs(scores: Tensor) -> Tensor:
    """Log-probabilities in float32, -inf for what must not be written."""
    scores = scores.float()
    scores[:, [PAD, START, UNK]] = -torch.inf
    return scores.log_softmax(1)


def _hypotheses(tokens: Tensor, log_probs: Tensor) -> list[Hypothesis]:
    hypotheses = []
    for row, values in zip(tokens.tolist(), log_probs.tolist(), strict=True):
        length = row.index(END) + 1 if END in row else len(row)
        hypotheses.append(Hypothesis(row[:length], values[:length], sum(values[:length])))
    return hypotheses


# From log-probabilities [B,V] of the captions `going` [B] at step t: the words [B].
Choose = Callable[[Tensor, Tensor, int], Tensor]


def best_words(log_probs: Tensor, going: Tensor, t: int) -> Tensor:
    """The most probable words."""
    return log_probs.argmax(1)


def random_words(uniform: Tensor, temperature: float = 1.0) -> Choose:
    """Words drawn at random; `uniform` [B,steps], in [0, 1), decides each."""

    def choose(log_probs: Tensor, going: Tensor, t: int) -> Tensor:
        sums = (log_probs / temperature).softmax(1).cumsum(1)
        top = sums[:, -1:]
        points = torch.minimum(uniform[going, t, None] * top, top.nextafter(torch.zeros_like(top)))
        return torch.searchsorted(sums, points, right=True).squeeze(1)

    return choose


@torch.no_grad()
def write_tokens(
    decoders: Sequence[Decoder], images: Sequence[Tensor], choose: Choose
) -> tuple[Tensor, Tensor]:
    """Write captions word by word: int64 tokens [B,T], <pad> after <end>, and log-probabilities.

    Each decoder has its embedding of the images; the probability of a word is the mean of theirs.
    Log-probabilities are the models' own (temperature 1, nothing filtered), 0 after <end>.
    """
    steps = min(decoder.max_seq_length for decoder in decoders)
    count, device = len(images[0]), images[0].device
    tokens = torch.full((count, steps), PAD, device=device)
    values = torch.zeros(tokens.shape, device=device)
    going = torch.arange(count, device=device)  # the captions that have not ended
    states = [decoder.start(image) for decoder, image in zip(decoders, images, strict=True)]
    words = torch.full_like(going, START)
    for t in range(steps):
        pairs = [decoder.step(words, s) for decoder, s in zip(decoders, states, strict=True)]
        scores, states = pairs[0][0], [state for _, state in pairs]
        if len(pairs) > 1:
            scores = torch.stack([s.float().log_softmax(1) for s, _ in pairs]).logsumexp(0)
        log_probs = _log_probs(scores)
        words = choose(log_probs, going, t)
        tokens[going, t] = words
        values[going, t] = log_probs.gather(1, words.unsqueeze(1)).squeeze(1)
        rows = (words != END).nonzero().squeeze(1)
        if not len(rows):
            break
        if len(rows) < len(going):
            going, words = going[rows], words[rows]
            states = [d.select(s, rows) for d, s in zip(decoders, states, strict=True)]
    return tokens[:, : t + 1], values[:, : t + 1]


def write_captions(
    decoders: Sequence[Decoder],
    images: Sequence[Tensor],
    config: DecodeConfig,
    generator: torch.Generator | None = None,
) -> list[Hypothesis]:
    """Greedy search or sampling, for images [B,...] as the encoders embed them.

    The decoders are in eval mode, here and in beam search.
    """
    choose: Choose = best_words
    if config.method == "sample":
        steps = min(decoder.max_seq_length for decoder in decoders)
        shape = len(images[0]), steps
        uniform = torch.rand(shape, generator=generator, device=images[0].device)
        choose = random_words(uniform, config.temperature)
    return _hypotheses(*write_tokens(decoders, images, choose))


@torch.no_grad()
def beam_search(decoder: Decoder, image: Tensor, beam: BeamConfig) -> list[list[Hypothesis]]:
    """Keep the K best unfinished captions at every step, for all pictures at once.

    Hypotheses are ranked by sum of log-probabilities / length ** length_penalty. Finished ones are
    kept apart, so that none that goes on displaces them and then ends worse. A caption is given up
    when it can no longer end among the K best; the decoder computes only the others. At the last
    step unfinished ones count too: something is returned, K hypotheses per picture, best first, or
    fewer if there are no more.
    """
    batch, k, device = len(image), beam.beam_size, image.device
    steps, penalty = decoder.max_seq_length, beam.length_penalty
    live, ended = (_Beams.empty(batch, k, steps, device) for _ in range(2))
    live.ranks[:, 0] = 0.0  # all beams are equal at first: only one grows
    first = torch.arange(batch, device=device).unsqueeze(1) * k  # the place of each first beam
    rows = first.flatten()  # the place of the beam that each row of the state is of
    words, state = torch.full_like(rows, START), decoder.start(image)
    for t in range(steps):
        scores, state = decoder.step(words, state)
        grown, parents, written = live.grow(_log_probs(scores), rows, t)
        ends = written == END
        stops = ends.clone() if t + 1 < steps else torch.ones_like(ends)
        stops[:, k:] = False  # only the best K
        ranks = (grown.ranks / (t + 1) ** penalty).masked_fill(~stops, -torch.inf)
        ended = ended.join(grown._replace(ranks=ranks))
        ended = ended.pick(ended.ranks.topk(k).indices)
        order = ends.byte().argsort(stable=True)[:, :k]
        live = grown.pick(order)
        # Words to come can only lower the sum, and length can at most become `steps`.
        hopeful = live.ranks / steps**penalty > ended.ranks[:, -1:]
        if k == 1:
            hopeful &= ~ends[:, :1]  # greedy search ends with the first <end>
        places = hopeful.flatten().nonzero().squeeze(1)
        if t + 1 == steps or not len(places):
            break
        row_of = torch.zeros(batch * k, dtype=torch.long, device=device)
        row_of[rows] = torch.arange(len(rows), device=device)
        parents = (parents.gather(1, order) + first).flatten()[places]
        state = decoder.select(state, row_of[parents])
        rows, words = places, written.gather(1, order).flatten()[places]
    return ended.hypotheses()


class _Beams(NamedTuple):
    """The beams of some pictures; `ranks` [B,K] orders them, and is -inf where there is none."""

    ranks: Tensor
    tokens: Tensor  # int64 [B,K,steps], <pad> where nothing is written
    values: Tensor  # [B,K,steps], the log-probability of each token

    @classmethod
    def empty(cls, batch: int, k: int, steps: int, device: torch.device) -> "_Beams":
        values = torch.zeros(batch, k, steps, device=device)
        tokens = torch.full_like(values, PAD, dtype=torch.long)
        return cls(torch.full((batch, k), -torch.inf, device=device), tokens, values)

    def pick(self, indices: Tensor) -> "_Beams":
        """Some beams [B,M] of each picture."""
        rows = indices.unsqueeze(2)
        tokens, values = (t.take_along_dim(rows, 1) for t in (self.tokens, self.values))
        return _Beams(self.ranks.gather(1, indices), tokens, values)

    def grow(self, log_probs: Tensor, rows: Tensor, t: int) -> tuple["_Beams", Tensor, Tensor]:
        """The best 2 K beams with one more word; where each came from, and its word, both [B,2 K].

        `log_probs` [R,V] are those of the beams in the places `rows` [R]. Beams are ranked by their
        sums. At most K of them end, one of each beam, so K are left.
        """
        batch, k, _ = self.tokens.shape
        values, words = log_probs.topk(min(2 * k, log_probs.size(1)))
        shape = batch * k, values.size(1)
        sums = values.new_full(shape, -torch.inf)
        sums[rows] = self.ranks.flatten()[rows].unsqueeze(1) + values
        totals, best = sums.view(batch, -1).topk(min(2 * k, k * shape[1]))
        of_picture = lambda part: part.new_zeros(shape).index_copy_(0, rows, part).view(batch, -1)
        parents, written = best // shape[1], of_picture(words).gather(1, best)
        grown = self.pick(parents)._replace(ranks=totals)
        grown.tokens[:, :, t] = written
        grown.values[:, :, t] = of_picture(values).gather(1, best)
        return grown, parents, written

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Those of each picture, best first."""
        found = iter(_hypotheses(self.tokens.flatten(0, 1), self.values.flatten(0, 1)))
        groups = []
        for row in self.ranks.tolist():
            group = [next(found)._replace(score=rank) for rank in row]
            # A tiny vocabulary may not have K captions.
            groups.append([h for h in group if h.score > -torch.inf] or group[:1])
        return groups

    def join(self, other: "_Beams") -> "_Beams":
        return _Beams(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))
