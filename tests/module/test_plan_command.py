"""What `python -m fastlstm plan` prints."""

import pytest

from fastlstm import _build
from fastlstm.__main__ import main

pytestmark = pytest.mark.skipif(not _build.extension_available(), reason="no extension")
SHAPE = ["plan", "--hidden", "512", "--batch", "64", "--dtype", "bfloat16"]


def test_plan_of_a_cpu(capsys):
    main([*SHAPE, "--device", "cpu"])
    printed = capsys.readouterr().out
    for line in (
        "auto: op\n",
        "torch       can be requested by name",
        "tiled       can be requested by name",
    ):
        assert line in printed
    assert "persistent  it runs on cuda, meta, and the input is on cpu" in printed
    assert "\nforward\n" in printed and "\nbackward\n" in printed
    main([*SHAPE, "--device", "cpu", "--inference"])
    assert "\nbackward\n" not in capsys.readouterr().out


@pytest.mark.parametrize("size", ["a", "0", "-1", "1.5"])
def test_invalid_sizes(size, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--batch", "4", f"--hidden={size}"])
    error = capsys.readouterr().err
    assert f"argument --hidden: expected a positive whole number, got {size}\n" in error


def test_plan_of_a_gpu(capsys):
    """A plan for a GPU needs no GPU, but it depends on the kernels that were built."""
    main([*SHAPE, "--device", "cuda"])
    printed = capsys.readouterr().out
    assert "auto: torch\n" in printed
    assert "On a GPU plain calls and lengths= run PyTorch's own LSTM" in printed
