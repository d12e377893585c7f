"""The CUDA kernels on the CPU: every native case of tests/simt, and mutants that must not pass.

The .cu files are built by a C++ compiler against the emulator in tests/simt/simt.h and compared
with a float64 oracle; simt_counters counts what they ask of memory. No GPU and no CUDA toolkit is
needed.
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
    return subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs
    )


@functools.cache
def build(target="all"):
    """Builds what is out of date; returns (exit status, output)."""
    done = run("make", "-C", str(SIMT), "-j2", f"CXX={shlex.join(CXX)}", target)
    return done.returncode, done.stdout


@functools.cache
def cases(program="simt_tests"):
    """Names of the native cases, or none where they cannot be built: then test_builds says why."""
    if MISSING or build()[0] != 0:
        return []
    names = run(str(BUILD / program), "--list").stdout.splitlines()
    return [name for name in names if not name.startswith(("planted/", "printed/"))]


def test_builds():
    status, output = build()
    assert status == 0, output
    assert "warning:" not in output, output
    assert len(cases()) > 50


@pytest.mark.parametrize("name", cases())
def test_native(name):
    done = run(str(BUILD / "simt_tests"), name)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", cases("simt_counters"))
def test_counters(name):
    """Bank conflicts, sectors and looks of each tile of the persistent engine."""
    done = run(str(BUILD / "simt_counters"), name)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_sanitized():
    """All cases once more with ASan and UBSan, which must also notice a planted overrun."""
    status, output = build("build-sanitized")
    assert status == 0, output
    program = str(BUILD / "simt_tests_sanitized")
    done = run(program, *cases())
    assert done.returncode == 0, done.stdout
    done = run(str(BUILD / "simt_counters_sanitized"), *cases("simt_counters"))
    assert done.returncode == 0, done.stdout
    planted = run(program, "planted/read beyond shared memory")
    assert planted.returncode != 0 and "heap-buffer-overflow" in planted.stdout, planted.stdout


# Faults planted in one place: what becomes what, in which file under csrc/cuda, built with which
# .cu file, and the cases that must fail.
STEPWISE, NORMED, FFMA, TF32, BF16 = (
    "stepwise/float32/", "layer norm/float32/", "persistent/float32/", "persistent/tf32/",
    "persistent/bfloat16/")
FORWARD, BACKWARD, TILE = "persistent_forward.cu", "persistent_backward.cu", "persistent_tile.h"
MUTANTS = {
    "rows beyond the grid are left out": (
        "stepwise.cu", "stepwise.cu", "row += rows_per_grid", "row += step.rows",
        ["stepwise/more rows than a grid is high"]),
    "a reset is ignored": (
        "stepwise.cu", "stepwise.cu", "forward_unit(step, row, unit, is_reset(step, row), zoned)",
        "forward_unit(step, row, unit, false, zoned)", [STEPWISE + "reset"]),
    "gradients cross a reset": (
        "stepwise.cu", "stepwise.cu", "is_reset(step, row), starts_here", "false, starts_here",
        [STEPWISE + "reset"]),
    "a row that starts late forgets c_0": (
        "stepwise.cu", "stepwise.cu", "starts_here(step, row)", "step.prev_rows == 0",
        [STEPWISE + "packed reverse"]),
    "dead rows go on": (
        "stepwise.cu", "stepwise.cu", "if (is_live(step, row))", "if (true)",
        [STEPWISE + "lengths"]),
    "zoneout is ignored": (
        "stepwise.cu", "stepwise.cu", "is_reset(step, row), zoned)", "is_reset(step, row), false)",
        [STEPWISE + "zoneout", STEPWISE + "zoneout, nothing saved"]),
    "zoneout is ignored by gradients": (
        "stepwise.cu", "stepwise.cu", "starts_here(step, row), zoned)",
        "starts_here(step, row), false)", [STEPWISE + "zoneout"]),
    "layer norm: no barrier before the partial sums": (
        "layer_norm.cu", "layer_norm.cu", """partial[thread] = sum;
    barrier();""", "partial[thread] = sum;", [NORMED + "more units than threads"]),
    "layer norm: no barrier before a sum": (
        "layer_norm.cu", "layer_norm.cu",
        "barrier();  // what f reads", "// what f reads", [NORMED + "more units than threads"]),
    "layer norm: every other part of a sum is left out": (
        "layer_norm.cu", "layer_norm.cu", "half > 0; half /= 2", "half > 1; half /= 2",
        [NORMED + "one row", NORMED + "zoneout"]),
    "layer norm: rows beyond the first": (
        "layer_norm.cu", "layer_norm.cu", "backward_normed_row(step, row, block)",
        "backward_normed_row(step, 0, block)", [NORMED + "one row"]),
    "launch: only the shared memory of this call is allowed": (
        FORWARD, "device.h", "MaxDynamicSharedMemorySize, most);",
        "MaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));",
        ["runtime/two threads, one function, different slices"]),
    "launch: waits for the device": (
        FORWARD, "device.h", "  return taken(error);",
        "  cudaStreamSynchronize(stream);\n  return taken(error);", [FFMA + "two parts"]),
    "persistent: no barrier before the sums": (
        FORWARD, FORWARD, """aligned, n);
      }
      __syncthreads();""", "aligned, n);\n      }", [FFMA + "two parts", BF16 + "two parts"]),
    "persistent: no barrier after a pass": (
        FORWARD, FORWARD, "__syncthreads();  // before the next pass overwrites the sums", "",
        [FFMA + "random shapes", BF16 + "random shapes"]),
    "persistent: nobody waits": (
        FORWARD, TILE, "if (!source[j].exchanged ||", "if (true || !source[j].exchanged ||",
        [FFMA + "two parts", BF16 + "two parts"]),
    "persistent: half a word is enough": (
        FORWARD, TILE, "if (sizeof(T) == 2 && !kAligned)", "if (false)", [BF16 + "odd sizes"]),
    "persistent: waits for what nobody writes": (
        FORWARD, FORWARD, "* hidden, false};", "* hidden, true};", ["persistent/NaN travels"]),
    "persistent: a NaN that looks unwritten": (
        FORWARD, TILE, "bits - (bits == static_cast<Bits>(~Bits(0)))", "bits",
        ["persistent/NaN travels"]),
    "persistent: lanes put their values into a word the wrong way round": (
        FORWARD, TILE, "pack(bits, static_cast<uint16_t>(other))",
        "pack(static_cast<uint16_t>(other), bits)", [BF16 + "two parts"]),
    "persistent: dead positions are left as they were": (
        FORWARD, FORWARD, "seen, exists, aligned);", "seen, live, aligned);",
        [FFMA + "lengths sorted by a table"]),
    "persistent: no warp barrier around the stage": (
        FORWARD, TILE, "bits_as<float>(group.words[a][0].word[j]);\n        __syncwarp();",
        "bits_as<float>(group.words[a][0].word[j]);", [FFMA + "two parts"]),
    "persistent: fragments of the lower rows swapped": (
        FORWARD, TILE, "kRegisters == 4 ? r / 2 : r", "kRegisters == 4 ? 1 - r / 2 : r",
        [TF32 + "two parts", BF16 + "two parts"]),
    "persistent: no rounding to TF32": (
        FORWARD, TILE, "return to_tf32(bits_as<float>(word));", "return word;",
        ["persistent/tf32 rounds its factors"]),
    "persistent: the forget gate takes the input gate's sum": (
        FORWARD, FORWARD, "from_x.f + from_h.value[1]", "from_x.f + from_h.value[0]",
        [BF16 + "two parts"]),
    "persistent: a row that starts late forgets h_0": (
        FORWARD, FORWARD, "if (block.is_first_step(t, i))", "if (n == 0)",
        [FFMA + "two directions, packed", FFMA + "lengths sorted by a table"]),
    "persistent: W_hh sees h without its mask": (
        FORWARD, FORWARD, "if (d.h_mask && exists)", "if (false)",
        [FFMA + "recurrent dropout", BF16 + "recurrent dropout, odd, packed"]),
    "persistent: the mask stays on the output": (
        FORWARD, FORWARD, "d.output[at] = h;", "d.output[at] = seen;",
        [FFMA + "recurrent dropout", BF16 + "recurrent dropout, odd, packed"]),
    "persistent: zoneout crosses a reset": (
        FORWARD, FORWARD, "items[j].reset ? 0.0f : float(h_n)", "float(h_n)", [FFMA + "zoneout"]),
    "persistent: zoneout keeps the first h": (
        FORWARD, FORWARD, "if (live && (d.zoneout.h || block.is_last_step(t, i)))",
        "if (live && block.is_last_step(t, i))", [FFMA + "zoneout", BF16 + "zoneout, lengths"]),
    "persistent: zoneout of the step before": (
        FORWARD, FORWARD, "d.zoneout.c[flat *", "d.zoneout.c[(flat ? flat - 1 : 0) *",
        [FFMA + "zoneout"]),
    "persistent backward: the mask is forgotten": (
        BACKWARD, BACKWARD, "if (d.h_mask) dh *= float(d.h_mask[at]);\n          dh",
        "dh", [FFMA + "recurrent dropout"]),
    "persistent backward: dL/dh_0 forgets the mask": (
        BACKWARD, BACKWARD, "if (d.h_mask) dh *= float(d.h_mask[at]);\n      d.d_h", "d.d_h",
        [FFMA + "recurrent dropout"]),
    "persistent backward: what zoneout kept of dh crosses a reset": (
        BACKWARD, BACKWARD, "T(item.reset ? 0.0f : kept_dh)", "T(kept_dh)", [FFMA + "zoneout"]),
    "persistent backward: what zoneout kept of dc is lost": (
        BACKWARD, BACKWARD, "dc + kept_dc", "dc", [FFMA + "zoneout"]),
    "persistent backward: c behind zoneout": (
        BACKWARD, BACKWARD, "c = next_cell(item.gates, item.c_prev);", "", [FFMA + "zoneout"]),
    "persistent backward: what zoneout kept of dh is lost": (
        BACKWARD, BACKWARD, "if (d.zoneout.h || block.is_last_step(t, i))",
        "if (block.is_last_step(t, i))", [FFMA + "zoneout"]),
    "persistent backward: no barrier after a pass": (
        BACKWARD, BACKWARD, "__syncthreads();  // before the next pass overwrites the sums", "",
        [FFMA + "random shapes", BF16 + "random shapes"]),
    "persistent backward: gradients cross a reset": (
        BACKWARD, BACKWARD, " && !block.is_reset(t_next, i)", "", [FFMA + "resets"]),
    "persistent backward: nobody waits before dL/dh_0": (
        BACKWARD, BACKWARD, "(block.offset(t) + block.batch_row[i]) * 4 * hidden, true};",
        "(block.offset(t) + block.batch_row[i]) * 4 * hidden, false};", [FFMA + "two parts"]),
    "persistent backward: reads the step before the one that came after": (
        BACKWARD, BACKWARD, "offset_next = offset;", "offset_next = offset_next;",
        [FFMA + "two parts"]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(mutant, tmp_path):
    status, output = build()
    assert status == 0, output
    compiled, name, line, fault, expected_failures = MUTANTS[mutant]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    cuda = tmp_path / "csrc/cuda"
    text = (cuda / name).read_text()
    assert line in text, f"{name} no longer holds {line!r}"
    (cuda / name).write_text(text.replace(line, fault))
    done = run(*CXX, "-std=c++17", "-O0", "-w", "-U_FORTIFY_SOURCE", "-DFASTLSTM_EMULATOR",
               f"-I{SIMT}", f"-I{cuda}", "-x", "c++", "-c", str(cuda / compiled),
               "-o", str(tmp_path / "mutant.o"))
    assert done.returncode == 0, done.stdout
    others = [str(o) for o in (BUILD / "plain").glob("*.o") if o.name != compiled + ".o"]
    done = run(*CXX, str(tmp_path / "mutant.o"), *others, "-o", str(tmp_path / "mutant"))
    assert done.returncode == 0, done.stdout
    for case in expected_failures:
        assert case in cases()
        done = run(str(tmp_path / "mutant"), case, timeout=120)
        assert done.returncode != 0, f"{case} passes with the fault planted"
