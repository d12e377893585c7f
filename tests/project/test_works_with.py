"""The cases of works_with.py and the programs of benchmarks/apps give the same with fastlstm."""

import re
import sys
from pathlib import Path

import pytest
import torch
from works_with import CASES, float64

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "works-with.md"
sys.path.insert(0, str(ROOT / "benchmarks"))

from apps import PROGRAMS  # noqa: E402

ROUNDED = {"bfloat16", "int8", "quantize=True"}  # these ways may find something else


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_finds_the_same(name):
    program = PROGRAMS[name]
    if program.version() is None:
        pytest.skip(f"pip install {program.install}")
    threads = torch.get_num_threads()
    ways = program.make(small=True)
    torch.set_num_threads(threads)  # which the import of silero_vad changes
    expected = ways.pop("unchanged")()
    for way in ways.keys() - ROUNDED:
        assert program.judge(ways[way](), expected) == program.judge(expected, expected), way


def test_the_page_lists_every_case_and_its_result():
    rows = re.findall(r"^\| (?!library)(.+?) \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.M)
    assert [row[1:] for row in rows] == [(case.what, case.result) for case in CASES.values()]
    for (name, *_), case in zip(rows, CASES.values(), strict=True):
        version = r"\d[\w.-]+" if case.package else re.escape("(code)")
        assert re.fullmatch(f"{re.escape(case.library)} {version}", name), name
