"""Probabilities of words: those that a search returns equal those of teacher forcing."""

import pytest
import torch

from captioning.cnn.pretrained import CNNConfig
from captioning.data.vocabulary import END, PAD, SPECIAL, START, UNK, Vocabulary
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint
from captioning.search.generate import decode_batch, generate_captions
from captioning.settings import DecodeConfig, ModelConfig

C, GRID, V = 6, 2, 12
CONFIGS = [DecodeConfig("greedy"), DecodeConfig("sample", temperature=2.0)]
CONFIGS += [DecodeConfig("beam", 4), DecodeConfig("beam", 3, length_penalty=0.0)]


def teacher_forced(model, features, tokens):
    """Computes the log-probabilities of a caption in float64, without the special words."""
    with torch.no_grad():
        image = model.encoder.embed(features[None])
        captions = torch.tensor([[START, *tokens]])
        hidden, _ = model.decoder.unroll(image, captions, torch.tensor([captions.size(1)]))
        scores = model.decoder.linear(hidden).double()
    scores[:, [PAD, START, UNK]] = -torch.inf
    return scores.log_softmax(1).gather(1, captions[0, 1:, None]).squeeze(1)


@pytest.mark.parametrize("decoder", ["lstm", "attention"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_probabilities_are_those_of_teacher_forcing(decoder, config):
    torch.manual_seed(3)
    model = Captioner(ModelConfig(C, V, 8, 16, max_seq_length=7, decoder=decoder, grid=GRID)).eval()
    for parameter in model.decoder.parameters():
        parameter.data *= 3  # so that probabilities differ from word to word
    model.decoder.linear.bias.data[END] += 1
    features = 3 * torch.randn((24, C) if decoder == "lstm" else (24, GRID * GRID, C))
    words, lengths = Vocabulary([*SPECIAL, *"abcdefgh"]), set()
    checkpoint = Checkpoint([model], words, CNNConfig())
    found = decode_batch(checkpoint, features, config, torch.Generator().manual_seed(0))
    for row, hypotheses in zip(features, found, strict=True):
        for hypothesis in hypotheses:
            expected = teacher_forced(model, row, hypothesis.tokens)
            values = torch.tensor(hypothesis.log_probs, dtype=torch.float64)
            torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
            lengths.add((len(values), END in hypothesis.tokens))
    assert len(lengths) > 1  # captions of different lengths
    written = generate_captions(checkpoint, features, config)
    for row, (best, *_) in zip(features, written, strict=True):
        tokens = [words.index[word] for word, _ in best.words]
        expected = teacher_forced(model, row, tokens).exp().tolist()
        assert [p for _, p in best.words] == pytest.approx(expected, abs=1e-5)
        assert best.text == words.decode(tokens)
