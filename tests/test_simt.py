"""The CUDA kernels on the CPU: every native case of tests/simt, and mutants that must not pass.

The .cu files are built by a C++ compiler against the emulator in tests/simt/simt.h and compared
with a float64 oracle; no GPU and no CUDA toolkit is needed.
"""

import functools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIMT = ROOT / "tests/simt"
BUILD = ROOT / "build/simt"
CXX = shlex.split(os.environ.get("CXX", "g++"))
MISSING = [tool for tool in ("make", CXX[0]) if not shutil.which(tool)]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}")


def run(*command, **kwargs):
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          **kwargs)


@functools.cache
def build(target="all"):
    """Builds what is out of date; returns (exit status, output)."""
    done = run("make", "-C", str(SIMT), "-j2", f"CXX={shlex.join(CXX)}", target)
    return done.returncode, done.stdout


def cases():
    """Names of the native cases, or none where they cannot be built: then test_builds says why."""
    if MISSING or build()[0] != 0:
        return []
    names = run(str(BUILD / "simt_tests"), "--list").stdout.splitlines()
    return [name for name in names if not name.startswith("planted/")]


def test_builds():
    status, output = build()
    assert status == 0, output
    assert "warning:" not in output, output
    assert len(cases()) > 50


@pytest.mark.parametrize("name", cases())
def test_native(name):
    done = run(str(BUILD / "simt_tests"), name)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_sanitized():
    """All cases once more with ASan and UBSan, which must also notice a planted overrun."""
    status, output = build("build-sanitized")
    assert status == 0, output
    program = str(BUILD / "simt_tests_sanitized")
    done = run(program, *cases())
    assert done.returncode == 0, done.stdout
    planted = run(program, "planted/read beyond shared memory")
    assert planted.returncode != 0 and "heap-buffer-overflow" in planted.stdout, planted.stdout


# A fault planted in one line: (file under csrc, line, what it becomes, cases that must fail).
STEPWISE = "stepwise/float32/"
MUTANTS = {
    "rows beyond the grid are left out": (
        "cuda/stepwise.cu", "row += rows_per_grid", "row += step.rows",
        ["stepwise/more rows than a grid is high"],
    ),
    "a reset is ignored": (
        "cuda/stepwise.cu", "forward_unit(step, row, unit, is_reset(step, row))",
        "forward_unit(step, row, unit, false)", [STEPWISE + "reset"],
    ),
    "gradients cross a reset": (
        "cuda/stepwise.cu", "is_reset(step, row), starts_here", "false, starts_here",
        [STEPWISE + "reset"],
    ),
    "a row that starts late forgets c_0": (
        "cuda/stepwise.cu", "starts_here(step, row)", "step.prev_rows == 0",
        [STEPWISE + "packed reverse"],
    ),
    "dead rows go on": (
        "cuda/stepwise.cu", "if (is_live(step, row))", "if (true)", [STEPWISE + "lengths"],
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(mutant, tmp_path):
    status, output = build()
    assert status == 0, output
    name, line, fault, expected_failures = MUTANTS[mutant]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    source = tmp_path / "csrc" / name
    text = source.read_text()
    assert line in text, f"{name} no longer holds {line!r}"
    source.write_text(text.replace(line, fault))
    done = run(*CXX, "-std=c++17", "-O1", "-w", "-U_FORTIFY_SOURCE", "-DFASTLSTM_EMULATOR",
               f"-I{SIMT}", f"-I{source.parent}", "-x", "c++", "-c", str(source),
               "-o", str(tmp_path / "mutant.o"))
    assert done.returncode == 0, done.stdout
    others = [str(o) for o in (BUILD / "plain").glob("*.o") if o.name != source.name + ".o"]
    done = run(*CXX, *others, str(tmp_path / "mutant.o"), "-o", str(tmp_path / "mutant"))
    assert done.returncode == 0, done.stdout
    for case in expected_failures:
        done = run(str(tmp_path / "mutant"), case, timeout=120)
        assert done.returncode != 0, f"{case} passes with the fault planted"
