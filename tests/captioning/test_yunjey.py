"""Captioners of yunjey's tutorial caption here as they do there; their pickles run nothing."""

import os
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from captioning.errors import CaptioningError
from captioning.model.checkpoint import load_checkpoint
from captioning.model.yunjey import import_yunjey, read_vocabulary
from captioning.search.decoding import write_captions

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "runs", "."]


class Theirs(nn.Module):
    """The tutorial's parts, under the names of its checkpoints (out is its decoder's linear)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.resnet = nn.Sequential(*list(resnet18(weights=None).children())[:-1])
        self.linear, self.bn = nn.Linear(512, 8), nn.BatchNorm1d(8, momentum=0.01)
        self.embed, self.out = nn.Embedding(len(WORDS), 8), nn.Linear(12, len(WORDS))
        self.lstm = nn.LSTM(8, 12, 1, batch_first=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yunjey")
    model = Theirs()
    with torch.no_grad():  # drifted statistics, as there
        model.train()
        for _ in range(3):
            model.resnet(torch.randn(4, 3, 64, 64))
    model.eval()
    state = model.state_dict()
    encoder = {k: v for k, v in state.items() if k.startswith(("resnet.", "linear.", "bn."))}
    decoder = {k: v for k, v in state.items() if k.startswith(("embed.", "lstm."))}
    decoder |= {f"linear.{k}": state[f"out.{k}"] for k in ("weight", "bias")}
    torch.save(encoder, folder / "encoder.ckpt")
    torch.save(decoder, folder / "decoder.ckpt")
    (folder / "vocab.pkl").write_bytes(pickled(WORDS))
    return folder, model


def pickled(words):
    """The tutorial's vocabulary of these words."""
    module = types.ModuleType("build_vocab")
    module.Vocabulary = type("Vocabulary", (), {"__module__": "build_vocab"})
    sys.modules["build_vocab"] = module
    vocabulary = module.Vocabulary()
    vocabulary.word2idx = {word: i for i, word in enumerate(words)}
    vocabulary.idx2word = dict(enumerate(words))
    vocabulary.idx = len(words)
    content = pickle.dumps(vocabulary)
    del sys.modules["build_vocab"]
    return content


def convert(folder):
    return import_yunjey(
        folder / "encoder.ckpt", folder / "decoder.ckpt", folder / "vocab.pkl", "resnet18"
    )


def test_scores_every_step_as_the_tutorial_does(files, tmp_path):
    folder, theirs = files
    convert(folder).save(tmp_path / "c.pt")
    ours = load_checkpoint(tmp_path / "c.pt")
    cnn = ours.cnn.load()
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        image = ours.model.encoder.embed(cnn(images))
        expected = theirs.bn(theirs.linear(theirs.resnet(images).flatten(1)))
        torch.testing.assert_close(image, expected)
        words = torch.tensor([[1, 4, 5, 6, 2]]).expand(3, -1)
        decoder = ours.model.decoder
        scores = decoder.linear(decoder.unroll(image, words, torch.full((3,), 5))[0])
        inputs = torch.cat([expected.unsqueeze(1), theirs.embed(words[:, :-1])], 1)
        steps = theirs.out(theirs.lstm(inputs)[0])[:, 1:]
    torch.testing.assert_close(scores.view(4, 3, -1).transpose(0, 1), steps)
    assert ours.vocabulary.words == WORDS


def test_greedy_search_writes_what_the_tutorial_writes(files):
    folder, theirs = files
    checkpoint = convert(folder)
    images = torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        image = checkpoint.model.encoder.embed(checkpoint.cnn.load()(images))
        state = theirs.lstm(image.unsqueeze(1))[1]
        word, expected = torch.ones(4, dtype=torch.long), []
        for _ in range(19):
            output, state = theirs.lstm(theirs.embed(word).unsqueeze(1), state)
            scores = theirs.out(output.squeeze(1))
            scores[:, [0, 1, 3]] = -torch.inf
            word = scores.argmax(1)
            expected.append(word)
    for found, row in zip(
        write_captions(checkpoint.model.decoder, image), torch.stack(expected, 1), strict=True
    ):
        assert found.tokens == row.tolist()[: len(found.tokens)]
        assert len(found.tokens) == 19 or found.tokens[-1] == 2


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_pickles_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (Bomb(), {"a": Bomb()}, [1], b"x"):
        (tmp_path / "v.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(CaptioningError, match="v.pkl is not the tutorial's vocabulary"):
            read_vocabulary(tmp_path / "v.pkl")
    assert not (tmp_path / "exploded").exists()


def test_files_that_do_not_belong_together_are_refused(files, tmp_path):
    folder, _ = files
    other = torch.load(folder / "decoder.ckpt")
    other["linear.weight"], other["linear.bias"] = torch.zeros(9, 12), torch.zeros(9)
    torch.save(other, tmp_path / "d.ckpt")
    for decoder, message in ((tmp_path / "d.ckpt", "8 words"), (tmp_path / "x", "cannot read")):
        with pytest.raises(CaptioningError, match=message):
            import_yunjey(folder / "encoder.ckpt", decoder, folder / "vocab.pkl", "resnet18")
    with pytest.raises(CaptioningError, match=r"decoder.ckpt: resnet18: expected .*, got none"):
        import_yunjey(
            folder / "decoder.ckpt", folder / "encoder.ckpt", folder / "vocab.pkl", "resnet18"
        )


def test_files_of_an_old_pytorch_are_read(files, tmp_path):
    """Without counts of batches, and no zip."""
    folder, _ = files
    for name in ("encoder.ckpt", "decoder.ckpt"):
        old = {k: v for k, v in torch.load(folder / name).items() if "num_batches" not in k}
        torch.save(old, tmp_path / name, _use_new_zipfile_serialization=False)
    (tmp_path / "vocab.pkl").write_bytes((folder / "vocab.pkl").read_bytes())
    assert convert(tmp_path).cnn == convert(folder).cnn


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("encoder.ckpt", {"linear.weight": 5}, "encoder.ckpt: expected tensors by name, got"),
        ("decoder.ckpt", {5: torch.zeros(2)}, "decoder.ckpt: expected tensors by name, got"),
        ("decoder.ckpt", [torch.zeros(2)], "decoder.ckpt: expected a state_dict, got list"),
        ("decoder.ckpt", {"linear.weight": torch.zeros(())}, "are not an encoder with resnet18"),
        ("vocab.pkl", None, "cannot read .*vocab.pkl: Not a regular file"),
    ],
)
def test_strange_files_are_named(files, tmp_path, name, content, message):
    folder, _ = files
    for path in folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
    if content is None:
        os.mkfifo(tmp_path / name)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CaptioningError, match=message):
        convert(tmp_path)


def test_a_flipped_bit_in_weights_is_refused(files, tmp_path):
    folder, _ = files
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / "encoder.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "encoder.ckpt").write_bytes(content)
    with pytest.raises(CaptioningError, match="encoder.ckpt is not a file of .*: the CRC of"):
        convert(tmp_path)


def test_words_that_are_numbers_are_refused(tmp_path):
    (tmp_path / "v.pkl").write_bytes(pickled([*WORDS, 7]))
    with pytest.raises(CaptioningError, match="v.pkl: vocabulary: expected words, got 7"):
        read_vocabulary(tmp_path / "v.pkl")
