"""The CUDA kernels on the CPU: every case of tests/simt, without a GPU or CUDA's toolkit."""

import functools

import pytest
from native_programs import CXX, ROOT, check_cases, make, missing, run

SIMT = ROOT / "tests/simt"
CUDA = ROOT / "csrc/cuda"
BUILD = ROOT / "build/simt"
GROUPS = "plan", "rounding", "runtime", "stepwise", "layer norm", "persistent"

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"not on PATH: {', '.join(missing())}"),
    pytest.mark.timeout(3600),
]


@functools.cache
def build(program="simt_tests"):
    make("simt", BUILD, "CXXFLAGS=-Werror", f"{BUILD}/{program}")
    return str(BUILD / program)


@pytest.mark.parametrize("group", GROUPS)
def test_cases(group):
    check_cases(build(), group)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_sanitized(group):
    check_cases(build("simt_tests_sanitized"), group)


def test_too_many_parameters_do_not_compile(tmp_path):
    """sequence.cu fills the 4096 bytes of parameters that CUDA allows, and cannot have more."""
    flags = "-std=c++20", "-w", "-DFASTLSTM_EMULATOR", "-x", "c++", f"-I{SIMT}", f"-I{CUDA}"
    text = (CUDA / "sequence.cu").read_text().replace("(4096 - 16)", "(4104 - 16)")
    (tmp_path / "sequence.cu").write_text(text)
    done = run(*CXX, *flags, str(tmp_path / "sequence.cu"), "-fsyntax-only")
    assert "more parameters than CUDA allows on every GPU" in done.stdout
