"""AOTInductor packages, loaded in Python and in a C++ program without Python."""

import os
import re
import shutil

import pytest
import torch
from native_programs import ROOT, check
from torch import nn

import fastlstm
from fastlstm import _build

pytestmark = [
    pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels"),
    pytest.mark.skipif(not shutil.which("c++"), reason="inductor needs a C++ compiler"),
]


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = fastlstm.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(32, 4)

    def forward(self, x):
        return self.linear(self.lstm(x)[0])


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("aoti") / "tagger.pt2"
    B, T = torch.export.Dim("B"), torch.export.Dim("T")
    model, x = Tagger().eval(), torch.randn(3, 6, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: B, 1: T},))
    args = dict(package_path=str(path), inductor_configs={"aot_inductor.precompile_headers": False})
    return torch._inductor.aoti_compile_and_package(program, **args)


@torch.no_grad()
def test_in_python(package):
    run = torch._inductor.aoti_load_package(package)
    for shape in ((3, 6, 8), (5, 17, 8), (1, 2, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(run(x), Tagger()(x))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
@pytest.mark.timeout(1800)
@torch.no_grad()
def test_in_a_cpp_program(package, tmp_path):
    run_program, x = tmp_path / "run", torch.randn(2, 11, 8)
    cmake = ["cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path]
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in ([*cmake, prefix], ["cmake", "--build", tmp_path, "-j2"]):
        check(*command)
    linked = check("ldd", run_program)
    assert "libfastlstm.so" in linked and not re.search(r"lib(torch_)?python", linked)
    torch.save(x, tmp_path / "x.pt")
    command = [run_program, package, tmp_path / "x.pt", tmp_path / "y.pt"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    check(*command, env=environment)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), Tagger()(x))
