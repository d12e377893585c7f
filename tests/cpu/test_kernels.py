"""The CPU kernels without torch, against plain loops; kernels for arm64 run in an emulator."""

import platform
import shutil
from pathlib import Path

import pytest
from native_programs import CXX, ROOT, check, make, missing

ARM64 = platform.machine() in ("aarch64", "arm64")


def build_program(*cxx, flags=()):
    folder = ROOT / "build/kernels" / Path(cxx[0]).name
    make("kernels", folder, "CXXFLAGS=-Werror", *flags, cxx=cxx)
    return str(folder / "kernels")


def check_every_case(*command):
    """Runs all cases of a program and returns the instruction sets whose products it has."""
    cases = check(*command, "--list").splitlines()
    check(*command, *cases)
    return {case.split("/")[1] for case in cases if case.startswith("products/")}


@pytest.mark.skipif(bool(missing()), reason="no make or C++")
def test_on_this_machine():
    checked = check_every_case(build_program(*CXX))
    assert ("neon" if ARM64 else "baseline") in checked


# Processors of the emulator, with the optional instruction sets that fastlstm uses on them.
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
    kernels = build_program("aarch64-linux-gnu-g++", flags=["LDFLAGS=-static"])
    checked = check_every_case("qemu-aarch64", "-cpu", processor, kernels)
    assert checked == {"neon"} | PROCESSORS[processor]
