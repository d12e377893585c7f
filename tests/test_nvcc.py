"""Every .cu file compiles with bare nvcc: no register spill, no stack frame, no stray cache."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
FAST = {"80", "90"}
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(not NVCC, reason="no nvcc on PATH")


def known_architectures():
    listed = subprocess.run([NVCC, "--list-gpu-arch"], text=True, capture_output=True).stdout
    return set(re.findall(r"compute_(\d+)", listed))


def compile_with_nvcc(source, architecture, folder, *options):
    """What ptxas reports; the PTX is left in the folder."""
    if architecture not in known_architectures():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    command = [NVCC, "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas=-v", "--keep",
               f"--keep-dir={folder}", "-Werror=all-warnings", *options, "-c", str(source), "-o",
               str(folder / "out.o")]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(
    "architecture",
    [a if a in FAST else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES],
)
def test_compiles_without_spills(source, architecture, tmp_path):
    report = compile_with_nvcc(source, architecture, tmp_path)
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    )
    assert frames, f"ptxas reported no kernel:\n{report}"
    assert set(frames) == {("0", "0", "0")}, report
    # The planner counts dynamic shared memory only.
    assert not re.search(r"\d+ bytes smem", report), report
    [ptx] = tmp_path.glob("*.ptx")
    if "persistent" in source.name:
        # Blocks read what other blocks write: a load through the non-coherent cache may be stale.
        assert "ld.global.nc" not in ptx.read_text()
        assert "ld.relaxed.gpu.global.v4" in ptx.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("source", [s for s in SOURCES if "persistent" in s.name],
                         ids=lambda source: source.name)
def test_debug_build_compiles(source, tmp_path):
    compile_with_nvcc(source, "90", tmp_path, "-DFASTLSTM_SPIN_LIMIT=100000000")
