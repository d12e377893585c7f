"""Runs fuzzed_calls.py in processes of its own, so that a crash fails a test with its seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm import _build

pytestmark = pytest.mark.skipif(not _build.extension_available(), reason="no extension")

BLOCK = 250


def check_seeds(first, count):
    script = Path(__file__).parents[1] / "fuzzed_calls.py"
    command = [sys.executable, script, str(first), str(count)]
    # glibc fills memory with large numbers, so reading beyond the end of a tensor changes results.
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MALLOC_PERTURB_": "165"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or lines[-1:] != ["done"]:
        failures = [line for line in lines[:-1] if not line.startswith("begin ")]
        status = f"exit status {done.returncode}; if it is a crash, the last line has its seed"
        pytest.fail("\n".join([done.stderr, status, *failures, *lines[-1:]]), pytrace=False)


def test_few_seeds():
    check_seeds(0, 400)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_many_seeds(block):
    check_seeds(1000 + block * BLOCK, BLOCK)
