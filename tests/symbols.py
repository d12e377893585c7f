"""Checks the symbols that a library takes from glibc and libstdc++."""

import re
import subprocess
from pathlib import Path

NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}  # manylinux_2_28: GCC 8


def check_symbols(library: Path) -> None:
    """Raises an AssertionError if a library needs newer symbols than manylinux_2_28 has."""
    table = subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True)
    wanted = re.findall(r"\*UND\*.*\((GLIBC|GLIBCXX|CXXABI)_([\d.]+)\)\s+(\S+)", table.stdout)
    assert wanted, table.stdout
    versions = [(kind, tuple(map(int, version.split("."))), name) for kind, version, name in wanted]
    assert [each for each in versions if each[1] > NEWEST[each[0]]] == []
    # These functions must be hidden. If not, libstdc++ might call the copies in our library.
    defined = re.findall(r"^(?!.*\*UND\*).*\s(\S+)$", table.stdout, re.M)
    own = re.compile("__libc_single_threaded|_ZNSt15__exception_ptr13exception_ptr|bad_array_new")
    assert [name for name in defined if own.search(name)] == []
