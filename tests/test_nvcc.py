"""Every .cu file compiles with bare nvcc: no register spill, no stack frame, no stray cache."""

import functools
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
PERSISTENT = [source for source in SOURCES if "persistent" in source.name]
FAST = {"80", "90"}
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
NVCC = shutil.which("nvcc")


def tool(name):
    """A tool of the toolkit, or of the package nvidia-cuda-NAME, or None."""
    packaged = Path(sysconfig.get_path("purelib")).glob(f"nvidia/*/bin/{name}")
    return shutil.which(name) or next(map(str, packaged), None)


# The first calls the second.
MISSING_TOOLS = [name for name in ("cuobjdump", "nvdisasm") if not tool(name)]


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


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """What ptxas reports, and the folder of the results; each compiled once."""

    @functools.cache
    def results(source, architecture):
        folder = tmp_path_factory.mktemp(f"{source.stem}_{architecture}_")
        return compile_with_nvcc(source, architecture, folder), folder

    return results


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(
    "architecture",
    [a if a in FAST else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES],
)
def test_compiles_without_spills(source, architecture, compiled):
    report, folder = compiled(source, architecture)
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    )
    assert frames, f"ptxas reported no kernel:\n{report}"
    assert set(frames) == {("0", "0", "0")}, report
    # The planner counts dynamic shared memory only.
    assert not re.search(r"\d+ bytes smem", report), report
    [ptx] = folder.glob("*.ptx")
    if "persistent" in source.name:
        # Blocks read what other blocks write: a load through the non-coherent cache may be stale.
        assert "ld.global.nc" not in ptx.read_text()
        assert "ld.relaxed.gpu.global.v4" in ptx.read_text()
        assert "st.relaxed.gpu.global" in ptx.read_text()


@pytest.mark.skipif(
    bool(MISSING_TOOLS),
    reason="pip install " + " ".join(f"nvidia-cuda-{name}" for name in MISSING_TOOLS))
@pytest.mark.parametrize("source", PERSISTENT, ids=lambda source: source.name)
@pytest.mark.parametrize("architecture", [pytest.param("80", marks=pytest.mark.slow), "90"])
def test_machine_code_exchanges_through_l2(source, architecture, compiled):
    _, folder = compiled(source, architecture)
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ["PATH"]])
    done = subprocess.run([tool("cuobjdump"), "--dump-sass", str(folder / "out.o")], text=True,
                          capture_output=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    kernels = done.stdout.split("Function : ")[1:]
    assert len(kernels) == 21  # 6 tiles of each of 3 mma types, 3 of FFMA
    for kernel in kernels:
        assert not re.search(r"LDG\S*\.(CONSTANT|NC)", kernel)
        assert "LDG.E.128.STRONG.GPU" in kernel and re.search(r"ST\S*\.STRONG\.GPU", kernel)
        assert "MEMBAR" not in kernel  # the data announces itself, no fence


@pytest.mark.slow
@pytest.mark.parametrize("source", PERSISTENT, ids=lambda source: source.name)
def test_checked_build_compiles(source, tmp_path):
    compile_with_nvcc(source, "90", tmp_path, "-DFASTLSTM_SPIN_LIMIT=2000000", "-DFASTLSTM_TRACE")
