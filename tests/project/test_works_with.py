"""The cases of works_with.py pass, and docs/reference/works-with.md lists all of them."""

import re
from pathlib import Path

import pytest
import torch
from works_with import CASES, float64

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "works-with.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the libraries
@pytest.mark.parametrize("name", CASES)
def test_a_library_works(name):
    case = CASES[name]
    if case.version() is None:
        pytest.skip(f"{case.package} is not installed")
    torch.manual_seed(0)
    with float64():
        case.run()


def test_the_page_lists_every_case_and_its_result():
    rows = re.findall(r"^\| (?!library)(.+?) \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.M)
    assert [row[1:] for row in rows] == [(case.what, case.result) for case in CASES.values()]
    for (name, *_), case in zip(rows, CASES.values(), strict=True):
        version = r"\d[\w.-]+" if case.package else re.escape("(code)")
        assert re.fullmatch(f"{re.escape(case.library)} {version}", name), name
