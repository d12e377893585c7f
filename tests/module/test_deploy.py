"""Models that leave training: AOTInductor packages, with and without Python, and quantization."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm import _build

ROOT = Path(__file__).resolve().parents[2]
needs_op = [
    pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels"),
    pytest.mark.skipif(not shutil.which("c++"), reason="inductor needs a C++ compiler"),
]


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = fastlstm.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.lstm(x)[0])


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("aoti") / "tagger.pt2"
    B, T = torch.export.Dim("B"), torch.export.Dim("T")
    program = torch.export.export(
        Tagger().eval(), (torch.randn(3, 6, 8),), dynamic_shapes=({0: B, 1: T},)
    )
    return torch._inductor.aoti_compile_and_package(program, package_path=str(path))


@pytest.mark.parametrize(("batch", "steps"), [(3, 6), (5, 17), (1, 2)])
class TestPackage:
    pytestmark = needs_op

    def test_in_python(self, package: str, batch: int, steps: int) -> None:
        x = torch.randn(batch, steps, 8)
        found = torch._inductor.aoti_load_package(package)(x)
        with torch.no_grad():
            torch.testing.assert_close(found, Tagger()(x))


@pytest.fixture(scope="module")
def run_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("cpp")
    cmake = ["cmake", "-S", ROOT / "examples/cpp", "-B", build]
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in ([*cmake, prefix], ["cmake", "--build", build, "-j2"]):
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
    return build / "run"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
class TestWithoutPython:
    pytestmark = needs_op

    def test_a_program_of_cpp(self, package: str, run_program: Path, tmp_path: Path) -> None:
        linked = subprocess.run(["ldd", run_program], text=True, capture_output=True).stdout
        assert (
            "libfastlstm.so" in linked
            and "libpython" not in linked
            and "torch_python" not in linked
        )
        for batch, steps in ((3, 6), (2, 11)):
            x = torch.randn(batch, steps, 8)
            torch.save(x, tmp_path / "x.pt")
            command = [run_program, package, tmp_path / "x.pt", tmp_path / "y.pt"]
            environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
            done = subprocess.run(command, text=True, capture_output=True, env=environment)
            assert done.returncode == 0, done.stderr
            with torch.no_grad():
                expected = Tagger()(x)
            torch.testing.assert_close(torch.load(tmp_path / "y.pt"), expected)


def test_dynamic_quantization() -> None:
    """Of what convert gives back: as close to the float model as that of nn.LSTM from the start."""
    model = fastlstm.convert(Tagger(), to="torch")
    with pytest.warns(DeprecationWarning, match="torch.ao.quantization is deprecated"):
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear})
    assert type(quantized.lstm) is torch.ao.nn.quantized.dynamic.LSTM
    x = torch.randn(3, 6, 8)
    with torch.no_grad():
        expected, found = Tagger()(x), quantized(x)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.05  # 8 bits: steps of 1/256 of each tensor's range
