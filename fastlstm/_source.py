"""In a clone Python finds the source before the package that `pip install .` compiled."""

import importlib.metadata
import sys
from pathlib import Path

_RECORD = "_build_info.json"  # setup.py leaves it beside what it built


def prefer_installed() -> None:
    """Lets an uncompiled source take its submodules from the installed package, if there is one."""
    here = Path(__file__).resolve().parent
    if (here / _RECORD).is_file():
        return
    for distribution in importlib.metadata.distributions(name="fastlstm"):
        package = Path(str(distribution.locate_file("fastlstm"))).resolve()
        if package != here and (package / _RECORD).is_file():
            sys.modules["fastlstm"].__path__[:] = [str(package)]
            return
