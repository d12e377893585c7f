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


def includes() -> dict[str, dict[str, list[str]]]:
    """From floor to floor, the includes that lead there."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in FILES:
        for name in re.findall(r'^#include "(.+)"', file.read_text(), re.M):
            beside = (file.parent / name).resolve()
            target = beside if beside.exists() else CSRC / name
            if target.exists() and floor(file) != floor(target):  # not the emulator's
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
