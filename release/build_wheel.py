"""Builds one wheel of fastlstm for several versions of torch.

    python release/build_wheel.py bdist_wheel --dist-dir build/wheel

The environment variable FASTLSTM_TORCH_HEADERS lists folders with unpacked wheels of torch, named
by minor version, for example "build/torch/2.8 build/torch/2.13"; `make wheels` makes them.
FASTLSTM_BUILD is cpu (default), or cuda for CUDA kernels, which are then compiled for all GPUs that
nvcc supports. The libraries of the kernels do not depend on torch. The libraries that call the
kernels are built once for each version of torch, in the folders torch_2_8 and so on, where
fastlstm/_build.py looks for them.
"""

import os
import sys
from glob import glob

import setuptools
from torch.utils import cpp_extension

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import setup as build  # noqa: E402


def torch_packages():
    """Returns the folder of the package torch for each minor version of torch."""
    folders = os.environ.get("FASTLSTM_TORCH_HEADERS", "").split()
    if not folders:
        raise SystemExit("FASTLSTM_TORCH_HEADERS: expected folders with unpacked wheels of torch")
    for folder in folders:
        if not os.path.isdir(os.path.join(folder, "torch", "include")):
            raise SystemExit(f"FASTLSTM_TORCH_HEADERS: {folder} has no folder torch/include")
    return {os.path.basename(folder): os.path.join(ROOT, folder, "torch") for folder in folders}


def shared_library(name, sources, libraries, folders, headers=()):
    """Returns one library of the wheel. At run time it finds the kernels in its parent folder."""
    extension = setuptools.Extension(
        f"fastlstm.{name}",
        sorted(sources),
        libraries=libraries,
        library_dirs=folders,
        runtime_library_dirs=["$ORIGIN/.."],
        **build.options(headers),
    )
    # The library is stripped, and does not export the symbols of the static CUDA runtime.
    extension.extra_link_args = [*extension.extra_link_args, "-s", "-Wl,--exclude-libs,ALL"]
    return extension


def kernel_libraries(kinds, cuda_lib):
    """Returns the libraries that do not depend on torch."""
    found = [shared_library("libfastlstm_kernels", glob(f"{build.KERNELS}/*.cpp"), [], [])]
    if "cuda" in kinds:
        sources, name = glob("csrc/cuda/*.cu"), "libfastlstm_cuda_kernels"
        found.append(shared_library(name, sources, ["cudart_static"], [cuda_lib]))
    return found


def torch_libraries(kinds, version, package, cuda_home):
    """Returns the libraries for one minor version of torch, whose package is a folder."""
    include, module = os.path.join(package, "include"), "torch_" + version.replace(".", "_")
    headers = [include, os.path.join(include, "torch", "csrc", "api", "include")]
    # The libraries of the installed torch: their names are the same in every version.
    folders = [*cpp_extension.library_paths(), os.path.join(cuda_home, "lib64")]
    cuda = glob("csrc/cuda/*.cpp")
    sources = set(glob("csrc/**/*.cpp", recursive=True)) - set(glob(f"{build.KERNELS}/*.cpp"))
    sources = {*sources.difference(cuda), "release/older_systems.cpp"}
    libraries = ["c10", "torch_cpu", "torch_python", "fastlstm_kernels"]
    found = [shared_library(f"{module}._C", sources, libraries, folders, headers)]
    if "cuda" in kinds:
        libraries = ["c10", "torch_cpu", "c10_cuda"]
        libraries += ["fastlstm_kernels", "fastlstm_cuda_kernels", "cudart_static"]
        folders.append(os.path.join(package, "lib"))
        headers.append(os.path.join(cuda_home, "include"))
        sources = cuda + glob("csrc/core/*.cpp") + ["release/older_systems.cpp"]
        name = f"{module}.libfastlstm_cuda"
        found.append(shared_library(name, sources, libraries, folders, headers))
    return found


def build_command(kinds, versions):
    """Returns the setuptools command that builds the libraries and writes _build_info.json."""

    class BuildExt(cpp_extension.BuildExtension):
        def get_ext_filename(self, name):
            return f"{name}.so" if name.startswith("lib") else super().get_ext_filename(name)

        def build_extension(self, extension):
            """Builds a library. Its object files have a folder, since libraries share sources."""
            temp = self.build_temp
            self.build_temp = os.path.join(temp, extension.name)
            extension.sources = build.in_one_file(extension.sources, self.build_temp)
            extension.library_dirs.append(os.path.dirname(self.get_ext_fullpath("fastlstm._C")))
            super().build_extension(extension)
            self.build_temp = temp

        def run(self):
            super().run()
            folder = os.path.dirname(self.get_ext_fullpath("fastlstm._C"))
            build.write_record(folder, kinds, None, versions, None)

    return BuildExt


def main():
    """Builds the wheel, or says what is missing."""
    os.environ["PATH"] += os.pathsep + os.path.dirname(sys.executable)  # where ninja is
    packages = torch_packages()
    kinds, cuda_home = ["cpu"], ""
    if os.environ.get("FASTLSTM_BUILD") == "cuda":
        if not (nvcc := build.find_nvcc()):
            raise SystemExit("FASTLSTM_BUILD=cuda: no nvcc in CUDA_HOME or on PATH")
        kinds, cuda_home = ["cpu", "cuda"], os.path.dirname(os.path.dirname(nvcc))
        cpp_extension.CUDA_HOME = cuda_home  # a torch without CUDA has not looked for it
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", build.all_gpus())
    libraries = kernel_libraries(kinds, os.path.join(cuda_home, "lib64"))
    for version, package in packages.items():
        libraries += torch_libraries(kinds, version, package, cuda_home)
    command = build_command(kinds, [*packages])
    setuptools.setup(ext_modules=libraries, cmdclass={"build_ext": command})


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
