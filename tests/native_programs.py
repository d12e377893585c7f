"""Programs in C++ that a test builds and runs: those of tests/kernels, tests/simt and tests/ptx.

They lie in build/, so that they are built once for all processes of a run, and for the next run.
"""

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


def cases_of(program, *groups):
    """The names of a program's cases, or of those whose names begin with one of the groups."""
    names = check(program, "--list").splitlines()
    return [name for name in names if not groups or name.startswith(tuple(f"{g}/" for g in groups))]


def check_cases(program, *groups):
    """Runs them, of which there must be some, in one process."""
    names = cases_of(program, *groups)
    assert names, f"no case of {', '.join(groups)}"
    check(program, *names)
