"""The libraries of an installed wheel need no newer symbols than manylinux_2_28 has."""

from pathlib import Path

import pytest
from symbols import check_symbols

import fastlstm
from fastlstm import _build

LIBRARIES = sorted(Path(fastlstm.__file__).parent.rglob("*.so"))
IS_WHEEL = isinstance(_build.build_record().get("torch"), list)


@pytest.mark.skipif(not IS_WHEEL, reason="only wheels run on older systems")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_no_symbol_is_newer_than_manylinux_2_28(library):
    check_symbols(library)
