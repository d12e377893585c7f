"""fastlstm.compare with simulated times: rows, differences, advice, and an unchanged model."""

import copy
import dataclasses
import math
import sys
from types import MappingProxyType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastlstm
from fastlstm import _build, compare
from fastlstm.engine import timing

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
MODULE = sys.modules["fastlstm.compare"]  # fastlstm.compare is the function
VARIANTS = ["nn.LSTM", "converted", "prepacked", "prepacked in bfloat16", "prepacked in int8"]


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.cell = nn.LSTM(4, 32, bidirectional=True), nn.LSTMCell(64, 32)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 3))

    def forward(self, packed, state=None):
        output, _ = self.lstm(packed, state)
        h, c = self.cell(output.data)
        return {"tags": self.head(h), "best": h.argmax(), "state": (h, c)}


@pytest.fixture
def clock(monkeypatch):
    """Sets simulated seconds: for each variant two, of the whole model and of its LSTMs."""
    asked = []

    def set_clock(*seconds, baseline_factors=(1.0, 1.0)):
        def alternate(steps, device, seconds_in_all, shows_progress):
            asked.append((seconds_in_all, shows_progress))
            for step in steps:
                assert step.args[0]  # calls of the model or of its LSTMs
                step()
            first = [seconds[0] * factor for factor in baseline_factors]
            return [first, *([each] * len(baseline_factors) for each in seconds[1:])]

        monkeypatch.setattr(MODULE, "times_of", alternate)
        return asked

    return set_clock


def inputs():
    torch.manual_seed(0)
    state = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    return pack_sequence([torch.randn(n, 4) for n in (5, 3, 2)]), state


def test_rows_and_advice(clock, capsys):
    asked = clock(8.0, 6.0, 4.0, 1.0, 2.0, 1.0, 4.0, 2.0, 1.0, 0.25)
    rows = compare(Tagger().eval(), *inputs())
    assert [row.name for row in rows] == VARIANTS and asked == [(5 * 1.0, True)]
    assert [row.ratio for row in rows] == [1.0, 2.0, 4.0, 2.0, 8.0]
    assert [row.share for row in rows] == [0.75, 0.25, 0.5, 0.5, 0.25]
    assert [row.milliseconds for row in rows] == [8e3, 4e3, 2e3, 4e3, 1e3]
    exact, rounded = [row.difference for row in rows[:3]], [row.difference for row in rows[3:]]
    assert exact[0] == 0 and all(d < 1e-5 for d in exact) and all(1e-4 < d < 0.1 for d in rounded)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed[:6]] == ["inference", *VARIANTS]
    assert printed[6:] == [
        "Fastest: fastlstm.prepack(model.eval(), torch.int8, convert=True)",
        "Fastest without rounding: fastlstm.prepack(model.eval(), convert=True)",
    ]


@pytest.mark.parametrize("kind, seconds, rounds", [("cpu", 5 + 25 / 512, 5), ("cuda", 7, 7)])
def test_rounds_alternate_the_order_of_samples(kind, seconds, rounds, monkeypatch, capsys):
    now, order = [0.0], []

    class Event:
        def __init__(self, *, enable_timing):
            self.record = lambda: vars(self).update(time=now[0] * enable_timing)
            self.elapsed_time = lambda end: 1e3 * (end.time - self.time) * end.is_done
            self.synchronize = lambda: vars(self).update(is_done=enable_timing)

    def run(name, seconds):
        order.append(name)
        now[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: now[0])
    if kind == "cpu":
        clock.perf_counter = clock.monotonic
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    runs = [lambda: run("a", 2.0**-9), lambda: run("b", 1.0)]
    found = timing.times_of(runs, torch.device(kind), seconds, *[True] * (kind == "cuda"))
    assert found == [[2.0**-9] * rounds, [1.0] * rounds]
    samples = ["aaaaa", "b"]  # "a" takes about 2 ms, so five calls are near the 10 ms of a sample
    expected = [text for k in range(rounds) for text in samples[:: (-1) ** k]]
    assert "".join(order) == "aabb" + "".join(expected)
    shares = (14, 29, 43, 58, 72, 87, 100) if kind == "cuda" else ()
    assert capsys.readouterr().err == "".join(f"\rcompare: {share:3}%\r" for share in shares)


def test_save_writes_a_table_and_a_chart(clock, tmp_path):
    asked = clock(8.0, 6.0, 4.0, 1.0, 2.0, 1.0, 4.0, 2.0, 1.0, 0.25)
    compare(Tagger().eval(), *inputs(), seconds=0.5, quiet=True, save=tmp_path / "new" / "speed.1")
    assert asked == [(5 * 0.5, False)]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"speed.1.md", "speed.1.svg"}
    table = (tmp_path / "new" / "speed.1.md").read_text().splitlines()
    assert table[0] == "| inference | ms | ratio | quartiles | LSTMs | difference |"
    assert table[3].startswith("| converted | 4000.000 | 2.00 | 2.00 to 2.00 | 25% | ")
    assert table[8] == "- Fastest: fastlstm.prepack(model.eval(), torch.int8, convert=True)"
    assert table[10].endswith(f"{torch.get_num_threads()} threads.")
    drawn = ElementTree.parse(tmp_path / "new" / "speed.1.svg").getroot()
    elements = {kind: drawn.findall(f"{{*}}{kind}") for kind in ("rect", "text", "line")}
    widths = [float(bar.get("width")) for bar in elements["rect"]]
    assert widths == [37.5, 75, 150, 75, 300]  # as the ratios 1, 2, 4, 2, 8
    assert float(elements["line"][0].get("x1")) == pytest.approx(170 + 37.5)
    words = [text.text for text in elements["text"]]
    assert words[1::2] == VARIANTS and words[4] == "2.00 (4000.000 ms)"


def test_the_code_of_a_row_gives_its_outputs():
    model, given = Tagger().eval(), inputs()
    rows = compare(model, *given, seconds=0, quiet=True)
    expected = model(*given)["tags"]
    for row in rows:
        names = {"fastlstm": fastlstm, "torch": torch, "model": copy.deepcopy(model)}
        found = eval(row.code, names)(*given)["tags"]
        assert (found - expected).abs().max().item() <= row.difference + 1e-6


def test_the_model_stays_as_it_is():
    def forward(self, x):
        y = self.lstm(x)[0]
        if y.requires_grad:
            y.register_hook(gradients.append)
        return y

    model, gradients = Model(forward).train(), []
    model.unused = nn.Parameter(torch.ones(1))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for training in (False, True):
        assert not gradients
        compare(model, torch.zeros(5, 3, 4), training=training, seconds=0, quiet=True)
    assert gradients and all(torch.equal(g, torch.ones(5, 3, 32)) for g in gradients)
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert type(model.lstm) is nn.LSTM and model.training and model.lstm.training
    assert all(p.grad is None for p in model.parameters()) and not model.lstm._forward_pre_hooks


@dataclasses.dataclass
class Result:
    y: Any
    name: str = "a name"


class Model(nn.Module):
    def __init__(self, function, lstm=None):
        super().__init__()
        self.lstm, self.function, self.state = lstm or nn.LSTM(4, 32), function, None

    def forward(self, *inputs):
        return self.function(self, *inputs)


def returns(function):
    return Model(lambda self, x: function(self.lstm(x)[0]))


def nested_rows(y):
    return torch.nested.nested_tensor([y[0], y[1, :2]], layout=torch.jagged)


OUTPUTS = {
    "dataclass": lambda y: Result(Result(y)),
    "mapping": lambda y: MappingProxyType({"y": y, "n": None}),
    "complex": lambda y: torch.complex(torch.ones_like(y), y),
    "nested": nested_rows,
    "sparse": lambda y: y[0].to_sparse(),
    "whole numbers": lambda y: (1e4 * y).long(),
    "a number": lambda y: [y.norm().item(), "text"],
    "masked at random": lambda y: torch.where(torch.randn(32) < 0, -torch.inf, y),
    "NaN": lambda y: torch.where(torch.arange(32) < 4, torch.nan, y),
}


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse)")
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_every_kind_are_compared(name):
    torch.manual_seed(0)
    model, x = returns(OUTPUTS[name]), torch.randn(5, 3, 4)
    lstm = fastlstm.prepack(copy.deepcopy(model.lstm).eval(), torch.int8, convert=True)
    with torch.no_grad():
        y, z = model.lstm(x)[0], lstm(x)[0]
    rows = compare(model, x, seconds=0, quiet=True)
    assert rows[0].difference == 0
    expected = {"whole numbers": 1e4 * (y - z), "a number": y.norm() - z.norm()}.get(name, y - z)
    largest = expected.abs().max().item()
    assert 0.3 * largest <= rows[-1].difference <= largest + 1


NOT_COMPARED = {
    "an object": lambda y: (y, type("Opaque", (), {"y": y})()),
    "a set": lambda y: {y.sum().item()},
    "nothing": lambda y: None,
    "another shape": lambda y: y.new_zeros(int(1e9 * y.norm()) % 9973),
    "another count": lambda y: [y] * (int(1e9 * y.norm()) % 97),
    "another text": lambda y: [y, str(y.norm().item())],
}


@pytest.mark.parametrize("name", NOT_COMPARED)
def test_outputs_that_cannot_be_compared(name, capsys):
    torch.manual_seed(0)
    rows = compare(returns(NOT_COMPARED[name]), torch.randn(5, 3, 4), seconds=0)
    assert math.isnan(rows[-1].difference)
    printed = capsys.readouterr().out.splitlines()
    assert printed[5].endswith("  nan")
    assert printed[6].startswith("nan: the outputs cannot be compared. They are not tensors or")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("holes", [False, True])
def test_nested_tensors(training, holes):
    x = torch.randn(7, 4)
    lengths = torch.tensor([2, 3]) if holes else None
    nested = torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 3, 7]), lengths)
    rows = compare(fastlstm.LSTM(4, 32), nested, training=training, seconds=0, quiet=True)
    assert [row.name for row in rows] == (VARIANTS[1:2] if training else VARIANTS[1:])
    assert 1e-4 < rows[-1].difference < 0.1 or training


def test_a_model_that_writes_to_its_inputs():
    def add(self, x, more):
        more["new"] = x.y.add_(more["given"])
        return self.lstm(x.y)[0]

    x, more = torch.zeros(5, 3, 4), {"given": torch.ones(4)}
    rows = compare(Model(add), Result(x), more, seconds=0, quiet=True)
    assert torch.equal(x, torch.zeros(5, 3, 4)) and list(more) == ["given"]
    assert rows[1].difference < 1e-5 and [row.name for row in rows] == VARIANTS


def test_a_model_that_keeps_a_state_between_calls():
    def stream(self, x):
        total, state = self.state or (torch.zeros(1, 3, 32), None)
        state = tuple(each.detach() for each in self.lstm(x, state)[1])
        self.state = total.add_(state[0]), state
        return total

    torch.manual_seed(0)
    for training in (False, True):
        x = torch.randn(5, 3, 4)
        rows = compare(Model(stream), x, training=training, seconds=0, quiet=True)
        assert rows[1].difference < 1e-6 and all(row.difference < 0.1 for row in rows)


def test_columns_stay_apart(clock, capsys):
    clock(511.0, 1.0, 1.0, 1.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, baseline_factors=(1.0, 6.0))
    compare(Tagger().eval(), *inputs(), seconds=0)
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split()[:-1] == "converted 1000.000 1788.50 1149.75 to 2427.25 100%".split()


def test_variants_that_cannot_run_are_left_out(capsys):
    with_lengths = lambda self, x: self.lstm(x, lengths=torch.tensor([5, 2, 3]))[0]
    rows = compare(Model(with_lengths, fastlstm.LSTM(4, 8)), torch.randn(5, 3, 4), seconds=0)
    assert [row.name for row in rows] == VARIANTS[1:] and rows[0].ratio == 1
    assert "nn.LSTM is left out: " in capsys.readouterr().out
    rows = compare(nn.LSTM(4, 8).double(), torch.randn(5, 3, 4).double(), seconds=0, quiet=True)
    assert [row.name for row in rows] == VARIANTS[:3]
    with pytest.raises(RuntimeError, match="input.size"):
        compare(nn.LSTM(4, 8), torch.randn(5, 3, 7), quiet=True)
