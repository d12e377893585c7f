"""Builds fastlstm with kernels for the installed torch, or as pure Python.

The environment variable FASTLSTM_BUILD says what to build:
  auto  (default) as much as possible: CPU and CUDA kernels, only CPU kernels, or no kernels
  cpu   only CPU kernels; an error says what is missing
  cuda  CPU and CUDA kernels; an error says what is missing
  none  no kernels: pure Python

CUDA_HOME, CXX, MAX_JOBS and TORCH_CUDA_ARCH_LIST have the same meaning as in
torch.utils.cpp_extension. If no GPU is visible, CUDA kernels are compiled for all GPUs that nvcc
supports. The file _build_info.json next to the library records what was built. The program
release/build_wheel.py builds one wheel for several versions of torch.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from glob import glob

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = os.path.dirname(os.path.abspath(__file__))
TORCH_FLOOR = (2, 8)
KERNELS = "csrc/cpu/targets"  # the CPU kernels, which do not include torch
# The GPUs to compile for, if nvcc supports them.
CUDA_ARCHES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "11.0", "12.0"]

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch = None


def run(*command):
    """Runs a command and returns its standard output, or None if the command fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def cxx():
    """Returns the C++ compiler."""
    return shlex.split(os.environ.get("CXX", "c++"))[0]


def find_nvcc():
    """Returns the path of nvcc, in CUDA_HOME or else on PATH or in /usr/local/cuda, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [os.path.join(home, "bin")] if home else [os.environ["PATH"], "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def nvcc_version(nvcc):
    """Returns the version of the CUDA toolkit of an nvcc, such as "13.0"."""
    return (run(nvcc, "--version") or "").partition("release ")[2].partition(",")[0]


def check_torch_version():
    """Stops the build if torch is too old. Otherwise pip would replace the user's torch."""
    if torch and tuple(map(int, torch.__version__.split(".")[:2])) < TORCH_FLOOR:
        raise SystemExit(
            f"fastlstm needs torch {'.'.join(map(str, TORCH_FLOOR))} or newer, and this "
            f"environment has {torch.__version__}; first: pip install -U torch"
        )


def missing_for_cpu():
    """Returns what a build of the CPU kernels needs and this machine lacks, as messages."""
    missing = []
    if torch is None:
        missing.append("the build saw no torch: install torch first and pass --no-build-isolation")
    if sys.platform == "win32":
        missing.append("building the extension on Windows is not supported yet")
        return missing
    if not shutil.which(cxx()):
        missing.append(f"no C++ compiler ({cxx()!r} is not on PATH; CXX names another one)")
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        missing.append("no Python.h (on Debian and Ubuntu: the package python3-dev)")
    return missing


def missing_for_cuda():
    """Returns what a build of the CUDA kernels also needs and this machine lacks, as messages."""
    missing, nvcc, torch_cuda = [], find_nvcc(), torch and torch.version.cuda
    if torch and not torch_cuda:
        missing.append(f"torch {torch.__version__} is not a CUDA build")
    header = os.path.join(os.path.dirname(nvcc or ""), "..", "include", "cuda_runtime.h")
    if not nvcc or not os.path.exists(header):
        missing.append("no CUDA toolkit: no nvcc and header in CUDA_HOME, /usr/local/cuda, on PATH")
    elif torch_cuda and nvcc_version(nvcc).split(".")[0] != torch_cuda.split(".")[0]:
        missing.append(f"{nvcc} is of CUDA {nvcc_version(nvcc)}, and torch of CUDA {torch_cuda}")
    return missing


def choose(request, missing_cpu, missing_cuda):
    """Decides what to build.

    Args:
        request: the value of FASTLSTM_BUILD.
        missing_cpu: what the CPU kernels lack, from `missing_for_cpu`.
        missing_cuda: what the CUDA kernels lack, from `missing_for_cuda`.

    Returns:
        (kinds, note). kinds is [], ["cpu"] or ["cpu", "cuda"]; note says why the other kernels are
        not built, or is None.
    """
    if request not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"FASTLSTM_BUILD must be auto, cpu, cuda or none, got {request!r}")
    if request == "none":
        return [], "FASTLSTM_BUILD=none"
    missing = missing_cpu + missing_cuda if request == "cuda" else missing_cpu
    if missing and request != "auto":  # kernels that the user requested are never just left out
        raise SystemExit(f"FASTLSTM_BUILD={request}: " + "; ".join(missing))
    if missing:
        return [], "; ".join(missing)
    if request == "cpu":
        return ["cpu"], "FASTLSTM_BUILD=cpu"
    return (["cpu"], "; ".join(missing_cuda)) if missing_cuda else (["cpu", "cuda"], None)


def all_gpus():
    """Returns all GPUs that nvcc and the kernels support, as a TORCH_CUDA_ARCH_LIST."""
    known = (run(find_nvcc(), "--list-gpu-arch") or "").split()
    return ";".join(a for a in CUDA_ARCHES if "compute_" + a.replace(".", "") in known) + "+PTX"


def options(torch_headers):
    """Returns the keyword arguments of every extension: how to compile and link it."""
    # gcc 12 warns wrongly about a std::vector<bool> of torch that is inlined into this code. The
    # third warning is wrong for the file that `in_one_file` makes.
    wrong_warnings = ["-Wno-array-bounds", "-Wno-stringop-overflow", "-Wno-subobject-linkage"]
    warnings = ["-Wall", "-Wextra", *(f"-isystem{path}" for path in torch_headers), *wrong_warnings]
    # Without -fopenmp, which Apple's compiler lacks, at::parallel_for runs on one thread.
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    # cpp_extension disables the operators of the 16-bit types by macros, which are undone here.
    disabled = ["HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS"]
    undo_macros = [f"-U__CUDA_NO_{name}__" for name in disabled]
    # -std=c++20: cpp_extension of an older torch would pass -std=c++17.
    # No -march: one binary runs on every machine.
    # -fno-trapping-math: otherwise gcc does not vectorize the clamps in the gate functions.
    # -ffp-contract=on, --fmad=false: the source says which multiply-adds are fused (`fused`), so
    # that the bits of a result do not depend on the compiler. With =on, gcc fuses no others, and
    # clang fuses no others across expressions; --fmad=false is the same for nvcc.
    optimize = ["-std=c++20", "-O3", "-fno-trapping-math", "-ffp-contract=on", "-g0"]
    return {
        "depends": sorted(glob("csrc/**/*.h", recursive=True)),
        "include_dirs": [os.path.join(ROOT, "csrc")],
        # torch's headers then include only the operators that are named, which halves the time.
        "define_macros": [("AT_PER_OPERATOR_HEADERS", None)],
        "extra_compile_args": {
            "cxx": [*optimize, *warnings, *openmp],
            "nvcc": ["-std=c++20", "-O3", "--fmad=false", "--threads=2", *undo_macros],
        },
        "extra_link_args": openmp,
    }


def extension(kinds):
    """Returns the extension with all of csrc in one library, for the installed torch."""
    from torch.utils import cpp_extension

    sources = glob("csrc/**/*.cpp", recursive=True)
    shared = options(cpp_extension.include_paths())
    if "cuda" not in kinds:
        sources = [source for source in sources if not source.startswith("csrc/cuda/")]
        return cpp_extension.CppExtension("fastlstm._C", sorted(sources), **shared)
    sources += glob("csrc/cuda/*.cu")
    return cpp_extension.CUDAExtension("fastlstm._C", sorted(sources), **shared)


def in_one_file(sources, folder):
    """Returns the sources, with those that include torch replaced by one file in `folder`.

    The file includes them. Compiling torch's headers only once saves most of the time.
    """
    separate = (KERNELS, "csrc/cuda/", "csrc/op/module.cpp")
    joined = [s for s in sources if s.startswith("csrc/") and not s.startswith(separate)]
    if len(joined) < 2:
        return sources
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "with_torch.cpp")
    with open(path, "w") as file:
        file.writelines(f'#include "{os.path.relpath(s, "csrc")}"\n' for s in joined)
    return [s for s in sources if s not in joined] + [path]


def write_record(folder, kinds, note, torch_version, cuda_version):
    """Writes _build_info.json into a folder.

    fastlstm/_build.py compares it with the running torch, and `python -m fastlstm` prints it.

    Args:
        folder: the folder of the package.
        kinds: [], ["cpu"] or ["cpu", "cuda"].
        note: why other kernels were not built, or None.
        torch_version: the version of torch, or a list of minor versions, or None without kernels.
        cuda_version: the version of CUDA that torch was built with, or None.
    """
    commit = run("git", "rev-parse", "HEAD") if os.path.exists(os.path.join(ROOT, ".git")) else None
    if commit and run("git", "status", "--porcelain", "--untracked-files=no"):
        commit = commit.strip() + "-dirty"
    built = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    arches = os.environ.get("TORCH_CUDA_ARCH_LIST", "the GPUs of the machine that built them")
    record = {
        "kinds": kinds,
        "note": note,
        "torch": torch_version,
        "cuda": cuda_version,
        "nvcc": nvcc_version(find_nvcc()) if "cuda" in kinds else None,
        "cuda_arch_list": arches if "cuda" in kinds else None,
        "compiler": (run(cxx(), "--version") or cxx()).splitlines()[0] if kinds else None,
        "python": platform.python_version(),
        "commit": commit and commit.strip(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(built)),
    }
    path = os.path.join(folder, "_build_info.json")
    os.makedirs(folder, exist_ok=True)
    with open(path + ".tmp", "w") as file:
        json.dump(record, file, indent=2)
        file.write("\n")
    os.replace(path + ".tmp", path)


def pure_python_commands(note):
    """Returns the setuptools command that records in _build_info.json that there are no kernels."""

    class BuildPy(build_py):
        def run(self):
            super().run()
            lib = "" if self.editable_mode else self.build_lib
            write_record(os.path.join(lib, "fastlstm"), [], note, None, None)

    return {"build_py": BuildPy}


def kernel_commands(kinds, note):
    """Returns the setuptools command that builds the extension and writes _build_info.json."""
    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # A library that is newer than its sources may still be for another torch.
            self.force = True
            if self.editable_mode:
                # A fixed folder, because object files in pip's temporary folder are not reused.
                self.build_temp = os.path.join("build", f"editable-{sys.implementation.cache_tag}")
            elif not self.inplace:
                # This build is not repeated after each change of a file, so it joins the files.
                for extension in self.extensions:
                    extension.sources = in_one_file(extension.sources, self.build_temp)

        def run(self):
            super().run()
            folder = os.path.dirname(self.get_ext_fullpath("fastlstm._C"))
            write_record(folder, kinds, note, torch.__version__, torch.version.cuda)

    return {"build_ext": BuildExt}


def main():
    """Decides what to build, says so, and runs setuptools."""
    # The ninja of this environment must be found even if the environment is not activated.
    os.environ["PATH"] += os.pathsep + os.path.dirname(sys.executable)
    request = os.environ.get("FASTLSTM_BUILD", "auto")
    if request != "none":
        check_torch_version()
    kinds, note = choose(request, missing_for_cpu(), missing_for_cuda())
    if not kinds:
        bar = "*" * 80
        print(
            f"{bar}\nfastlstm is installed as pure Python, without its fast kernels: {note}.\n"
            "fastlstm.LSTM works, but only at the speed of nn.LSTM.\n"
            f"To build the kernels: pip install --no-build-isolation <this source>\n{bar}",
            file=sys.stderr,
        )
        setup(cmdclass=pure_python_commands(note))
        return
    print(f"fastlstm: kernels for {' and '.join(kinds)}", file=sys.stderr)
    if note:
        print(f"fastlstm: no CUDA kernels: {note}", file=sys.stderr)
    elif not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", all_gpus())
    setup(ext_modules=[extension(kinds)], cmdclass=kernel_commands(kinds, note))


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
