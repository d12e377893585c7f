"""Decoding: greedy, beam search, sampling. Works on any decoder with `start`, `step`, `select`.

All three write at most `max_seq_length` tokens, <end> included, and never <pad>, <start>, <unk>.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.errors import CaptioningError
from captioning.vocabulary import END, PAD, START, UNK


class Hypothesis(NamedTuple):
    """One caption: `tokens` (with <end> if it ended) and the log-probability of each."""

    tokens: list[int]
    log_probs: list[float]
    score: float  # what it was ranked by


def check_options(
    beam_size: int = 1,
    length_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_seq_length: int | None = None,
) -> None:
    """Refuse what no search can work with; the arguments are theirs."""
    for name, value, low in (
        ("beam_size", beam_size, 1),
        ("length_penalty", length_penalty, 0),
        ("no_repeat_ngram", no_repeat_ngram, 0),
        ("top_k", top_k, 0),
        ("max_seq_length", 1 if max_seq_length is None else max_seq_length, 1),
    ):
        if not low <= value < math.inf:
            raise CaptioningError(f"{name}: expected >= {low}, got {value}")
    if not 0 < temperature < math.inf:
        raise CaptioningError(f"temperature: expected > 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise CaptioningError(f"top_p: expected 0 < top_p <= 1, got {top_p}")


def _log_probs(scores: Tensor) -> Tensor:
    """Log-probabilities in float32, with what must not be written left out."""
    scores = scores.float()
    scores[:, [PAD, START, UNK]] = -torch.inf
    return scores.log_softmax(1)


def _hypotheses(tokens: Tensor, log_probs: Tensor) -> list[Hypothesis]:
    hypotheses = []
    for row, values in zip(tokens.tolist(), log_probs.tolist(), strict=True):
        length = row.index(END) + 1 if END in row else len(row)
        hypotheses.append(Hypothesis(row[:length], values[:length], sum(values[:length])))
    return hypotheses


@torch.no_grad()
def sample_tokens(
    decoder: nn.Module,
    image: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
    max_seq_length: int | None = None,
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Write captions word by word: int64 tokens [B,T], <pad> behind <end>, and log-probabilities.

    Log-probabilities are the model's own (temperature 1, nothing filtered), 0 behind <end>.
    `uniform` [B,steps], in [0, 1), decides each word; drawn by `generator` if None.
    """
    steps = max_seq_length or decoder.max_seq_length
    if uniform is None and not greedy:
        uniform = torch.rand(len(image), steps, generator=generator, device=image.device)
    state = decoder.start(image)
    words = torch.full(image.shape[:1], START, device=image.device)
    ended = torch.zeros_like(words, dtype=torch.bool)
    tokens, values = [], []
    for t in range(steps):
        scores, state = decoder.step(words, state)
        log_probs = _log_probs(scores)
        if uniform is None:
            words = log_probs.argmax(1)
        else:
            words = _draw(_filter(log_probs / temperature, top_k, top_p), uniform[:, t])
        words = words.masked_fill(ended, PAD)
        value = log_probs.gather(1, words.unsqueeze(1)).squeeze(1)
        tokens.append(words)
        values.append(value.masked_fill(ended, 0.0))
        ended = ended | (words == END)
        if ended.all():
            break
    return torch.stack(tokens, 1), torch.stack(values, 1)


def _draw(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """The words [B] at which the cumulated probabilities pass `uniform` [B]."""
    sums = log_probs.softmax(1).cumsum(1)
    top = sums[:, -1:]
    wanted = torch.minimum(uniform.unsqueeze(1) * top, top.nextafter(torch.zeros_like(top)))
    return torch.searchsorted(sums, wanted, right=True).squeeze(1)


def _filter(log_probs: Tensor, top_k: int, top_p: float) -> Tensor:
    if top_k:
        least = log_probs.topk(min(top_k, log_probs.size(1))).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < least, -torch.inf)
    if top_p < 1:
        ordered, order = log_probs.sort(descending=True)
        before = ordered.softmax(1).cumsum(1) - ordered.softmax(1)
        drop = torch.empty_like(before, dtype=torch.bool).scatter_(1, order, before >= top_p)
        log_probs = log_probs.masked_fill(drop, -torch.inf)
    return log_probs


def greedy_search(
    decoder: nn.Module, image: Tensor, max_seq_length: int | None = None
) -> list[Hypothesis]:
    """The most probable word at every step.

    Args:
        decoder: in eval mode.
        image: [B,...], from the encoder.
        max_seq_length: the most tokens; the decoder's own limit if None.

    Returns:
        One hypothesis per picture.
    """
    check_options(max_seq_length=max_seq_length)
    return _hypotheses(*sample_tokens(decoder, image, greedy=True, max_seq_length=max_seq_length))


def sample(
    decoder: nn.Module,
    image: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_seq_length: int | None = None,
    generator: torch.Generator | None = None,
) -> list[Hypothesis]:
    """Draw each word at random.

    Args:
        decoder, image, max_seq_length: as in `greedy_search`.
        temperature: > 0; below 1 prefers probable words.
        top_k: draw from the k most probable words only; 0 from all.
        top_p: draw from the fewest words whose probabilities sum up to it (Holtzman et al., 2020).
        generator: source of randomness, for reproducible captions.
    """
    check_options(temperature=temperature, top_k=top_k, top_p=top_p, max_seq_length=max_seq_length)
    return _hypotheses(
        *sample_tokens(decoder, image, temperature, top_k, top_p, False, max_seq_length, generator)
    )


@torch.no_grad()
def beam_search(
    decoder: nn.Module,
    image: Tensor,
    beam_size: int = 5,
    length_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    max_seq_length: int | None = None,
) -> list[list[Hypothesis]]:
    """Keep the `beam_size` best beginnings at every step, for all pictures at once.

    Hypotheses are ranked by sum of log-probabilities / length ** length_penalty. One that ended
    keeps its place among the others, so something is returned even if nothing ended.

    Args:
        decoder, image, max_seq_length: as in `greedy_search`.
        beam_size: K >= 1; 1 is greedy search.
        length_penalty: 0 prefers short captions, 1 ranks by the mean.
        no_repeat_ngram: n > 0 forbids any n words in a row to occur twice in a caption.

    Returns:
        K hypotheses per picture, best first.
    """
    check_options(beam_size, length_penalty, no_repeat_ngram, max_seq_length=max_seq_length)
    batch, device = len(image), image.device
    steps = max_seq_length or decoder.max_seq_length
    first_row = torch.arange(batch, device=device).unsqueeze(1) * beam_size  # [B,1]
    state = decoder.select(
        decoder.start(image), torch.arange(batch, device=device).repeat_interleave(beam_size)
    )
    words = torch.full((batch * beam_size,), START, device=device)
    tokens = torch.empty(batch * beam_size, 0, dtype=torch.long, device=device)
    values = torch.empty(batch * beam_size, 0, device=device)
    total = torch.full((batch, beam_size), -torch.inf, device=device)
    total[:, 0] = 0.0  # all beams begin alike: let only one of them grow
    length = torch.zeros_like(total)
    ended = torch.zeros(batch * beam_size, dtype=torch.bool, device=device)
    for _ in range(steps):
        scores, state = decoder.step(words, state)
        log_probs = _log_probs(scores)
        if no_repeat_ngram:
            _forbid_repeats(log_probs, tokens, no_repeat_ngram)
        log_probs[ended] = -torch.inf
        log_probs[ended, PAD] = 0.0  # the one way to go on for a caption that ended
        sums = total.unsqueeze(2) + log_probs.view(batch, beam_size, -1)
        new_length = length + ~ended.view(batch, beam_size)
        ranks = sums / new_length.clamp(min=1).unsqueeze(2) ** length_penalty
        best = ranks.flatten(1).topk(beam_size).indices  # [B,K]
        parents = (best // log_probs.size(1) + first_row).flatten()
        words = (best % log_probs.size(1)).flatten()
        total = sums.flatten(1).gather(1, best)
        length = new_length.flatten()[parents].view(batch, beam_size)
        tokens = torch.cat([tokens[parents], words.unsqueeze(1)], 1)
        values = torch.cat([values[parents], log_probs[parents, words].unsqueeze(1)], 1)
        ended = ended[parents] | (words == END)
        if ended.all():
            break
        state = decoder.select(state, parents)
    found = _hypotheses(tokens, values)
    ranks = total / length**length_penalty
    groups = []
    for i, row in enumerate(ranks.tolist()):
        group = [found[i * beam_size + k]._replace(score=rank) for k, rank in enumerate(row)]
        # A tiny vocabulary may not have K captions; the beams that never grew are no captions.
        groups.append([h for h in group if h.score > -torch.inf] or group[:1])
    return groups


def _forbid_repeats(log_probs: Tensor, tokens: Tensor, n: int) -> None:
    """Forbid each word that would complete n words in a row that are there already."""
    for row, written in enumerate(tokens.tolist()):
        tail = written[len(written) - n + 1 :]
        for i in range(len(written) - n + 1):
            if written[i : i + n - 1] == tail:
                log_probs[row, written[i + n - 1]] = -torch.inf
