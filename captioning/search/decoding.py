"""Decoding: greedy, beam search, sampling. It uses `start`, `step` and `select` of a decoder.

All three write at most `max_seq_length` tokens, <end> included, and never <pad>, <start>, <unk>.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioning.data.vocabulary import END, PAD, START, UNK
from captioning.model.decoder import Decoder
from captioning.settings import DecodeConfig


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
    hypotheses, found = [], write_tokens(decoders, images, choose)
    for row, values in zip(*(tensor.tolist() for tensor in found), strict=True):
        length = row.index(END) + 1 if END in row else len(row)
        hypotheses.append(Hypothesis(row[:length], values[:length], sum(values[:length])))
    return hypotheses


class _Path(NamedTuple):
    """A caption while it is written: its last word, after another path; None before <start>."""

    total: float  # the sum of its log-probabilities
    word: int = START
    log_prob: float = 0.0
    row: int = 0  # of `before` in the batch
    before: "_Path | None" = None

    def hypothesis(self, score: float) -> Hypothesis:
        tokens, log_probs, path = [], [], self
        while path.before:
            tokens.append(path.word)
            log_probs.append(path.log_prob)
            path = path.before
        return Hypothesis(tokens[::-1], log_probs[::-1], score)


@torch.no_grad()
def beam_search(decoder: Decoder, image: Tensor, config: DecodeConfig) -> list[list[Hypothesis]]:
    """Keep the K best unfinished captions at every step, for all pictures at once.

    Hypotheses are ranked by sum of log-probabilities / length ** length_penalty. Finished ones are
    kept apart, so that none that goes on displaces them and then ends worse. A caption is given up
    when it can no longer end among the K best; the decoder computes only the others. At the last
    step unfinished ones count too: something is returned, K hypotheses per picture, best first, or
    fewer if there are no more.
    """
    k, steps, penalty = config.beam_size, decoder.max_seq_length, config.length_penalty
    ended: list[list[Hypothesis]] = [[] for _ in image]
    live = {picture: [_Path(0.0)] for picture in range(len(image))}
    words, state = torch.full((len(image),), START, device=image.device), decoder.start(image)
    for length in range(1, steps + 1):
        scores, state = decoder.step(words, state)
        grown = zip([*live], _grow(_log_probs(scores), [*live.values()], k), strict=True)
        live = {}
        for picture, paths in grown:
            ends = [path for path in paths[:k] if path.word == END or length == steps]
            ended[picture] += [path.hypothesis(path.total / length**penalty) for path in ends]
            best = sorted(ended[picture], key=lambda h: h.score, reverse=True)[:k]
            ended[picture] = best
            # Words to come can only lower the sum, and length can at most become `steps`.
            least = best[-1].score * steps**penalty if len(best) == k else -torch.inf
            going = [path for path in paths if path.word != END][:k]
            going = [path for path in going if path.total > least]
            if going and not (k == 1 and ends):  # greedy search ends with the first <end>
                live[picture] = going
        if not live or length == steps:
            break
        kept = [path for paths in live.values() for path in paths]
        words, rows = torch.tensor([(path.word, path.row) for path in kept]).t().to(image.device)
        state = decoder.select(state, rows)
    return ended


def _grow(log_probs: Tensor, groups: list[list[_Path]], k: int) -> list[list[_Path]]:
    """The 2 K captions of each picture that are one word longer and have the largest sums.

    `groups` are the captions of each picture so far; `log_probs` [R,V] has a row for each. At most
    K of the new ones end, one of each row, so K are left.
    """
    before, counts = [path for group in groups for path in group], [*map(len, groups)]
    values, words = log_probs.topk(min(2 * k, log_probs.size(1)))
    sums = values + values.new_tensor([path.total for path in before]).unsqueeze(1)
    padded = pad_sequence(sums.split(counts), batch_first=True, padding_value=-torch.inf)
    totals, best = padded.flatten(1).topk(min(2 * k, padded[0].numel()))
    first = torch.tensor([0, *counts[:-1]], device=words.device).cumsum(0).unsqueeze(1)
    rows = (first + best // words.size(1)).clamp(max=len(before) - 1)
    flat = rows * words.size(1) + best % words.size(1)
    columns = (tensor.tolist() for tensor in (totals, words.take(flat), values.take(flat), rows))
    return [
        [
            _Path(total, word, value, row, before[row])
            for total, word, value, row in zip(*picture, strict=True)
            if total != -torch.inf  # a tiny vocabulary may not have so many
        ]
        for picture in zip(*columns, strict=True)
    ]
