"""The folders of csrc depend one way: its includes give the order that csrc/README.md states."""

import re
from collections import defaultdict
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FILES = [file for suffix in ("h", "cpp", "cu") for file in sorted(CSRC.rglob(f"*.{suffix}"))]
PARENTS = {folder.parent for folder in {file.parent for file in FILES} if folder != CSRC}


def floor(file: Path) -> str:
    """The folder of a file; a file that lies beside folders stands for itself, as `cpu/plan`."""
    where = file.with_suffix("") if file.parent in PARENTS else file.parent
    return where.relative_to(CSRC).as_posix()


def included(file: Path) -> dict[str, Path]:
    """What a file includes of csrc, by the name that it writes."""
    names = re.findall(r'^#include "(.+)"', file.read_text(), re.M)
    beside = {name: (file.parent / name).resolve() for name in names}
    found = {name: path if path.exists() else CSRC / name for name, path in beside.items()}
    return {name: path for name, path in found.items() if path.exists()}  # not the emulator's


def includes() -> dict[str, dict[str, list[str]]]:
    """From floor to floor, the includes that lead there."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in FILES:
        for name, target in included(file).items():
            if floor(file) != floor(target):
                found[floor(file)][floor(target)].append(f"{file.relative_to(CSRC)} -> {name}")
    return found


def test_the_map_lists_the_folders_from_top_to_bottom() -> None:
    table = (CSRC / "README.md").read_text().split("## Every file")[0]
    firsts = re.findall(r"^\|(.*?)\|", table.split("|---|---|")[1], re.M)
    listed = [name for first in firsts for name in re.findall(r"`([\w/]+)/`", first)]
    there = {file.parent.relative_to(CSRC).as_posix() for file in FILES} - {"."}
    assert set(listed) >= there
    upwards = [
        include
        for source, targets in includes().items()
        for target, found in targets.items()
        for include in found
        if {source, target} <= set(listed) and listed.index(source) > listed.index(target)
    ]
    assert not upwards


def test_only_the_python_module_includes_python() -> None:
    """The other sources are built into programs without Python (examples/cpp)."""
    python = r"^#include <(Python\.h|pybind11/|torch/csrc/(Exceptions|utils/|autograd/python_))"
    needing: set[Path] = {file for file in FILES if re.search(python, file.read_text(), re.M)}
    while more := {f for f in FILES if needing & {*included(f).values()}} - needing:
        needing |= more
    assert {file.name for file in needing if file.suffix != ".h"} == {"module.cpp"}
