"""Runs the cases of tests/simt with the PTX that nvcc makes, in the interpreter of tests/ptx."""

import functools

import pytest
from native_programs import ROOT, cases_of, check, check_cases, make, missing

MISSING = missing("nvcc")
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}"),
    pytest.mark.timeout(3600),
]


@functools.cache
def build(architecture="80"):
    folder = ROOT / "build/ptx" / f"sm_{architecture}"
    make("ptx", folder, f"ARCH={architecture}")
    return str(folder / "ptx_tests")


def test_every_kernel_is_decoded():
    assert check(build(), "--decode") == ""


def quick(*groups):
    """The cases that take seconds."""
    return [n for n in cases_of(build(), *groups) if "random" not in n and "very deep" not in n]


@pytest.mark.parametrize("group", ["stepwise", "layer norm", "persistent"])
def test_cases(group):
    printed = check(build(), *quick(group))  # a case of "persistent" waits in vain
    assert ("fastlstm: a block waits in vain for the values" in printed) == (group == "persistent")


@pytest.mark.slow
def test_any_order_of_lanes_and_stores():
    """No result depends on the order of warps, lanes and stores, which PTX leaves open."""
    order = "--random-lanes", "--delays", "--seed-offset", "3"
    check(build(), *order, *quick("persistent"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90", "100", "120"])
def test_architecture(architecture):
    program = build(architecture)
    check(program, "--delays", *cases_of(program))


@pytest.mark.slow
def test_before_sm_80():
    """Older GPUs have all kernels but the persistent ones."""
    check_cases(build("75"), "stepwise", "layer norm")
