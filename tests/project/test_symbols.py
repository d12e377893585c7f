"""The built libraries need no newer glibc or libstdc++ than manylinux_2_28 has."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastlstm

LIBRARIES = sorted(Path(fastlstm.__file__).parent.rglob("*.so"))
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}  # GCC 8


@pytest.mark.skipif(not LIBRARIES, reason="no library was built")
@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_no_symbol_is_newer_than_manylinux_2_28(library):
    table = subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True)
    wanted = re.findall(r"\*UND\*.*\((GLIBC|GLIBCXX|CXXABI)_([\d.]+)\)\s+(\S+)", table.stdout)
    assert wanted, table.stdout
    versions = [(kind, tuple(map(int, version.split("."))), name) for kind, version, name in wanted]
    assert [each for each in versions if each[1] > NEWEST[each[0]]] == []
    # These functions must be hidden. If not, libstdc++ might call the copies in our library.
    defined = re.findall(r"^(?!.*\*UND\*).*\s(\S+)$", table.stdout, re.M)
    own = re.compile("__libc_single_threaded|_ZNSt15__exception_ptr13exception_ptr|bad_array_new")
    assert [name for name in defined if own.search(name)] == []
