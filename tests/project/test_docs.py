"""The documents: their Python code runs, and all that they name exists."""

import doctest
import importlib
import inspect
import os
import re
import shlex
import sys
from pathlib import Path

import native_programs
import pytest
import torch

import fastlstm.__main__

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
PAGES = sorted((ROOT / "docs").rglob("*.md"))
OTHER_PAGES = "README CONTRIBUTING SECURITY csrc/README benchmarks/README tests/README".split()
DOCS = [*(ROOT / f"{name}.md" for name in OTHER_PAGES), *PAGES]
SEVERAL_PROCESSES = ROOT / "docs" / "howto" / "several-processes.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FOLDERS = ("csrc", "fastlstm", "captioning", "benchmarks", "tests", "docs", "examples")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")

# If a snippet imports the package, the test needs the library.
NEEDED = {"captioning": "pycocoevalcap", "nano_ocr": "nano_ocr", "sb3_contrib": "sb3_contrib"}

every_doc = pytest.mark.parametrize("doc", DOCS, ids=lambda d: str(d.relative_to(ROOT)))


def code(doc, language):
    return [body for name, body in FENCE.findall(doc.read_text()) if name == language]


def commands(doc):
    """Returns the words of each `python ...` or `captioning ...` command in a document."""
    text = doc.read_text()
    blocks = "\n".join(body for name, body in FENCE.findall(text) if name in ("", "sh", "bash"))
    lines = blocks.replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|captioning) [^`]+)`", FENCE.sub("", text))
    lines = [re.sub(r"^captioning ", "python -m captioning ", line) for line in lines]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python ")]


WITH_CODE = [doc for doc in DOCS if code(doc, "python") and doc != SEVERAL_PROCESSES]


@pytest.mark.parametrize("doc", WITH_CODE, ids=lambda d: str(d.relative_to(ROOT)))
def test_python_runs(doc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTLSTM_RECORDS", str(tmp_path / "records.json"))
    for name, library in NEEDED.items():
        if any(f"from {name}" in snippet for snippet in code(doc, "python")):
            pytest.importorskip(library, reason=f"needs {library}")
    namespace = {"__name__": doc.stem}
    for k, snippet in enumerate(code(doc, "python")):
        exec(compile(snippet, f"{doc.name}, snippet {k + 1}", "exec"), namespace)


# Compares the weights after a step in two processes with those after a step of one process on the
# whole batch. The shares are equal, so the average of their gradients is the gradient of the batch.
COMPARE = """
trained = {name: p.detach() for name, p in model.named_parameters()}
trained = {name: getattr(p, "full_tensor", lambda: p)() for name, p in trained.items()}
torch.manual_seed(0)
single = Tagger()
optimizer = torch.optim.SGD(single.parameters(), lr=0.1)
single(x, lengths).square().mean().backward()
optimizer.step()
for name, p in single.named_parameters():
    torch.testing.assert_close(trained[name], p)
"""


def test_two_processes_reach_the_weights_of_one(tmp_path):
    """Runs the snippets of the page in two processes: DDP, then a new model with FSDP2."""
    setup, ddp, fsdp, end = code(SEVERAL_PROCESSES, "python")
    parts = [setup, ddp, "assert dist.get_world_size() == 2", COMPARE]
    parts += ["torch.manual_seed(0)\nmodel = Tagger()", fsdp]
    parts += ["assert model.lstm.weight_hh_l0.to_local().shape == (32, 16)", COMPARE, end]
    script = tmp_path / "train.py"
    script.write_text("\n".join(parts))
    torchrun = sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    native_programs.check(*torchrun, script, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)


@every_doc
def test_links_lead_somewhere(doc):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", doc.read_text()))
    missing = [x for x in links if "://" not in x and not (doc.parent / x).exists()]
    assert not missing


@every_doc
def test_files_that_are_named_exist(doc):
    text = FENCE.sub("", doc.read_text())
    names = re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./*-]+\w", text)
    missing = [name for name in names if not any(ROOT.glob(name))]
    assert not missing


def test_the_map_of_csrc_is_complete():
    text = (ROOT / "csrc" / "README.md").read_text().split("## Every file")[1]
    listed = re.findall(r"`([\w/]+\.(?:h|cpp|cu))`", "\n".join(re.findall(r"^\|.*?\|", text, re.M)))
    files = [path for path in (ROOT / "csrc").rglob("*.*") if path.suffix != ".md"]
    assert sorted(listed) == sorted(path.relative_to(ROOT / "csrc").as_posix() for path in files)


def in_the_reference():
    """Returns {full name: object} for all that docs/reference describes."""
    directive = re.compile(r"^\.\. auto(class|function|exception|data|module):: ([\w.]+)", re.M)
    objects = {}
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for kind, name in directive.findall(page.read_text()):
            if kind == "module":
                members = public(importlib.import_module(name))
                objects |= {f"{name}.{k}": v for k, v in members.items()}
            else:
                module, _, attribute = name.rpartition(".")
                objects[name] = getattr(importlib.import_module(module), attribute)
    return objects


def public(module):
    """Returns the public names of a module: its __all__, or what it defines if it has none."""
    values = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    defined_here = [n for n, v in values.items() if getattr(v, "__module__", "") == module.__name__]
    names = getattr(module, "__all__", defined_here)
    return {name: getattr(module, name) for name in names if name != "__version__"}


def test_every_public_name_is_in_the_reference():
    documented = {id(value) for value in in_the_reference().values()}
    for name, value in public(fastlstm).items():
        names = public(value) if inspect.ismodule(value) else {name: value}
        missing = [k for k, v in names.items() if id(v) not in documented]
        assert not missing, f"fastlstm.{name}: {missing}"
    imported = re.compile(r"^from (captioning\.[\w.]+) import (.+)$", re.M)
    for doc in DOCS:
        for module, names in imported.findall("\n".join(code(doc, "python"))):
            for name in names.split(", "):
                value = getattr(importlib.import_module(module), name)
                assert id(value) in documented, f"{doc.name}: {module}.{name}"


def test_the_example_of_the_module_runs():
    names = {"fastlstm": fastlstm, "torch": torch}
    (example,) = doctest.DocTestFinder(recurse=False).find(fastlstm.LSTM, globs=names)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def options_of(words, capsys):
    """Returns the options of a command, or None if it is not a command of this project."""
    if words[0] != "-m":
        source = (ROOT / words[0]).read_text()
        return set(re.findall(r'"(--[a-z-]+)"', source)) | {"--help"}
    if words[1] == "fastlstm":
        main = fastlstm.__main__.main
    elif words[1] == "captioning":
        pytest.importorskip("pycocoevalcap", reason="needs the libraries of captioning")
        main = importlib.import_module("captioning.__main__").main
    else:
        return None
    # A word in capitals, such as COMMAND, is a placeholder.
    command = [word for word in words[2:3] if not word.startswith("-") and not word.isupper()]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0, f"no command {' '.join(words)}"
    return set(OPTION.findall(capsys.readouterr().out))


@every_doc
def test_commands_and_their_options_exist(doc, capsys):
    for words in commands(doc):
        known = options_of(words[1:], capsys)
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert known is None or used <= known, f"{' '.join(words)}: {used - known}"
