"""The build backend: that of setuptools, with the torch that fastlstm will run with.

pip builds in isolation: the packages of the environment that it installs into are hidden, and the
extension fits one minor version of torch. So torch is taken from that environment, in spite of
the isolation. Where there is none (a new environment; uv, which isolates with another
interpreter), the newest is requested, which the installation will choose as well.
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
    """Let this process import what its interpreter imports where nothing is hidden from it."""
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    path = subprocess.check_output([sys.executable, "-E", "-c", code], text=True)
    sys.path += [folder for folder in json.loads(path) if folder not in sys.path]


if not importlib.util.find_spec("torch"):
    show_environment()


def with_torch(get_requires):
    """The hook `get_requires`, which also requests torch if it is needed and not there."""

    def hook(config_settings=None):
        if importlib.util.find_spec("torch") or os.environ.get("FASTLSTM_BUILD") == "none":
            return get_requires(config_settings)
        return ["torch>=2.8"]

    return hook


get_requires_for_build_wheel = with_torch(build_meta.get_requires_for_build_wheel)
get_requires_for_build_editable = with_torch(build_meta.get_requires_for_build_editable)
