"""fastlstm.check with planted failures, and the engines that run only after a check."""

import copy
import json
import multiprocessing
import re
import sys
import time
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

import fastlstm
from fastlstm import __main__ as command_line
from fastlstm import _build
from fastlstm.check import first_use, parent
from fastlstm.check.cases import OPTIONS, PREPACKED_BITS, TIMED, cases_of, draw
from fastlstm.engine import engines, records
from fastlstm.engine.call import Call

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The path of the file with the verdicts. At first nothing was checked, and checks are on."""
    path = tmp_path / "cache" / "records.json"
    monkeypatch.setenv("FASTLSTM_RECORDS", str(path))
    monkeypatch.delenv("FASTLSTM_CHECK", raising=False)
    monkeypatch.setattr(first_use, "_problems", {})
    yield path
    records.machine.cache_clear()


# --- the child process: programs that print what the worker prints, or do something else ---

BEGIN = """
import json, os, signal, sys, time
cases = json.loads(sys.argv[2])
say = lambda result, **more: print(json.dumps({"result": result, **more}), flush=True)
print("fastlstm is imported", flush=True)
"""
PASS = "\nfor case in cases: say('passed', error=1.5)\n"


@pytest.fixture
def runs(monkeypatch):
    """A function that checks engines, with a program in place of the worker; returns rows."""

    def run(program, names="one two", **options):
        monkeypatch.setattr(parent, "PROGRAM", program)
        cases = [{"engine": name, "dtype": "float32", "option": "plain"} for name in names.split()]
        rows = parent.check_cases(CPU, cases, time.monotonic() + 60, **options)
        return [(row["engine"], row["result"], row.get("reason", "")) for row in rows]

    return run


def verdicts(file):
    stored = json.loads(file.read_text()) if file.exists() else {}
    return {key.removeprefix("check of ").split(",")[0]: value for key, value in stored.items()}


def test_a_child_that_completes_its_task(file, runs):
    noise = 'print("a warning\\n{\\"broken\\n[1]\\n{}x"); sys.stderr.write("and an error\\n")\n'
    assert runs(BEGIN + noise + PASS) == [("one", "passed", ""), ("two", "passed", "")]
    assert verdicts(file) == {"one": "passed", "two": "passed"}
    (key, *_) = json.loads(file.read_text())
    assert torch.backends.cpu.get_cpu_capability() in key and torch.__version__ in key


def test_each_case_has_a_result_and_a_reason(file, runs):
    """After a wrong result, and without memory for a case, the child goes on."""
    program = "say('failed', reason='wrong'); say('passed'); say('not served')"
    rows = runs(f"{BEGIN}{program}; say('not checked', reason='memory')", "one one two three")
    assert rows == [("one", "failed", "wrong"), ("one", "passed", ""),
                     ("three", "not checked", "memory")]  # fmt: skip
    assert verdicts(file) == {"one": "failed: float32, plain: wrong"}


# The code that a child runs, and the reason that its case gets.
MUTE = "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.close(1); os.close(2); "
BROKEN = {
    "time.sleep(999)": "it hangs: no result after 1.5 s",
    f"{MUTE}time.sleep(999)": "it hangs: no result after 1.5 s",
    "os.kill(os.getpid(), signal.SIGSEGV)": "it crashed: Segmentation fault .*",
    "print('CUDA trap'); os.abort()": r"it crashed: Aborted \(signal 6\)",
    "os._exit(3)": "the process ended with status 3: .*",
    "os._exit(0)": "the process ended with status 0: .*",
    "raise RuntimeError('no kernel')": "the process ended with status 1: RuntimeError: no kernel",
    "say('failed', reason='an error'); os._exit(0)": "an error",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_child_that_breaks(code, file, runs, monkeypatch):
    """The engine's other cases are left out, and a new child goes on with the next engine."""
    monkeypatch.setattr(parent, "SILENCE", 1.5)
    start = time.monotonic()
    program = f"{BEGIN}\nif cases[0]['engine'] == 'one':\n    {code}\n{PASS}"
    ((*one, reason), two) = runs(program, "one one two")
    assert one == ["one", "failed"] and two == ("two", "passed", "")
    assert time.monotonic() - start < 30 and re.fullmatch(BROKEN[code], reason)
    assert verdicts(file) == {"one": f"failed: float32, plain: {reason}", "two": "passed"}


UNKNOWN = {
    f"{BEGIN}os.kill(os.getpid(), signal.SIGKILL)": "the process ended with status -9: .*",
    "raise ImportError('no fastlstm')": "the process ended with status 1: ImportError: no fastlstm",
}


@pytest.mark.parametrize("program", UNKNOWN)
def test_a_child_that_ends_before_its_first_case(program, file, runs):
    rows = runs(program)
    assert [row[:2] for row in rows] == [("one", "not checked"), ("two", "not checked")]
    assert all(re.fullmatch(UNKNOWN[program], row[2]) for row in rows) and verdicts(file) == {}


def test_the_time_is_over(file, runs, monkeypatch):
    now = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(parent, "time", clock)
    end_time = lambda row: setattr(clock, "monotonic", lambda: now + 61)
    rows = runs(f"{BEGIN}say('passed'); time.sleep(99)", "one two two three", show=end_time)
    left = [(name, "not checked", "the time is over") for name in ("two", "two", "three")]
    assert rows == [("one", "passed", ""), *left] and verdicts(file) == {"one": "passed"}


def test_what_the_child_inherits(runs, monkeypatch):
    """The import path and the environment, but not the instruction set that the user chose."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("OF_THE_USER", "kept")
    monkeypatch.setattr(sys, "path", [*sys.path, "/of the user's"])
    names = "ATEN_CPU_CAPABILITY FASTLSTM_AMX FASTLSTM_RECORDS FASTLSTM_WAIT_SECONDS OF_THE_USER"
    program = f"{BEGIN}say('', reason=[sys.path, *map(os.environ.get, {names.split()})])"
    rows = []
    runs(program, "x", instructions="FASTLSTM_AMX=0", show=rows.append)
    assert rows[0]["reason"] == [sys.path, None, "0", "off", "1", "kept"]
    assert rows[0]["instructions"] == "FASTLSTM_AMX=0"


PLANT = """
import sys, torch
from fastlstm.check import worker
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
pack = worker.formats.pack  # scales that are wrong by 3 %
worker.formats.pack = lambda w, *rest, **more: pack(1.03 * w, *rest, **more)
worker.main()
"""
ERRORS, BITS = "errors above 32 roundoffs: ", "other bits when it ran again: "
REASONS = {
    "no bias": "out of memory",
    "layer norm, lengths": "out of memory",
    "large H": "RuntimeError: CUDA error: an illegal memory access was encountered",
    "packed": f"{ERRORS}output ",
    "packed, both directions": f"{ERRORS}output ",
    "reset": f"{BITS}c_n",
    "reset, lengths, both directions": f"{BITS}c_n",
    "projection, both directions": f"{ERRORS}h_n nan",
    "cell states, both directions": f"{ERRORS}gradient 0 ",
}


def test_an_engine_that_computes_something_else(file, monkeypatch):
    monkeypatch.setattr(parent, "PROGRAM", PLANT)
    cases = [c for c in cases_of(["stepwise", "tiled"], CPU) if c["dtype"] == "float32"]
    prepacked = cases_of([*PREPACKED_BITS], CPU)[:: len(OPTIONS)]
    rows = parent.check_cases(CPU, cases + prepacked, time.monotonic() + 100)
    by_option = {row["option"]: row for row in rows if row["engine"] == "stepwise"}
    assert list(by_option) == OPTIONS
    for option, row in by_option.items():
        reason = REASONS.get(option, "")
        result = "not checked" if reason == "out of memory" else "failed" if reason else "passed"
        assert row["result"] == result and row.get("reason", "").startswith(reason), row
        json.dumps(row, allow_nan=False)
    assert verdicts(file)["stepwise"].startswith("failed: float32, packed: errors")
    assert verdicts(file)["tiled"] == "passed"
    assert all(verdicts(file)[k].startswith("failed: float32, plain: er") for k in PREPACKED_BITS)


def test_the_cases_of_all_options_differ():
    drawn = [draw(case, "float32", CPU) for case in OPTIONS]
    options = [(*c[3:], c.input.shape, c.hx is None) for c in drawn]  # c[:3]: input, hx, weights
    assert len({*map(str, options)}) == len(OPTIONS)
    assert any(call.batch_sizes is not None and call.num_directions == 2 for call in drawn)
    assert all(0 in c.lengths and 7 in c.lengths for c in drawn if c.lengths is not None)
    resets = [call.reset for call in drawn if call.reset is not None]
    assert resets and all(0 < each.sum() < each.numel() for each in resets)


# --- a machine that pretends to have a GPU: the persistent engine waits for its check ---

FAKE = torch._subclasses.FakeTensorMode()
CRASH = f"{BEGIN}\nos.abort()"
CRASHED = "cannot run on cuda:0: it did not pass .*: failed: float64, plain: it crashed: Ab"


@pytest.fixture
def children(monkeypatch):
    """The engine of each child process that is started; the machine seems to have a GPU."""
    monkeypatch.setattr(_build, "device_types", ("cpu", "cuda"))
    monkeypatch.setattr(_build, "gpu_properties", lambda index: (132, 90, ""))
    monkeypatch.setattr(_build, "_why_not_this_gpu", lambda index: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(parent, "PROGRAM", BEGIN + PASS)
    records.machine.cache_clear()
    started, real = [], parent._rows_from_child
    noted = lambda gpu, cases, end: started.append(cases[0]["engine"]) or real(gpu, cases, end)
    monkeypatch.setattr(parent, "_rows_from_child", noted)
    return started


def on_the_gpu(*shape):
    with FAKE:
        return torch.empty(*shape, device="cuda", dtype=torch.bfloat16)


def call_on_the_gpu():
    return Call(on_the_gpu(4, 3, 64), None, [on_the_gpu(256, 64)] * 2, "")


def choose(engine="auto"):
    return engines.choose(call_on_the_gpu(), engine).name


def lstm_on_the_gpu(engine="auto"):
    lstm = fastlstm.LSTM(8, 64)
    for name, weight in lstm.named_parameters():
        setattr(lstm, name, torch.nn.Parameter(on_the_gpu(*weight.shape)))
    lstm.engine = engine
    return lstm


def check_warning():
    return pytest.warns(RuntimeWarning, match='fastlstm checks the engine "persistent" on this GPU')


def test_persistent_by_name_is_checked_once(children, file):
    with check_warning():
        assert choose("persistent") == "persistent"
    assert children == ["persistent"] and verdicts(file) == {"persistent": "passed"}
    for _ in range(2):
        assert choose("persistent") == "persistent"
        records.checked.clear()  # as in a later process, or after another one has checked it
    assert choose("persistent") == "persistent" and len(children) == 1


def test_the_tests_of_a_gpu_begin_no_check(children, checked_gpu):
    assert choose("persistent") == "persistent" and children == []
    assert not first_use.stepwise_is_wrong(GPU, torch.float32)


CHANGES = {
    "GPU": lambda patch: patch.setattr(torch.cuda, "get_device_name", lambda device: "Another GPU"),
    "driver": lambda patch: patch.setattr(records, "_driver", lambda: "driver 999.1"),
    "torch": lambda patch: patch.setattr(torch, "__version__", "2.99.0"),
    "build": lambda patch: patch.setattr(records, "build", {"date": "2030-01-01"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_check_counts_for_one_machine_and_build(change, children, file, monkeypatch):
    with check_warning():
        choose("persistent")
    CHANGES[change](monkeypatch)
    records.machine.cache_clear()
    with check_warning():
        choose("persistent")
    assert len(children) == 2 and len(json.loads(file.read_text())) == 2


def test_persistent_is_not_run_after_a_check_that_failed(children, monkeypatch):
    monkeypatch.setattr(parent, "PROGRAM", CRASH)
    lstm, auto, x = lstm_on_the_gpu("persistent"), lstm_on_the_gpu(), on_the_gpu(4, 3, 8)
    with check_warning(), pytest.raises(RuntimeError, match=CRASHED):
        torch.export.export(lstm, (x,), strict=False)
    records.checked.clear()
    weights, function = [*lstm.parameters()], fastlstm.functional.lstm
    with pytest.raises(RuntimeError, match=CRASHED):
        lstm(x)
    with pytest.raises(RuntimeError, match=CRASHED):
        function(x, None, weights, engine="persistent")
    monkeypatch.setattr(engines, "DEFAULT", "persistent")  # as FASTLSTM_ENGINE does
    with pytest.raises(RuntimeError, match=CRASHED):
        auto(x)
    assert len(children) == 1


INCOMPLETE = {
    "for case in cases: say('not checked', reason='memory')": "float64, plain: memory",
    "for case in cases: say('not served')": "the engine serves no case",
}


@pytest.mark.parametrize("program, reason", INCOMPLETE.items())
def test_a_check_that_was_not_completed_is_not_kept(program, reason, children, file, monkeypatch):
    monkeypatch.setattr(parent, "PROGRAM", BEGIN + program)
    for _ in range(2):
        with check_warning(), pytest.raises(RuntimeError, match=f"not checked: {reason}"):
            choose("persistent")
    assert len(children) == 2 and verdicts(file) == {}


def capture(patch):
    patch.setattr(torch.cuda, "is_initialized", lambda: True)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


@pytest.mark.parametrize("off", [capture, lambda patch: patch.setenv("FASTLSTM_CHECK", "off")])
def test_no_check_while_a_graph_is_captured_or_checks_are_off(off, children, monkeypatch):
    assert first_use.can_check()
    off(monkeypatch)
    with pytest.raises(RuntimeError, match="it did not pass .* on this GPU: not checked"):
        choose("persistent")
    monkeypatch.setitem(records.checked, records.verdict_key("persistent", GPU), "passed")
    assert choose("persistent") == "persistent" and children == []


@pytest.mark.parametrize("content", ["", "[]", '{"check of": {}}', "torch"])
def test_a_record_that_is_corrupt(content, children, file):
    """The check is done again; a file that is not ours stays as it is."""
    file.parent.mkdir()
    key = records.verdict_key("persistent", GPU)
    is_ours = content == "torch"  # an engine, so not a verdict
    file.write_text(json.dumps({key: content}) if is_ours else content)
    with pytest.warns(RuntimeWarning) as caught:
        assert choose("persistent") == "persistent"
    assert any("ignores" in str(each.message) for each in caught) != is_ours
    assert choose("persistent") == "persistent" and len(children) == 1
    assert records.checked[key] == "passed" and (is_ours or file.read_text() == content)


def launches(monkeypatch):
    """Replaces all engines by ones that return zeros. Returns the list of engines that ran."""
    ran = []
    zeros = lambda call: (call.input.new_zeros(4, 3, 64), call.state(), [])
    for name, row in list(engines.BY_NAME.items()):
        run = lambda call, name=name: ran.append(name) or zeros(call)
        monkeypatch.setitem(engines.BY_NAME, name, row._replace(run=run))
    return ran


STATES = {
    "passes": lambda patch: None,
    "fails": lambda patch: patch.setattr(parent, "PROGRAM", CRASH),
    "off": lambda patch: patch.setenv("FASTLSTM_CHECK", "off"),
    "no GPU": lambda patch: patch.setattr(torch.cuda, "is_available", lambda: False),
}


@pytest.mark.parametrize("state", STATES)
def test_compare_runs_persistent_only_after_a_check(state, children, monkeypatch, capsys):
    compared = sys.modules["fastlstm.compare"]
    once = lambda steps, *_, **__: [(step(), [1.0, 1.0])[1] for step in steps]
    monkeypatch.setattr(compared, "times_of", once)
    deepcopy = lambda value, memo=(): copy.deepcopy(value, {id(FAKE): FAKE, **dict(memo)})
    monkeypatch.setattr(compared, "copy", SimpleNamespace(deepcopy=deepcopy))
    monkeypatch.setattr(compared, "_difference", lambda found, expected: 0.0)
    monkeypatch.setattr(first_use, "_compare", lambda device, dtype: "")
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    STATES[state](monkeypatch)
    ran, printed = launches(monkeypatch), lambda: capsys.readouterr().out
    given = lstm_on_the_gpu(), on_the_gpu(4, 3, 8), (on_the_gpu(1, 3, 64),) * 2
    given[0].inner = torch.nn.Identity()  # has no engine
    with check_warning() if state in ("passes", "fails") else nullcontext():
        rows = [row.name for row in fastlstm.compare(*given)]
    assert ("engine persistent" in rows) == ("persistent" in ran) == (state == "passes")
    assert "engine stepwise" in rows and "stepwise" in ran
    assert ("engine persistent is left out: " in printed()) == (state != "passes")
    assert len(children) == (state in ("passes", "fails"))


# --- the stepwise kernels, compared before their first use; here on the CPU ---

X = torch.zeros(5, 3, 4)
# {the first wrong result that the warning names: a change that makes results wrong}
WRONG = {
    "output": lambda found: (found[0] + 1e-3, *found[1:]),
    "h_n nan": lambda found: (found[0], (found[1][0] * float("nan"), found[1][1]), found[2]),
    "gradient 0": lambda found: (2 * found[0] - found[0].detach(), *found[1:]),
}


@pytest.fixture
def compared(monkeypatch):
    """The dtypes of all comparisons. Stepwise kernels on the CPU are compared as if on a GPU."""
    monkeypatch.setattr(engines, "auto_means_op", lambda: False)  # as on a GPU
    monkeypatch.setattr(first_use, "CHECKED_DEVICE_TYPE", "cpu")
    monkeypatch.setattr(first_use, "can_check", lambda: True)
    dtypes, compare = [], first_use._compare
    noted = lambda device, dtype: dtypes.append(dtype) or compare(device, dtype)
    monkeypatch.setattr(first_use, "_compare", noted)
    return dtypes


@pytest.fixture
def plant(monkeypatch):
    """A function that changes the kernels' results, but only in the comparison."""
    right, replace = first_use.run_op, partial(monkeypatch.setattr, first_use, "run_op")
    return lambda change: replace(lambda *args, **options: change(right(*args, **options)))


def stepwise(dtype=torch.float32, engine="stepwise"):
    lstm = fastlstm.LSTM(4, 8, dtype=dtype)
    lstm.engine = engine
    return lstm


def runs_the_op(lstm, x=X):
    with torch.profiler.profile() as profile:
        lstm(x)
    return any(event.name == "fastlstm::lstm" for event in profile.events())


def warns(text="", is_wrong=True):
    """The warning that the kernels are not used, if something `is_wrong`."""
    message = f"not used on cpu in torch.float32: {text}"
    return pytest.warns(RuntimeWarning, match=message) if is_wrong else nullcontext()


def test_stepwise_is_compared_once_for_each_dtype(compared):
    for dtype in (torch.float32, torch.float32, torch.bfloat16, torch.float32):
        assert runs_the_op(stepwise(dtype), X.to(dtype))
    assert runs_the_op(fastlstm.LSTM(4, 8, 2))  # "auto" is the op too
    assert runs_the_op(stepwise(torch.float64, "tiled"), X.double())  # is not compared
    assert compared == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("wrong", WRONG)
def test_the_reference_replaces_stepwise_if_they_differ(wrong, compared, plant):
    plant(WRONG[wrong])
    with warns(f"errors above .*: {wrong}.*equations in Python") as caught:
        assert not any(map(runs_the_op, (stepwise(), stepwise(), fastlstm.LSTM(4, 8, 2))))
    assert len(caught) == len(compared) == 1


@pytest.mark.parametrize("verdict", ["passed", "failed: float32, plain: it hangs", None])
def test_what_keeps_stepwise_from_being_compared(verdict, compared, plant, monkeypatch):
    """A verdict on record decides. If there is none and no check may be done, the kernels run."""
    plant(WRONG["output"])
    if verdict:
        records.checked[records.verdict_key("stepwise", CPU)] = verdict
    else:
        monkeypatch.setattr(first_use, "can_check", lambda: False)
    is_wrong = verdict not in (None, "passed")
    with warns(f"{verdict}. The", is_wrong):
        assert runs_the_op(stepwise()) != is_wrong
    assert compared == []


def test_no_memory_to_compare(compared, plant):
    """The call of the user raises the error of memory, and the next call compares again."""
    plant(Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        stepwise()(X)
    plant(WRONG["output"])
    with warns():
        assert not runs_the_op(stepwise())


MODES = {
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "default_device": lambda: torch.device("meta"),
    "fake": lambda: torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True),
    "vmap": nullcontext,
    "grad": nullcontext,
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_do_not_reach_the_layer_that_is_compared(mode, compared):
    lstm = stepwise()
    call = lambda x: lstm(x)[0].sum()
    if mode == "grad":
        call = torch.func.grad(call)
    with MODES[mode]():
        torch.vmap(call)(X.expand(2, -1, -1, -1)) if mode == "vmap" else call(X)
    assert compared == [torch.bfloat16 if mode == "autocast" else torch.float32]
    assert set(first_use._problems.values()) == {""}


@pytest.mark.parametrize("kind", ["float32", "tf32"], indirect=True)
def test_float32_in_tf32_is_judged_as_such(kind, compared, plant):
    plant(lambda found: (found[0] + 1e-4, *found[1:]))
    with warns(is_wrong=kind == "float32"):
        assert runs_the_op(stepwise()) == (kind == "tf32")
    assert len(compared) == 1


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("tracer", ["compile", "export", "strict export"])
def test_what_traces_a_model_calls_the_comparison(tracer, wrong, compared, plant):
    lstm = stepwise()
    right = lstm(X + 1)[0]
    first_use._problems.clear(), compared.clear()
    if wrong:
        plant(WRONG["output"])
    with warns(is_wrong=wrong):
        if tracer == "compile":
            torch._dynamo.reset()
            traced = torch.compile(lstm, backend="eager", fullgraph=True)
        else:
            program = torch.export.export(lstm, (X,), strict=tracer == "strict export")
            ops = {str(node.target) for node in program.graph.nodes}
            assert any("fastlstm.lstm" in op for op in ops) != wrong
            traced = program.module()
        torch.testing.assert_close(traced(X + 1)[0], right)
    assert len(compared) == 1


def store_many(first):
    for k in range(first, first + 25):
        records.store(f"check of {k}", "passed")


def test_processes_at_once_lose_nothing(file):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map_async(store_many, range(0, 100, 25), chunksize=1).get(60)
    assert len(json.loads(file.read_text())) == 100 and not list(file.parent.glob("*.new"))


BAD = ["", "[" * 100_000, "[]", '{"check of a": 5}', '{"check of a": {"engine": "torch"}}']


@pytest.mark.parametrize("content", BAD)
def test_a_damaged_or_foreign_file_is_ignored_and_kept(content, file):
    file.parent.mkdir()
    file.write_text(content)
    ignores = "fastlstm ignores .*records.json.*FASTLSTM_RECORDS=off"
    for call in (records.load, lambda: records.store("check of b", "passed")):
        with pytest.warns(RuntimeWarning, match=ignores):
            call()
    assert file.read_text() == content and records.checked == {"check of b": "passed"}
    file.unlink()  # as the warning advises
    records.store("check of b", "passed")
    assert json.loads(file.read_text()) == {"check of b": "passed"}


def test_the_variable_that_names_the_file(tmp_path, monkeypatch):
    store = lambda: records.store("check of a", "passed")
    monkeypatch.setenv("FASTLSTM_RECORDS", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store()
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("FASTLSTM_RECORDS", str(tmp_path))
    for call in (records.load, store):
        with pytest.warns(RuntimeWarning, match="ignores .*, which is a folder; set FASTLSTM"):
            call()
    monkeypatch.delenv("FASTLSTM_RECORDS")
    store()
    assert (tmp_path / "cache/fastlstm/records.json").exists()


def test_a_file_that_cannot_be_written(tmp_path, runs, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTLSTM_RECORDS", str(tmp_path / "file" / "records.json"))
    with pytest.warns(UserWarning, match="cannot keep the result of its check"):
        runs(BEGIN + PASS, "one")
    assert list(records.checked.values()) == ["passed"]


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        command_line.main(["check", "--device", "cpu", *arguments])
    return ended.value.code


def test_the_whole_check_of_a_cpu(file, tmp_path, capsys):
    output = tmp_path / "found.json"
    status, printed = command("--json", str(output), "--seconds", "900"), capsys.readouterr().out
    assert status == 0, printed
    result = json.loads(output.read_text())
    assert result["passed"] and result["machine"] in printed
    columns = lambda *names: [tuple(row[name] for name in names) for row in result["cases"]]
    sets = {instructions for (instructions,) in columns("instructions")}
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        amx = ["FASTLSTM_AMX=0"] if torch.cpu._is_amx_tile_supported() else []
        assert sets == {"", "ATEN_CPU_CAPABILITY=avx2", "ATEN_CPU_CAPABILITY=default", *amx}
    rows = columns("engine", "instructions", "option", "dtype")
    unserved = {"layer norm, lengths", "recurrent dropout, both directions"}
    assert len(rows) == len(set(rows)) and len({*columns("dtype")}) == 4
    lacking = {"stepwise": set(), "tiled": unserved, **dict.fromkeys(PREPACKED_BITS, unserved)}
    for engine, lacks in lacking.items():
        for instructions in sets:
            options = {row[2] for row in rows if row[:2] == (engine, instructions)}
            timed = TIMED if engine not in PREPACKED_BITS and not instructions else ()
            assert options == {*OPTIONS, *timed} - lacks
    ratios = [row["ratio"] for row in result["cases"] if row["option"] in TIMED]
    assert len(ratios) == 16 and min(ratios) > 0
    assert set(json.loads(file.read_text()).values()) == {"passed"}


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_the_command_says_what_failed(has_tqdm, monkeypatch, capsys):
    """Cases with the same reason stand together; a terminal shows how many are checked."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not has_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    program = f"{BEGIN}say('passed', error=2)\nfor _ in range(2): say('failed', reason='wrong')"
    monkeypatch.setattr(parent, "PROGRAM", f"{program}\nfor _ in cases[3:]: say('not served')")
    status, shown = command(), capsys.readouterr()
    assert status == 1 and "\n\nfailed, wrong:\n  torch: float32, plain; bfloat16, " in shown.out
    assert re.search(r"^torch +1 of 3 +2\.0$", shown.out, re.M)
    assert re.search(r"check: +\d+%\|" if has_tqdm else r"\rcheck: 3 of \d\d+\r", shown.err)


def test_bad_arguments(children, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CHECK", "yes")
    with pytest.raises(ValueError, match="FASTLSTM_CHECK: expected on or off, got 'yes'"):
        choose("persistent")
    with pytest.raises(ValueError, match="device: expected cpu or cuda, got mps"):
        fastlstm.check("mps")
    with pytest.raises(ValueError, match="seconds: expected a positive number, got 0"):
        fastlstm.check("cpu", seconds=0)
    assert command("--seconds", "-1") == "check: seconds: expected a positive number, got -1.0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    result = fastlstm.check("cuda", seconds=120)
    assert {row["result"] for row in result["cases"]} == {"not checked"} and not result["passed"]
    assert "no GPU" in result["machine"]
    printed = capsys.readouterr().out
    assert "\n\nnot checked, the process ended with status 1: " in printed
    assert printed.endswith("\n  torch: every case\n\n0 of 80 cases passed\n")
