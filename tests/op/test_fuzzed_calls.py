"""Random calls and programs, in processes of their own: a crash fails with its seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm import _build

pytestmark = pytest.mark.skipif(
    not _build.extension_available(), reason=f"no extension: {_build.unavailable_reason()}"
)

BLOCK = 250


def check_seeds(script: str, first: int, count: int) -> None:
    command = [sys.executable, Path(__file__).parents[1] / script, str(first), str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or lines[-1:] != ["done"]:
        failures = [line for line in lines[:-1] if not line.startswith("begin ")]
        status = f"exit status {done.returncode}; a crash had the seed of the last line"
        pytest.fail("\n".join([done.stderr, status, *failures, *lines[-1:]]), pytrace=False)


@pytest.mark.parametrize("script, count", [("fuzzed_calls.py", 200), ("step_programs.py", 40)])
def test_some(script: str, count: int) -> None:
    check_seeds(script, 0, count)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
@pytest.mark.parametrize("script", ["fuzzed_calls.py", "step_programs.py"])
def test_thousands(script: str, block: int) -> None:
    check_seeds(script, 1000 + block * BLOCK, BLOCK)


def test_a_crash_is_a_failure_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_CRASH_AT", "3")
    with pytest.raises(pytest.fail.Exception, match="exit status -11(.|\n)*begin 3$"):
        check_seeds("fuzzed_calls.py", 2, 3)
