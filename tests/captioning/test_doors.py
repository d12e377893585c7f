"""The folders of `captioning` depend one way, and on each other through their doors only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import captioning

ROOT = Path(captioning.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# Each may import those to its left; the files beside them (config, console, errors) are for all.
ORDER = ["files", "data", "cnn", "model", "search", "results", "training", "demo", "commands"]


def folder_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def imported(path: Path) -> list[list[str]]:
    """What a file imports of the package, as the parts of the module's name behind captioning."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            if node.module == "captioning":
                found += [[name.name] for name in node.names]
            elif node.module and node.module.startswith("captioning."):
                found.append(node.module.split(".")[1:])
        elif isinstance(node, ast.Import):
            found += [n.name.split(".")[1:] for n in node.names if n.name.startswith("captioning.")]
    return found


def test_every_folder_is_listed():
    assert sorted(ORDER) == sorted({folder_of(path) for path in FILES} - {""})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_is_below_it(path):
    here = folder_of(path)
    for folder, *rest in imported(path):
        if folder in ORDER and folder != here:
            assert not rest, f"captioning.{folder} has a door: not {rest}"
            if here:
                assert ORDER.index(folder) < ORDER.index(here), f"{here} imports {folder}"
            else:
                assert path.name == "__main__.py" and folder in ("commands", "files")
        elif not here:
            assert folder in ("config", "console", "errors")


def test_the_public_names_are_imported_when_they_are_asked_for():
    for name in captioning.__all__:
        assert getattr(captioning, name).__name__ == name
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from captioning import nothing  # noqa: F401


def test_a_library_that_is_missing_is_named_with_its_extra():
    code = "import sys; sys.modules['PIL'] = None; from captioning import TrainingRequest"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.endswith("captioning needs PIL: pip install ./captioning")
