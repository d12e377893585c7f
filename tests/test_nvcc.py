"""Every .cu file compiles with bare nvcc, without a register spill and without a stack frame."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
FAST = {"80", "90"}
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(not NVCC, reason="no nvcc on PATH")


def known_architectures():
    if not NVCC:
        return set()
    listed = subprocess.run([NVCC, "--list-gpu-arch"], text=True, capture_output=True).stdout
    return set(re.findall(r"compute_(\d+)", listed))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(
    "architecture",
    [a if a in FAST else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES],
)
def test_compiles_without_spills(source, architecture, tmp_path):
    if architecture not in known_architectures():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    done = subprocess.run(
        [NVCC, "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas=-v",
         "-Werror=all-warnings", "-c", str(source), "-o", str(tmp_path / "out.o")],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stdout
    )
    assert frames, f"ptxas reported no kernel:\n{done.stdout}"
    assert set(frames) == {("0", "0", "0")}, done.stdout
