"""The CPU kernels without torch, against plain loops: those of arm64 in an emulator."""

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CXX = shlex.split(os.environ.get("CXX", "g++"))
ARM64 = platform.machine() in ("aarch64", "arm64")


def run(*command):
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def program(*cxx, flags=()):
    """Builds what is out of date, in one process at a time."""
    folder = ROOT / "build/kernels" / Path(cxx[0]).name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        flags = f"CXX={shlex.join(cxx)}", f"BUILD={folder}", "CXXFLAGS=-Werror", *flags
        run("make", "-C", str(ROOT / "tests/kernels"), "-j2", *flags)
    return str(folder / "kernels")


def check(*command):
    """Runs every case; returns the instruction sets that they are of."""
    cases = run(*command, "--list").splitlines()
    assert len(cases) > 15
    run(*command, *cases)
    return {case.split("/")[0] for case in cases} - {"bits"}  # which compares them


@pytest.mark.skipif(not shutil.which("make") or not shutil.which(CXX[0]), reason="no make or C++")
def test_on_this_machine():
    checked = check(program(*CXX))
    assert ("neon" if ARM64 else "baseline") in checked


# Processors that the emulator knows, with the optional instructions that they have.
PROCESSORS = {
    "cortex-a57": set(),
    "neoverse-n1": {"neon_dotprod"},
    "max": {"neon_dotprod", "neon_bf16"},
}
PACKAGES = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
MISSING = [f"{tool} (Debian: {PACKAGES[tool]})" for tool in PACKAGES if not shutil.which(tool)]


@pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_on_arm64(processor):
    """Each kernel in the emulator, and that what a processor has chooses among them."""
    kernels = program("aarch64-linux-gnu-g++", flags=["LDFLAGS=-static"])
    checked = check("qemu-aarch64", "-cpu", processor, kernels)
    assert checked == {"neon"} | PROCESSORS[processor]
