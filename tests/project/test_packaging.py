"""What setup.py builds, what an sdist contains, and what `import fastlstm` warns of; no network."""

import importlib.util
import json
import os
import re
import shutil
import sys
import tarfile
import venv
from pathlib import Path

import native_programs
import pytest
import setuptools
import torch
from symbols import check_symbols

from fastlstm import _build

ROOT = Path(__file__).resolve().parents[2]

# A source that compiles in a second. `import fastlstm` needs the module, and this op.
MODULE = """
#include <Python.h>
#include <torch/version.h>
#include <exception>
int answer() { return 0; }
// Copying calls a function that libstdc++ of GCC 8 does not export.
std::exception_ptr copied(const std::exception_ptr& error) { return error; }
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C"};
  PyObject* const module = PyModule_Create(&definition);
  PyObject* const names = PyModule_GetDict(module);
  PyModule_AddIntConstant(module, "interface", INTERFACE);
  PyModule_AddIntConstant(module, "answer", answer());
  PyRun_String("engines = dict\\nfrom torch.library import define\\n"
               "define('fastlstm::lstm_backward', '(Tensor x) -> Tensor')\\n",
               Py_file_input, names, names);
  return module;
}
""".replace("INTERFACE", str(_build.INTERFACE))

FORWARD_EQUALS_TORCH = """
import torch, fastlstm
from fastlstm import _build
ours, theirs, x = fastlstm.LSTM(3, 4), torch.nn.LSTM(3, 4), torch.randn(5, 2, 3)
ours.load_state_dict(theirs.state_dict())
torch.testing.assert_close(ours(x), theirs(x))
print(_build.extension_available(), fastlstm.__file__)
"""


@pytest.fixture
def project(tmp_path):
    """A copy of the project without what was built in it."""
    copy = tmp_path / "project"
    built = "*.so _build_info.json build dist runs *.egg-info __pycache__ .git .venv* .*_cache"
    ignored = shutil.ignore_patterns(*built.split(), ".coverage")
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


@pytest.fixture
def small_project(project):
    """A copy of the project with an extension that compiles in seconds."""
    shutil.rmtree(project / "csrc")
    (project / "csrc").mkdir()
    (project / "csrc" / "module.cpp").write_text(MODULE)
    return project


def run(*command, cwd=None, **env):
    """Runs a command. The stdout of the result has stdout and stderr together."""
    environment = os.environ | {"PYTHONPATH": ""} | env
    return native_programs.run(*map(str, command), cwd=cwd, env=environment)


def install(source, target, *, succeeds=True, **env):
    """Installs a folder, an sdist or a URL into the folder `target`; returns what pip printed."""
    flags = "--no-build-isolation --no-deps --no-index --no-cache-dir -v --target".split()
    pip = [sys.executable, "-m", "pip", "install", *flags, target, source]
    done = run(*pip, cwd=target.parent, **env)
    assert (done.returncode == 0) == succeeds, done.stdout
    return done.stdout


def run_python(target, code):
    """Runs code with what was installed in the folder `target`."""
    return run(sys.executable, "-c", code, cwd=target.parent, PYTHONPATH=str(target))


def record(target):
    return json.loads((target / "fastlstm" / "_build_info.json").read_text())


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def make_sdist(project):
    build = "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"
    assert run(sys.executable, "-c", build, cwd=project).returncode == 0
    (sdist,) = (project / "dist").iterdir()
    return sdist


def test_sdist_has_the_sources_and_no_build_results(project):
    sources = files_below(project)
    leftovers = ["fastlstm/_C.so", "fastlstm/_build_info.json", "tests/left.pyc", "csrc/left.o"]
    for leftover in leftovers:
        (project / leftover).write_text("left over from a build")
    with tarfile.open(make_sdist(project)) as tar:
        carried = {name.partition("/")[2] for name in tar.getnames()}
    left_out = (".git", ".pre-commit", "captioning/", "tests/captioning/")
    assert {path for path in sources if not path.startswith(left_out)} <= carried
    assert not carried & set(leftovers)
    assert not any(path.startswith(("captioning/", "tests/captioning")) for path in carried)


def test_captioning_is_a_distribution_of_its_own(project, tmp_path):
    target, folder = tmp_path / "target", project / "captioning"
    sources = {f"captioning/{path}" for path in files_below(folder)}
    install(folder, target)
    shutil.rmtree(folder / "build", ignore_errors=True)
    with tarfile.open(make_sdist(folder)) as tar:
        carried = {f"captioning/{name.partition('/')[2]}" for name in tar.getnames()}
    assert sources <= carried
    about = {f"captioning/{name}" for name in ("pyproject.toml", "README.md", "LICENSE")}
    installed = {path for path in files_below(target) if "__pycache__" not in path}
    assert {path for path in installed if path.startswith("captioning/")} == sources - about
    folders = {path.partition("/")[0] for path in installed}
    assert folders == {"bin", "captioning", "fastlstm_captioning-0.1.0.dist-info"}
    done = run(target / "bin" / "captioning", "--version", PYTHONPATH=f"{target}:{ROOT}")
    assert done.stdout == "captioning 0.1.0\n"


@pytest.mark.slow
def test_sdist_builds_and_runs(project, tmp_path):
    sources = files_below(project)
    # Compiles all of csrc without optimization, which takes much less time.
    unoptimized, target = tmp_path / "c++", tmp_path / "target"
    unoptimized.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
    unoptimized.chmod(0o755)
    install(make_sdist(project), target, FASTLSTM_BUILD="cpu", CXX=str(unoptimized))
    assert record(target)["kinds"] == ["cpu"]
    assert record(target)["torch"] == torch.__version__
    installed = files_below(target)
    assert {path for path in sources if path.startswith("fastlstm/")} <= installed
    done = run_python(target, FORWARD_EQUALS_TORCH)
    assert done.stdout == f"True {target}/fastlstm/__init__.py\n"


def test_none_installs_pure_python_that_works(small_project, tmp_path):
    target = tmp_path / "target"
    printed = install(small_project, target, FASTLSTM_BUILD="none")
    assert "installed as pure Python, without its fast kernels: FASTLSTM_BUILD=none" in printed
    assert "-py3-none-any.whl" in printed
    (metadata,) = target.glob("*.dist-info/METADATA")
    needs = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata.read_text(), re.M)
    assert needs == ["torch>=2.8"]
    assert {path.name for path in target.iterdir()} == {"fastlstm", metadata.parent.name}
    done = run_python(target, FORWARD_EQUALS_TORCH)
    assert "it was not built (FASTLSTM_BUILD=none)" in done.stdout
    assert f"False {target}/fastlstm/__init__.py" in done.stdout


@pytest.mark.parametrize("folder", [".", "captioning"])
def test_the_description_has_no_relative_link(folder, project):
    """A package index shows the description without the files next to it."""
    code = "from setuptools import build_meta as b; b.prepare_metadata_for_build_wheel('.')"
    done = run(sys.executable, "-c", code, cwd=project / folder, FASTLSTM_BUILD="none")
    assert done.returncode == 0, done.stdout
    (metadata,) = (project / folder).glob("*.dist-info/METADATA")
    described = metadata.read_text().partition("\n\n")[2]
    links = re.findall(r"(?:\]\(|(?:src|srcset|href)=.)([^)\"' ]*)", described)
    assert described and not [link for link in links if not link.startswith("https:")]


def isolated(python, project, hook, **env):
    """Calls a hook of the build backend with only setuptools on the path; returns str(result)."""
    visible = project.parent / "visible"
    visible.mkdir(exist_ok=True)
    site = Path(setuptools.__file__).parent.parent
    for part in [*site.glob("setuptools*"), site / "_distutils_hack"]:
        if not (visible / part.name).exists():
            (visible / part.name).symlink_to(part)
    code = f"import build_backend; print('returned', build_backend.{hook}())"
    done = run(python, "-S", "-c", code, cwd=project, PYTHONPATH=str(visible), **env)
    assert done.returncode == 0, done.stdout
    return done.stdout.rpartition("returned ")[2].strip()


def test_an_isolated_build_uses_the_torch_of_the_environment(project, tmp_path):
    """If the environment has no torch, the backend requires one."""
    for kind in ("wheel", "editable"):
        hook = f"get_requires_for_build_{kind}"
        assert isolated(sys.executable, project, hook, FASTLSTM_BUILD="cpu") == "[]"
    venv.create(tmp_path / "empty", symlinks=True)
    python = tmp_path / "empty" / "bin" / "python"
    for build, required in (("auto", ["torch>=2.8"]), ("none", [])):
        hook = "get_requires_for_build_wheel"
        assert isolated(python, project, hook, FASTLSTM_BUILD=build) == str(required)


def test_compile_error_stays_an_error(small_project, tmp_path):
    (small_project / "csrc" / "broken.cpp").write_text("#error planted\n")
    printed = install(small_project, tmp_path / "target", succeeds=False, FASTLSTM_BUILD="auto")
    assert "#error planted" in printed


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_installs_from_git(small_project, tmp_path):
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -q -m all"):
        assert run("git", *command.split(), cwd=small_project).returncode == 0
    commit = run("git", "rev-parse", "HEAD", cwd=small_project).stdout.strip()
    target = tmp_path / "target"
    install(f"git+file://{small_project}", target, FASTLSTM_BUILD="cpu")
    assert record(target)["commit"] == commit
    code = "from fastlstm import _build; print(_build.rebuild_command())"
    assert run_python(target, code).stdout.endswith("<path of the fastlstm source>\n")
    # In the clone, Python imports the source. The warning must say how to compile it.
    done = run(sys.executable, "-c", "import fastlstm", cwd=small_project, PYTHONPATH=str(target))
    assert f"{small_project} is a source folder that was not built" in done.stdout


@pytest.fixture
def package(tmp_path):
    """A folder with a copy of the imported fastlstm, its extension and its build record."""
    target = tmp_path / "target"
    shutil.copytree(Path(_build.__file__).parent, target / "fastlstm")
    return target


def change_record(target, **changes):
    path = target / "fastlstm" / "_build_info.json"
    path.write_text(json.dumps({**record(target), **changes}))


@pytest.mark.parametrize("change, reason", [
    (lambda p: change_record(p, torch="2.10.1"), r"it was built for torch 2\.10\.1 \("),
    (lambda p: (p / "fastlstm" / "_build_info.json").write_text('{"ki'), "it was not built"),
    (lambda p: [path.write_bytes(b"?" * 64) for path in (p / "fastlstm").glob("_C*.so")],
     "it cannot be loaded: .*invalid ELF header|it cannot be loaded: .*not a mach-o"),
], ids=["other torch", "broken record", "broken library"])  # fmt: skip
def test_an_extension_that_does_not_fit_warns_once(package, change, reason):
    """Calls still work, with the engines that need no extension."""
    assert _build.extension_available(), _build.unavailable_reason()
    change(package)
    done = run_python(package, FORWARD_EQUALS_TORCH + "import fastlstm.functional\n")
    warnings = re.findall("RuntimeWarning: (.*)", done.stdout)
    assert len(warnings) == 1, done.stdout
    assert re.match(f"fastlstm runs without its extension: {reason}", warnings[0])
    assert " -m pip install --no-build-isolation " in warnings[0]
    assert f"False {package}/fastlstm/__init__.py" in done.stdout


def test_an_extension_of_other_source_files_is_an_error(package):
    path = package / "fastlstm" / "_build.py"
    text, old = path.read_text(), f"INTERFACE = {_build.INTERFACE} "
    assert old in text
    path.write_text(text.replace(old, "INTERFACE = 0 "))
    done = run_python(package, "import fastlstm")
    expected = f"ImportError: fastlstm: expected .* interface 0, got {_build.INTERFACE}: .* install"
    assert done.returncode != 0 and re.search(expected, done.stdout), done.stdout


def test_a_wheel_has_a_folder_for_each_torch(small_project, tmp_path):
    here = ".".join(torch.__version__.split(".")[:2])
    targets = small_project / "csrc" / "cpu" / "targets"
    targets.mkdir(parents=True)
    # All versions of torch share the objects of csrc/cpu/targets.
    (targets / "kernel.cpp").write_text("int answer() { return 7; }")
    module = MODULE.replace("{ return 0; }", ";")
    (small_project / "csrc" / "module.cpp").write_text(module)
    (tmp_path / here).mkdir()
    (tmp_path / here / "torch").symlink_to(Path(torch.__file__).parent)
    build = "release/build_wheel.py", "bdist_wheel", "--dist-dir", tmp_path / "dist"
    done = run(sys.executable, *build, cwd=small_project, FASTLSTM_TORCH_HEADERS=tmp_path / here)
    assert done.returncode == 0, done.stdout
    target = tmp_path / "target"
    install(next((tmp_path / "dist").iterdir()), target)
    assert record(target)["torch"] == [here]
    code = "from fastlstm import _C, _build; print(_C.__file__, _build.library.answer)"
    done = run_python(target, code)
    assert re.search(rf"/torch_{here.replace('.', '_')}/_C\S+ 7\n$", done.stdout), done.stdout
    check_symbols(next(target.rglob("_C*.so")))


@pytest.mark.parametrize("built, running, fits", [
    (("2.13.0+cpu", None), ("2.13.1", None), True), (("2.13.0", None), ("2.14.0", None), False),
    (("2.13.0", "13.0"), ("2.13.0+cu131", "13.1"), True),
    (("2.13.0", None), ("2.13.0", "13.0"), False), (("2.13.0", "13.0"), ("2.13.0", None), False),
    (("2.13.0", "12.8"), ("2.13.0", "13.0"), False),
    ((["2.8", "2.13"], None), ("2.13.1+cu130", "13.0"), True),
    ((["2.8", "2.13"], None), ("2.1.0", None), False),
])  # fmt: skip
def test_mismatch(built, running, fits):
    reason = _build.mismatch({"torch": built[0], "cuda": built[1]}, *running)
    assert (reason is None) == fits
    if reason:
        named = built[0] if isinstance(built[0], str) else ", ".join(built[0])
        assert f"built for torch {named}" in reason and running[0] in reason


def load_setup():
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("request_, cpu, cuda, kinds", [
    ("auto", [], [], ["cpu", "cuda"]), ("auto", [], ["no nvcc"], ["cpu"]),
    ("auto", ["no torch"], [], []), ("cpu", [], ["no nvcc"], ["cpu"]),
    ("cuda", [], [], ["cpu", "cuda"]), ("none", [], [], []),
])  # fmt: skip
def test_choose(request_, cpu, cuda, kinds):
    chosen, note = load_setup().choose(request_, cpu, cuda)
    assert chosen == kinds
    assert (note is None) == (kinds == ["cpu", "cuda"])


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    """If the kind of FASTLSTM_BUILD cannot be built, the error names all that is missing."""
    setup = load_setup()
    for kind, missing in (("cpu", "no torch"), ("cuda", "no torch; no nvcc")):
        with pytest.raises(SystemExit, match=f"^FASTLSTM_BUILD={kind}: {missing}$"):
            setup.choose(kind, ["no torch"], ["no nvcc"])
    with pytest.raises(SystemExit, match="must be auto, cpu, cuda or none, got 'gpu'"):
        setup.choose("gpu", [], [])
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "no C++ compiler ('/nowhere/c++' is not on PATH" in setup.missing_for_cpu()[0]
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert "no CUDA toolkit: no nvcc and header in CUDA_HOME" in setup.missing_for_cuda()[-1]
    monkeypatch.setattr(setup.torch, "__version__", "2.7.1+cpu")
    with pytest.raises(SystemExit, match="needs torch 2.8 or newer, .* has 2.7.1"):
        setup.check_torch_version()
    monkeypatch.setattr(setup, "torch", None)
    assert setup.missing_for_cpu()[0].startswith("the build saw no torch: install torch first")


def test_kernels_are_for_all_gpus_that_nvcc_supports(tmp_path, monkeypatch):
    """setup.py asks for them if no GPU is visible, and release/build_wheel.py always."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho compute_75 compute_80 compute_87 compute_90 compute_120\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert load_setup().all_gpus() == "7.5;8.0;9.0;12.0+PTX"


def test_one_version_and_one_torch_floor():
    pyproject = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.+)"$', pyproject, re.M)
    assert f'\nVERSION = "{version}"' in (ROOT / "fastlstm" / "_build.py").read_text()
    captioning = ROOT / "captioning"  # not part of the sdist of fastlstm
    for file in ("pyproject.toml", "__init__.py") if captioning.exists() else ():
        assert re.search(f'version(__)? = "{version}"', (captioning / file).read_text())
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
    floor = ".".join(map(str, load_setup().TORCH_FLOOR))
    for file in ("pyproject.toml", "Makefile", "build_backend.py"):
        assert set(re.findall(r"\btorch>=([\d.]+)", (ROOT / file).read_text())) == {floor}
