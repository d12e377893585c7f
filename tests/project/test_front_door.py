"""What somebody meets first: `python -m fastlstm`, the make targets, the commands in the docs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastlstm
from fastlstm import __main__ as front_door
from fastlstm import _build

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def make(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MAKEFLAGS": ""}  # else PYTHON= of the make that runs the tests counts
    return subprocess.run(["make", *args], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("args", [[], ["info"]])
def test_info(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    front_door.main(args)
    out = capsys.readouterr().out
    assert f"fastlstm {fastlstm.__version__}" in out
    assert f"torch {torch.__version__}" in out
    for key, value in _build.build_record().items():
        text = re.escape(value) if isinstance(value, str) else ""
        assert re.search(rf"^  {key} +{text}", out, re.M)
    assert re.search(r"^  cpu +\d+ threads", out, re.M)
    engine = "op" if _build.extension_available() else "torch"
    assert re.search(rf"^  cpu +{engine} ", out.split("Engines")[1], re.M)


def test_info_shows_a_forced_engine(capsys, monkeypatch) -> None:
    monkeypatch.setattr(front_door.engines, "DEFAULT", "torch")
    front_door.main([])
    assert "FASTLSTM_ENGINE=torch decides where the code does not" in capsys.readouterr().out


def test_info_says_why_the_extension_is_not_used(capsys, monkeypatch) -> None:
    monkeypatch.setattr(_build, "_reason", "it was built for another torch")
    front_door.main([])
    out = capsys.readouterr().out
    assert "  not used: it was built for another torch\n" in out
    assert f"  to build it: {_build.rebuild_command()}\n" in out


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [((), ("torch", "reference")), (("cpu",), ("op", "op"))],
)
def test_the_engines_of_a_cpu_are_named(
    kinds: tuple[str, ...], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_door._build, "kinds", kinds)
    plain, with_option, by_name = front_door.engines_of(torch.device("cpu"))
    assert (plain, with_option) == expected
    assert by_name.startswith("torch, reference") and "persistent" not in by_name


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "fastlstm", "-h"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m fastlstm")


def test_a_reader_that_has_read_enough_ends_it_quietly() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "fastlstm"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


@needs_make
def test_help_lists_every_target() -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert {name for line in phony for name in line.split()} == TARGETS
    listed = re.findall(r"^  ([a-z-]+) ", make("help").stdout, re.M)
    assert sorted(listed) == sorted(TARGETS)
    assert make().stdout == make("help").stdout


def test_docs_name_targets_that_exist() -> None:
    for doc in DOCS:
        named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", doc.read_text(), re.M))
        assert named <= TARGETS, f"{doc.name}: {named - TARGETS}"


@needs_make
@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_says_what_it_will_install(target: str, tmp_path: Path) -> None:
    """Of the demo no more than it needs; what `make test` installed serves it too."""
    (tmp_path / "captioning").mkdir()
    for name in ("Makefile", "pyproject.toml", "captioning/pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "csrc").mkdir()
    silent = "--no-print-directory"  # which it does under another make
    lines = make(silent, "--dry-run", target, cwd=tmp_path).stdout.splitlines()
    said, installs = (
        next(k for k, line in enumerate(lines) if text in line)
        for text in ("libraries of fastlstm", "pip install --no-build-isolation")
    )
    assert said < installs
    expected = [] if target == "demo" else ["[test,lint,docs]", "[test]"]
    assert all(re.findall(r"\[[^]]+\]", lines[k]) == expected for k in (said, installs))
    assert len(re.findall(r"/\.fastlstm-\w+", lines[-2])) == (1 if target == "demo" else 2)


@needs_make
@pytest.mark.parametrize("chosen", [[], ["TORCH=2.8 2.13"]])
def test_make_wheels_is_for_each_torch(chosen: list[str]) -> None:
    versions = chosen[0][6:].split() if chosen else [f"2.{minor}" for minor in range(8, 16)]
    headers = " ".join(f"build/torch/{version}" for version in versions)
    assert f'FASTLSTM_TORCH_HEADERS="{headers}" ' in make("--dry-run", "wheels", *chosen).stdout


@needs_make
def test_make_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = make("build", "BASE_PYTHON=false", cwd=tmp_path)
    assert done.returncode != 0
    assert "No false found that is 3.10 or newer and has venv and ensurepip" in done.stderr
    done = make("build", "PYTHON=/nowhere/python", cwd=tmp_path)
    assert done.returncode != 0
    assert "PYTHON=/nowhere/python cannot be run" in done.stderr
