"""Every .cu file compiles with bare nvcc, without register spill or stack frame, and
the machine code of a step wastes no time that the source means to save.

`make test` compiles a few persistent kernels for sm_90; `--slow` all of them, for every GPU.
"""

import functools
import os
import re
import shutil
import sysconfig
from pathlib import Path

import machine_code
import pytest
from native import NVCC, ROOT, check

CUDA = ROOT / "csrc/cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
PERSISTENT = {name: CUDA / f"persistent_{name}.cu" for name in ("forward", "backward")}
FAST = {"80", "90"}
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "110", "120")
# Arithmetic, units and rows of a tile.
FEW = ("BFloat16Mma, 8, 8", "BFloat16Mma, 32, 16", "Tf32Mma, 16, 8", "Ffma, 8, 8")


def tool(name):
    """A tool of the toolkit, or of the package nvidia-cuda-NAME, or None."""
    packaged = Path(sysconfig.get_path("purelib")).glob(f"nvidia/*/bin/{name}")
    return shutil.which(name) or next(map(str, packaged), None)


# The first calls the second.
MISSING_TOOLS = [name for name in ("cuobjdump", "nvdisasm") if not tool(name)]


pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on PATH")
needs_disassembler = pytest.mark.skipif(
    bool(MISSING_TOOLS),
    reason="pip install " + " ".join(f"nvidia-cuda-{name}" for name in MISSING_TOOLS),
)


def known_architectures():
    return set(re.findall(r"compute_(\d+)", check("nvcc", "--list-gpu-arch")))


def compile_with_nvcc(source, architecture, folder):
    """What ptxas reports; out.o is left in the folder."""
    if architecture not in known_architectures():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    flags = f"-arch=sm_{architecture}", "-Xptxas=-v", "-Werror=all-warnings"
    return check(*NVCC, *flags, "-c", str(source), "-o", str(folder / "out.o"))


def write_few(name, tiles, folder, cuda=CUDA):
    """persistent_NAME.cu with the kernels of these tiles only: all of them take a minute."""
    text = (cuda / f"persistent_{name}.cu").read_text()
    text = re.sub('#include "', f"\\g<0>{cuda}/", text)
    text, launchers = re.subn(r"template cudaError_t launch_walk[^;]*;", "", text)
    assert launchers == 3
    walk = f"{name.capitalize()}Walk"
    kernels = ", ".join(
        f"reinterpret_cast<const void*>(walk_kernel<{walk}<{tile}>>)" for tile in tiles
    )
    text += f"namespace fastlstm {{ extern const void* const kernels[] = {{{kernels}}}; }}\n"
    (folder / "few.cu").write_text(text)
    return folder / "few.cu"


def disassemble(folder):
    """The kernels of out.o: name to machine_code.Instruction."""
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ["PATH"]])
    dump = tool("cuobjdump"), "--dump-sass", str(folder / "out.o")
    return machine_code.kernels(check(*dump, env=os.environ | {"PATH": path}))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """What ptxas reports, and the folder of the results; each compiled once."""

    @functools.cache
    def results(source, architecture):
        folder = tmp_path_factory.mktemp(f"{source.stem}_{architecture}_")
        return compile_with_nvcc(source, architecture, folder), folder

    return results


@pytest.fixture(scope="session")
def compiled_few(tmp_path_factory):
    """The same of the kernels of a few tiles."""

    @functools.cache
    def results(name, tiles):
        folder = tmp_path_factory.mktemp(f"few_{name}_")
        return compile_with_nvcc(write_few(name, tiles, folder), "90", folder), folder

    return results


def check_compiled(report):
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    )
    assert frames, f"ptxas reported no kernel:\n{report}"
    assert set(frames) == {("0", "0", "0")}, report
    # The planner counts dynamic shared memory only.
    assert not re.search(r"\d+ bytes smem", report), report


def slow_unless_fast(source, architecture):
    fast = architecture in FAST and source not in PERSISTENT.values()
    marks = () if fast else pytest.mark.slow
    return pytest.param(source, architecture, marks=marks, id=f"{source.name}-{architecture}")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "source, architecture", [slow_unless_fast(s, a) for s in SOURCES for a in ARCHITECTURES]
)
def test_compiles_without_spills(source, architecture, compiled):
    check_compiled(compiled(source, architecture)[0])


@pytest.mark.parametrize("name", PERSISTENT)
def test_few_compile_without_spills(name, compiled_few):
    check_compiled(compiled_few(name, FEW)[0])


# --- rules for the machine code ---


class Step:
    """The code of a step, cut where it polls what its neighbors wrote and at its barriers."""

    def __init__(self, name, code):
        self.backward = name == "backward"
        first_poll = next(i for i, x in enumerate(code) if x.is_poll)
        barriers = [i for i, x in enumerate(code) if x.is_a("BAR")]
        start = max(i for i in barriers if i < first_poll)
        summed, end = [i for i in barriers if i > first_poll][:2]
        self.before = code[start:first_poll]  # all that does not come from the neighbors
        self.product = code[first_poll:summed]  # polls until it is there; the product
        self.cells = code[summed:end]  # the cell equations and what is published


# A rule gives the instructions that break it.


def early_uses(step):
    """Uses of the input's part before the first poll, which wait for it.

    Its loads are those of 16 and 32 bits; tables and flags have other sizes.
    """
    scoreboard, uses = {}, []
    for x in step.before:
        uses += [x] * any(scoreboard.get(register) in x.waits_for for register in x.read)
        if x.opcode in ("LDG.E", "LDG.E.U16"):
            scoreboard.update(dict.fromkeys(x.written, x.holds))
    return uses


def moved_groups(step):
    """Moves of a register that a poll wrote last: they wait for it, and all others under way."""
    writer, moves = {}, []
    for x in step.product:
        if x.is_a("MOV", "IMAD.MOV") and any(r in writer and writer[r].is_poll for r in x.read):
            moves.append(x)
        writer.update(dict.fromkeys(x.written, x))
    return moves


def waiting_polls(step):
    """Looks that do not start before others are back."""
    scoreboards = {x.holds for x in step.product if x.is_poll}
    return [x for x in step.product if x.is_poll and x.waits_for & scoreboards]


def late_fetches(step):
    """Constants and special registers fetched between the product and the last publication."""
    last = max(i for i, x in enumerate(step.cells) if x.is_publication)
    return [x for x in step.cells[:last] if x.is_a("LDC", "ULDC", "S2R", "S2UR")]


def needless_shuffles(step):
    """Shuffles beyond one for each word that is published."""
    words = sum(x.is_publication for x in step.cells)
    return [x for x in step.cells if x.is_a("SHFL")][words:]


def incomplete_prefetches(step):
    """All prefetches, where they are not those of whole units.

    Of a unit: 4 gates; h, or 4 gradients, c and dL/dh.
    """
    prefetches = [x for x in step.before if x.is_a("CCTL.E.PF2")]
    return prefetches if len(prefetches) % (10 if step.backward else 5) else []


def short_polls(step):
    """Looks at a value at a time."""
    return [x for x in step.product if x.is_poll and x.opcode != "LDG.E.128.STRONG.GPU"]


# A change of csrc/cuda that breaks each rule: the file, what becomes what.
EXCHANGE = "persistent_exchange.h"
RULES = {
    early_uses: (
        "persistent_block.h",
        "inputs[j] = walk.load_inputs(step, unit(step.t, pass, j));",
        "if (float((inputs[j] = walk.load_inputs(step, unit(step.t, pass, j))).{gates}.i) == 7)"
        " return;",
    ),
    moved_groups: (
        "persistent_product.h",
        "begin += 2 * kChunks) {",
        """begin += kChunks) {
    other.load(parts, begin + kChunks);
    one.wait(parts, begin);
    product.add(one.words, begin, last);
    one = other;
  }
  for (int begin = last; begin < last; ++begin) {""",
    ),
    waiting_polls: (
        EXCHANGE,
        "words[a][j] = {{0, 0, 0, 0}};",
        "words[a][j] = load_exchanged(parts[j].at(0));",
    ),
    late_fetches: (
        "device.h",
        "return __shfl_xor_sync(0xffffffffu, word, mask);",
        'int lane; asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));'
        "return __shfl_sync(0xffffffffu, word, lane ^ mask);",
    ),
    needless_shuffles: (
        EXCHANGE,
        "shuffle_xor(word, 1) << 16",
        "shuffle_xor(word, 1) << 16 ^ shuffle_xor(word, 2)",
    ),
    incomplete_prefetches: ("persistent_{name}.cu", "prefetch(d.gates + (flat", "(void)((flat"),
    short_polls: (
        "device.h",
        "v4.u32 {%0, %1, %2, %3}, [%4];",
        "v2.u32 {%0, %1}, [%4]; ld.relaxed.gpu.global.v2.u32 {%2, %3}, [%4 + 8];",
    ),
}


# Where the widest tile takes almost all registers, ptxas moves a value that was loaded early, and
# the move waits for it.
MOVES_EARLY = {"100", "120"}


def check_machine_code(name, kernels, count, architecture="90"):
    assert len(kernels) == count
    for kernel, code in kernels.items():
        step = Step(name, code)
        broken = {rule.__name__: rule(step) for rule in RULES if rule(step)}
        if architecture in MOVES_EARLY and "ELi32ELi16E" in kernel:
            assert all(x.is_a("MOV", "IMAD.MOV", "PRMT") for x in broken.pop("early_uses", ()))
        assert not broken, f"{kernel}: {broken}"


@needs_disassembler
@pytest.mark.parametrize("name", PERSISTENT)
def test_few_machine_code(name, compiled_few):
    _, folder = compiled_few(name, FEW)
    check_machine_code(name, disassemble(folder), len(FEW))


@needs_disassembler
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PERSISTENT)
@pytest.mark.parametrize("architecture", ["80", "90", "100", "120"])
def test_machine_code(name, architecture, compiled):
    _, folder = compiled(PERSISTENT[name], architecture)
    # 6 tiles of each of 3 mma types, 3 of FFMA.
    check_machine_code(name, disassemble(folder), 21, architecture)


@needs_disassembler
@pytest.mark.parametrize(
    "name, rule",
    [
        pytest.param(name, rule, marks=[pytest.mark.slow] * (rule is not early_uses))
        for name in PERSISTENT
        for rule in RULES
    ],
)
def test_rule_is_broken_without_what_it_tests(name, rule, tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    file, text, fault = (
        words.replace("{name}", name).replace("{gates}", "from_x" if name == "forward" else "gates")
        for words in RULES[rule]
    )
    path = tmp_path / "csrc/cuda" / file
    assert path.read_text().count(text) == 1, f"{file} no longer holds {text!r} once"
    path.write_text(path.read_text().replace(text, fault))
    compile_with_nvcc(write_few(name, FEW[:1], tmp_path, path.parent), "90", tmp_path)
    [code] = disassemble(tmp_path).values()
    assert rule(Step(name, code))
