"""Settings and fixtures of every test run: threads, TF32, the markers `gpu` and `slow`."""

import os

import pytest
import torch

from fastlstm import _build
from fastlstm.engine import records

SLOW_LEFT_OUT = pytest.StashKey[int]()

# Two threads by default, so that parallel code runs in parallel, the same way on every machine.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(2)

# opcheck imports torch.testing._internal, which calls this function. It would forbid all later
# tests to set the flags of torch.backends, so it is made to do nothing.
torch.backends.disable_global_flags = lambda: None

# By default cuDNN multiplies float32 in TF32. The tests of TF32 turn it on again.
torch.backends.cudnn.allow_tf32 = False

# Tests do not use the file of check. Precompiling inductor's header would not pay.
os.environ |= {"TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0", "FASTLSTM_RECORDS": "off"}


@pytest.fixture(autouse=True)
def _nothing_checked(monkeypatch):
    monkeypatch.setattr(records, "checked", {})


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def checked_gpu(monkeypatch):
    """The kernels count as checked on the GPU, so that no test begins with their check."""
    for engine in ("stepwise", "persistent"):
        key = records.verdict_key(engine, torch.device("cuda", 0))
        monkeypatch.setitem(records.checked, key, records.PASSED)


@pytest.fixture
def kind(request):
    """The name of a dtype, float32 by default, or "tf32": float32 with TF32 allowed in torch."""
    # nn.LSTM obeys the flag of cuDNN, fastlstm that of matmul.
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    name = getattr(request, "param", "float32")
    for backend in backends:
        backend.allow_tf32 = name == "tf32"
    yield name
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_report_header():
    devices = ", ".join(_build.build_record().get("kinds", []))
    extension = _build.unavailable_reason() or f"loaded, kernels for {devices}"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads; extension: {extension}"


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if not config.getoption("--slow") and not config.getoption("-m"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        config.stash[SLOW_LEFT_OUT] = len(slow)


def pytest_terminal_summary(terminalreporter):
    if count := terminalreporter.config.stash.get(SLOW_LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} slow tests left out; --slow runs them")
