"""An LSTM of one's own in the captioner: what it must do, and the lecture's."""

from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from captioning.__main__ import main
from captioning.errors import CaptioningError
from captioning.model.checkpoint import load_checkpoint
from captioning.model.layers import check_lstm
from captioning.model.own_lstm import own_lstm_class

LECTURE = f"{Path(__file__).resolve().parents[2]}/examples/lecture_lstm.py:LectureLSTM"

# Each class is an nn.LSTM with one thing wrong.
WRONG = """
import torch
from torch import nn

class NoBatchFirst(nn.LSTM):
    def __init__(self, input_size, hidden_size, num_layers): pass

class Fails(nn.LSTM):
    def forward(self, x, states=None):
        return self.missing

class OutputOnly(nn.LSTM):
    def forward(self, x, states=None): return super().forward(x, states)[0]

class OneState(nn.LSTM):
    def forward(self, x, states=None):
        output, (h, c) = super().forward(x, states)
        return output, h

class Unpacks(nn.LSTM):
    def forward(self, x, states=None):
        output, states = super().forward(x, states)
        return getattr(output, "data", output), states

class FlatStates(nn.LSTM):
    def forward(self, x, states=None):
        output, (h, c) = super().forward(x, states and (states[0][None], states[1][None]))
        return output, (h[0], c[0])

class WithoutStates(nn.LSTM):
    def forward(self, x): return super().forward(x)

class IgnoresStates(nn.LSTM):
    def forward(self, x, states=None): return super().forward(x)

class Detached(nn.LSTM):
    def forward(self, x, states=None):
        with torch.no_grad(): return super().forward(x, states)

class Unused(nn.LSTM):
    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.peephole = nn.Linear(2, 2)

function = lambda *sizes: None
"""


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    return path


@pytest.mark.parametrize("name, message", [
    ("NoBatchFirst", r"a constructor \(input_size, .*got TypeError: .*'batch_first'"),
    ("Fails", r"forward\(a PackedSequence without states\); got AttributeError: .*\(line 10\)"),
    ("OutputOnly", r"\(output, \(h_n, c_n\)\) from .*; got PackedSequence"),
    ("OneState", r"\(output, \(h_n, c_n\)\) from .*; got \(output, Tensor\)"),
    ("Unpacks", "a PackedSequence from forward.*; got Tensor"),
    ("FlatStates", r"h_n of shape \[1, 2, 5\] from .*; got \[2, 5\]"),
    ("WithoutStates", r"forward\(\[B,1,E\] with states\); got TypeError"),
    ("IgnoresStates", "the same output from two steps with states .*; got a difference of"),
    ("Detached", "an output with a gradient; got one without"),
    ("Unused", "a gradient of each parameter; got none of peephole.weight, peephole.bias"),
    ("function", "has no module class 'function'; it has NoBatchFirst, Fails, "),
])  # fmt: skip
def test_what_is_missing_is_named(name, message, wrong):
    with pytest.raises(CaptioningError, match=message):
        check_lstm(f"{wrong}:{name}")


@pytest.mark.parametrize("text, name, message", [
    (None, "none.py:Cell", "none.py: no such file"),
    ("", "a.py", "expected fastlstm, torch, reference or FILE.py:CLASS; got .*a.py"),
    ("import nowhere", "a.py:Cell", r"a.py: ModuleNotFoundError: .*'nowhere' \(line 1\)"),
    ("x = (", "a.py:Cell", "a.py: SyntaxError"),
])  # fmt: skip
def test_a_file_that_cannot_be_used(text, name, message, tmp_path):
    if text is not None:
        (tmp_path / "a.py").write_text(text)
    with pytest.raises(CaptioningError, match=message):
        check_lstm(f"{tmp_path}/{name}")


def test_the_random_numbers_of_a_run_stay_the_same(wrong):
    torch.manual_seed(0)
    check_lstm(LECTURE, 3)
    found = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(found, torch.rand(3))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_lectures_lstm_is_the_lstm(num_layers):
    theirs = own_lstm_class(LECTURE)(3, 5, num_layers, batch_first=True)
    ours = fastlstm.LSTM(3, 5, num_layers, batch_first=True)
    with torch.no_grad():  # PyTorch's order i, f, g, o is the lecture's g, f, a, q
        for layer, cell in enumerate(theirs.cells):
            for name, part in (("ih", "U"), ("hh", "W")):
                weights = [getattr(cell, f"{part}_{gate}").weight for gate in "gfaq"]
                getattr(ours, f"weight_{name}_l{layer}").copy_(torch.cat(weights))
            biases = [getattr(cell, f"U_{gate}").bias for gate in "gfaq"]
            getattr(ours, f"bias_ih_l{layer}").copy_(torch.cat(biases))
            getattr(ours, f"bias_hh_l{layer}").zero_()
    x = torch.randn(3, 4, 3)
    packed = pack_padded_sequence(x, [4, 3, 1], batch_first=True)
    for call in ((packed,), (x, (torch.randn(num_layers, 3, 5), torch.randn(num_layers, 3, 5)))):
        (output, states), (expected, expected_states) = theirs(*call), ours(*call)
        torch.testing.assert_close(output.data, expected.data)
        torch.testing.assert_close(states, expected_states)


TRAIN = "--cnn scenes_cnn --hidden-size 16 --embed-size 16 --batch-size 48 --set pool=2x2".split()


@pytest.fixture(scope="module")
def trained(scenes_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lecture") / "run"
    train = ["train", str(scenes_root / "annotations"), "--output", str(folder), *TRAIN]
    assert main([*train, "--epochs", "1", "--lstm", LECTURE]) == 0
    return folder


def test_trains_resumes_and_captions(trained, scenes_root, capsys):
    train = ["train", str(scenes_root / "annotations"), "--output", str(trained), "--resume"]
    assert main([*train, "--epochs", "2", "--lstm", LECTURE]) == 0
    assert f"PICTURE --lstm {LECTURE}" in capsys.readouterr().out
    history = load_checkpoint(trained / "last.pt", LECTURE).training["history"]
    assert history[1]["loss"] < history[0]["loss"]
    pictures = str(scenes_root / "val")
    assert main(["caption", str(trained / "best.pt"), pictures, "--lstm", LECTURE]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_the_file_must_be_given_again(trained, scenes_root, new_checkpoint, tmp_path, capsys):
    """No code runs that only the checkpoint names, and the name has no folder."""
    best = str(trained / "best.pt")
    assert main(["caption", best, str(scenes_root / "val")]) == 1
    told = "expected the LSTM that it was trained with, lecture_lstm.py:LectureLSTM; got fastlstm"
    assert f"{told}; give its file, --lstm lecture_lstm.py:LectureLSTM" in capsys.readouterr().err
    assert torch.load(best)["lstm"] == "lecture_lstm.py:LectureLSTM"
    new_checkpoint().save(tmp_path / "c.pt")
    with pytest.raises(CaptioningError, match=r"trained with, fastlstm; got .*leave --lstm out"):
        load_checkpoint(tmp_path / "c.pt", LECTURE)


def test_attention_needs_a_cell(scenes_root, tmp_path, capsys):
    train = ["train", str(scenes_root / "annotations"), "--output", str(tmp_path / "run")]
    assert main([*train, "--decoder", "attention", "--lstm", LECTURE]) == 1
    assert "with this decoder, which needs an LSTM cell; got" in capsys.readouterr().err
