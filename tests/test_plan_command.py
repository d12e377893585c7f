"""`python -m fastlstm plan`, without a GPU; the planner itself is tested in tests/simt."""

import os
import subprocess
import sys

import pytest

from fastlstm import _build
from fastlstm.__main__ import devices, main

pytestmark = pytest.mark.skipif(not _build.extension_available(), reason="no extension")
SHAPE = ["plan", "--hidden", "512", "--batch", "64", "--dtype", "bf16"]


def test_plan(capsys):
    main(SHAPE)
    told = capsys.readouterr().out
    assert "bfloat16, input_size 512, hidden_size 512, batch up to 64, steps up to 512" in told
    assert "sm_90 with 132 SMs\nauto: " in told
    assert told.count(" us a step") == 3 and "none was measured" in told


def test_plan_of_a_cpu(capsys):
    main([*SHAPE, "--device", "cpu"])
    assert "auto: tiled (measured ahead" in capsys.readouterr().out


@pytest.mark.parametrize(
    "free, told",
    [
        ("8", "with 132 SMs, of which 8 are left free (FASTLSTM_FREE_SMS)"),
        ("132", "FASTLSTM_FREE_SMS=132 leaves none of 132 SMs"),
    ],
)
def test_free_multiprocessors(free, told):
    done = subprocess.run(
        [sys.executable, "-m", "fastlstm", *SHAPE],
        text=True,
        env={**os.environ, "FASTLSTM_FREE_SMS": free},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert told in done.stdout and "Traceback" not in done.stdout
    assert (done.returncode == 0) == (free == "8")


def test_info_shows_what_is_left_free(monkeypatch):
    gpu = type("Gpu", (), dict(name="H100", major=9, minor=0, multi_processor_count=132))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpu)
    monkeypatch.setattr(_build.library, "free_sms", lambda: 8)
    assert devices()[1][1] == ("H100, sm_90, 132 SMs, of which 8 are left free (FASTLSTM_FREE_SMS)")
