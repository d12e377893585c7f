"""`python -m fastlstm`, the targets of make that the documents name, and .ci/gpu-check."""

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
from fastlstm.engine import engines

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("args", [[], ["info"]])
def test_info(capsys, args):
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


def test_an_import_loads_no_compiler():
    code = "import sys, torch; old = {*sys.modules}; import fastlstm; print({*sys.modules} - old)"
    new = subprocess.run([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, cwd=ROOT)
    assert "fastlstm.check.first_use" in new.stdout and "torch._dynamo" not in new.stdout


def test_freed_memory_is_used_again():
    """Otherwise each step of a loop over LSTMCell would wait for page faults in backward."""
    code = "import fastlstm, resource, torch\nfaults = lambda: resource.getrusage(0).ru_minflt\n"
    code += "draw = lambda: (torch.ones(1 << 20), torch.ones(1 << 20))\ndraw(); before = faults()\n"
    code += "for _ in range(50): draw()\nprint(faults() - before)"
    done = subprocess.run([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, cwd=ROOT)
    assert int(done.stdout) < 5000 or sys.platform != "linux"


def test_info_says_why_the_extension_is_not_used(capsys, monkeypatch):
    monkeypatch.setattr(_build, "_why_unavailable", "it was built for another torch")
    command_line.main([])
    out = capsys.readouterr().out
    assert "  not used: it was built for another torch\n" in out
    assert f"  to build it: {_build.rebuild_command()}\n" in out


def test_an_engine_of_the_environment_that_does_not_exist(monkeypatch):
    monkeypatch.setattr(engines, "DEFAULT", "foo")
    with pytest.raises(SystemExit, match="^engine: expected one of auto, .* got 'foo'"):
        command_line.main([])


@pytest.mark.parametrize("function, message", [
    ("mine", "got mine, which is no function, but of type module$"),
    (":make", "got :make: invalid format: ':make'$"),
    ("nomodule:make", "got nomodule:make: No module named 'nomodule'$"),
    ("mine.py:make", "got mine.py:make: No module named 'mine.py'; 'mine' is not a package$"),
    ("mine:nofunction", "nofunction: module 'mine' has no attribute 'nofunction'$"),
    ("mine:number", "got mine:number, which is no function, but of type int$"),
    ("mine:nothing", r"mine:nothing to return \(model, \*inputs\), got NoneType$"),
    ("mine:model", r"mine:model to return \(model, \*inputs\), got Sequential$"),
])  # fmt: skip
def test_compare_refuses_a_function_that_makes_no_model(function, message, tmp_path, monkeypatch):
    code = "from torch.nn import *\nnumber = 3\nnothing = lambda: None\n"
    (tmp_path / "mine.py").write_text(code + "model = lambda: Sequential(Identity())")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit, match=f"^function: expected .*{message}"):
        command_line.main(["compare", function])


def test_compare_saves(tmp_path, monkeypatch):
    code = "import torch\ndef make(): return torch.nn.LSTM(2, 3), torch.randn(4, 5, 2)"
    (tmp_path / "own_model.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--training", "--seconds", "0", "--save", str(tmp_path / "speed")]
    command_line.main(["compare", "own_model:make", *options])
    assert (tmp_path / "speed.md").read_text().startswith("| training |")
    assert "training, ratio of times" in (tmp_path / "speed.svg").read_text()


def test_seconds_below_0(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["compare", "mine:make", "--seconds", "-1"])
    assert "argument --seconds: expected 0 or more, got -1.0" in capsys.readouterr().err


needs_extension = pytest.mark.skipif(not _build.extension_available(), reason="no extension")
SHAPE = ["plan", "--hidden", "512", "--batch", "64", "--dtype", "bfloat16"]


@needs_extension
def test_plan_of_a_cpu(capsys):
    command_line.main([*SHAPE, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "auto: op\n" in printed
    assert all(f"{name:11} serves the call too" in printed for name in ("torch", "tiled"))
    assert "persistent  it runs on cuda, meta, and the input is on cpu" in printed
    assert "\nforward\n" in printed and "\nbackward\n" in printed
    command_line.main([*SHAPE, "--device", "cpu", "--inference", "--bidirectional"])
    assert "\nbackward\n" not in capsys.readouterr().out


@needs_extension
@pytest.mark.parametrize("size", ["a", "0", "-1", "1.5"])
def test_invalid_sizes_of_a_plan(size, capsys):
    with pytest.raises(SystemExit):
        command_line.main(["plan", "--batch", "4", f"--hidden={size}"])
    error = capsys.readouterr().err
    assert f"argument --hidden: expected a positive whole number, got {size}\n" in error


@needs_extension
def test_plan_of_a_gpu(capsys):
    """A plan for a GPU needs no GPU, but it depends on the kernels that were built."""
    command_line.main([*SHAPE, "--device", "cuda"])
    printed = capsys.readouterr().out
    assert "auto: torch\n" in printed
    assert "On a GPU calls with no option except lengths= run PyTorch's own LSTM" in printed


def test_docs_name_targets_that_exist():
    for doc in DOCS:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)(?=`|$| *#| [A-Z])", doc.read_text(), re.M))
        assert named <= TARGETS, f"{doc.name}: {named - TARGETS}"


@pytest.mark.parametrize("wheel", ["", "dist/fastlstm.whl"])
@pytest.mark.parametrize("command", ["first", "sanitize"])
def test_gpu_check_takes_ten_minutes_at_most(command, wheel):
    """The time limits of its stages sum to less than ten minutes; the files it names exist."""
    environment = {**os.environ, "DRY_RUN": "1", "WHEEL": wheel, "PYTHON": sys.executable}
    script = ROOT / ".ci" / "gpu-check"
    done = subprocess.run([script, command], env=environment, text=True, stdout=subprocess.PIPE)
    limits = re.findall(r"^=== \S+: up to (\d+) s, (\d+) s in all: .", done.stdout, re.M)
    assert done.returncode == 0 and sum(int(limit) for limit, _ in limits) == int(limits[-1][1])
    assert 500 < int(limits[-1][1]) < 600
    for path in re.findall(r"\btests/\S+|\bbenchmarks/\S+py", done.stdout):
        assert (ROOT / path).exists(), path
