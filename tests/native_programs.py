"""Builds the C++ programs of tests/kernels, tests/simt and tests/ptx in build/, and runs them."""

import fcntl
import os
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CXX = shlex.split(os.environ.get("CXX", "g++"))
NVCC = "nvcc", "-std=c++20", "-O3", "--fmad=false"  # the same as in setup.py


def missing(*tools):
    """Returns the programs, besides make and the compiler, that are not on PATH."""
    return [tool for tool in ("make", CXX[0], *tools) if not shutil.which(tool)]


def run(*command, **options):
    """Runs a command; `stdout` of what this returns has stdout and stderr together."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run([str(word) for word in command], text=True, **pipes, **options)


def check(*command, **options):
    """Runs a command that must succeed; returns what it printed."""
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def make(source, folder, *arguments, cxx=CXX):
    """Builds the program of a folder of tests/; other processes that want it wait meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        variables = f"CXX={shlex.join(cxx)}", f"BUILD={folder}"
        check("make", "-C", str(ROOT / "tests" / source), "-j2", *variables, *arguments)


def cases_of(program, *groups):
    """Returns the names of a program's cases; if groups are given, only of cases in them."""
    names = check(program, "--list").splitlines()
    return [name for name in names if not groups or name.startswith(tuple(f"{g}/" for g in groups))]


def check_cases(program, *groups):
    """Runs these cases in one process. There must be at least one."""
    names = cases_of(program, *groups)
    assert names, f"no case of {', '.join(groups)}"
    check(program, *names)
