"""The interface `Decoder`: every registered decoder, and one without an LSTM, must keep it."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.__main__ import main
from captioning.data.vocabulary import END, PAD, START
from captioning.errors import CaptioningError
from captioning.model.captioner import DECODERS, decoder_class
from captioning.model.layers import LSTM_WEIGHTS, prepack_lstms
from captioning.search.decoding import beam_search, write_captions
from captioning.settings import POOLS, DecodeConfig, ModelConfig
from fastlstm import PrepackedLSTM, PrepackedLSTMCell

E, H, V, GRID = 6, 8, 12, 3
CAPTIONS = torch.tensor([[START, 5, 6, 7, END], [START, 9, 5, END, PAD], [START, 4, END, PAD, PAD]])
LENGTHS = torch.tensor([5, 4, 3])


class WithoutLSTM(nn.Module):
    """A decoder without an LSTM, which reads the image and the mean of the words so far."""

    help = "the mean of the words"
    pools = ("avg",)
    batches_of = "captions"
    demo = {"epochs": 1}

    def __init__(self, config, lstm="fastlstm"):
        super().__init__()
        self.max_seq_length = config.max_seq_length
        self.embed = nn.Embedding(config.vocab_size, config.embed_size, padding_idx=PAD)
        self.mix = nn.Linear(config.embed_size, config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.vocab_size)

    def start(self, image):
        return image, torch.zeros_like(image), torch.zeros(len(image), 1)

    def read(self, words, state):
        image, total, count = state
        total, count = total + self.embed(words), count + 1
        return self.mix(image + total / count).tanh(), (image, total, count)

    def step(self, words, state):
        hidden, state = self.read(words, state)
        return self.linear(hidden), state

    @staticmethod
    def select(state, rows):
        return tuple(tensor[rows] for tensor in state)

    def unroll(self, image, captions, lengths, rows=None):
        state, hidden = self.start(image if rows is None else image[rows]), []
        for words in captions[:, :-1].unbind(1):
            found, state = self.read(words, state)
            hidden.append(found)
        pack = partial(pack_padded_sequence, lengths=lengths - 1, batch_first=True)
        return pack(torch.stack(hidden, 1)).data, pack(captions[:, 1:]).data


@pytest.fixture(params=[*sorted(DECODERS), "lstm every", "without"])
def config(request, monkeypatch):
    monkeypatch.setitem(DECODERS, "without", WithoutLSTM)
    name, _, image_at = request.param.partition(" ")
    own = {"image_at": image_at} if image_at else {}
    return ModelConfig(1, V, E, H, decoder=name, grid=GRID, **own)


@pytest.fixture
def decoder(config):
    torch.manual_seed(0)
    return decoder_class(config)(config).eval()


@pytest.fixture
def image(decoder):
    torch.manual_seed(1)
    return torch.randn(3, *([GRID**2] if "grid" in decoder.pools else []), E)


def test_steps_and_unrolled_captions_agree(decoder, image):
    hidden, targets = decoder.unroll(image, CAPTIONS, LENGTHS)
    assert targets.tolist() == [5, 9, 4, 6, 5, END, 7, END, END]
    expected = iter(decoder.linear(hidden))
    state = decoder.start(image)
    for t in range(4):
        scores, state = decoder.step(CAPTIONS[:, t], state)
        for row in scores[LENGTHS - 1 > t]:
            torch.testing.assert_close(row, next(expected))


def test_select_moves_the_state_of_captions(decoder, image):
    rows = torch.tensor([2, 0, 0])
    words = CAPTIONS[rows, 0]
    found, _ = decoder.step(words, decoder.select(decoder.start(image), rows))
    expected, _ = decoder.step(words, decoder.start(image[rows]))
    torch.testing.assert_close(found, expected)


def test_captions_may_share_pictures(decoder, image):
    image, rows = image[:2].requires_grad_(), torch.tensor([1, 1, 0])
    inputs = [image, *decoder.parameters()]
    outcomes = []
    for images, options in ((image, {"rows": rows}), (image[rows], {})):
        hidden, _ = decoder.unroll(images, CAPTIONS, LENGTHS, **options)
        outcomes.append((hidden, torch.autograd.grad(hidden.sum(), inputs, allow_unused=True)))
    torch.testing.assert_close(*outcomes)


def test_a_decoder_has_all_attributes(config, decoder):
    assert len(decoder.help) > 10 and set(decoder.pools) <= set(POOLS)
    assert decoder.demo["epochs"] and decoder.max_seq_length == config.max_seq_length
    assert decoder.linear.weight.shape == (V, H)
    if hasattr(decoder, "attention"):
        assert "grid" in decoder.pools


@pytest.mark.parametrize("weights", LSTM_WEIGHTS)
def test_prepacked_weights(config, decoder, image, weights):
    """With float32 every search writes the same captions and log-probabilities, bit for bit."""
    frozen = copy.deepcopy(decoder)
    if not hasattr(decoder, "lstm") and weights != "float32":
        with pytest.raises(CaptioningError, match="expected .* a decoder with an LSTM"):
            prepack_lstms(frozen, weights)
        return
    prepack_lstms(frozen, weights)
    packed = [m for m in frozen.modules() if isinstance(m, (PrepackedLSTM, PrepackedLSTMCell))]
    assert all(str(lstm.weights).endswith(weights) for lstm in packed)
    assert len(packed) == hasattr(decoder, "lstm")
    if weights == "float32":
        greedy = [write_captions([d], [image], DecodeConfig("greedy")) for d in (frozen, decoder)]
        beams = [beam_search(d, image, DecodeConfig()) for d in (frozen, decoder)]
        assert greedy[0] == greedy[1] and beams[0] == beams[1]
    with torch.no_grad():
        found, _ = frozen.step(CAPTIONS[:, 0], frozen.start(image))
        expected, _ = decoder.step(CAPTIONS[:, 0], decoder.start(image))
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if weights == "float32" else 0.02)


@pytest.mark.parametrize("kind", ["torch", "reference"])
def test_a_decoder_that_cannot_be_prepacked_stays_in_float32(config, kind):
    other = decoder_class(config)(config, kind).eval()
    before = [type(module) for module in other.modules()]
    prepack_lstms(other)
    assert [type(module) for module in other.modules()] == before
    with pytest.raises(CaptioningError, match="--lstm-weights int8: expected fastlstm"):
        prepack_lstms(other, "int8")


def test_help_and_errors_name_every_decoder(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    for name, kind in DECODERS.items():
        assert f"{name}: {kind.help}" in words
    with pytest.raises(CaptioningError, match=f"one of .*{'.*'.join(DECODERS)}.*, got 'none'"):
        decoder_class(ModelConfig(1, 1, decoder="none"))
