"""Writes captions with one or several decoders: greedy search, sampling and beam search.

Each caption has at most `max_seq_length` tokens, including <end>. The tokens <pad>, <start> and
<unk> are never written. Only `start`, `step`, `select` and `max_seq_length` of a decoder are used.
Decoders must be in eval mode.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioning.data.vocabulary import END, PAD, START, UNK
from captioning.model.decoder import Decoder
from captioning.settings import DecodeConfig


class Hypothesis(NamedTuple):
    """A caption that a search found, or that `beam_search` has not finished yet."""

    tokens: list[int]  # with <end>, unless unfinished or of the maximum length
    log_probs: list[float]  # the log-probability of each token
    score: float  # the search ranks captions by this number


def best_first(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    """Sorts hypotheses by their scores."""
    return sorted(hypotheses, key=lambda h: h.score, reverse=True)


def _log_probs(scores: Tensor) -> Tensor:
    """Returns float32 log-probabilities [B,V]; those of <pad>, <start> and <unk> are -inf."""
    scores = scores.float()
    scores[:, [PAD, START, UNK]] = -torch.inf
    return scores.log_softmax(1)


# A function that chooses the next word of each of R unfinished captions. Its arguments are the
# log-probabilities [R,V] of the next word, the indices [R] of these captions in the batch, and the
# step. It returns the words [R].
Choose = Callable[[Tensor, Tensor, int], Tensor]


def random_words(uniform: Tensor, temperature: float = 1.0) -> Choose:
    """Returns a `Choose` that draws words at random.

    Each of the random numbers `uniform` [B,steps] in [0, 1) decides one word. `temperature` divides
    the log-probabilities. A temperature below 1 favors the probable words.
    """

    def choose(log_probs: Tensor, unfinished: Tensor, t: int) -> Tensor:
        cumulative = (log_probs / temperature).softmax(1).cumsum(1)
        total = cumulative[:, -1:]
        # uniform * total may round up to total, for which `searchsorted` returns V, not a word.
        below_total = total.nextafter(torch.zeros_like(total))
        points = torch.minimum(uniform[unfinished, t, None] * total, below_total)
        return torch.searchsorted(cumulative, points, right=True).squeeze(1)

    return choose


@torch.no_grad()
def write_tokens(
    decoders: Sequence[Decoder], embedded: Sequence[Tensor], choose: Choose
) -> tuple[Tensor, Tensor]:
    """Writes one caption for each of B pictures, word by word.

    `embedded` has one tensor [B,...] for each decoder: the pictures, embedded by the encoder of
    that decoder's captioner. With several decoders the probability of a word is the mean over them.
    Returns the int64 tokens [B,T], with <pad> after <end>, and their log-probabilities [B,T], with
    0 after <end>. The log-probabilities do not depend on the temperature.
    """
    steps = min(decoder.max_seq_length for decoder in decoders)
    device = embedded[0].device
    tokens = torch.full((len(embedded[0]), steps), PAD, device=device)
    log_probs = torch.zeros(tokens.shape, device=device)
    unfinished = torch.arange(len(tokens), device=device)
    states = [(d, d.start(image)) for d, image in zip(decoders, embedded, strict=True)]
    words = torch.full_like(unfinished, START)
    for t in range(steps):
        outputs = [(d, *d.step(words, state)) for d, state in states]
        scores, states = outputs[0][1], [(d, state) for d, _, state in outputs]
        if outputs[1:]:
            # The log of the sum of the probabilities. No division: `_log_probs` normalizes it.
            scores = torch.stack([s.float().log_softmax(1) for _, s, _ in outputs]).logsumexp(0)
        next_log_probs = _log_probs(scores)
        words = choose(next_log_probs, unfinished, t)
        tokens[unfinished, t] = words
        log_probs[unfinished, t] = next_log_probs.gather(1, words.unsqueeze(1)).squeeze(1)
        rows = (words != END).nonzero().squeeze(1)
        if not len(rows):
            break
        if len(rows) != len(unfinished):
            unfinished, words = unfinished[rows], words[rows]
            states = [(d, d.select(state, rows)) for d, state in states]
    return tokens[:, : t + 1], log_probs[:, : t + 1]


def greedy_or_sample(
    decoders: Sequence[Decoder],
    embedded: Sequence[Tensor],
    config: DecodeConfig,
    generator: torch.Generator | None = None,
) -> list[Hypothesis]:
    """Runs greedy search, or sampling if `config.method` is "sample"; see `write_tokens`.

    `generator` draws the random numbers of sampling. Returns one hypothesis for each picture.
    """
    choose: Choose = lambda log_probs, *_: log_probs.argmax(1)
    if config.method == "sample":
        shape = len(embedded[0]), min(decoder.max_seq_length for decoder in decoders)
        uniform = torch.rand(shape, generator=generator, device=embedded[0].device)
        choose = random_words(uniform, config.temperature)

    def hypothesis(tokens: list[int], log_probs: list[float]) -> Hypothesis:
        length = tokens.index(END) + 1 if END in tokens else len(tokens)
        return Hypothesis(tokens[:length], log_probs[:length], sum(log_probs[:length]))

    return [*map(hypothesis, *(t.tolist() for t in write_tokens(decoders, embedded, choose)))]


@torch.no_grad()
def beam_search(decoder: Decoder, images: Tensor, config: DecodeConfig) -> list[list[Hypothesis]]:
    """Searches the K = `config.beam_size` best captions of each picture, all pictures at once.

    The score of a caption is the sum of its log-probabilities / length ** length_penalty. After
    each step the search keeps the K most probable unfinished captions of each picture. Finished
    captions have a list of their own: if both kinds competed for the same K places, an unfinished
    caption could displace a finished one, and in the end get a lower score than the finished one.
    An unfinished caption is dropped as soon as it cannot become one of the K best any more. After
    the last step unfinished captions count as finished.

    `images` [B,...] are the pictures, embedded by the encoder. Returns K hypotheses for each
    picture, best first, or fewer if the vocabulary allows no more.
    """
    k, steps, penalty = config.beam_size, decoder.max_seq_length, config.length_penalty
    finished: list[list[Hypothesis]] = [[] for _ in images]
    live = {picture: [Hypothesis([], [], 0.0)] for picture in range(len(images))}
    words, state = torch.full((len(images),), START, device=images.device), decoder.start(images)
    for length in count(1):
        scores, state = decoder.step(words, state)
        # Only one of the extensions of a caption ends with <end>, so at most K of 2 K are finished.
        extended = _extend(_log_probs(scores), live, 2 * k)
        live, rows = {}, []
        for picture, extensions in extended.items():
            ended = [h for h, _ in extensions[:k] if h.tokens[-1] == END or length == steps]
            scored = [h._replace(score=h.score / length**penalty) for h in ended]
            finished[picture] = best = best_first(finished[picture] + scored)[:k]
            # The sum of log-probabilities is negative, each word lowers it, and the length is at
            # most `steps`. So an unfinished caption scores at most sum / steps**penalty. It can
            # beat the K-th best finished caption only if its sum is above `least_sum`.
            least_sum = best[-1].score * steps**penalty if len(best) == k else -torch.inf
            unfinished = [pair for pair in extensions if pair[0].tokens[-1] != END][:k]
            unfinished = [pair for pair in unfinished if pair[0].score > least_sum]
            # With one beam the search ends at the first <end>, as greedy search does.
            if unfinished and not (k == 1 and ended):
                live[picture] = [h for h, _ in unfinished]
                rows += [row for _, row in unfinished]
        if not live or length == steps:
            break
        last_words = [h.tokens[-1] for group in live.values() for h in group]
        words, kept_rows = torch.tensor([last_words, rows], device=images.device)
        state = decoder.select(state, kept_rows)
    return finished


def _extend(
    log_probs: Tensor, live: dict[int, list[Hypothesis]], most: int
) -> dict[int, list[tuple[Hypothesis, int]]]:
    """Extends captions by one word, and returns the `most` most probable results of each picture.

    `live` has the captions of each picture, R in all, and `log_probs` [R,V] the log-probabilities
    of their next word. A result is a pair: the longer caption, whose score is the sum of its
    log-probabilities, and the row in `log_probs` of the caption that was extended.
    """
    captions, counts = [h for group in live.values() for h in group], [*map(len, live.values())]
    values, words = log_probs.topk(min(most, log_probs.size(1)))
    sums = values + values.new_tensor([h.score for h in captions]).unsqueeze(1)
    padded = pad_sequence(sums.split(counts), batch_first=True, padding_value=-torch.inf)
    totals, positions = padded.flatten(1).topk(min(most, padded[0].numel()))
    first_rows = torch.tensor([0, *counts[:-1]], device=words.device).cumsum(0).unsqueeze(1)
    # Pictures with fewer captions have padding with sums of -inf, which is left out below. Without
    # the clamp, padding of the last pictures would have row numbers beyond the last row.
    rows = (first_rows + positions // words.size(1)).clamp(max=len(captions) - 1)
    indices = rows * words.size(1) + positions % words.size(1)
    fields = (t.tolist() for t in (totals, words.take(indices), values.take(indices), rows))

    def extend(total: float, word: int, log_prob: float, row: int) -> tuple[Hypothesis, int]:
        tokens, log_probs, _ = captions[row]
        return Hypothesis([*tokens, word], [*log_probs, log_prob], total), row

    results = {i: map(extend, *columns) for i, *columns in zip(live, *fields, strict=True)}
    # A score of -inf is padding, or has a word that must not be written.
    return {i: [p for p in pairs if p[0].score != -torch.inf] for i, pairs in results.items()}
