"""No file includes or imports a file of a higher folder; tests/README.md is complete."""

import ast
import re
from collections import defaultdict
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
PYTHON = CSRC.parent / "fastlstm"
PATHS = {file: file.relative_to(PYTHON).with_suffix("").parts for file in PYTHON.rglob("*.py")}
# The files of fastlstm, by the name of the module without "fastlstm.".
MODULES = {".".join(part for part in PATHS[f] if part != "__init__"): f for f in PATHS}
FILES = [file for suffix in ("h", "cpp", "cu") for file in sorted(CSRC.rglob(f"*.{suffix}"))]
PACKAGES = "fastlstm", "captioning", "benchmarks", "examples"
PARENTS = {folder.parent for folder in {file.parent for file in FILES} if folder != CSRC}


def folder_of(file):
    """Returns the folder of a file. A file next to folders counts as a folder: `cpu/plan`."""
    where = file.with_suffix("") if file.parent in PARENTS else file.parent
    return where.relative_to(CSRC).as_posix()


def included(file):
    """Returns {name in the include: path} for the files of csrc that a file includes."""
    names = re.findall(r'^#include "(.+)"', file.read_text(), re.M)
    next_to = {name: (file.parent / name).resolve() for name in names}
    paths = {name: path if path.exists() else CSRC / name for name, path in next_to.items()}
    # A file that does not exist in csrc belongs to the emulator of tests/simt.
    return {name: path for name, path in paths.items() if path.exists()}


def includes():
    """Returns for each pair of folders the includes from the first to the second."""
    between = defaultdict(lambda: defaultdict(list))
    for file in FILES:
        for name, target in included(file).items():
            source, other = folder_of(file), folder_of(target)
            if source != other:
                between[source][other].append(f"{file.relative_to(CSRC)} -> {name}")
    return between


def test_the_map_lists_the_folders_from_top_to_bottom():
    table = (CSRC / "README.md").read_text().split("## Every file")[0]
    cells = re.findall(r"^\|(.*?)\|", table.split("|---|---|")[1], re.M)
    listed = [name for cell in cells for name in re.findall(r"`([\w/]+)/`", cell)]
    folders = {file.parent.relative_to(CSRC).as_posix() for file in FILES} - {"."}
    assert set(listed) >= folders
    pairs = [(a, b, found) for a, targets in includes().items() for b, found in targets.items()]
    pairs = [pair for pair in pairs if {*pair[:2]} <= {*listed}]
    assert not [found for a, b, found in pairs if listed.index(a) > listed.index(b)]


def test_only_the_python_module_includes_python():
    """examples/cpp builds all other sources into a program without Python."""
    python = r"^#include <(Python\.h|pybind11/|torch/csrc/(Exceptions|utils/|autograd/python_))"
    with_python = {file for file in FILES if re.search(python, file.read_text(), re.M)}
    while more := {f for f in FILES if with_python & {*included(f).values()}} - with_python:
        with_python |= more
    assert {file.name for file in with_python if file.suffix != ".h"} == {"module.cpp"}


def imports(file):
    """Returns the fastlstm modules that a file imports, in functions too, such as engine.call."""
    package, modules = file.relative_to(PYTHON).parts[:-1], set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith("fastlstm")):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            parts = *base, *(node.module or "").removeprefix("fastlstm").split(".")
            module = ".".join(filter(None, parts))
            names = {f"{module}.{name.name}".strip(".") for name in node.names}
            modules |= names & MODULES.keys() or {module}
    return modules & MODULES.keys() - {""}


def test_imports_of_fastlstm_go_down():
    """The table of docs/design.md lists the folders and files from bottom to top."""
    text = (CSRC.parent / "docs" / "design.md").read_text()
    table = text.split("## Folders of the Python package")[1].split("\n\n")[2]
    places = re.findall(r"`([\w.]+?)(?:/|\.py)`", "".join(re.findall(r"^\|.*?\|", table, re.M)))
    below = {name: imports(file) for name, file in MODULES.items()}
    assert len(below) > 40
    place = {name: places.index(name.split(".")[0]) if name else len(places) for name in below}
    upwards = [(a, b) for a, names in below.items() for b in names if place[b] > place[a]]
    assert not upwards

    def depth(name, path=()):
        assert name not in path, f"a circle of imports: {path}"
        return 1 + max((depth(other, (*path, name)) for other in below[name]), default=0)

    assert max(map(depth, below)) <= 7


def test_imports_of_captioning_go_down():
    """There may be no files, because the sdist of fastlstm has no captioning."""
    folders = ["data", "cnn", "model", "results", "search", "training", "commands"]
    files = [*(CSRC.parent / "captioning").glob("*/*.py")]
    assert {file.parent.name for file in files} in (set(), {*folders})
    place = {name: k for k, name in enumerate(folders)}  # other files are below all
    for file in files:
        for name in re.findall(r"^\s*from captioning\.(\w+)", file.read_text(), re.M):
            assert place.get(name, -1) <= place[file.parent.name], f"{file}: {name}"


def test_the_map_of_the_tests_is_complete():
    """tests/README.md lists each file of tests, and the tests of each source file."""
    root, tests = CSRC.parent, CSRC.parent / "tests"
    text = (tests / "README.md").read_text()
    listed, from_source = text.split("## From source to tests")
    names = set(re.findall(r"`(?:\w+/)?(\w+\.py)`", listed))
    files = {file.name for file in tests.rglob("*.py")} - {"distributed.py"}
    assert names == files
    rows = re.findall(r"^\| (`.+?) \| (`.+) \|$", from_source, re.M)
    quoted = re.compile(r"`([\w/.]+)`")
    missing = [t for _, row in rows for t in quoted.findall(row) if not (root / t).exists()]
    assert not missing
    covered = [path for sources, _ in rows for path in quoted.findall(sources)]
    assert not [path for path in covered if not (root / path).exists()]
    sources = [*FILES, *(file for name in PACKAGES for file in (root / name).rglob("*.py"))]
    paths = [file.relative_to(root).as_posix() for file in sources]
    uncovered = [p for p in paths if not any(p == c or p.startswith(f"{c}/") for c in covered)]
    assert not uncovered


def test_functions_are_declared_where_they_are_defined():
    """A declaration in a lower folder would be a dependency upward that no include shows."""
    function = r"^(?!using|return|static|template)\w[\w:<>&*, ]+ [&*]?(\w+)\(([^;{}()]*)\)"
    declared, defined = (
        {name: folder_of(file) for file in files for name, _ in re.findall(pattern, text_of(file))}
        for files, pattern in (
            ([f for f in FILES if f.suffix == ".h"], re.compile(function + ";", re.M)),
            ([f for f in FILES if f.suffix != ".h"], re.compile(function + r" \{", re.M)),
        )
    )
    both = declared.keys() & defined.keys()
    assert len(both) > 20
    assert not {n: (declared[n], defined[n]) for n in both if declared[n] != defined[n]}


def text_of(file):
    return re.sub(r"//.*", "", file.read_text())
