"""The PTX that nvcc makes of the CUDA kernels, run by the interpreter of tests/ptx: the drivers of
tests/simt, on every kind of GPU, in other orders, and with faults that must be noticed.

No GPU is needed, but nvcc. What is checked on the way is in docs/cuda.md.
"""

import functools
import re

import pytest
from native import NVCC, ROOT, check, make, missing, names_of_cases, run

MISSING = missing("nvcc")
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}"),
    pytest.mark.timeout(3600),
]


@functools.cache
def build(architecture="80"):
    """The path of the program."""
    folder = ROOT / "build/ptx" / f"sm_{architecture}"
    make("ptx", folder, f"ARCH={architecture}")
    return str(folder / "ptx_tests")


@functools.cache
def cases():
    return [] if MISSING else names_of_cases(build)


def test_builds():
    assert check(build(), "--decode") == ""
    assert len(cases()) > 150


SLOW = ("deep/", "counted/")
FAST = [name for name in cases() if not name.startswith(SLOW) and "random" not in name]


@pytest.mark.parametrize("name", FAST)
def test_case(name):
    check(build(), name)


DOCUMENT = ROOT / "tests/ptx/counted.md"
DIVISIONS = [name for name in cases() if "every division" in name or "fused" in name]
ORDERS = {
    "lanes apart, stores late": ["--random-lanes", "--delays", "--seed-offset", "3"],
    "approximations are off": ["--noise", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_order(order):
    """What PTX leaves open: no result depends on the order of warps, lanes and stores, and none on
    how the work is divided, however approximations are rounded."""
    names = DIVISIONS if "off" in order else [name for name in FAST if "persistent/" in name]
    check(build(), *ORDERS[order], *names)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "100"])
def test_architecture(architecture):
    """All cases, and that they run the kernels' instructions, but for some: traps, branches, looks
    that are repeated when a store arrives late, what is special about an option in this tile."""
    names = [name for name in cases() if not name.startswith("counted/")]
    report = check(build(architecture), "--delays", "--coverage", *names)
    counts = re.findall(r"Walk<\w+, .* (\d+) of +(\d+) instructions ran", report)
    assert counts, report
    for ran, of in counts:
        assert int(ran) > 7 / 8 * int(of), report


@pytest.mark.slow
def test_counted():
    """What tests/ptx/counted.md says of a step, by kernel."""
    report = check(build(), *[name for name in cases() if name.startswith("counted/")])
    documented = re.findall(r"^\| \w+ \| \w+ward \| \d+x.*", DOCUMENT.read_text(), re.M)
    assert documented and set(documented) <= set(report.splitlines()), report


@functools.cache
def ptx(architecture):
    """Of all kernels, but for names and for how it extends bfloat16 by zeros."""
    flags = *NVCC, f"-arch=compute_{architecture}", "-ptx", "-o", "/dev/stdout"
    files = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    text = "".join(check(*flags, str(file)) for file in files)
    text = re.sub(r"\.target sm_\d+|_GLOBAL__N__[0-9a-f]+|_cu_[0-9a-f]{8}_\d+", "", text)
    return re.sub(r"\{ cvt\.f32\.bf16 (%\w+), (%\w+);\}", r"{ mov.b32 \1, {0,\2};}", text)


@pytest.mark.slow
@pytest.mark.parametrize("architecture, other", [("90", "80"), ("120", "100")])
def test_architecture_like_another(architecture, other):
    """All cases once more, unless the kernels are the same."""
    if ptx(architecture) != ptx(other):
        check(build(architecture), *cases())


@pytest.mark.slow
def test_before_sm_80():
    """Older GPUs have no persistent kernels, but all others."""
    names = [n for n in cases() if n.startswith(("stepwise/", "layer norm/"))]
    check(build("75"), *names)


# --- faults that must be noticed ---

BF16 = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
TF32 = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
NOTHING = "mov.u32 %r1, %r1;"
PUBLICATION = r"st\.relaxed\.gpu\.global\.u32 [^;]*;"


def swapped(opcode, a, b):
    """An mma with two of its operands swapped: 0-3 are D, 4-7 A, 8-9 B, 10-13 C."""
    groups = [range(4), range(4, 8), range(8, 10), range(10, 14)]
    text = ", ".join("{" + ", ".join(r"(%\w+)" for _ in g) + "}" for g in groups)
    pattern = re.escape(opcode) + " " + text.replace("{", r"\{").replace("}", r"\}")
    order = {a: b, b: a}
    to = ", ".join("{" + ", ".join(f"${order.get(i, i) + 1:02d}" for i in g) + "}" for g in groups)
    return pattern, f"{opcode} {to}"


def persistent(kind, *names):
    return [f"persistent/{kind}/{name}" for name in names or ("two parts", "odd sizes")]


def mutants():
    """Name, part of the kernel's name, regular expression, what becomes of it, which of the matches
    (-1: all), and options and cases."""
    forward, backward = "ForwardWalk<{}, 8, 8".format, "BackwardWalk<{}, 8, 8".format
    bf16, ffma = persistent("bfloat16"), persistent("float32")
    for a, b in [(4, 5), (4, 6), (5, 6), (8, 9), (0, 1), (0, 2)]:
        for kind, opcode, dtype in [("BFloat16Mma", BF16, "bfloat16"), ("Tf32Mma", TF32, "tf32")]:
            change = f"operands {a}, {b} of {kind}", f"Walk<{kind}", *swapped(opcode, a, b)
            yield *change, -1, persistent(dtype)
    rounds = ["persistent/tf32 rounds its factors"]
    yield "no rounding to TF32", "Tf32Mma", r"cvt\.rna\.tf32\.f32 ", "mov.b32 ", -1, rounds
    yield "TF32 to zero", "Tf32Mma", r"cvt\.rna\.", "cvt.rz.", -1, rounds
    nearest = ["persistent/16 bits round to nearest"]
    yield "bfloat16 to zero", "BFloat16Mma", r"cvt\.rn\.bf16", "cvt.rz.bf16", -1, nearest
    once = ["persistent/the cell is fused in one way"]
    fma = r"fma\.rn\.f32 (%f\d+|%r\d+), (%\w+), (%\w+), (%\w+);"
    apart = "mul.rn.f32 $1, $2, $3; add.rn.f32 $1, $1, $4;"
    yield "no fma", forward("Tf32Mma"), fma, apart, -1, once
    passes = ("two parts", "several passes", "very deep", "lengths sorted by a table")
    for kernel, kind, count in [
        (forward("BFloat16Mma"), "bfloat16", 4),
        (forward("Ffma"), "float32", 4),
        (backward("Tf32Mma"), "tf32", 6),
    ]:
        for i in range(count):
            names = persistent(kind, *passes)
            yield "bar.sync", kernel, r"bar\.sync\s+0;", NOTHING, i, names
    yield "no publication", forward("Ffma"), PUBLICATION, NOTHING, 0, ffma
    yield "weak publications", forward("Ffma"), r"st\.relaxed\.gpu\.", "st.", -1, ffma
    yield "weak polls", forward("Ffma"), r"ld\.relaxed\.gpu\.", "ld.", -1, ffma
    kernel = forward("BFloat16Mma")
    halves = r"st\.relaxed\.gpu\.global\.u32 ", "st.relaxed.gpu.global.u16 "
    yield "publications of 16 bits", kernel, *halves, -1, bf16
    poll = r"(v4\.u32 \{%r\d+, )(%r\d+), (%r\d+)", "$1$3, $2"
    yield "words of a poll", kernel, *poll, 0, bf16
    yield "partner of a shuffle", "BFloat16Mma", r"shfl\.sync\.bfly", "shfl.sync.up", -1, bf16
    polls = r"(setp\.(?:eq|ne)\.s32\s+%p\d+, %r\d+), -1;", "$1, -2;"
    late = ["--delays", *persistent("tf32", "two parts", "several passes")]
    yield "polls for another value", forward("Tf32Mma"), *polls, -1, late
    fragment = r"(ld\.shared\.v4\.[bu]32\s+\{[^}]*\}, \[%r\d+)\+512\]"
    yield "a fragment further on", kernel, fragment, "$1+528]", 0, bf16
    yield "a misaligned fragment", kernel, fragment, "$1+516]", 0, bf16
    sums = r"(st\.shared\.f32\s+\[%r\d+)\+", "$1+4096000+"
    yield "sums beyond the memory", kernel, *sums, 0, bf16


# Changes that no result depends on, and why.
HARMLESS = {
    ("bar.sync", 1): "Block::load: the state, which it orders, is read after the next barrier",
}


@pytest.mark.parametrize("walk", ["ForwardWalk", "BackwardWalk"])
def test_a_block_gives_up(walk):
    """After 10^8 polls, here after 3, where stores arrive late."""
    limit = r"(setp\.\w+\.[su]32\s+%p\d+, %r\d+, )100000000;", "$013;", "-1"
    change = "--mutate", f"{walk}<BFloat16Mma, 8, 8", *limit
    done = run(build(), *change, "--delays", *persistent("bfloat16", "two parts"))
    told = "fastlstm: a block waits in vain for the values of others"
    assert told in done.stdout and "a trap" in done.stdout and done.returncode == 1, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", [pytest.param(m, id=f"{m[0]}, {m[1]}, {m[4]}") for m in mutants()]
)
def test_mutant_is_noticed(mutant):
    name, kernel, pattern, to, which, names = mutant
    change = "--mutate", kernel, pattern, to, str(which)
    done = run(build(), "--patience", "3000000", *change, *names)
    ran = re.search(r"mutated \d+ places, of which (\d+) ran", done.stdout)
    assert int(ran[1]) > 0, "nothing was changed"
    assert done.returncode == (0 if (name, which) in HARMLESS else 1), done.stdout
