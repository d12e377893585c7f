"""Build fastlstm: as pure Python, or with the extension fastlstm._C for one or several torches.

FASTLSTM_BUILD says what to build:
  auto  (default) what can be built here: CPU and CUDA kernels, CPU kernels only, or none
  cpu   CPU kernels only, or an error that says what is missing
  cuda  CPU and CUDA kernels, or an error
  none  pure Python

FASTLSTM_CHECKED=1 makes CUDA kernels that wait briefly, for tests on a GPU.

FASTLSTM_TORCH_HEADERS names unpacked wheels of torch, "build/torch/2.8 build/torch/2.13": then the
build is for all of these versions (`make wheels`), not for the torch that is installed.

CUDA kernels are compiled for the GPUs of this machine, or for all that nvcc knows if no GPU is
visible; TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX" names others. CUDA_HOME, CXX and MAX_JOBS mean what they
mean to torch.utils.cpp_extension. _build_info.json beside the library records what was built.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from glob import glob

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = os.path.dirname(os.path.abspath(__file__))
TORCH_FLOOR = (2, 8)
KERNELS = "csrc/cpu/targets"  # the sources that know no torch
CUDA_ARCHES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "11.0", "12.0"]  # that nvcc may know

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch = None


def version_tuple(version):
    return tuple(map(int, version.split(".")[:2]))


def module_folder(version):
    """Where in the package the module for a minor version of torch lies (fastlstm/_build.py)."""
    return "torch_" + version.replace(".", "_")


def run(*command):
    """Standard output of a command, or None if it cannot be run or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def cxx():
    return shlex.split(os.environ.get("CXX", "c++"))[0]


def cuda_home():
    """The first folder with both nvcc and the CUDA runtime's headers, or None."""
    nvcc = shutil.which("nvcc")
    chosen = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    guesses = [nvcc and os.path.dirname(os.path.dirname(os.path.realpath(nvcc))), "/usr/local/cuda"]
    for home in [chosen] if chosen else guesses:
        if home and all(
            os.path.exists(os.path.join(home, *path))
            for path in [("bin", "nvcc"), ("include", "cuda_runtime.h")]
        ):
            return home
    return None


def nvcc_version(home):
    text = run(os.path.join(home, "bin", "nvcc"), "--version") or ""
    return text.partition("release ")[2].partition(",")[0]


def check_torch_version():
    """Stops if pip would replace the user's torch without asking."""
    if torch and version_tuple(torch.__version__) < TORCH_FLOOR:
        raise SystemExit(
            f"fastlstm needs torch {TORCH_FLOOR[0]}.{TORCH_FLOOR[1]} or newer, and this "
            f"environment has {torch.__version__}. To replace it: pip install -U torch; then "
            "install fastlstm again."
        )


def missing_for_cpu():
    """What the CPU kernels need and this machine does not have."""
    if torch is None:
        return ["the build saw no torch: install torch first and pass --no-build-isolation"]
    missing = []
    if sys.platform == "win32":
        missing.append("building the extension on Windows is not supported yet")
    elif not shutil.which(cxx()):
        missing.append(f"no C++ compiler ({cxx()!r} is not on PATH; CXX names another one)")
    elif not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        missing.append("no Python.h (on Debian and Ubuntu: the package python3-dev)")
    return missing


def missing_for_cuda():
    """What the CUDA kernels need besides."""
    missing = []
    own_torch = None if wheel_torches() else torch
    torch_cuda = own_torch and own_torch.version.cuda
    if own_torch and not torch_cuda:
        missing.append(f"torch {torch.__version__} is not a CUDA build")
    home = cuda_home()
    if not home:
        where = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        missing.append(
            "no CUDA toolkit: nvcc and cuda_runtime.h are not "
            + (f"in {where} (CUDA_HOME)" if where else "on PATH or in /usr/local/cuda")
        )
    elif torch_cuda and nvcc_version(home).split(".")[0] != torch_cuda.split(".")[0]:
        missing.append(
            f"the CUDA toolkit in {home} is {nvcc_version(home)}, torch was built for {torch_cuda}"
        )
    return missing


def choose(request, missing_cpu, missing_cuda):
    """Decide what to build.

    Returns (kinds, note): kinds is [], ["cpu"] or ["cpu", "cuda"]; note says why there is not more.
    """
    if request not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"FASTLSTM_BUILD must be auto, cpu, cuda or none, got {request!r}")
    if request == "none":
        return [], "FASTLSTM_BUILD=none"
    missing = missing_cpu + missing_cuda if request == "cuda" else missing_cpu
    if missing and request != "auto":  # what is asked for by name is never left out silently
        raise SystemExit(f"FASTLSTM_BUILD={request}: " + "; ".join(missing))
    if missing:
        return [], "; ".join(missing)
    if request == "cpu":
        return ["cpu"], "FASTLSTM_BUILD=cpu"
    return (["cpu"], "; ".join(missing_cuda)) if missing_cuda else (["cpu", "cuda"], None)


def visible_gpus():
    """The compute capabilities of the GPUs here, (9, 0) for 9.0."""
    try:
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    except RuntimeError:  # as under a driver that is too old for this torch
        found = set()
    asked = run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    return found or {version_tuple(text) for text in re.findall(r"\d+\.\d+", asked or "")}


def cuda_arch_list(home):
    """TORCH_CUDA_ARCH_LIST, else what the GPUs here need; for a wheel or without a GPU, all."""
    if asked := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return asked
    known = (run(os.path.join(home, "bin", "nvcc"), "--list-gpu-arch") or "").split()
    arches = [a for a in CUDA_ARCHES if "compute_" + a.replace(".", "") in known]
    gpus = set() if wheel_torches() else visible_gpus()
    newest = {gpu: arch for arch in arches for gpu in gpus if version_tuple(arch) <= gpu}
    return ";".join(arch for arch in arches if arch in (newest.values() or arches)) + "+PTX"


def checked_macros():
    """Macros of a build for tests: how often a block polls before it gives up."""
    checked = os.environ.get("FASTLSTM_CHECKED", "0")
    if checked not in ("0", "1"):
        raise SystemExit(f"FASTLSTM_CHECKED must be 0 or 1, got {checked!r}")
    return [("FASTLSTM_SPIN_LIMIT", "2000000")] if checked == "1" else []


def openmp_flags(platform, torch_headers):
    """What the compiler and what the linker gets."""
    if platform != "darwin":
        return ["-fopenmp"], ["-fopenmp"]
    # torch brings omp.h and, loaded when the extension is, the library: its name within is not
    # where it lies, so that it must not be linked.
    has_header = any(os.path.exists(os.path.join(path, "omp.h")) for path in torch_headers)
    return (["-Xpreprocessor", "-fopenmp"] if has_header else []), []


def options(torch_headers):
    """What every extension is compiled and linked with."""
    # gcc 12 warns wrongly about a std::vector<bool> of torch that it inlines into our code. The
    # last is of `in_one_file`.
    gcc_errs = ["-Wno-array-bounds", "-Wno-stringop-overflow", "-Wno-subobject-linkage"]
    warnings = ["-Wall", "-Wextra", *(f"-isystem{path}" for path in torch_headers), *gcc_errs]
    compile_openmp, link_openmp = openmp_flags(sys.platform, torch_headers)
    # cpp_extension removes the operators of the 16-bit types; plain nvcc has them.
    taken = ["HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS"]
    bare_nvcc = [f"-U__CUDA_NO_{name}__" for name in taken]
    # cpp_extension of an older torch would pass -std=c++17. No -march: one binary serves every
    # machine. Without -fopenmp, at::parallel_for silently runs on one thread; with trapping
    # math, gcc does not vectorize the clamps in the gate functions. Which sums are fused is written
    # in the source (`fused`), so that bits depend on no compiler's choice: =on keeps gcc from all
    # others, and clang from those of two expressions; --fmad=false keeps nvcc.
    optimize = ["-std=c++20", "-O3", "-fno-trapping-math", "-ffp-contract=on", "-g0"]
    return {
        "depends": sorted(glob("csrc/**/*.h", recursive=True)),
        "include_dirs": [os.path.join(ROOT, "csrc")],
        # torch's headers then include no operator that is not named: half the time to compile.
        "define_macros": [("AT_PER_OPERATOR_HEADERS", None)],
        "extra_compile_args": {
            "cxx": [*optimize, *warnings, *compile_openmp],
            "nvcc": ["-std=c++20", "-O3", "--fmad=false", "--threads=2", *bare_nvcc],
        },
        "extra_link_args": link_openmp,
    }


def own_extension(kinds):
    """All of csrc in one library, for the torch that is installed."""
    from torch.utils import cpp_extension

    sources = glob("csrc/**/*.cpp", recursive=True)
    shared = options(cpp_extension.include_paths())
    if "cuda" not in kinds:
        sources = [source for source in sources if not source.startswith("csrc/cuda/")]
        return cpp_extension.CppExtension("fastlstm._C", sorted(sources), **shared)
    sources += glob("csrc/cuda/*.cu")
    shared["define_macros"] += checked_macros()
    return cpp_extension.CUDAExtension("fastlstm._C", sorted(sources), **shared)


def shared_library(name, sources, libraries, folders, headers=()):
    """One of a wheel's libraries, which finds the kernels in the folder above its own."""
    extension = Extension(
        f"fastlstm.{name}",
        sorted(sources),
        libraries=libraries,
        library_dirs=folders,
        runtime_library_dirs=["$ORIGIN/.."],
        **options(headers),
    )
    extension.extra_link_args += ["-s", "-Wl,--exclude-libs,ALL"]  # cudart stays inside
    return extension


def wheel_extensions(kinds, packages):
    """The kernels, which know no torch, and what calls them, for each torch in `packages`."""
    from torch.utils import cpp_extension

    kernels = glob(f"{KERNELS}/*.cpp")
    core = glob("csrc/core/*.cpp")
    cuda, cuda_kernels = glob("csrc/cuda/*.cpp"), glob("csrc/cuda/*.cu")
    rest = set(glob("csrc/**/*.cpp", recursive=True)) - {*kernels, *cuda}
    home = os.environ.get("CUDA_HOME", "")
    folders = [*cpp_extension.library_paths(), os.path.join(home, "lib64")]  # of any torch
    found = [shared_library("libfastlstm_kernels", kernels, [], [])]
    if "cuda" in kinds:
        cpp_extension.CUDA_HOME = home  # which torch does not look for if it is not a CUDA build
        name = "libfastlstm_cuda_kernels"
        found.append(shared_library(name, cuda_kernels, ["cudart_static"], folders))
    for version, package in packages.items():
        include = os.path.join(package, "include")
        headers = [include, os.path.join(include, "torch", "csrc", "api", "include")]
        torch_libraries, module = ["c10", "torch_cpu"], module_folder(version)
        libraries = [*torch_libraries, "torch_python", "fastlstm_kernels"]
        found.append(shared_library(f"{module}._C", rest, libraries, folders, headers))
        if "cuda" in kinds:
            own = ["fastlstm_kernels", "fastlstm_cuda_kernels"]
            libraries = [*torch_libraries, "c10_cuda", *own, "cudart_static"]
            places = [*folders, os.path.join(package, "lib")]
            headers.append(os.path.join(home, "include"))
            name = f"{module}.libfastlstm_cuda"
            found.append(shared_library(name, cuda + core, libraries, places, headers))
    return found


def in_one_file(sources, folder):
    """Sources, those that include torch as one: its headers are most of their time."""
    apart = (KERNELS, "csrc/cuda/", "csrc/op/module.cpp")
    few = [s for s in sources if s.startswith("csrc/") and not s.startswith(apart)]
    if len(few) < 2:
        return sources
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "with_torch.cpp")
    with open(path, "w") as file:
        file.writelines(f'#include "{os.path.relpath(s, "csrc")}"\n' for s in few)
    return [s for s in sources if s not in few] + [path]


def build_record(kinds, note):
    """What fastlstm/_build.py compares with the running torch, and `python -m fastlstm` shows."""
    commit = run("git", "rev-parse", "HEAD") if os.path.exists(os.path.join(ROOT, ".git")) else None
    if commit and run("git", "status", "--porcelain", "--untracked-files=no"):
        commit = commit.strip() + "-dirty"
    built = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    return {
        "kinds": kinds,
        "note": note,
        "torch": (list(wheel_torches()) or torch.__version__) if kinds else None,
        "cuda": torch.version.cuda if kinds and not wheel_torches() else None,
        "nvcc": nvcc_version(os.environ["CUDA_HOME"]) if "cuda" in kinds else None,
        "cuda_arch_list": os.environ["TORCH_CUDA_ARCH_LIST"] if "cuda" in kinds else None,
        "compiler": (run(cxx(), "--version") or cxx()).splitlines()[0] if kinds else None,
        "python": platform.python_version(),
        "commit": commit and commit.strip(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(built)),
    }


def wheel_torches():
    """The minor versions of torch to build a wheel for: the folder of each; {} for an own build."""
    folders = os.environ.get("FASTLSTM_TORCH_HEADERS", "").split()
    for folder in folders:
        if not os.path.isdir(os.path.join(folder, "torch", "include")):
            raise SystemExit(f"FASTLSTM_TORCH_HEADERS: {folder} has no folder torch/include")
    return {os.path.basename(folder): os.path.join(ROOT, folder, "torch") for folder in folders}


def write_record(folder, record):
    path = os.path.join(folder, "_build_info.json")
    os.makedirs(folder, exist_ok=True)
    with open(path + ".tmp", "w") as file:
        json.dump(record, file, indent=2)
        file.write("\n")
    os.replace(path + ".tmp", path)


def commands(kinds, note):
    """The setuptools commands that build what was chosen and record it where the package goes."""

    class BuildPy(build_py):
        def run(self):
            super().run()
            if not kinds:
                lib = "" if self.editable_mode else self.build_lib
                write_record(os.path.join(lib, "fastlstm"), build_record(kinds, note))

    if not kinds:
        return {"build_py": BuildPy}

    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            self.force = True  # a library that is newer than its sources may be for another torch
            if self.editable_mode:  # pip would give a temporary folder, so nothing could be reused
                self.build_temp = os.path.join("build", f"editable-{sys.implementation.cache_tag}")
            elif not self.inplace:  # which will hardly be compiled again, file by file
                for each in self.extensions:
                    folder = os.path.join(self.build_temp, each.name)  # each has a file of its own
                    each.sources = in_one_file(each.sources, folder)

        def get_ext_filename(self, name):
            return f"{name}.so" if name.startswith("lib") else super().get_ext_filename(name)

        def build_extension(self, extension):
            temp = self.build_temp
            if extension.name != "fastlstm._C":  # one of several, which share sources
                self.build_temp = os.path.join(temp, extension.name)
                extension.library_dirs.append(os.path.dirname(self.get_ext_fullpath("fastlstm._C")))
            super().build_extension(extension)
            self.build_temp = temp

        def run(self):
            super().run()
            path = self.get_ext_fullpath("fastlstm._C")
            write_record(os.path.dirname(path), build_record(kinds, note))

    return {"build_py": BuildPy, "build_ext": BuildExt}


def main():
    # ninja of this environment counts as present even when the environment is not activated.
    os.environ["PATH"] = os.pathsep.join(
        [os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)]
    )
    if int(setuptools.__version__.split(".")[0]) < 77:
        raise SystemExit(
            f"setuptools {setuptools.__version__} is too old to read pyproject.toml: "
            "pip install 'setuptools>=77'"
        )
    request = os.environ.get("FASTLSTM_BUILD", "auto")
    if request != "none":
        check_torch_version()
    kinds, note = choose(request, missing_for_cpu(), missing_for_cuda())
    if "cuda" in kinds:
        os.environ["CUDA_HOME"] = cuda_home()
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_arch_list(os.environ["CUDA_HOME"])
    arches = f", for {os.environ['TORCH_CUDA_ARCH_LIST']}" if "cuda" in kinds else ""
    print(f"fastlstm: kernels for {' and '.join(kinds) or 'no device'}{arches}", file=sys.stderr)
    if not kinds:
        bar = "*" * 80
        print(
            f"{bar}\nfastlstm is installed as pure Python, without its fast kernels: {note}.\n"
            "fastlstm.LSTM works, at the speed of nn.LSTM.\n"
            f"To build the kernels: pip install --no-build-isolation <this source>\n{bar}",
            file=sys.stderr,
        )
    elif note:
        print(f"fastlstm: no CUDA kernels: {note}", file=sys.stderr)
    if not kinds:
        extensions = []
    elif packages := wheel_torches():
        extensions = wheel_extensions(kinds, packages)
    else:
        extensions = [own_extension(kinds)]
    setup(
        ext_modules=extensions,
        cmdclass=commands(kinds, note),
    )


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
