"""Programs in C++ that a test builds and runs: those of tests/kernels, tests/simt and tests/ptx."""

import fcntl
import os
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CXX = shlex.split(os.environ.get("CXX", "g++"))
NVCC = "nvcc", "-std=c++17", "-O3", "--fmad=false"  # as setup.py has it


def missing(*tools):
    return [tool for tool in ("make", CXX[0], *tools) if not shutil.which(tool)]


def run(*command, **options):
    """The exit status, and all that it prints as `stdout`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, text=True, **pipes, **options)


def check(*command, **options):
    """What a command prints that must succeed."""
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def make(source, folder, *arguments, cxx=CXX):
    """Builds what is out of date, in one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        variables = f"CXX={shlex.join(cxx)}", f"BUILD={folder}"
        check("make", "-C", str(ROOT / "tests" / source), "-j2", *variables, *arguments)


def names_of_cases(build):
    """Of the program that `build` builds, or none where it cannot: then test_builds says why."""
    try:
        return [] if missing() else check(build(), "--list").splitlines()
    except AssertionError:
        return []
