"""The LSTM decoder: inputs, targets, dropout, initial bias; unrolled, it equals single steps."""

import math

import pytest
import torch

from captioning.__main__ import main
from captioning.data.coco import load_references
from captioning.data.vocabulary import END, PAD, START
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import load_checkpoint
from captioning.model.layers import Dropout
from captioning.model.lstm import DecoderRNN
from captioning.settings import ModelConfig

E, H, V = 6, 8, 12
ROWS = [START, 5, 6, 7, 8, END], [START, 9, 5, END, PAD, PAD], [START, 4, END, PAD, PAD, PAD]
CAPTIONS = torch.tensor(ROWS)
LENGTHS = torch.tensor([6, 4, 3])


def decoder(lstm="fastlstm", **options):
    torch.manual_seed(0)
    return DecoderRNN(ModelConfig(1, V, E, H, **options), lstm)


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
    model, image = decoder(image_at=image_at), torch.randn(3, E)
    hidden, targets = model.unroll(image, CAPTIONS, LENGTHS)
    # The results are packed: for each step, those of the captions that have not ended.
    assert targets.tolist() == [5, 9, 4, 6, 5, END, 7, END, 8, END]
    scores = model.linear(hidden)
    assert len(scores) == len(targets)
    torch.testing.assert_close(scores[[0, 3, 6, 8, 9]], by_hand(model, image[0], [5, 6, 7, 8]))
    torch.testing.assert_close(scores[[1, 4, 7]], by_hand(model, image[1], [9, 5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_sends_gradients_where_it_let_values_through(dtype):
    torch.manual_seed(0)
    dropout, x = Dropout(0.4), torch.ones(1000, 500, dtype=dtype, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    kept = y != 0
    assert abs(kept.double().mean() - 0.6) < 0.003  # four standard deviations
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.6))
    assert torch.equal(x.grad, y)
    assert not torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)


def test_a_prediction_depends_on_earlier_words_and_the_image_only():
    model, image = decoder(), torch.randn(1, E, requires_grad=True)
    scores_of = lambda caption: model.linear(model.unroll(image, caption, LENGTHS[:1])[0])
    for t in range(5):
        changed = CAPTIONS[:1].clone()
        changed[0, t + 1 :] = 4  # the target of step t and all later words
        same = scores_of(changed)[t]
        assert torch.equal(same, scores_of(CAPTIONS[:1])[t])
        assert torch.autograd.grad(same.sum(), image)[0].abs().sum() > 0


def test_parameters_are_named_as_in_the_lecture():
    lstm = {f"lstm.{kind}_{end}_l0" for kind in ("weight", "bias") for end in ("ih", "hh")}
    assert set(decoder().state_dict()) == {"embed.weight", "linear.weight", "linear.bias"} | lstm


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
    images = load_references(captions_of("train")).images
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
