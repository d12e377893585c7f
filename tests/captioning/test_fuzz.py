"""Whatever a command is given, it ends well or with a message; see fuzz.py."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from captioning.model.checkpoint import load_checkpoint

pytest.importorskip("resource")  # of Unix


def fuzz(folder: Path, first: int, count: int) -> list[dict]:
    script = Path(__file__).parent / "fuzz.py"
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(first), str(count)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_some_damaged_files_and_odd_command_lines(tmp_path):
    assert fuzz(tmp_path, 0, 30) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("thousand", [1, 2, 3])
def test_thousands_of_damaged_files_and_odd_command_lines(tmp_path, thousand):
    assert fuzz(tmp_path, 1000 * thousand, 1000) == []


@pytest.mark.slow
def test_runs_that_are_killed_anywhere_end_as_an_unbroken_one(scenes_root, tmp_path):
    """In a save, in a validation, while pictures are encoded: the same bits, and nothing more."""
    annotations = scenes_root / "annotations"
    command = [sys.executable, "-m", "captioning", "train", "--cnn", "scenes_cnn", "--resume"]
    command += ["--train", str(annotations / "captions_train.json"), "--epochs", "4"]
    command += ["--val", str(annotations / "captions_val.json"), "--batch-size", "48"]
    command += ["--hidden-size", "32", "--embed-size", "32", "--output"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def killed(folder: Path, seconds: float) -> bool:
        """Whether the run had to be killed after so many seconds."""
        process = subprocess.Popen(
            [*command, str(folder)], env=environment, stdout=subprocess.DEVNULL, stderr=-1
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.communicate(timeout=seconds) and process.returncode == 0
            return False
        process.kill()
        process.communicate()
        return True

    for name in ("warm", "whole"):  # the first run reads everything from disk
        start = time.monotonic()
        assert not killed(tmp_path / name, 300)
    whole, rng, kills = time.monotonic() - start, random.Random(0), 0
    for name in "ab":
        patience = whole  # grows, for the machine may be slower by now
        while killed(tmp_path / name, rng.uniform(0.3 * patience, 0.9 * patience)):
            kills, patience = kills + 1, 1.1 * patience
            assert kills < 100
        assert_same_run(tmp_path / name, tmp_path / "whole")
    assert kills > 1


def assert_same_run(folder: Path, expected: Path) -> None:
    for name in ("best.pt", "last.pt"):
        one, two = (load_checkpoint(path / name) for path in (folder, expected))
        for key, tensor in two.model.state_dict().items():
            assert torch.equal(one.model.state_dict()[key], tensor), key
        times = {"seconds", "captions_per_second"}
        histories = [
            [{k: v for k, v in entry.items() if k not in times} for entry in c.training["history"]]
            for c in (one, two)
        ]
        assert histories[0] == histories[1]
    names = {path.relative_to(folder) for path in folder.rglob("*") if "events" not in path.name}
    assert names == {p.relative_to(expected) for p in expected.rglob("*") if "events" not in p.name}
