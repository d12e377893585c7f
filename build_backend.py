"""The build backend of setuptools, which also makes the right version of torch available.

The extension fits only one minor version of torch: it must be built with the torch that fastlstm
will run with. But pip builds in isolation, so a build does not see the packages of the environment
into which pip installs. This backend makes torch visible in spite of the isolation. If that
environment has no torch, or if uv isolates the build with another interpreter, the backend requests
the newest torch, which is the version that the installation also chooses.
"""

import importlib.util
import json
import os
import subprocess
import sys

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def show_environment():
    """Lets this process import all packages of its interpreter's environment.

    A new process of the interpreter, which ignores the variables of the isolation, tells the paths.
    """
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    path = subprocess.check_output([sys.executable, "-E", "-c", code], text=True)
    sys.path += [folder for folder in json.loads(path) if folder not in sys.path]


if not importlib.util.find_spec("torch"):
    show_environment()


def with_torch(get_requires):
    """Wraps the hook `get_requires`, so that it also requests torch if torch is not available."""

    def hook(config_settings=None):
        if importlib.util.find_spec("torch") or os.environ.get("FASTLSTM_BUILD") == "none":
            return get_requires(config_settings)
        return ["torch>=2.8"]

    return hook


get_requires_for_build_wheel = with_torch(build_meta.get_requires_for_build_wheel)
get_requires_for_build_editable = with_torch(build_meta.get_requires_for_build_editable)
