"""The CUDA kernels on the CPU: every native case of tests/simt, and mutants that must not pass.

The .cu files are built by a C++ compiler against the emulator in tests/simt/simt.h and compared
with a float64 oracle. No GPU and no CUDA toolkit is needed; where there is nvcc, test_ptx.py runs
what it makes of them.
"""

import fcntl
import functools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIMT = ROOT / "tests/simt"
CUDA = ROOT / "csrc/cuda"
BUILD = ROOT / "build/simt"
CXX = shlex.split(os.environ.get("CXX", "g++"))
MISSING = [tool for tool in ("make", CXX[0]) if not shutil.which(tool)]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}")


def run(*command, **kwargs):
    return subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs
    )


@functools.cache
def build(target="all"):
    """Builds what is out of date, in one process at a time; returns (exit status, output)."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        flags = f"CXX={shlex.join(CXX)}", "CXXFLAGS=-Werror"
        done = run("make", "-C", str(SIMT), "-j2", *flags, target)
    return done.returncode, done.stdout


@functools.cache
def cases():
    """Names of the native cases, or none where they cannot be built: then test_builds says why."""
    if MISSING or build()[0] != 0:
        return []
    names = run(str(BUILD / "simt_tests"), "--list").stdout.splitlines()
    return [name for name in names if not name.startswith("planted/")]


def test_builds():
    status, output = build()
    assert status == 0, output
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


# Faults planted in one place: what becomes what, in which file from csrc/cuda on, built with which
# .cu file, and the cases that must fail.
STEPWISE, NORMED, FFMA, TF32, BF16 = (
    "stepwise/float32/",
    "layer norm/float32/",
    "persistent/float32/",
    "persistent/tf32/",
    "persistent/bfloat16/",
)
FORWARD, BACKWARD = "persistent_forward.cu", "persistent_backward.cu"
EXCHANGE, PRODUCT, BLOCK = ("persistent_exchange.h", "persistent_product.h", "persistent_block.h")
CELL_STEP = "../equations/cell_step.h"
MUTANTS = {
    "rows beyond the grid are left out": (
        "stepwise.cu",
        "stepwise.cu",
        "row += rows_per_grid",
        "row += step.rows",
        ["stepwise/more rows than a grid is high"],
    ),
    "a reset is ignored": (
        "stepwise.cu",
        "stepwise.cu",
        "forward_unit(step, row, unit, is_reset(step, row), zoned)",
        "forward_unit(step, row, unit, false, zoned)",
        [STEPWISE + "reset"],
    ),
    "gradients cross a reset": (
        "stepwise.cu",
        "stepwise.cu",
        "cells_before(step, row), is_reset(step, row), zoned)",
        "cells_before(step, row), false, zoned)",
        [STEPWISE + "reset"],
    ),
    "a row that starts late forgets c_0": (
        "stepwise.cu",
        "../equations/lstm_step.h",
        "starts_here(s, row) ? s.c_0",
        "s.prev_rows == 0 ? s.c_0",
        [STEPWISE + "packed reverse"],
    ),
    "dead rows go on": (
        "stepwise.cu",
        "stepwise.cu",
        "if (is_live(step, row))",
        "if (true)",
        [STEPWISE + "lengths"],
    ),
    "zoneout is ignored": (
        "stepwise.cu",
        "stepwise.cu",
        "forward_unit(step, row, unit, is_reset(step, row), zoned)",
        "forward_unit(step, row, unit, is_reset(step, row), false)",
        [STEPWISE + "zoneout", STEPWISE + "zoneout, nothing saved"],
    ),
    "zoneout is ignored by gradients": (
        "stepwise.cu",
        "stepwise.cu",
        "cells_before(step, row), is_reset(step, row), zoned)",
        "cells_before(step, row), is_reset(step, row), false)",
        [STEPWISE + "zoneout"],
    ),
    "layer norm: no barrier before the partial sums": (
        "layer_norm.cu",
        "layer_norm.cu",
        """partial[thread] = sum;
    barrier();""",
        "partial[thread] = sum;",
        [NORMED + "more units than threads"],
    ),
    "layer norm: no barrier before a sum": (
        "layer_norm.cu",
        "layer_norm.cu",
        "barrier();  // what f reads",
        "// what f reads",
        [NORMED + "more units than threads"],
    ),
    "layer norm: every other part of a sum is left out": (
        "layer_norm.cu",
        "layer_norm.cu",
        "half > 0; half /= 2",
        "half > 1; half /= 2",
        [NORMED + "one row", NORMED + "zoneout"],
    ),
    "layer norm: rows beyond the first": (
        "layer_norm.cu",
        "layer_norm.cu",
        "backward_normed_row(step, row,",
        "backward_normed_row(step, 0,",
        [NORMED + "one row"],
    ),
    "launch: only the shared memory of this call is allowed": (
        FORWARD,
        "device.h",
        "MaxDynamicSharedMemorySize, most);",
        "MaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));",
        ["runtime/two threads, one function, different slices"],
    ),
    "launch: waits for the device": (
        FORWARD,
        "device.h",
        "  return cleared(error);",
        "  cudaStreamSynchronize(stream);\n  return cleared(error);",
        [FFMA + "two parts"],
    ),
    "persistent: nobody waits": (
        FORWARD,
        EXCHANGE,
        "for (int polls = 0; is_missing(parts); ++polls)",
        "for (int polls = 0; false; ++polls)",
        [FFMA + "two parts", BF16 + "two parts"],
    ),
    "persistent: waits for what nobody writes": (
        FORWARD,
        FORWARD,
        "block.depth, false};",
        "block.depth, true};",
        ["persistent/NaN travels"],
    ),
    "persistent: a NaN that looks unwritten": (
        FORWARD,
        EXCHANGE,
        "return bits < kLast ? bits : kLast;",
        "return bits;",
        ["persistent/NaN travels"],
    ),
    "persistent: lanes put their values into a word the wrong way round": (
        FORWARD,
        EXCHANGE,
        "word |= shuffle_xor(word, 1) << 16;",
        "word = word << 16 | shuffle_xor(word, 1);",
        [BF16 + "two parts"],
    ),
    "persistent: dead positions are left as they were": (
        FORWARD,
        BLOCK,
        "t < steps || (steps >= 0 && !sequence.offsets)",
        "t < steps",
        [FFMA + "lengths sorted by a table"],
    ),
    "persistent: a reset keeps the cell": (
        FORWARD,
        FORWARD,
        "if (in.reset) c_prev = 0.0f;",
        "",
        [FFMA + "resets"],
    ),
    "persistent: padding behind a row is not written": (
        FORWARD,
        BLOCK,
        "at.unit < exchanged_units",
        "at.unit < units",
        [BF16 + "odd sizes"],
    ),
    "persistent: h_0 is read as if it had no padding": (
        FORWARD,
        FORWARD,
        "block.batch_row[row]) * block.depth",
        "block.batch_row[row]) * hidden_size",
        [BF16 + "odd sizes", FFMA + "odd sizes"],
    ),
    "persistent: the others' h is read at the output's stride": (
        FORWARD,
        FORWARD,
        "block.batch_row[row]) * call.exchange_stride",
        "block.batch_row[row]) * call.output_stride",
        [BF16 + "odd sizes", FFMA + "odd sizes"],
    ),
    "persistent: no output but the exchange": (
        FORWARD,
        FORWARD,
        "if (d.output != d.exchange)",
        "if (false)",
        [BF16 + "odd sizes"],
    ),
    "persistent: the next group of loads is not waited for": (
        FORWARD,
        PRODUCT,
        "if (end < last) next.wait(parts, end);",
        "",
        [FFMA + "very deep", TF32 + "very deep, wide tile"],
    ),
    "persistent: groups of loads do not change roles": (
        FORWARD,
        PRODUCT,
        "multiply(other, one, begin",
        "multiply(one, other, begin",
        [FFMA + "very deep", TF32 + "very deep, wide tile"],
    ),
    "persistent: the forget gate takes the input gate's sum": (
        FORWARD,
        FORWARD,
        "from_x.f + from_h.value[1]",
        "from_x.f + from_h.value[0]",
        [BF16 + "two parts"],
    ),
    "persistent: a row that starts late forgets h_0": (
        FORWARD,
        FORWARD,
        "if (block.is_first_step(step.t, row))",
        "if (step.t == 0)",
        [FFMA + "two directions, packed", FFMA + "lengths sorted by a table"],
    ),
    "persistent: W_hh sees h without its mask": (
        FORWARD,
        FORWARD,
        "if (d.h_mask && at.live)",
        "if (false)",
        [FFMA + "recurrent dropout", BF16 + "recurrent dropout, odd, packed"],
    ),
    "persistent: the mask stays on the output": (
        FORWARD,
        FORWARD,
        "T masked = result.h;",
        "T& masked = result.h;",
        [FFMA + "recurrent dropout", BF16 + "recurrent dropout, odd, packed"],
    ),
    "persistent: zoneout crosses a reset": (
        FORWARD,
        FORWARD,
        "in.reset ? 0.0f : float(in.h_prev)",
        "float(in.h_prev)",
        [FFMA + "zoneout"],
    ),
    "persistent: zoneout keeps the first h": (
        FORWARD,
        FORWARD,
        "if (last || (at.live && d.zoneout.h))",
        "if (last)",
        [FFMA + "zoneout", BF16 + "zoneout, lengths"],
    ),
    "persistent: zoneout of the step before": (
        FORWARD,
        FORWARD,
        "d.zoneout.c[flat_row *",
        "d.zoneout.c[(flat_row ? flat_row - 1 : 0) *",
        [FFMA + "zoneout"],
    ),
    "persistent backward: the mask is forgotten": (
        BACKWARD,
        BACKWARD,
        "d.h_mask ? float(in.h_mask) : 1.0f",
        "1.0f",
        [FFMA + "recurrent dropout"],
    ),
    "persistent backward: dL/dh_0 forgets the mask": (
        BACKWARD,
        BACKWARD,
        "d.h_mask ? float(d.h_mask[index]) : 1.0f",
        "1.0f",
        [FFMA + "recurrent dropout"],
    ),
    "persistent backward: what zoneout kept of dh crosses a reset": (
        BACKWARD,
        CELL_STEP,
        "before.dh = A(0), before.dc = A(0)",
        "before.dc = A(0)",
        [FFMA + "zoneout"],
    ),
    "persistent backward: what zoneout kept of dc is lost": (
        BACKWARD,
        CELL_STEP,
        "dh, dc, kept_dc)",
        "dh, dc, A(0))",
        [FFMA + "zoneout"],
    ),
    "persistent backward: c behind zoneout": (
        BACKWARD,
        CELL_STEP,
        "cell = next_cell(gates, c_prev);",
        "",
        [FFMA + "zoneout"],
    ),
    "persistent backward: what zoneout kept of dh is lost": (
        BACKWARD,
        BACKWARD,
        "in.d_h = d.zoneout.h || block.is_last_step",
        "in.d_h = block.is_last_step",
        [FFMA + "zoneout"],
    ),
    "persistent backward: a reset keeps the cell": (
        BACKWARD,
        BACKWARD,
        "in.reset ? 0.0f : in.c_prev",
        "in.c_prev",
        [FFMA + "resets"],
    ),
    "persistent backward: the others' d_gates are read as if they had no padding": (
        BACKWARD,
        BACKWARD,
        "(offset + block.batch_row[row]) * 4 * width",
        "(offset + block.batch_row[row]) * 4 * hidden_size",
        [BF16 + "odd sizes"],
    ),
    "persistent backward: W_hh has no padding between gates": (
        BACKWARD,
        BACKWARD,
        "gate = k / width, from = k % width",
        "gate = k / hidden_size, from = k % hidden_size",
        [BF16 + "odd sizes"],
    ),
    "persistent backward: padding behind a gate is not written": (
        BACKWARD,
        BLOCK,
        "at.unit < exchanged_units",
        "at.unit < units",
        [BF16 + "odd sizes"],
    ),
    "persistent backward: lanes keep what the other was to get": (
        BACKWARD,
        EXCHANGE,
        "shuffle_xor(odd ? i_f : g_o, 1)",
        "shuffle_xor(odd ? g_o : i_f, 1)",
        [BF16 + "two parts"],
    ),
    "persistent backward: the odd lane stores a unit further on": (
        BACKWARD,
        EXCHANGE,
        "i + 2 * width - 1 : i",
        "i + 2 * width : i",
        [BF16 + "two parts"],
    ),
    "persistent backward: the odd lane stores i and f": (
        BACKWARD,
        EXCHANGE,
        "i + 2 * width - 1 : i",
        "i - 1 : i",
        [BF16 + "two parts"],
    ),
    "persistent backward: the next group of loads is not waited for": (
        BACKWARD,
        PRODUCT,
        "if (end < last) next.wait(parts, end);",
        "",
        [TF32 + "very deep", FFMA + "very deep"],
    ),
    "persistent backward: gradients cross a reset": (
        BACKWARD,
        BACKWARD,
        " ||\n        block.is_reset(step.t_next, row)",
        "",
        [FFMA + "resets"],
    ),
    "persistent backward: nobody waits before dL/dh_0": (
        BACKWARD,
        BACKWARD,
        "d_gates_of(row, block.offset(t));",
        "RowVector<T>{d_gates_of(row, block.offset(t)).values, false};",
        [FFMA + "two parts"],
    ),
    "persistent backward: reads the step before the one that came after": (
        BACKWARD,
        BACKWARD,
        "offset_next = at.offset;",
        "offset_next = offset_next;",
        [FFMA + "two parts"],
    ),
}


def test_too_many_parameters_do_not_compile(tmp_path):
    """CUDA's 4096 bytes are a matter of the build, not of the first launch."""
    for piece, compiles in [("kPiece = 496;", True), ("kPiece = 512;", False)]:
        text = (CUDA / "sequence.cu").read_text()
        assert "kPiece = 496;" in text
        (tmp_path / "sequence.cu").write_text(text.replace("kPiece = 496;", piece))
        done = run(
            *CXX,
            "-std=c++17",
            "-w",
            "-fsyntax-only",
            "-DFASTLSTM_EMULATOR",
            f"-I{SIMT}",
            f"-I{CUDA}",
            "-x",
            "c++",
            str(tmp_path / "sequence.cu"),
        )
        assert (done.returncode == 0) == compiles, done.stdout
    assert "what CUDA allows on every GPU" in done.stdout


def rebuild(names, folder, *options, cuda=CUDA):
    """simt_tests with some of its files compiled anew, without optimisation and with options."""
    status, output = build()
    assert status == 0, output
    for name in names:
        source = (cuda if name.endswith(".cu") else SIMT) / name
        done = run(
            *CXX,
            "-std=c++17",
            "-O0",
            "-w",
            "-U_FORTIFY_SOURCE",
            "-DFASTLSTM_EMULATOR",
            *options,
            f"-I{SIMT}",
            f"-I{cuda}",
            "-x",
            "c++",
            "-c",
            str(source),
            "-o",
            str(folder / f"{name}.o"),
        )
        assert done.returncode == 0, done.stdout
    others = [str(o) for o in (BUILD / "plain").glob("*.o") if o.stem not in names]
    done = run(
        *CXX,
        *(str(folder / f"{name}.o") for name in names),
        *others,
        "-o",
        str(folder / "simt_tests"),
    )
    assert done.returncode == 0, done.stdout
    return str(folder / "simt_tests")


def plant(fault, line, name, folder):
    """A copy of the sources with a fault in place of a line; returns its csrc/cuda."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    path = folder / "csrc/cuda" / name
    text = path.read_text()
    assert line in text, f"{name} no longer holds {line!r}"
    path.write_text(text.replace(line, fault))
    return folder / "csrc/cuda"


# The persistent kernels are compiled for several seconds each, so two in three of theirs are slow.
_PERSISTENT = [name for name in MUTANTS if name.startswith("persistent")]
_SLOW = {name for i, name in enumerate(_PERSISTENT) if i % 3}


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, marks=[pytest.mark.slow] * (m in _SLOW)) for m in MUTANTS]
)
def test_mutant_is_caught(mutant, tmp_path):
    compiled, name, line, fault, expected_failures = MUTANTS[mutant]
    program = rebuild([compiled], tmp_path, cuda=plant(fault, line, name, tmp_path))
    for case in expected_failures:
        assert case in cases()
        done = run(program, case, timeout=120)
        assert done.returncode != 0, f"{case} passes with the fault planted"
