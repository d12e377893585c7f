"""Models, whole programs and trainings of other libraries give the same with fastlstm."""

import importlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from works_with import CASES, float64

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "works-with.md"
sys.path.insert(0, str(ROOT / "benchmarks"))

from apps import PROGRAMS  # noqa: E402

ROUNDED = {"bfloat16", "int8", "quantize=True"}  # with these the results may differ


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
    torch.set_num_threads(threads)  # importing silero_vad changes the number
    expected = ways.pop("unchanged")()
    for way in ways.keys() - ROUNDED:
        assert program.judge(ways[way](), expected) == program.judge(expected, expected), way


def test_the_page_lists_every_case_and_its_result():
    rows = re.findall(r"^\| (?!library)(.+?) \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.M)
    assert [row[1:] for row in rows] == [(case.what, case.result) for case in CASES.values()]
    for (name, *_), case in zip(rows, CASES.values(), strict=True):
        version = r"\d[\w.-]+" if case.package else re.escape("(code)")
        assert re.fullmatch(f"{re.escape(case.library)} {version}", name), name


# The programs of examples/, and the package that each needs: pip install ".[works-with]".
NEEDS = {"ppo_sb3": "sb3_contrib", "ppo_cleanrl": "gymnasium"}
NEEDS |= {"ppo_rl_games": "rl_games", "ppo_torchrl": "torchrl"}


@pytest.fixture
def example(monkeypatch, request, threads):
    pytest.importorskip(NEEDS[request.param])
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module(request.param)


@pytest.fixture
def gradient_norms(monkeypatch):
    """The gradient norm of every batch, recorded where the library clips it."""
    norms, clip = [], nn.utils.clip_grad_norm_

    def record(*args, **kwargs):
        norm = clip(*args, **kwargs)
        norms.append(norm.item())
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", record)
    if find_spec("rl_games"):
        monkeypatch.setattr("rl_games.common.a2c_common.clip_grad_norm_", record)
    return norms


@pytest.mark.slow
@pytest.mark.parametrize("example", NEEDS, indirect=True)
def test_the_gradients_are_those_of_nn_lstm(example, gradient_norms):
    """With the same seed all episodes are equal, and all gradient norms agree in four digits."""
    returns, norms_of = {}, {}
    for lstm in example.LSTMS:
        gradient_norms.clear()
        returns[lstm], norms_of[lstm] = example.train(lstm, 2048, 32), [*gradient_norms]
    assert len(norms_of["nn.LSTM"]) >= 32
    for lstm in example.LSTMS:
        assert returns[lstm] == returns["nn.LSTM"]
        assert norms_of[lstm] == pytest.approx(norms_of["nn.LSTM"], rel=1e-4)
