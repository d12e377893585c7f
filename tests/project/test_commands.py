"""`python -m fastlstm info`, the targets of make that the documents name, and .ci/gpu-check."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastlstm
from fastlstm import __main__ as command_line
from fastlstm import _build

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("args", [[], ["info"]])
def test_info(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    command_line.main(args)
    out = capsys.readouterr().out
    assert f"fastlstm {fastlstm.__version__}" in out
    assert f"torch {torch.__version__}" in out
    for key, value in _build.build_record().items():
        text = re.escape(value) if isinstance(value, str) else ""
        assert re.search(rf"^  {key} +{text}", out, re.M)
    assert re.search(r"^  cpu +\d+ threads", out, re.M)
    engine = "op" if _build.extension_available() else "torch"
    assert re.search(rf"^  cpu +{engine} ", out.split("Engines")[1], re.M)


def test_info_says_why_the_extension_is_not_used(capsys, monkeypatch) -> None:
    monkeypatch.setattr(_build, "_reason", "it was built for another torch")
    command_line.main([])
    out = capsys.readouterr().out
    assert "  not used: it was built for another torch\n" in out
    assert f"  to build it: {_build.rebuild_command()}\n" in out


def test_docs_name_targets_that_exist() -> None:
    for doc in DOCS:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)(?=`|$| *#| [A-Z])", doc.read_text(), re.M))
        assert named <= TARGETS, f"{doc.name}: {named - TARGETS}"


@pytest.mark.parametrize("wheel", ["", "dist/fastlstm.whl"])
@pytest.mark.parametrize("command", ["first", "sanitize"])
def test_gpu_check_takes_ten_minutes_at_most(command: str, wheel: str) -> None:
    """The time limits of its stages sum to less than ten minutes; the files it names exist."""
    environment = {**os.environ, "DRY_RUN": "1", "WHEEL": wheel, "PYTHON": sys.executable}
    script = ROOT / ".ci" / "gpu-check"
    done = subprocess.run([script, command], env=environment, text=True, stdout=subprocess.PIPE)
    limits = re.findall(r"^=== \S+: up to (\d+) s, (\d+) s in all: .", done.stdout, re.M)
    assert done.returncode == 0 and sum(int(limit) for limit, _ in limits) == int(limits[-1][1])
    assert 500 < int(limits[-1][1]) < 600
    for path in re.findall(r"\btests/\S+|\bbenchmarks/\S+py", done.stdout):
        assert (ROOT / path).exists(), path
