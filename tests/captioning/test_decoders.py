"""The interface `Decoder`, which every decoder must keep, and the inputs of the LSTM decoder."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.__main__ import main
from captioning.data.coco import load_coco_unchanged
from captioning.data.vocabulary import END, PAD, START
from captioning.errors import CaptioningError
from captioning.model.captioner import DECODERS, Captioner, decoder_class
from captioning.model.checkpoint import load_checkpoint
from captioning.model.layers import LSTM_WEIGHTS, Dropout, prepack_lstms
from captioning.model.lstm import DecoderRNN
from captioning.search.decoding import beam_search, greedy_or_sample
from captioning.settings import POOLS, DecodeConfig, ModelConfig
from fastlstm import PrepackedLSTM, PrepackedLSTMCell

E, H, V, GRID = 6, 8, 12, 3
ROWS = [START, 5, 6, 7, 8, END], [START, 9, 5, END, PAD, PAD], [START, 4, END, PAD, PAD, PAD]
CAPTIONS = nn.functional.pad(torch.tensor(ROWS), (0, 1), value=PAD)  # T may be larger
LENGTHS = torch.tensor([6, 4, 3])


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
    options = {"image_at": image_at} if image_at else {}
    return ModelConfig(1, V, E, H, decoder=name, grid=GRID, **options)


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
    # The results are packed: for each step, those of the captions that have not ended.
    assert targets.tolist() == [5, 9, 4, 6, 5, END, 7, END, 8, END]
    expected, state = iter(decoder.linear(hidden)), decoder.start(image)
    for t in range(5):
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
    inputs, outcomes = [image, *decoder.parameters()], []
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
    copied = copy.deepcopy(decoder)
    if not hasattr(decoder, "lstm") and weights != "float32":
        with pytest.raises(CaptioningError, match="expected .* a decoder with an LSTM"):
            prepack_lstms(copied, weights)
        return
    prepack_lstms(copied, weights)
    layers = [m for m in copied.modules() if isinstance(m, (PrepackedLSTM, PrepackedLSTMCell))]
    assert all(str(lstm.weights).endswith(weights) for lstm in layers)
    assert len(layers) == hasattr(decoder, "lstm")
    if weights == "float32":
        greedy = [greedy_or_sample([d], [image], DecodeConfig("greedy")) for d in (copied, decoder)]
        beams = [beam_search(d, image, DecodeConfig()) for d in (copied, decoder)]
        assert greedy[0] == greedy[1] and beams[0] == beams[1]
    with torch.no_grad():
        found, _ = copied.step(CAPTIONS[:, 0], copied.start(image))
        expected, _ = decoder.step(CAPTIONS[:, 0], decoder.start(image))
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if weights == "float32" else 0.02)


@pytest.mark.parametrize("kind", ["torch cpu", "reference cpu", "fastlstm meta"])
def test_a_decoder_that_cannot_be_prepacked_stays_in_float32(config, kind):
    lstm, device = kind.split()
    other = decoder_class(config)(config, lstm).eval().to(device)
    before = [type(module) for module in other.modules()]
    prepack_lstms(other)
    assert [type(module) for module in other.modules()] == before
    for weights, told in (("int8", "--lstm-weights int8: expected"), ("x", "weights: .* got 'x'")):
        with pytest.raises(CaptioningError, match=told):
            prepack_lstms(other, weights)


def test_help_and_errors_name_every_decoder(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    for name, kind in DECODERS.items():
        assert f"{name}: {kind.help}" in words
    for change, message in (
        ({"decoder": "none"}, f"one of .*{'.*'.join(DECODERS)}.*, got 'none'"),
        ({"grid": 0}, "grid: expected 1 or more for decoder 'attention', got 0"),
        ({"num_layers": 2}, "num_layers: the attention decoder has one layer"),
    ):
        with pytest.raises(CaptioningError, match=message):
            Captioner(ModelConfig(1, 1, **{"decoder": "attention", "grid": 1} | change))


def lstm_decoder(**options):
    torch.manual_seed(0)
    return DecoderRNN(ModelConfig(1, V, E, H, **options))


def by_hand(model, image, words):
    """Computes the scores after <start> and after each word, one LSTM step at a time."""
    inputs = torch.cat([image[None], model.embed(torch.tensor([START, *words]))])
    if model.every_step:
        inputs = torch.cat([inputs, image.expand(len(inputs), -1)], 1)
    state, scores = None, []
    for x in inputs:
        output, state = model.lstm(x[None, None], state)
        scores.append(model.linear(output[0, 0]))
    return torch.stack(scores[1:])


@pytest.mark.parametrize("image_at", ["first", "every"])
def test_image_first_then_start_and_every_word_is_predicted_from_those_before_it(image_at):
    model, image = lstm_decoder(image_at=image_at), torch.randn(3, E)
    scores = model.linear(model.unroll(image, CAPTIONS, LENGTHS)[0])
    assert len(scores) == 10
    torch.testing.assert_close(scores[[0, 3, 6, 8, 9]], by_hand(model, image[0], [5, 6, 7, 8]))
    torch.testing.assert_close(scores[[1, 4, 7]], by_hand(model, image[1], [9, 5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_sends_gradients_where_it_let_values_through(dtype):
    torch.manual_seed(0)
    dropout, x = Dropout(0.4), torch.ones(1000, 500, dtype=dtype, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    kept = y != 0
    torch.manual_seed(0)
    assert torch.equal(kept, torch.rand(x.shape) >= 0.4)
    assert abs(kept.double().mean() - 0.6) < 0.003  # four standard deviations
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.6))
    assert torch.equal(x.grad, y) and not torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)


def test_a_prediction_depends_on_earlier_words_and_the_image_only():
    model, image = lstm_decoder(), torch.randn(1, E, requires_grad=True)
    scores_of = lambda caption: model.linear(model.unroll(image, caption, LENGTHS[:1])[0])
    for t in range(5):
        changed = CAPTIONS[:1].clone()
        changed[0, t + 1 :] = 4  # the target of step t and all later words
        same = scores_of(changed)[t]
        assert torch.equal(same, scores_of(CAPTIONS[:1])[t])
        assert torch.autograd.grad(same.sum(), image)[0].abs().sum() > 0


def test_parameters_are_named_as_in_the_lecture():
    lstm = {f"lstm.{kind}_{end}_l0" for kind in ("weight", "bias") for end in ("ih", "hh")}
    names = set(lstm_decoder().state_dict())
    assert names == {"embed.weight", "linear.weight", "linear.bias"} | lstm


def test_only_several_layers_have_dropout_between_them():
    assert [lstm_decoder(num_layers=n, dropout=0.3).lstm.dropout for n in (1, 2)] == [0.0, 0.3]


@pytest.mark.parametrize("sizes", [{}, {"decoder": "attention", "grid": 2}])
def test_the_first_bias_is_the_log_frequency_of_words(sizes):
    torch.manual_seed(0)
    model = Captioner(ModelConfig(4, 50, 8, 8, **sizes))
    captions = [[START, *([5] * 6), 6, END], [START, 5, 6, 7, END], [START, END]]
    model.set_word_frequencies(captions)
    counts = {5: 7, 6: 2, 7: 1, END: 3}
    total = sum(counts.values()) + 50  # each word is counted once more than it occurs
    found = model.decoder.linear.bias.exp()
    expected = torch.tensor([(counts.get(word, 0) + 1) / total for word in range(50)])
    torch.testing.assert_close(found, expected)


def test_only_a_fresh_captioner_takes_the_frequencies_of_words(captions_of, tmp_path):
    train, file = ["train", "--train", str(captions_of("train"))], tmp_path / "a" / "best.pt"
    sizes = "--hidden-size 16 --embed-size 16 --set min-count=1 --cnn scenes_cnn".split()
    no_learning = ["--epochs", "1", "--learning-rate", "1e-30", "--set", "ema=0"]
    assert main([*train, "--output", str(tmp_path / "a"), *sizes, *no_learning]) == 0
    first = load_checkpoint(file)
    bias = first.model.decoder.linear.bias
    words = [first.vocabulary.index[word] for word in ("a", "left")]
    images = load_coco_unchanged(captions_of("train")).images
    captions = [caption for image in images for caption in image.captions]
    tokens = [token for c in captions for token in first.vocabulary.encode(c)[1:]]
    a, left = (tokens.count(word) + 1 for word in words)
    assert (bias[words[0]] - bias[words[1]]).item() == pytest.approx(math.log(a / left), rel=1e-4)
    frequency = torch.tensor(tokens).bincount(minlength=len(bias)).float() / len(tokens)
    entropy = -(frequency[frequency > 0] * frequency[frequency > 0].log()).sum().item()
    assert first.training["history"][0]["loss"] == pytest.approx(entropy, rel=0.05)
    first.model.decoder.linear.bias.data.fill_(0.25)
    first.save(file)
    assert main([*train, "--output", str(tmp_path / "b"), "--start", str(file), *no_learning]) == 0
    second = load_checkpoint(tmp_path / "b" / "best.pt")
    assert torch.equal(second.model.decoder.linear.bias, torch.full_like(bias, 0.25))
