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
    """Returns the names of the tools that are not on PATH, among them make and the C++ compiler."""
    return [tool for tool in ("make", CXX[0], *tools) if not shutil.which(tool)]


def run(*command, **options):
    """Runs a command. The attribute `stdout` of the result has the text of stderr, too."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run([str(word) for word in command], text=True, **pipes, **options)


def check(*command, **options):
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def make(source, folder, *arguments, cxx=CXX):
    """Builds tests/`source` in a folder, under a lock: one process builds, the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        variables = f"CXX={shlex.join(cxx)}", f"BUILD={folder}"
        check("make", "-C", str(ROOT / "tests" / source), "-j2", *variables, *arguments)


def cases_of(program, *groups):
    """Returns the names of all cases of a program, or of the cases in these groups."""
    names = check(program, "--list").splitlines()
    return [name for name in names if not groups or name.startswith(tuple(f"{g}/" for g in groups))]


def check_cases(program, *groups):
    names = cases_of(program, *groups)
    assert names, f"no case of {', '.join(groups)}"
    check(program, *names)
