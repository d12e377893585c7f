"""The CUDA kernels on the CPU: every native case of tests/simt, and mutants that must not pass.

The .cu files are built by a C++ compiler against the emulator in tests/simt/simt.h and compared
with a float64 oracle. No GPU and no CUDA toolkit is needed; where there is nvcc, test_ptx.py runs
what it makes of them.
"""

import functools
import re
import shutil

import pytest
from native import CXX, ROOT, check, make, missing, names_of_cases, run

SIMT = ROOT / "tests/simt"
CUDA = ROOT / "csrc/cuda"
BUILD = ROOT / "build/simt"
PLANTED = "planted/read beyond shared memory"

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not on PATH: {', '.join(missing())}")


@functools.cache
def build(target="all"):
    make("simt", BUILD, "CXXFLAGS=-Werror", target)
    return str(BUILD / ("simt_tests" if target == "all" else "simt_tests_sanitized"))


@functools.cache
def cases():
    return [n for n in names_of_cases(build) if n != PLANTED and not n.startswith("deep/")]


def test_builds():
    build()
    assert len(cases()) > 50


@pytest.mark.parametrize("name", cases())
def test_native(name):
    check(build(), name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sanitized():
    """All cases once more with ASan and UBSan, which must also notice a planted overrun."""
    program = build("build-sanitized")
    check(program, *cases())
    planted = run(program, PLANTED)
    assert planted.returncode != 0 and "heap-buffer-overflow" in planted.stdout, planted.stdout


# Faults planted in one place, by the .cu file to build and the file to change: what becomes what,
# and the cases that must fail.
STEPWISE, NORMED, FFMA, TF32, BF16 = (
    "stepwise/float32/",
    "layer norm/float32/",
    "persistent/float32/",
    "persistent/tf32/",
    "persistent/bfloat16/",
)
FORWARD, BACKWARD = "persistent_forward.cu", "persistent_backward.cu"
EXCHANGE, PRODUCT, BLOCK = ("persistent_exchange.h", "persistent_product.h", "persistent_block.h")
MUTANTS = {
    ("stepwise.cu", "stepwise.cu"): {
        "rows beyond the grid are left out": (
            "row += rows_per_grid",
            "row += step.rows",
            ["stepwise/more rows than a grid is high"],
        ),
        "a reset is ignored": (
            "is_reset(step, row), OneUnit",
            "false, OneUnit",
            [STEPWISE + "reset"],
        ),
        "no barrier before the partial sums": (
            "partial[thread] = sum; barrier();",
            "partial[thread] = sum;",
            [NORMED + "more units than threads"],
        ),
        "no barrier before a sum": (
            "barrier();  // what f reads",
            "// what f reads",
            [NORMED + "more units than threads"],
        ),
        "every other part of a sum is left out": (
            "half > 0; half /= 2",
            "half > 1; half /= 2",
            [NORMED + "one row"],
        ),
        "rows beyond the first": (
            "step_row(step, row, is_reset(step, row), block)",
            "step_row(step, 0, is_reset(step, row), block)",
            [NORMED + "one row"],
        ),
    },
    ("stepwise.cu", "../equations/lstm_step.h"): {
        "gradients cross a reset": (
            "dh, dc, reset)",
            "dh, dc, false)",
            [STEPWISE + "reset"],
        ),
        "dead rows go on": (
            "if (!is_live(s, row)) return dead_row(s, row, team);",
            "",
            [STEPWISE + "lengths"],
        ),
        "a row that starts late forgets c_0": (
            "starts_here(s, row) ? s.c_0",
            "s.prev_rows == 0 ? s.c_0",
            [STEPWISE + "packed reverse"],
        ),
        "c of an only step gets lost": (
            "s.c_n[i] = c;",
            "(void)0;",
            [STEPWISE + "only step, nothing saved, reverse"],
        ),
        "a dead row of an only step has an output": (
            "T(live ? h : A(0))",
            "T(h)",
            [STEPWISE + "only step, lengths, recurrent dropout"],
        ),
        "an only step forgets a bias": (
            "if (s.b_hh)",
            "if (false)",
            [STEPWISE + "only step"],
        ),
    },
    (FORWARD, "device.h"): {
        "only the shared memory of this call is allowed": (
            "MaxDynamicSharedMemorySize, most);",
            "MaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));",
            ["runtime/two threads, one function, different slices"],
        ),
        "waits for the device": (
            "  return cleared(error);",
            "  cudaStreamSynchronize(stream);\n  return cleared(error);",
            [FFMA + "two parts"],
        ),
    },
    (FORWARD, EXCHANGE): {
        "nobody waits": (
            "for (; is_missing(parts); ++polls)",
            "for (; false; ++polls)",
            [FFMA + "two parts", BF16 + "two parts"],
        ),
        "a NaN that looks unwritten": (
            "return bits < kLast ? bits : kLast;",
            "return bits;",
            ["persistent/NaN travels"],
        ),
        "lanes put their values into a word the wrong way round": (
            "word |= shuffle_xor(word, 1) << 16;",
            "word = word << 16 | shuffle_xor(word, 1);",
            [BF16 + "two parts"],
        ),
    },
    (FORWARD, FORWARD): {
        "waits for what nobody writes": (
            "block.depth, false};",
            "block.depth, true};",
            ["persistent/NaN travels"],
        ),
        "a reset keeps the cell": ("if (in.reset) c_prev = 0.0f;", "", [FFMA + "resets"]),
        "h_0 is read as if it had no padding": (
            "block.batch_row[row]) * block.depth",
            "block.batch_row[row]) * hidden_size",
            [BF16 + "odd sizes", FFMA + "odd sizes"],
        ),
        "the others' h is read at the output's stride": (
            "block.batch_row[row]) * call.exchange_stride",
            "block.batch_row[row]) * call.output_stride",
            [BF16 + "odd sizes", FFMA + "odd sizes"],
        ),
        "no output but the exchange": (
            "if (d.output != d.exchange)",
            "if (false)",
            [BF16 + "odd sizes"],
        ),
        "the forget gate takes the input gate's sum": (
            "bits_as<Gates<float>>(from_h)",
            "Gates<float>{from_h.value[0], from_h.value[0], from_h.value[2], from_h.value[3]}",
            [BF16 + "two parts"],
        ),
        "a row that starts late forgets h_0": (
            "if (block.is_first_step(step.t, row))",
            "if (step.t == 0)",
            [FFMA + "two directions, packed", FFMA + "lengths sorted by a table"],
        ),
    },
    (FORWARD, BLOCK): {
        "polls count before the other blocks run": (
            "mutable int polls = INT32_MIN;",
            "mutable int polls = 0;",
            ["persistent/a block that starts late"],
        ),
        "dead positions are left as they were": (
            "t < steps || (steps >= 0 && !sequence.offsets)",
            "t < steps",
            [FFMA + "lengths sorted by a table"],
        ),
        "padding behind a row is not written": (
            "at.unit < exchanged_units",
            "at.unit < units",
            [BF16 + "odd sizes"],
        ),
    },
    (FORWARD, PRODUCT): {
        "float32 takes a factor of the wrong row": (
            "first + 4 + k % 4",
            "first + k % 4",
            [FFMA + "two parts"],
        ),
        "the next group of loads is not waited for": (
            "if (end < last) next.wait(parts, end, polls);",
            "",
            [FFMA + "very deep", TF32 + "very deep, wide tile"],
        ),
        "groups of loads do not change roles": (
            "multiply(other, one, begin",
            "multiply(one, other, begin",
            [FFMA + "very deep", TF32 + "very deep, wide tile"],
        ),
    },
    (BACKWARD, BACKWARD): {
        "a reset keeps the cell": ("in.reset ? 0.0f : in.c_prev", "in.c_prev", [FFMA + "resets"]),
        "the others' d_gates are read as if they had no padding": (
            "(offset + block.batch_row[row]) * 4 * width",
            "(offset + block.batch_row[row]) * 4 * hidden_size",
            [BF16 + "odd sizes"],
        ),
        "W_hh has no padding between gates": (
            "gate = k / width, from = k % width",
            "gate = k / hidden_size, from = k % hidden_size",
            [BF16 + "odd sizes"],
        ),
        "gradients cross a reset": (
            " ||\n        block.is_reset(step.t_before, row)",
            "",
            [FFMA + "resets"],
        ),
        "nobody waits before dL/dh_0": (
            "d_gates_of(row, block.offset(t));",
            "RowVector<T>{d_gates_of(row, block.offset(t)).values, false};",
            [FFMA + "two parts"],
        ),
    },
    (BACKWARD, BLOCK): {
        "reads the step before the one that came after": (
            "offset_before = at.offset;",
            "offset_before = offset_before;",
            [FFMA + "two parts"],
        ),
        "padding behind a gate is not written": (
            "at.unit < exchanged_units",
            "at.unit < units",
            [BF16 + "odd sizes"],
        ),
    },
    (BACKWARD, EXCHANGE): {
        "a word gets its second unit from elsewhere": (
            "shuffle_xor(word, 1)",
            "shuffle_xor(word, 2)",
            [BF16 + "two parts"],
        ),
        "the odd lane of a word stores it": (
            "unit % 2 == 0",
            "unit % 2 == 1",
            [BF16 + "two parts"],
        ),
    },
    (BACKWARD, PRODUCT): {
        "the next group of loads is not waited for": (
            "if (end < last) next.wait(parts, end, polls);",
            "",
            [TF32 + "very deep", FFMA + "very deep"],
        ),
    },
}


def compile_with_emulator(source, cuda, *options):
    flags = "-std=c++17", "-O0", "-w", "-U_FORTIFY_SOURCE", "-DFASTLSTM_EMULATOR", "-x", "c++"
    return run(*CXX, *flags, f"-I{SIMT}", f"-I{cuda}", str(source), *options)


def test_too_many_parameters_do_not_compile(tmp_path):
    """CUDA's 4096 bytes are a matter of the build, not of the first launch."""
    for piece, compiles in [("kPiece = 496;", True), ("kPiece = 512;", False)]:
        text = (CUDA / "sequence.cu").read_text()
        assert "kPiece = 496;" in text
        (tmp_path / "sequence.cu").write_text(text.replace("kPiece = 496;", piece))
        done = compile_with_emulator(tmp_path / "sequence.cu", CUDA, "-fsyntax-only")
        assert (done.returncode == 0) == compiles, done.stdout
    assert "what CUDA allows on every GPU" in done.stdout


def plant(fault, code, name, folder):
    """A copy of the sources with a fault in place of some code; returns its csrc/cuda.

    Spaces and line breaks do not count, so that the code may be formatted in another way.
    """
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    path = folder / "csrc/cuda" / name
    pattern = r"\s*".join(re.escape(token) for token in re.findall(r"\w+|[^\w\s]", code))
    text, count = re.subn(pattern, lambda _: fault, path.read_text())
    assert count, f"{name} no longer holds {code!r}"
    path.write_text(text)
    return folder / "csrc/cuda"


def mutants():
    """The persistent kernels are compiled for several seconds each, so two in three are slow."""
    for (compiled, name), faults in MUTANTS.items():
        for i, what in enumerate(faults):
            slow = compiled.startswith("persistent") and i % 3
            marks = [pytest.mark.slow] * bool(slow)
            identity = f"{compiled.removesuffix('.cu')}: {what}"
            yield pytest.param(compiled, name, *faults[what], id=identity, marks=marks)


@pytest.mark.parametrize("compiled, name, line, fault, expected_failures", [*mutants()])
def test_mutant_is_caught(compiled, name, line, fault, expected_failures, tmp_path):
    build()
    cuda, changed = plant(fault, line, name, tmp_path), tmp_path / f"{compiled}.o"
    done = compile_with_emulator(cuda / compiled, cuda, "-c", "-o", str(changed))
    assert done.returncode == 0, done.stdout
    others = [str(o) for o in (BUILD / "plain").glob("*.o") if o.name != changed.name]
    check(*CXX, "-pthread", str(changed), *others, "-o", str(tmp_path / "simt_tests"))
    for case in expected_failures:
        assert case in cases()
        done = run(str(tmp_path / "simt_tests"), case, timeout=120)
        assert done.returncode != 0, f"{case} passes with the fault planted"
