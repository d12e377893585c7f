"""The searches, on decoders so small that all captions can be enumerated, and probabilities."""

import itertools
import math

import pytest
import torch

from captioning.cnn.pretrained import CNNConfig
from captioning.data.vocabulary import END, PAD, SPECIAL, START, UNK, Vocabulary
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint
from captioning.model.lstm import DecoderRNN
from captioning.search import decoding
from captioning.search.decoding import random_words, write_tokens
from captioning.search.generate import decode_batch, generate_captions
from captioning.settings import DecodeConfig, ModelConfig

E, V, STEPS = 5, 7, 3  # three words: 4, 5 and 6


def beam_search(model, image, beam_size=5, length_penalty=0.7):
    return decoding.beam_search(model, image, DecodeConfig("beam", beam_size, length_penalty))


def greedy_search(model, image):
    return decoding.greedy_or_sample([model], [image], DecodeConfig("greedy"))


def sample(model, image, generator=None, **options):
    return decoding.greedy_or_sample([model], [image], DecodeConfig("sample", **options), generator)


@pytest.fixture
def model():
    torch.manual_seed(14)
    decoder = DecoderRNN(ModelConfig(1, V, E, 6, max_seq_length=STEPS)).eval()
    for parameter in decoder.parameters():
        parameter.data *= 5  # so that captions differ
    return decoder


@pytest.fixture
def image():
    torch.manual_seed(4)
    return 2 * torch.randn(4, E)


def every_caption():
    words = (4, 5, 6)
    ended = [[*w, END] for n in range(STEPS) for w in itertools.product(words, repeat=n)]
    return ended + [list(w) for w in itertools.product(words, repeat=STEPS)]


@torch.no_grad()
def log_probs(decoder, image, tokens):
    """Computes the log-probabilities of a caption by teacher forcing, without special words."""
    captions = torch.tensor([[START, *tokens]])
    hidden, _ = decoder.unroll(image[None], captions, torch.tensor([captions.size(1)]))
    scores = decoder.linear(hidden).double()
    scores[:, [PAD, START, UNK]] = -torch.inf
    return scores.log_softmax(1).gather(1, captions[0, 1:, None]).squeeze(1)


def log_prob(model, image, tokens):
    return log_probs(model, image, tokens).sum().item()


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
def test_a_wide_beam_finds_the_best_of_all_captions(model, image, length_penalty):
    captions = every_caption()
    found = beam_search(model, image, beam_size=60, length_penalty=length_penalty)
    for i in range(len(image)):
        ranks = ((log_prob(model, image[i], c) / len(c) ** length_penalty, c) for c in captions)
        ranked = sorted(ranks, reverse=True)
        assert len(found[i]) == len(captions) == 40
        assert [h.tokens for h in found[i][:5]] == [c for _, c in ranked[:5]]
        scores = torch.tensor([[h.score for h in found[i]], [s for s, _ in ranked]])
        torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)


def by_hand(model, image, k, length_penalty, steps):
    """Beam search of one picture that runs all steps: returns [(score, tokens)], best first."""
    live, ended = [(0.0, [])], []
    for t in range(1, steps + 1):
        longer = [[*tokens, word] for _, tokens in live for word in (4, 5, 6, END)]
        grown = sorted(((log_prob(model, image, new), new) for new in longer), reverse=True)
        stops = [(s / t**length_penalty, c) for s, c in grown[:k] if c[-1] == END or t == steps]
        ended = sorted(ended + stops, reverse=True)[:k]
        live = [(s, c) for s, c in grown if c[-1] != END][:k]
    return ended


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
def test_equals_the_search_by_hand(model, image, length_penalty):
    lengths, model.max_seq_length = set(), 6
    for beam_size, bias in itertools.product((2, 3, 5), (0.0, 1.0)):
        model.linear.bias.data[END] += bias  # so that captions end earlier
        found = beam_search(model, image, beam_size, length_penalty)
        for i, group in enumerate(found):
            expected = by_hand(model, image[i], beam_size, length_penalty, 6)
            assert [h.tokens for h in group] == [tokens for _, tokens in expected]
            assert [h.score for h in group] == pytest.approx([r for r, _ in expected], rel=1e-4)
            lengths |= {len(h.tokens) for h in group}
    assert len(lengths) > 1


class Table(torch.nn.Module):
    """A decoder with a table of probabilities. Its state is the text that was written so far."""

    max_seq_length = 4

    def __init__(self, table):
        super().__init__()
        self.table, self.steps = table, 0

    def start(self, image):
        return [""] * len(image)

    def step(self, words, state):
        self.steps += 1
        letters = {START: "", 4: "a", 5: "b", END: "."}
        state = [old + letters[word] for old, word in zip(state, words.tolist(), strict=True)]
        scores = torch.full((len(state), 6), -50.0)
        for row, written in enumerate(state):
            for letter, p in self.table.get(written, {"a": 0.35, "b": 0.35, ".": 0.3}).items():
                scores[row, {"a": 4, "b": 5, ".": END}[letter]] = math.log(p)
        return scores, state

    @staticmethod
    def select(state, rows):
        return [state[row] for row in rows.tolist()]


def test_a_finished_caption_is_not_replaced_by_one_that_ends_worse():
    """ "a." ends early. "baa" and "bab" have a better mean log-probability until they end."""
    table = {"": {"a": 0.6, "b": 0.4}, "a": {".": 0.52, "a": 0.48}, "b": {"a": 0.99, "b": 0.01}}
    decoder = Table(table | {"ba": {"a": 0.5, "b": 0.5}})
    best = beam_search(decoder, torch.zeros(1, 1), 2, length_penalty=1.0)[0][0]
    assert best.tokens == [4, END]
    assert best.score == pytest.approx(math.log(0.6 * 0.52) / 2, rel=1e-5) and decoder.steps == 4


def test_a_beam_of_one_ends_where_greedy_search_does():
    """The second best word would lead to a better mean log-probability."""
    table = {"": {"a": 1.0}, "a": {".": 0.51, "a": 0.49}, "aa": {"a": 1.0}, "aaa": {".": 1.0}}
    assert beam_search(Table(table), torch.zeros(1, 1), 1)[0][0].tokens == [4, END]
    assert greedy_search(Table(table), torch.zeros(1, 1))[0].tokens == [4, END]
    assert beam_search(Table(table), torch.zeros(1, 1), 2, 1.0)[0][0].tokens == [4, 4, 4, END]


def test_stops_when_no_better_caption_can_follow():
    sure = Table({"": {"a": 0.5, ".": 0.5}, "a": {"a": 0.5, ".": 0.5}})
    found = beam_search(sure, torch.zeros(1, 1), 2, 0.0)[0]  # any word after "aa" lowers its score
    assert [h.tokens for h in found] == [[END], [4, END]] and sure.steps == 2


def test_greedy_takes_the_best_word_each_time_and_a_beam_of_one_is_greedy(model, image):
    greedy = greedy_search(model, image)
    assert len({tuple(h.tokens) for h in greedy}) > 1
    for i, hypothesis in enumerate(greedy):
        tokens = hypothesis.tokens
        for t in range(len(tokens)):
            options = [[*tokens[:t], w] for w in (4, 5, 6, END)]
            assert max(options, key=lambda o: log_prob(model, image[i], o)) == tokens[: t + 1]
        assert sum(hypothesis.log_probs) == pytest.approx(log_prob(model, image[i], tokens), 1e-4)
    assert [h[0].tokens for h in beam_search(model, image, 1)] == [h.tokens for h in greedy]


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_captions_that_never_end_are_returned(model, image, beam_size):
    model.linear.bias.data[END] = -1e9
    for group in beam_search(model, image, beam_size):
        assert group and all(len(h.tokens) == STEPS and END not in h.tokens for h in group)
    assert all(len(h.tokens) == STEPS for h in greedy_search(model, image))


def test_never_writes_special_words_even_if_the_model_wants_to(model, image):
    model.linear.bias.data[[PAD, START, UNK]] = 1e4
    tokens = [h.tokens for h in greedy_search(model, image)]
    tokens += [h.tokens for group in beam_search(model, image, 3) for h in group]
    tokens += [h.tokens for h in sample(model, image)]
    assert not {PAD, START, UNK} & set(itertools.chain(*tokens))


def test_max_seq_length_counts_end_but_not_start(model, image):
    model.linear.bias.data[END] = 1e4
    written = write_tokens([model], [image], lambda log_probs, *_: log_probs.argmax(1))
    assert [tensor.shape for tensor in written] == [(4, 1)] * 2
    model.max_seq_length = 1
    assert [h.tokens for h in greedy_search(model, image)] == [[END]] * 4
    model.linear.bias.data[END], model.max_seq_length = -1e4, 7
    assert {len(h.tokens) for h in greedy_search(model, image)} == {7}


def test_any_random_number_chooses_a_possible_word():
    log_probs = torch.tensor([[0, 0, 0.3, 0, 0.7, 0]] * 2).log()
    choose = random_words(torch.tensor([[0.0], [1 - 2**-24]]))
    assert choose(log_probs, torch.arange(2), 0).tolist() == [2, 4]


def test_samples_follow_the_model(model, image):
    generator = torch.Generator().manual_seed(0)
    choose = random_words(torch.rand(4000, STEPS, generator=generator))
    tokens, log_probs = write_tokens([model], [image[:1].expand(4000, -1)], choose)
    scores, _ = model.step(torch.tensor([START]), model.start(image[:1]))
    scores[:, [PAD, START, UNK]] = -torch.inf
    expected, found = scores.softmax(1)[0], torch.bincount(tokens[:, 0], minlength=V) / 4000
    assert (found - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5  # four standard deviations
    torch.testing.assert_close(log_probs[:, 0].exp(), expected[tokens[:, 0]])
    after_end = (tokens == END).cumsum(1).cumsum(1) > 1
    assert after_end.any() and not tokens[after_end].any() and not log_probs[after_end].any()


def test_captions_that_cannot_become_one_of_the_best_are_dropped():
    """The decoder computes only one row when the other cannot become one of the best two."""
    table = {"": {"a": 0.9, "b": 0.1}, "a": {".": 0.55, "a": 0.45}, "b": {".": 0.6, "b": 0.4}}
    table |= {"aa": {".": 0.4, "a": 0.6}, "bb": {".": 0.6, "b": 0.4}, "aaa": {".": 1.0}}
    decoder, rows = Table(table), []
    step = decoder.step
    decoder.step = lambda words, state: rows.append(len(words)) or step(words, state)
    found = beam_search(decoder, torch.zeros(1, 1), 2, 0.0)[0]
    assert [h.tokens for h in found] == [[4, END], [4, 4, 4, END]] and rows == [1, 2, 2, 1]


CONFIGS = [DecodeConfig("greedy"), DecodeConfig("sample", temperature=2.0)]
CONFIGS += [DecodeConfig("beam", 4), DecodeConfig("beam", 3, length_penalty=0.0)]


@pytest.mark.parametrize("decoder", ["lstm", "attention"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_probabilities_are_those_of_teacher_forcing(decoder, config):
    torch.manual_seed(3)
    model = Captioner(ModelConfig(6, 12, 8, 16, max_seq_length=7, decoder=decoder, grid=2)).eval()
    for parameter in model.decoder.parameters():
        parameter.data *= 3  # so that probabilities differ from word to word
    model.decoder.linear.bias.data[END] += 1
    features = 3 * torch.randn((24, 6) if decoder == "lstm" else (24, 4, 6))
    words, lengths = Vocabulary([*SPECIAL, *"abcdefgh"]), set()
    checkpoint = Checkpoint([model], words, CNNConfig())
    found = decode_batch(checkpoint, features, config, torch.Generator().manual_seed(0))
    images = model.encoder.embed(features)
    for image, hypotheses in zip(images, found, strict=True):
        for hypothesis in hypotheses:
            expected = log_probs(model.decoder, image, hypothesis.tokens)
            values = torch.tensor(hypothesis.log_probs, dtype=torch.float64)
            torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
            lengths.add((len(values), END in hypothesis.tokens))
    assert len(lengths) > 1  # captions of different lengths
    written = generate_captions(checkpoint, features, config)
    for image, (best, *_) in zip(images, written, strict=True):
        tokens = [words.index[word] for word, _ in best.words]
        expected = log_probs(model.decoder, image, tokens).exp().tolist()
        assert [p for _, p in best.words] == pytest.approx(expected, abs=1e-5)
        assert best.text == words.decode(tokens)
