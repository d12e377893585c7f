"""Every .cu file compiles with nvcc and without torch; no register spills and no stack frames."""

import re
import shutil

import pytest
from native_programs import NVCC, ROOT, cases_of, check, make

CUDA = ROOT / "csrc/cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "110", "120")
# Arithmetic, units and rows of the tiles of `test_few_compile_without_spills`.
TILES = ("BFloat16Mma, 8, 8", "BFloat16Mma, 32, 16", "Tf32Mma, 16, 8", "Ffma, 8, 8")

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on PATH")


def check_compiled(source, architecture, folder):
    if architecture not in re.findall(r"compute_(\d+)", check("nvcc", "--list-gpu-arch")):
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    flags = f"-arch=sm_{architecture}", "-Xptxas=-v", "-Werror=all-warnings"
    report = check(*NVCC, *flags, "-c", str(source), "-o", str(folder / "out.o"))
    kinds = "stack frame", "spill stores", "spill loads"
    byte_counts = re.findall(", ".join(rf"(\d+) bytes {kind}" for kind in kinds), report)
    assert byte_counts, f"ptxas reported no kernel:\n{report}"
    assert set(byte_counts) == {("0", "0", "0")}, report
    # Static shared memory is forbidden: the planner counts only dynamic shared memory.
    assert not re.search(r"\d+ bytes smem", report), report


def case(source, architecture):
    is_quick = architecture == "90" and not source.name.startswith("persistent_")
    marks = () if is_quick else pytest.mark.slow
    return pytest.param(source, architecture, marks=marks, id=f"{source.name}-{architecture}")


CASES = [case(source, arch) for source in SOURCES for arch in ARCHITECTURES]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("source, architecture", CASES)
def test_compiles_without_spills(source, architecture, tmp_path):
    check_compiled(source, architecture, tmp_path)


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_few_compile_without_spills(name, tmp_path):
    """Only the kernels of a few tiles, because all kernels take a minute."""
    text = (CUDA / f"persistent_{name}.cu").read_text()
    text = re.sub('#include "', f"\\g<0>{CUDA}/", text)
    text, removed = re.subn(r"template cudaError_t launch_walk[^;]*;", "", text)
    assert removed == 3
    walk = f"Persistent{name.capitalize()}"
    kernels = ", ".join(f"(const void*)(walk_kernel<{walk}<{tile}>>)" for tile in TILES)
    text += f"namespace fastlstm {{ extern const void* const kernels[] = {{{kernels}}}; }}\n"
    (tmp_path / "few.cu").write_text(text)
    check_compiled(tmp_path / "few.cu", "90", tmp_path)


@pytest.mark.slow
def test_the_cases_of_the_emulator_compile_for_a_gpu():
    """`.ci/gpu-check sanitize` runs these cases on a GPU."""
    make("gpu", ROOT / "build/gpu_sm_90", "ARCH=sm_90")
    program = str(ROOT / "build/gpu_sm_90/gpu_tests")
    assert cases_of(program, "persistent") and cases_of(program, "stepwise")
