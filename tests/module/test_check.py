"""fastlstm.check with planted failures: its child process, its records, and who waits for them."""

from __future__ import annotations

import copy
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastlstm
from fastlstm import __main__ as front_door
from fastlstm import _build
from fastlstm.check import child, gate
from fastlstm.check.cases import CASES, draw
from fastlstm.engine import engines, records
from fastlstm.engine.call import Call

needs_op = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
CHECK = sys.modules["fastlstm.check.check"]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the verdicts; nothing was checked before, and checks are on."""
    path = tmp_path / "cache" / "tuned.json"
    monkeypatch.setenv("FASTLSTM_TUNE", str(path))
    monkeypatch.delenv("FASTLSTM_CHECK", raising=False)
    monkeypatch.setattr(gate, "_compared", {})
    yield path
    records.machine.cache_clear()


# --- the child process: programs that print what the worker prints, or do something else ---

BEGIN = """
import json, os, signal, sys, time
task, device, *names = sys.argv[1:]
def say(result, name=names[0], **more):
    row = {"engine": name, "dtype": "float32", "option": "plain", "result": result}
    print(json.dumps({**row, **more}), flush=True)
"""
COMPLETE = """
for name in names:
    say("begun", name); say("passed", name, error=1.5)
print('{"result": "complete"}')
"""


def run_child(
    monkeypatch: pytest.MonkeyPatch, program: str, names: tuple[str, ...] = ("one", "two")
) -> list[Row]:
    monkeypatch.setattr(child, "PROGRAM", program)
    return child.check_engines(CPU, names, time.monotonic() + 60)


def verdicts(file: Path) -> dict[str, str]:
    """By engine, what the file says."""
    found = json.loads(file.read_text()) if file.exists() else {}
    return {key.removeprefix("check of ").split(",")[0]: value for key, value in found.items()}


def test_a_child_that_completes_its_task(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = 'print("a warning\\n{\\"broken\\n[1]\\n{}x"); sys.stderr.write("and an error\\n")\n'
    rows = run_child(monkeypatch, BEGIN + noise + COMPLETE)
    assert [row["engine"] for row in rows] == ["one", "two"]
    assert {row["result"] for row in rows} == {"passed"} and rows[0]["error"] == 1.5
    assert rows[0]["instructions"] == "" and rows[0]["option"] == "plain"
    assert verdicts(file) == {"one": "passed", "two": "passed"}
    (key, *_) = json.loads(file.read_text())
    assert torch.backends.cpu.get_cpu_capability() in key and torch.__version__ in key


BROKEN = {
    "hang": ("time.sleep(999)", "float32, plain: it hangs: no result after 1.5 s"),
    "hang, deaf and mute": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.close(1); os.close(2); time.sleep(999)",
        "it hangs",
    ),
    "segmentation fault": ("os.kill(os.getpid(), signal.SIGSEGV)", "Segmentation fault"),
    "abort": ("print('CUDA trap'); os.abort()", r"it crashed: Aborted \(signal 6\)"),
    "exit": ("os._exit(3)", "the process ended with status 3"),
    "exit as if all was well": ("os._exit(0)", "the process ended with status 0"),
    "error": ("raise RuntimeError('no such kernel')", "status 1: RuntimeError: no such kernel"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_child_that_breaks(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine failed, and another child goes on with the next one."""
    monkeypatch.setattr(child, "SILENCE", 1.5)
    code, reason = BROKEN[name]
    program = f"{BEGIN}\nif names[0] == 'one':\n    say('begun'); {code}\n{COMPLETE}"
    start = time.monotonic()
    rows = run_child(monkeypatch, program)
    assert time.monotonic() - start < 30
    assert [(row["engine"], row["result"]) for row in rows] == [
        ("one", "failed"),
        ("two", "passed"),
    ]
    assert rows[0]["option"] == "plain" and rows[0]["dtype"] == "float32"
    found = verdicts(file)
    assert found["two"] == "passed" and found["one"].startswith("failed: float32, plain: ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found["one"])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (f"{BEGIN}say('begun'); os.kill(os.getpid(), signal.SIGKILL)", "ended with status -9"),
        ("raise ImportError('no fastlstm')", "status 1: ImportError: no fastlstm"),
    ],
)
def test_a_child_that_tells_nothing_of_the_kernels(
    program: str, reason: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run_child(monkeypatch, program)
    assert [row["engine"] for row in rows] == ["one", "two"]
    assert all(row["result"] == "not checked" and reason in row["reason"] for row in rows)
    assert verdicts(file) == {}


def test_the_time_is_over(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"{BEGIN}say('begun'); say('passed'); say('begun', 'two'); time.sleep(99)"
    monkeypatch.setattr(child, "PROGRAM", program)
    now = [0.0]
    monkeypatch.setattr(child, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def show(row: Row) -> None:
        now[0] = 61.0 if row["result"] == "begun" and row["engine"] == "two" else 0.0

    rows = child.check_engines(CPU, ["one", "two", "three"], 60.0, show=show)
    assert [row["result"] for row in rows] == ["passed", "not checked", "not checked"]
    assert rows[2]["engine"] == "three" and rows[2]["reason"] == "the time is over"
    assert verdicts(file) == {"one": "passed"}


def test_what_the_child_inherits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import path and the environment, but not the instruction set that the user chose."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("OF_THE_USER", "kept")
    monkeypatch.setattr(sys, "path", [*sys.path, "/of the user's"])
    found = []
    program = (
        "import json, os, sys; names = 'ATEN_CPU_CAPABILITY', 'FASTLSTM_AMX', 'OF_THE_USER'; "
        "found = {name: os.environ.get(name) for name in names}; "
        "print(json.dumps({'result': 'complete', 'path': sys.path, **found}))"
    )
    monkeypatch.setattr(child, "PROGRAM", program)
    settings = {"FASTLSTM_AMX": "0"}
    child.check_engines(CPU, ["x"], time.monotonic() + 60, settings, show=found.append)
    assert found[0]["path"] == sys.path and found[0]["OF_THE_USER"] == "kept"
    assert found[0]["ATEN_CPU_CAPABILITY"] is None and found[0]["FASTLSTM_AMX"] == "0"


# --- the worker: an engine that computes something else ---

PLANT = """
import sys, torch
from fastlstm.check import worker
from fastlstm.engine import engines
right, calls = worker.BY_NAME["stepwise"], []
def run(call):
    calls.append(call)
    output, (h, c), cells = right.run(call)
    if call.batch_sizes is not None:  # packed: a wrong row
        output = output + torch.zeros_like(output).index_fill(0, torch.tensor([3]), 1e-3)
    elif call.reset is not None:  # other bits every other time, within the tolerance
        c = c * (1 + len(calls) % 2 * 2**-23)
    elif call.layout == "":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    elif "layer_norm" in call.layout:
        raise MemoryError
    elif call.weights[1].size(1) == 512:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nSee below.")
    elif "projection" in call.layout:
        h = h * float("nan")
    elif call.return_cell_states:  # only its gradients are wrong
        output = output + (output - output.detach())
    return output, (h, c), cells
worker.BY_NAME["stepwise"] = right._replace(run=run)
worker.kinds_of = lambda device: ["float32"]
worker.main()
"""


@needs_op
def test_an_engine_that_computes_something_else(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run_child(monkeypatch, PLANT, ("stepwise", "tiled"))
    found = {row["option"]: row for row in rows if row["engine"] == "stepwise"}
    assert list(found) == CASES
    expected_reasons = {
        "no bias": ("not checked", "memory"),
        "layer norm, lengths": ("not checked", "memory"),
        "large H": ("failed", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        "packed": ("failed", "errors in roundoffs, of 32 allowed: output "),
        "packed, both directions": ("failed", "errors in roundoffs, of 32 allowed: output "),
        "reset": ("failed", "other bits when it ran again: c_n"),
        "reset, lengths, both directions": ("failed", "other bits when it ran again: c_n"),
        "projection, both directions": ("failed", "errors in roundoffs, of 32 allowed: h_n nan"),
        "cell states, lengths, both directions": (
            "failed",
            "errors in roundoffs, of 32 allowed: gradient 0 ",
        ),
    }
    for option, row in found.items():
        result, reason = expected_reasons.get(option, ("passed", ""))
        assert row["result"] == result and row.get("reason", "").startswith(reason), row
        json.dumps(row, allow_nan=False)
    assert all(row["result"] == "passed" for row in rows if row["engine"] == "tiled")
    assert verdicts(file)["stepwise"].startswith("failed: ") and verdicts(file)["tiled"] == "passed"


def test_the_cases_tell_every_option() -> None:
    """Each case but the first has something that the plain one has not."""
    drawn = [draw(case, "float32", CPU) for case in CASES]
    of = lambda call: [*call[3:6], call.input.shape, call.hx is None, call.return_cell_states]
    forms = [str([*of(call), call.lengths, call.reset, call.batch_sizes]) for call in drawn]
    assert len(set(forms)) == len(CASES)
    assert any(call.batch_sizes is not None and call.directions == 2 for call in drawn)
    lengths = [call.lengths for call in drawn if call.lengths is not None]
    assert all(0 in each and 7 in each for each in lengths)
    resets = [call.reset for call in drawn if call.reset is not None]
    assert resets and all(0 < each.sum() < each.numel() for each in resets)


# --- a machine that pretends to have a GPU: the persistent engine waits for its check ---


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The engines of each child process that is started; the machine seems to have a GPU."""
    monkeypatch.setattr(_build, "kinds", ("cpu", "cuda"))
    monkeypatch.setattr(_build, "gpu", lambda index: (132, 90, ""))
    monkeypatch.setattr(_build, "_why_not_this_gpu", lambda index: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(child, "PROGRAM", BEGIN + COMPLETE)
    records.machine.cache_clear()
    started: list[list[str]] = []
    rows = child._rows
    noted = lambda task, *rest: started.append(task[2:]) or rows(task, *rest)
    monkeypatch.setattr(child, "_rows", noted)
    return started


def fails_on_the_gpu(monkeypatch: pytest.MonkeyPatch, line: str = "os.abort()") -> None:
    monkeypatch.setattr(child, "PROGRAM", f"{BEGIN}\nsay('begun'); {line}")


def fake_call(requires_grad: bool = False) -> Call:
    with torch._subclasses.FakeTensorMode():
        input = torch.empty(4, 3, 64, device="cuda", dtype=torch.bfloat16)
        weights = [torch.empty(256, 64, device="cuda", dtype=torch.bfloat16)] * 2
    return Call(input, None, weights, "")


def on_the_gpu(lstm: fastlstm.LSTM) -> fastlstm.LSTM:
    """The layer with fake tensors."""
    for name, weight in lstm.named_parameters():
        fake = torch.empty(weight.shape, device="cuda", dtype=torch.bfloat16)
        setattr(lstm, name, torch.nn.Parameter(fake))
    return lstm


def capture(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "is_initialized", lambda: True)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def switch_off(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("FASTLSTM_CHECK", "off")


def as_in_a_later_process() -> None:
    records.checked.clear()
    records.load()


def checks() -> Any:
    """The warning that a check is done."""
    return pytest.warns(RuntimeWarning, match='fastlstm checks the engine "persistent" on this GPU')


@needs_op
def test_persistent_by_name_is_checked_once(children: list[list[str]], file: Path) -> None:
    with checks():
        assert engines.choose(fake_call(), "persistent").name == "persistent"
    assert children == [["persistent"]] and verdicts(file) == {"persistent": "passed"}
    engines.choose(fake_call(), "persistent")
    as_in_a_later_process()
    engines.choose(fake_call(), "persistent")
    records.checked.clear()  # another process has checked it since this one began
    engines.choose(fake_call(), "persistent")
    assert len(children) == 1


@needs_op
@pytest.mark.parametrize("other", ["GPU", "driver", "torch", "build"])
def test_a_check_counts_for_one_machine_and_build(
    other: str, children: list[list[str]], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with checks():
        engines.choose(fake_call(), "persistent")
    if other == "GPU":
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another GPU")
    elif other == "driver":
        monkeypatch.setattr(records, "_driver", lambda: "driver 999.1")
    elif other == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99.0")
    else:
        monkeypatch.setattr(records, "build", {**records.build, "date": "2030-01-01"})
    records.machine.cache_clear()
    with checks():
        engines.choose(fake_call(), "persistent")
    assert len(children) == 2 and len(json.loads(file.read_text())) == 2


@needs_op
def test_persistent_is_not_run_after_a_check_that_failed(
    children: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_on_the_gpu(monkeypatch)
    message = (
        "cannot run on cuda:0: its check on this GPU .*: failed: float32, plain: it crashed: Ab"
    )
    with checks(), pytest.raises(RuntimeError, match=message):
        engines.choose(fake_call(), "persistent")
    as_in_a_later_process()
    with torch._subclasses.FakeTensorMode():
        lstm = on_the_gpu(fastlstm.LSTM(8, 64))
        x = torch.empty(4, 3, 8, device="cuda", dtype=torch.bfloat16)
        by_function = lambda: fastlstm.functional.lstm(
            x, None, list(lstm.parameters()), engine="persistent"
        )
        lstm.engine = "persistent"
        for run in (lambda: lstm(x), by_function):
            with pytest.raises(RuntimeError, match=message):
                run()
        lstm.engine = "auto"
        monkeypatch.setattr(engines, "DEFAULT", "persistent")  # as FASTLSTM_ENGINE does
        with pytest.raises(RuntimeError, match=message):
            lstm(x)
    assert len(children) == 1


@needs_op
def test_a_check_that_was_not_completed_is_not_kept(
    children: list[list[str]], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "say('not checked', reason='memory')"
    fails_on_the_gpu(monkeypatch, f"""{line}; print('{{"result": "complete"}}')""")
    for _ in range(2):
        with checks(), pytest.raises(RuntimeError, match="not checked: float32, plain: memory"):
            engines.choose(fake_call(), "persistent")
    assert len(children) == 2 and verdicts(file) == {}
    monkeypatch.setattr(child, "PROGRAM", """print('{"result": "complete"}')""")
    with checks(), pytest.raises(RuntimeError, match="not checked: the engine serves no case"):
        engines.choose(fake_call(), "persistent")


@needs_op
def test_no_check_while_a_graph_is_captured_or_checks_are_off(
    children: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for patch in (capture, switch_off):
        with monkeypatch.context() as each:
            patch(each)
            with pytest.raises(RuntimeError, match="its check on this GPU .*: none"):
                engines.choose(fake_call(), "persistent")
            each.setitem(records.checked, records.verdict_key("persistent", GPU), "passed")
            assert engines.choose(fake_call(), "persistent").name == "persistent"
    assert gate.can_check()
    monkeypatch.setenv("FASTLSTM_CHECK", "yes")
    with pytest.raises(ValueError, match="FASTLSTM_CHECK: expected on or off, got 'yes'"):
        engines.choose(fake_call(), "persistent")
    assert children == []


@needs_op
@pytest.mark.parametrize("content", ["", "[]", '{"check of": {}}', None, "torch"])
def test_a_record_that_is_corrupt(
    content: str | None, children: list[list[str]], file: Path
) -> None:
    """The check is done again; a file that is not ours stays as it is."""
    file.parent.mkdir()
    key = records.verdict_key("persistent", GPU)
    is_ours = content in (None, "torch")
    file.write_text(json.dumps({key: content or "torch"}) if is_ours else str(content))
    with pytest.warns(RuntimeWarning) as caught:
        assert engines.choose(fake_call(), "persistent").name == "persistent"
    texts = [str(each.message) for each in caught]
    assert any("ignores" in text for text in texts) != is_ours
    engines.choose(fake_call(), "persistent")
    assert len(children) == 1 and records.checked[key] == "passed"
    assert file.read_text() == content or is_ours


@needs_op
def test_auto_follows_a_measurement_only_after_a_check(
    children: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = type("Measured", (dict,), {"get": lambda *_: "persistent"})(any="persistent")
    monkeypatch.setattr(records, "tuned", measured)
    assert engines.choose(fake_call()).name == "torch"
    records.checked[records.verdict_key("persistent", GPU)] = "passed"
    assert engines.choose(fake_call()).name == "persistent"
    assert children == []


def launches(monkeypatch: pytest.MonkeyPatch, output: Callable[[Call], Tensor]) -> list[str]:
    """The engines that run from now on; they return an output and nothing else that matters."""
    ran: list[str] = []
    for name, row in list(engines.BY_NAME.items()):

        def run(call: Call, name: str = name) -> Any:
            ran.append(name)
            return output(call), call.state(), []

        monkeypatch.setitem(engines.BY_NAME, name, row._replace(run=run))
    return ran


@needs_op
@pytest.mark.parametrize("state", ["passes", "fails", "off", "no GPU"])
def test_compare_and_tune_run_persistent_only_after_a_check(
    state: str,
    children: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compared, tuned = sys.modules["fastlstm.compare"], sys.modules["fastlstm.tune"]
    once = lambda steps, *_, **__: [(step(), [1.0, 1.0])[1] for step in steps]
    for module in (compared, tuned):
        monkeypatch.setattr(module, "in_turn", once)
    monkeypatch.setattr(compared, "_outputs", lambda made, inputs: [])
    monkeypatch.setattr(compared, "_difference", lambda found, expected: 0.0)
    monkeypatch.setattr(gate, "_compare", lambda device, dtype: "")
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    if state == "fails":
        fails_on_the_gpu(monkeypatch)
    elif state == "off":
        monkeypatch.setenv("FASTLSTM_CHECK", "off")
    elif state == "no GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch._subclasses.FakeTensorMode() as mode:
        deepcopy = lambda value, memo=(): copy.deepcopy(value, {id(mode): mode, **dict(memo)})
        monkeypatch.setattr(compared, "copy", SimpleNamespace(deepcopy=deepcopy))
        model = on_the_gpu(fastlstm.LSTM(8, 64))
        x = torch.empty(4, 3, 8, device="cuda", dtype=torch.bfloat16)
        hx = (torch.empty(1, 3, 64, device="cuda", dtype=torch.bfloat16),) * 2
    ran = launches(monkeypatch, lambda call: call.input.new_zeros(4, 3, 64))
    with checks() if state in ("passes", "fails") else nullcontext():
        rows = [row.name for row in fastlstm.compare(model, x, hx)]
    assert ("engine persistent" in rows) == ("persistent" in ran) == (state == "passes")
    assert "engine stepwise" in rows and "stepwise" in ran
    printed = capsys.readouterr().out
    assert ("engine persistent is left out: " in printed) == (state != "passes")
    (times,) = fastlstm.tune(model, x, hx).values()
    assert ("persistent" in times) == ("persistent" in ran) == (state == "passes")
    assert len(children) == (state in ("passes", "fails"))


# --- the stepwise kernels, compared before their first use; here on the CPU ---


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of the layers that are compared; the CPU is treated as a GPU is."""
    monkeypatch.setattr(gate, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(gate, "can_check", lambda: True)
    dtypes: list[torch.dtype] = []
    compare = gate._compare
    noted = lambda device, dtype: (dtypes.append(dtype), compare(device, dtype))[1]
    monkeypatch.setattr(gate, "_compare", noted)
    return dtypes


def stepwise(**options: Any) -> fastlstm.LSTM:
    lstm = fastlstm.LSTM(4, 8, **options)
    lstm.engine = "stepwise"
    return lstm


def runs_the_op(run: Callable[[], object]) -> bool:
    with torch.profiler.profile() as profile:
        run()
    return any(event.name == "fastlstm::lstm" for event in profile.events())


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Makes the kernels give something else where they are compared."""
    right = gate.run_op
    monkeypatch.setattr(gate, "run_op", lambda *args, **options: change(right(*args, **options)))


X = torch.zeros(5, 3, 4)
WRONG: dict[str, Callable[[Any], Any]] = {
    "values": lambda found: (found[0] + 1e-3, *found[1:]),
    "NaN": lambda found: (found[0], (found[1][0] * float("nan"), found[1][1]), found[2]),
    "gradients": lambda found: (2 * found[0] - found[0].detach(), *found[1:]),
}


@needs_op
def test_stepwise_is_compared_once_for_each_dtype(compared: list[torch.dtype]) -> None:
    for dtype in (torch.float32, torch.float32, torch.bfloat16, torch.float32):
        lstm = stepwise(dtype=dtype)
        assert runs_the_op(lambda lstm=lstm, dtype=dtype: lstm(X.to(dtype)))
    assert compared == [torch.float32, torch.bfloat16]
    fastlstm.LSTM(4, 8, 2)(X, lengths=torch.tensor([1, 2, 5]))  # "auto" is the op too
    assert len(compared) == 2


@needs_op
@pytest.mark.parametrize("wrong", WRONG)
def test_the_reference_replaces_stepwise_if_they_differ(
    wrong: str, compared: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, WRONG[wrong])
    lstm, auto = stepwise(), fastlstm.LSTM(4, 8, 2)
    name = {"values": "output", "NaN": "h_n nan", "gradients": "gradient 0"}[wrong]
    message = f"not used on cpu in torch.float32: errors in .* allowed: {name}.*equations in Python"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        assert not any(map(runs_the_op, (lambda: lstm(X), lambda: lstm(X), lambda: auto(X))))
    assert len(caught) == len(compared) == 1


@needs_op
def test_what_keeps_stepwise_from_being_compared(
    compared: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, WRONG["NaN"])
    lstm = stepwise()
    for patch in (
        lambda each: each.setattr(gate, "can_check", lambda: False),
        lambda each: each.setitem(records.checked, records.verdict_key("stepwise", CPU), "passed"),
    ):
        with monkeypatch.context() as each:
            each.setattr(gate, "_compared", {})
            patch(each)
            assert runs_the_op(lambda: lstm(X))
    assert compared == []
    monkeypatch.setitem(
        records.checked,
        records.verdict_key("stepwise", CPU),
        "failed: float32, plain: it hangs",
    )
    with pytest.warns(RuntimeWarning, match="torch.float32: failed: float32, plain: it hangs. Ins"):
        assert not runs_the_op(lambda: lstm(X))
    assert compared == []


@needs_op
def test_no_memory_to_compare(compared: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's call fails too, and the next call asks again."""

    def refuse(found: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        plant(patch, refuse)
        with pytest.raises(torch.OutOfMemoryError):
            stepwise()(X)
    plant(monkeypatch, WRONG["values"])
    with pytest.warns(RuntimeWarning, match="not used on cpu"):
        assert not runs_the_op(lambda: stepwise()(X))


MODES: dict[str, Any] = {
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "default_device": lambda: torch.device("meta"),
    "fake": lambda: torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True),
    "vmap": nullcontext,
    "grad": nullcontext,
}


@needs_op
@pytest.mark.parametrize("mode", MODES)
def test_modes_do_not_reach_the_layer_that_is_compared(
    mode: str, compared: list[torch.dtype]
) -> None:
    lstm = stepwise()
    call: Callable[[Tensor], Tensor] = lambda x: lstm(x)[0].sum()
    if mode == "grad":
        call = torch.func.grad(call)
    with MODES[mode]():
        torch.vmap(call)(X.expand(2, -1, -1, -1)) if mode == "vmap" else call(X)
    assert len(compared) == 1 and set(gate._compared.values()) == {""}


@needs_op
@pytest.mark.parametrize("allowed", [False, True])
def test_float32_in_tf32_is_judged_as_such(
    allowed: bool, compared: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda found: (found[0] + 1e-4, *found[1:]))
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with nullcontext() if allowed else pytest.warns(RuntimeWarning, match="not used on cpu"):
            assert runs_the_op(lambda: stepwise()(X)) == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert len(compared) == 1


@needs_op
@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("by", ["compile", "export", "strict export"])
def test_what_traces_a_model_calls_the_comparison(
    by: str, wrong: bool, compared: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong:
        plant(monkeypatch, WRONG["values"])
    lstm = stepwise()
    expected_output = lstm(X + 1)[0] if not wrong else None
    gate._compared.clear(), compared.clear()
    with pytest.warns(RuntimeWarning, match="not used on cpu") if wrong else nullcontext():
        if by == "compile":
            torch._dynamo.reset()
            traced = torch.compile(lstm, backend="eager", fullgraph=True)
        else:
            program = torch.export.export(lstm, (X,), strict=by == "strict export")
            ops = {str(node.target) for node in program.graph.nodes}
            assert any("fastlstm.lstm" in op for op in ops) != wrong
            traced = program.module()
        output = traced(X + 1)[0]
    assert len(compared) == 1
    if expected_output is not None:
        torch.testing.assert_close(output, expected_output)


@needs_op
def test_a_compiler_meets_the_check_of_persistent(
    children: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_on_the_gpu(monkeypatch)
    with torch._subclasses.FakeTensorMode():
        lstm = on_the_gpu(fastlstm.LSTM(8, 64))
        x = torch.empty(4, 3, 8, device="cuda", dtype=torch.bfloat16)
        lstm.engine = "persistent"
        with checks(), pytest.raises(RuntimeError, match="its check on this GPU .*: failed"):
            torch.export.export(lstm, (x,), strict=False)
    assert len(children) == 1


# --- records, and the command ---


def store_many(first: int) -> None:
    for k in range(first, first + 25):
        records.store(f"check of {k}", "passed")
        records.store(f"call {k}", "torch")


def test_processes_at_once_lose_nothing(file: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=store_many, args=(25 * k,)) for k in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    found = json.loads(file.read_text())
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(found) == 200 and not list(file.parent.glob("*.new"))


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has the verdict nevertheless."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTLSTM_TUNE", str(tmp_path / "file" / "tuned.json"))
    with pytest.warns(UserWarning, match="cannot keep the result of its check"):
        run_child(monkeypatch, BEGIN + COMPLETE, ("one",))
    assert list(records.checked.values()) == ["passed"]


@needs_op
def test_the_whole_check_of_a_cpu(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, with every instruction set that the processor has."""
    output = tmp_path / "found.json"
    with pytest.raises(SystemExit) as ended:
        front_door.main(["check", "--device", "cpu", "--json", str(output), "--seconds", "900"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    found = json.loads(output.read_text())
    assert found["passed"] and found["machine"] in printed
    sets = {row["instructions"] for row in found["cases"]}
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        lower = {f"ATEN_CPU_CAPABILITY={name}" for name in ("avx2", "default")}
        amx = {"FASTLSTM_AMX=0"} if torch.cpu._is_amx_tile_supported() else set()
        assert sets == {"", *lower, *amx}
    for engine, lacking in (("stepwise", set()), ("tiled", {"layer norm, lengths"})):
        for instructions in sets:
            cases = {
                (r["option"], r["dtype"])
                for r in found["cases"]
                if r["engine"] == engine and r["instructions"] == instructions
            }
            options = set(CASES) - lacking
            assert {option for option, _ in cases} == options and len(cases) == 4 * len(options)
        assert len([row for row in found["times"] if row["engine"] == engine]) == 6
    assert all(0 < row["ratio"] for row in found["times"])
    assert set(json.loads(file.read_text()).values()) == {"passed"}


def test_the_command_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child, "SILENCE", 1.5)
    hang = "\nif 'stepwise' in names:\n    say('begun', 'stepwise'); time.sleep(99)\n"
    monkeypatch.setattr(child, "PROGRAM", BEGIN + hang + COMPLETE)
    with pytest.raises(SystemExit) as ended:
        front_door.main(["check", "--device", "cpu", "--seconds", "60"])
    printed = capsys.readouterr().out
    assert ended.value.code == 1
    assert "\nfailed:\n  stepwise, float32, plain: it hangs: no result after 1.5 s\n" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "mps"}, "device: expected cpu or cuda, got mps"),
        ({"seconds": 0}, "seconds: expected a positive number, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastlstm.check(**arguments)
    with pytest.raises(SystemExit, match="check: seconds: expected a positive number, got -1.0"):
        front_door.main(["check", "--device", "cpu", "--seconds", "-1"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    found = fastlstm.check("cuda", seconds=120)
    (row,) = found["cases"]
    assert row["result"] == "not checked" and not found["passed"] and "no GPU" in found["machine"]
    assert "not checked:\n  torch, the process ended with status 1: " in capsys.readouterr().out
