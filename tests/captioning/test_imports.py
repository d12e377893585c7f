"""The folders of captioning depend one way: a folder imports only from folders below it."""

import re
from pathlib import Path

import captioning

ROOT = Path(captioning.__file__).parent
# From bottom to top. The name "" stands for the files next to the folders.
FOLDERS = ["", "data", "cnn", "model", "results", "search", "training", "commands"]


def test_no_folder_imports_from_one_above_it():
    floors = {name: floor for floor, name in enumerate(FOLDERS)}
    upwards, seen = [], set()
    for file in ROOT.glob("*/*.py"):
        for name in re.findall(r"^\s*from captioning\.(\w+)", file.read_text(), re.M):
            target = name if (ROOT / name).is_dir() else ""
            seen.add(file.parent.name)
            if floors[target] > floors[file.parent.name]:
                upwards.append(f"{file.relative_to(ROOT)}: {name}")
    assert not upwards and seen == set(FOLDERS[1:])
