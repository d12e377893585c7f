"""Builds fastlstm as pure Python, or with the extension for one or several versions of torch.

The environment variable FASTLSTM_BUILD says what to build:
  auto  (default) as much as possible: CPU and CUDA kernels, only CPU kernels, or no kernels
  cpu   only CPU kernels; an error says what is missing
  cuda  CPU and CUDA kernels; an error says what is missing
  none  no kernels: pure Python

FASTLSTM_TORCH_HEADERS lists folders with unpacked wheels of torch, for example
"build/torch/2.8 build/torch/2.13". Then the build is for these versions of torch (`make wheels`),
and not for the installed torch.

CUDA kernels are compiled for the GPUs of this machine, or for all GPUs that nvcc supports if no GPU
is visible. TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX" chooses other GPUs. CUDA_HOME, CXX and MAX_JOBS have
the same meaning as in torch.utils.cpp_extension. The file _build_info.json next to the library
records what was built.
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
from setuptools.command.egg_info import egg_info

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


def version_tuple(version):
    """Returns (major, minor) of a version."""
    return tuple(map(int, version.split(".")[:2]))


def module_folder(version):
    """Returns the folder of the package with the module for a minor version of torch.

    fastlstm/_build.py looks for the module in this folder.
    """
    return "torch_" + version.replace(".", "_")


def run(*command):
    """Runs a command and returns its standard output, or None if the command fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def cxx():
    """Returns the C++ compiler."""
    return shlex.split(os.environ.get("CXX", "c++"))[0]


def cuda_home():
    """Returns the first folder with both nvcc and the CUDA runtime's headers, or None."""
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
    """Returns the version of the CUDA toolkit in a folder, such as "13.0"."""
    text = run(os.path.join(home, "bin", "nvcc"), "--version") or ""
    return text.partition("release ")[2].partition(",")[0]


def check_torch_version():
    """Stops the build if torch is too old. Otherwise pip would replace the user's torch."""
    if torch and version_tuple(torch.__version__) < TORCH_FLOOR:
        raise SystemExit(
            f"fastlstm needs torch {TORCH_FLOOR[0]}.{TORCH_FLOOR[1]} or newer, and this "
            f"environment has {torch.__version__}. Replace it by pip install -U torch, then "
            "install fastlstm again."
        )


def missing_for_cpu():
    """Returns what a build of the CPU kernels needs and this machine lacks, as messages."""
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
    """Returns what a build of the CUDA kernels also needs and this machine lacks, as messages."""
    missing = []
    used_torch = None if wheel_torches() else torch
    torch_cuda = used_torch and used_torch.version.cuda
    if used_torch and not torch_cuda:
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
            f"the CUDA toolkit in {home} has version {nvcc_version(home)}, but torch was built "
            f"with {torch_cuda}"
        )
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


def visible_gpus():
    """Returns the set of compute capabilities of this machine's GPUs, as (9, 0) for 9.0."""
    try:
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    except RuntimeError:  # for example if the driver is too old for this torch
        found = set()
    listed = run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    return found or {version_tuple(text) for text in re.findall(r"\d+\.\d+", listed or "")}


def cuda_arch_list(home):
    """Returns the GPUs to compile for, in the syntax of TORCH_CUDA_ARCH_LIST.

    They are the value of that variable if it is set. Otherwise they are the GPUs of this machine,
    or all GPUs that nvcc supports if the build is for a wheel or no GPU is visible.
    """
    if requested := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return requested
    known = (run(os.path.join(home, "bin", "nvcc"), "--list-gpu-arch") or "").split()
    arches = [a for a in CUDA_ARCHES if "compute_" + a.replace(".", "") in known]
    gpus = set() if wheel_torches() else visible_gpus()
    newest = {gpu: arch for arch in arches for gpu in gpus if version_tuple(arch) <= gpu}
    return ";".join(arch for arch in arches if arch in (newest.values() or arches)) + "+PTX"


def openmp_flags(platform, torch_headers):
    """Returns the flags for OpenMP: those of the compiler and those of the linker."""
    if platform != "darwin":
        return ["-fopenmp"], ["-fopenmp"]
    # On macOS torch's wheel has omp.h and the OpenMP library. The library must not be linked,
    # because the path recorded in it is not its real path. torch has loaded it before the extension
    # is loaded.
    has_header = any(os.path.exists(os.path.join(path, "omp.h")) for path in torch_headers)
    return (["-Xpreprocessor", "-fopenmp"] if has_header else []), []


def options(torch_headers):
    """Returns the keyword arguments of every extension: how to compile and link it."""
    # gcc 12 warns wrongly about a std::vector<bool> of torch that is inlined into this code. The
    # third warning is wrong for the file that `in_one_file` makes.
    wrong_warnings = ["-Wno-array-bounds", "-Wno-stringop-overflow", "-Wno-subobject-linkage"]
    warnings = ["-Wall", "-Wextra", *(f"-isystem{path}" for path in torch_headers), *wrong_warnings]
    compile_openmp, link_openmp = openmp_flags(sys.platform, torch_headers)
    # cpp_extension disables the operators of the 16-bit types by macros, which are undone here.
    disabled = ["HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS"]
    undo_macros = [f"-U__CUDA_NO_{name}__" for name in disabled]
    # -std=c++20: cpp_extension of an older torch would pass -std=c++17.
    # No -march: one binary runs on every machine.
    # -fopenmp: without this flag at::parallel_for runs on one thread, with no message.
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
            "cxx": [*optimize, *warnings, *compile_openmp],
            "nvcc": ["-std=c++20", "-O3", "--fmad=false", "--threads=2", *undo_macros],
        },
        "extra_link_args": link_openmp,
    }


def own_extension(kinds):
    """Returns the extension with all of csrc in one library, for the installed torch."""
    from torch.utils import cpp_extension

    sources = glob("csrc/**/*.cpp", recursive=True)
    shared = options(cpp_extension.include_paths())
    if "cuda" not in kinds:
        sources = [source for source in sources if not source.startswith("csrc/cuda/")]
        return cpp_extension.CppExtension("fastlstm._C", sorted(sources), **shared)
    sources += glob("csrc/cuda/*.cu")
    return cpp_extension.CUDAExtension("fastlstm._C", sorted(sources), **shared)


def shared_library(name, sources, libraries, folders, headers=()):
    """Returns one library of a wheel. At run time it finds the kernels in its parent folder."""
    extension = Extension(
        f"fastlstm.{name}",
        sorted(sources),
        libraries=libraries,
        library_dirs=folders,
        runtime_library_dirs=["$ORIGIN/.."],
        **options(headers),
    )
    # The library is stripped, and does not export the symbols of the static CUDA runtime.
    extension.extra_link_args += ["-s", "-Wl,--exclude-libs,ALL"]
    return extension


def wheel_extensions(kinds, packages):
    """Returns the libraries of a wheel for several versions of torch.

    The libraries of the kernels do not depend on torch. The libraries that call the kernels are
    built once for each version.

    Args:
        kinds: ["cpu"] or ["cpu", "cuda"].
        packages: the folder of the package torch, by minor version.
    """
    from torch.utils import cpp_extension

    kernels = glob(f"{KERNELS}/*.cpp")
    core = glob("csrc/core/*.cpp")
    cuda, cuda_kernels = glob("csrc/cuda/*.cpp"), glob("csrc/cuda/*.cu")
    rest = set(glob("csrc/**/*.cpp", recursive=True)) - {*kernels, *cuda}
    home = os.environ.get("CUDA_HOME", "")
    # The libraries of the installed torch: their names are the same in every version.
    folders = [*cpp_extension.library_paths(), os.path.join(home, "lib64")]
    found = [shared_library("libfastlstm_kernels", kernels, [], [])]
    if "cuda" in kinds:
        cpp_extension.CUDA_HOME = home  # a torch without CUDA has not looked for it
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
            cuda_folders = [*folders, os.path.join(package, "lib")]
            headers.append(os.path.join(home, "include"))
            name = f"{module}.libfastlstm_cuda"
            found.append(shared_library(name, cuda + core, libraries, cuda_folders, headers))
    return found


def in_one_file(sources, folder):
    """Returns the sources, with those that include torch replaced by one file.

    The file includes them. Compiling torch's headers only once saves most of the time.

    Args:
        sources: the sources of an extension.
        folder: the folder for the new file.
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


def build_record(kinds, note):
    """Returns the contents of _build_info.json.

    fastlstm/_build.py compares it with the running torch, and `python -m fastlstm` prints it.
    """
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
    """Returns the folder of the package torch for each minor version to build a wheel for.

    The dictionary is empty if the build is for the installed torch.
    """
    folders = os.environ.get("FASTLSTM_TORCH_HEADERS", "").split()
    for folder in folders:
        if not os.path.isdir(os.path.join(folder, "torch", "include")):
            raise SystemExit(f"FASTLSTM_TORCH_HEADERS: {folder} has no folder torch/include")
    return {os.path.basename(folder): os.path.join(ROOT, folder, "torch") for folder in folders}


def write_record(folder, record):
    """Writes _build_info.json into a folder."""
    path = os.path.join(folder, "_build_info.json")
    os.makedirs(folder, exist_ok=True)
    with open(path + ".tmp", "w") as file:
        json.dump(record, file, indent=2)
        file.write("\n")
    os.replace(path + ".tmp", path)


def description(readme, source, version):
    """Returns README for the page of a package index, where a relative link leads nowhere.

    Args:
        readme: the text of README.md.
        source: the address of the repository, to which links and pictures then point. Without one,
            a link becomes its words, and pictures are left out.
        version: the version, whose tag the addresses name.
    """
    away = r"(?!https?:|#)"  # of a relative address
    if not source:
        readme = re.sub(r"<picture>.*?</picture>\n|!\[[^]]*\]\([^)]*\)\n", "", readme, flags=re.S)
        return re.sub(rf"\[([^]]*)\]\({away}[^)]*\)", r"\1", readme)
    for kind, before in (("raw", r'!\[[^]]*\]\(|src(?:set)?="'), ("blob", r"\]\(")):
        readme = re.sub(rf"({before}){away}", rf"\g<1>{source}/{kind}/v{version}/", readme)
    return readme


class EggInfo(egg_info):
    """Writes the metadata, for an sdist and for a wheel."""

    def run(self):
        about = self.distribution.metadata
        source = about.project_urls.get("Source")
        about.long_description = description(about.long_description, source, about.version)
        super().run()


def commands(kinds, note):
    """Returns the setuptools commands that build the chosen kernels and write _build_info.json.

    Args:
        kinds: [], ["cpu"] or ["cpu", "cuda"].
        note: why other kernels are not built, or None.
    """

    class BuildPy(build_py):
        def run(self):
            super().run()
            if not kinds:
                lib = "" if self.editable_mode else self.build_lib
                write_record(os.path.join(lib, "fastlstm"), build_record(kinds, note))

    if not kinds:
        return {"build_py": BuildPy, "egg_info": EggInfo}

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
                    folder = os.path.join(self.build_temp, extension.name)
                    extension.sources = in_one_file(extension.sources, folder)

        def get_ext_filename(self, name):
            return f"{name}.so" if name.startswith("lib") else super().get_ext_filename(name)

        def build_extension(self, extension):
            temp = self.build_temp
            # Several libraries of a wheel share sources, so each has a folder for its object files.
            if extension.name != "fastlstm._C":
                self.build_temp = os.path.join(temp, extension.name)
                extension.library_dirs.append(os.path.dirname(self.get_ext_fullpath("fastlstm._C")))
            super().build_extension(extension)
            self.build_temp = temp

        def run(self):
            super().run()
            path = self.get_ext_fullpath("fastlstm._C")
            write_record(os.path.dirname(path), build_record(kinds, note))

    return {"build_py": BuildPy, "build_ext": BuildExt, "egg_info": EggInfo}


def main():
    """Decides what to build, says so, and runs setuptools."""
    # The ninja of this environment must be found even if the environment is not activated.
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
            "fastlstm.LSTM works, but only at the speed of nn.LSTM.\n"
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
