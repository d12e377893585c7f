"""Decoding: greedy, beam search, sampling. It uses `start`, `step` and `select` of a decoder.

All three write at most `max_seq_length` tokens, <end> included, and never <pad>, <start>, <unk>.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.config import (
    ANY_INTEGER,
    FROM_0,
    FROM_1,
    MAX_TOKENS,
    POSITIVE,
    BeamConfig,
    Checked,
    setting,
)
from captioning.data import END, PAD, START, UNK
from captioning.model import Decoder


@dataclass(frozen=True)
class DecodeConfig(Checked):
    """How captions are written."""

    method: str = setting(
        "greedy: the best word each time; beam: keep several captions; sample: draw words",
        "greedy",
        choices=("greedy", "beam", "sample"),
    )
    beam_size: int | None = setting(
        "beam: number of beams (what was best on --val, or 5)", None, bounds=FROM_1
    )
    length_penalty: float | None = setting(
        "beam: captions are ranked by log probability / length^X; 0 prefers short ones (what was "
        "best on --val, or 0.7)",
        None,
        bounds=FROM_0,
    )
    neighbors: float | None = setting(
        "beam: weight of a caption's agreement with those of similar training pictures, beside its "
        "log probability / length^X; 0: none (what was best on --val)",
        None,
        bounds=FROM_0,
    )
    temperature: float = setting("sample: below 1 prefers probable words", 1.0, bounds=POSITIVE)
    seed: int = setting("sample: the same seed gives the same captions", 0, bounds=ANY_INTEGER)
    max_seq_length: int | None = setting(
        "maximum number of tokens, with <end>; as trained if not given",
        None,
        bounds={">=": 1, "<=": MAX_TOKENS},
    )


DEFAULT, BEAM = DecodeConfig(), BeamConfig()


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
    decoder: Decoder, image: Tensor, choose: Choose, max_seq_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Write captions word by word: int64 tokens [B,T], <pad> after <end>, and log-probabilities.

    Log-probabilities are the model's own (temperature 1, nothing filtered), 0 after <end>.
    """
    steps = max_seq_length or decoder.max_seq_length
    tokens = torch.full((len(image), steps), PAD, device=image.device)
    values = torch.zeros(tokens.shape, device=image.device)
    going = torch.arange(len(image), device=image.device)  # the captions that have not ended
    state, words = decoder.start(image), torch.full_like(going, START)
    for t in range(steps):
        scores, state = decoder.step(words, state)
        log_probs = _log_probs(scores)
        words = choose(log_probs, going, t)
        tokens[going, t] = words
        values[going, t] = log_probs.gather(1, words.unsqueeze(1)).squeeze(1)
        rows = (words != END).nonzero().squeeze(1)
        if not len(rows):
            break
        if len(rows) < len(going):
            going, words, state = going[rows], words[rows], decoder.select(state, rows)
    return tokens[:, : t + 1], values[:, : t + 1]


def write_captions(
    decoder: Decoder,
    image: Tensor,
    config: DecodeConfig = DEFAULT,
    generator: torch.Generator | None = None,
) -> list[Hypothesis]:
    """Greedy search or sampling, for images [B,...] as the encoder embeds them.

    The decoder is in eval mode, here and in beam search.
    """
    choose: Choose = best_words
    steps = config.max_seq_length or decoder.max_seq_length
    if config.method == "sample":
        uniform = torch.rand(len(image), steps, generator=generator, device=image.device)
        choose = random_words(uniform, config.temperature)
    return _hypotheses(*write_tokens(decoder, image, choose, steps))


@torch.no_grad()
def beam_search(
    decoder: Decoder, image: Tensor, config: DecodeConfig = DEFAULT, beam: BeamConfig = BEAM
) -> list[list[Hypothesis]]:
    """Keep the K best unfinished captions at every step, for all pictures at once.

    `beam` has what `config` leaves open.

    Hypotheses are ranked by sum of log-probabilities / length ** length_penalty. Finished ones are
    kept apart, so that none that goes on displaces them and then ends worse. A picture is done when
    no unfinished one can end better. At the last step they count too: something is returned, K
    hypotheses per picture, best first, or fewer if there are no more.
    """
    batch, k, device = len(image), config.beam_size or beam.beam_size, image.device
    steps = config.max_seq_length or decoder.max_seq_length
    given = config.length_penalty
    length_penalty = beam.length_penalty if given is None else given
    pictures = torch.arange(batch, device=device)  # those that are not done
    live = _Beams.empty(batch, k, steps, device)
    live.ranks[:, 0] = 0.0  # all beams are equal at first: only one grows
    ended = _Beams.empty(batch, k, steps, device)
    words = torch.full((batch * k,), START, device=device)
    state = decoder.select(decoder.start(image), pictures.repeat_interleave(k))
    for t in range(steps):
        scores, state = decoder.step(words, state)
        log_probs = _log_probs(scores)
        grown, parents = live.grow(log_probs.view(len(pictures), k, -1), t)
        words = grown.tokens[:, :, t]
        ends = words == END
        stops = ends.clone() if t + 1 < steps else torch.ones_like(ends)
        stops[:, k:] = False  # only the best K
        ranks = (grown.ranks / (t + 1) ** length_penalty).masked_fill(~stops, -torch.inf)
        best = ended.rows(pictures).join(grown._replace(ranks=ranks))
        best = best.pick(best.ranks.topk(k).indices)
        ended.put(pictures, best)
        order = ends.byte().argsort(stable=True)[:, :k]
        live, parents, words = grown.pick(order), parents.gather(1, order), words.gather(1, order)
        # Words to come can only lower the sum, and length can at most become `steps`.
        done = live.ranks[:, 0] / steps**length_penalty <= best.ranks[:, -1]
        if k == 1:
            done |= ends[:, 0]  # greedy search ends with the first <end>
        going = (~done).nonzero().squeeze(1)
        if t + 1 == steps or not len(going):
            break
        parents = parents + torch.arange(len(pictures), device=device).unsqueeze(1) * k
        state = decoder.select(state, parents[going].flatten())
        live, words, pictures = live.rows(going), words[going].flatten(), pictures[going]
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

    def grow(self, log_probs: Tensor, t: int) -> tuple["_Beams", Tensor]:
        """The best 2 K beams with one more word, of `log_probs` [B,K,V], and where each came from.

        They are ranked by their sums. At most K of them end, one of each beam, so K are left.
        """
        sums = self.ranks.unsqueeze(2) + log_probs
        total, best = sums.flatten(1).topk(2 * sums.size(1))
        parents = best // sums.size(2)
        grown = self.pick(parents)._replace(ranks=total)
        grown.tokens[:, :, t] = best % sums.size(2)
        grown.values[:, :, t] = log_probs.flatten(1).gather(1, best)
        return grown, parents

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Those of each picture, best first."""
        found = iter(_hypotheses(self.tokens.flatten(0, 1), self.values.flatten(0, 1)))
        groups = []
        for row in self.ranks.tolist():
            group = [next(found)._replace(score=rank) for rank in row]
            # A tiny vocabulary may not have K captions.
            groups.append([h for h in group if h.score > -torch.inf] or group[:1])
        return groups

    def rows(self, pictures: Tensor) -> "_Beams":
        return _Beams(*(tensor[pictures] for tensor in self))

    def put(self, pictures: Tensor, beams: "_Beams") -> None:
        for mine, new in zip(self, beams, strict=True):
            mine[pictures] = new

    def join(self, other: "_Beams") -> "_Beams":
        return _Beams(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))
