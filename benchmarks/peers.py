"""Runs an LSTM on a CPU by onnxruntime, and by the int8 quantization of torch.ao."""

from __future__ import annotations

import importlib.util
import logging
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the process of onnxruntime starts without torch
    from torch import Tensor, nn


def is_installed(peer: str) -> bool:
    """Returns whether the packages of a peer are installed; `Case.peer` lists the names."""
    names = ("onnxruntime", "onnx") if peer.startswith("onnxruntime") else ("torch",)
    return all(map(importlib.util.find_spec, names))


def quantized_by_torch_ao(module: nn.Module) -> nn.Module:
    """Returns an LSTM or LSTMCell with int8 weights, made by torch.ao's quantize_dynamic."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao warns that it is deprecated
        quantized = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(module), {type(module)}, dtype=torch.qint8
        )
    return quantized[0]


def save_onnx(lstm: Any, path: Path) -> None:
    """Writes a layer as an ONNX model with one LSTM of opset 17, whose initial state is zero."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def in_order(weight: Tensor) -> Any:  # from PyTorch's gate order i, f, g, o to i, o, f, g
        i, f, g, o = weight.detach().numpy().reshape(4, lstm.hidden_size, -1)
        return np.concatenate([i, o, f, g])[None]

    biases = in_order(lstm.bias_ih_l0), in_order(lstm.bias_hh_l0)
    weights = {"W": in_order(lstm.weight_ih_l0), "R": in_order(lstm.weight_hh_l0)}
    weights["B"] = np.concatenate(biases, axis=1)[:, :, 0]
    node = helper.make_node("LSTM", ["X", *weights], ["Y"], hidden_size=lstm.hidden_size)
    graph = helper.make_graph(
        [node],
        "lstm",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, None, lstm.input_size])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


class Onnxruntime:
    """Runs a layer by onnxruntime, in a process of its own.

    The process is stopped between measurements, because onnxruntime's threads wait in a busy loop.

    Attributes:
        output: the output [T,B,H] of the first call.
    """

    def __init__(self, lstm: nn.Module, x: Tensor, int8: bool) -> None:
        """Starts the process and runs the layer once.

        `lstm` has one layer, and x [T,B,I] is the input of all calls. With `int8` the layer is
        quantized to a DynamicQuantizeLSTM.
        """
        import torch

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_onnx(lstm, folder / "lstm.onnx")
            np.save(folder / "x.npy", x.numpy())
            words = [name, str(torch.get_num_threads()), *["int8"] * int8]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen([sys.executable, __file__, *words], text=True, **pipes)
            self._read()
            self.output = torch.from_numpy(np.load(folder / "y.npy")).squeeze(1)
        self.process.send_signal(signal.SIGSTOP)

    def _read(self) -> float:
        assert self.process.stdout
        return float(self.process.stdout.readline())

    def __call__(self) -> Tensor:
        return self.output

    def seconds(self, calls: int) -> float:
        """Calls the layer `calls` times in its process and returns the seconds per call."""
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        seconds = self._read()
        self.process.send_signal(signal.SIGSTOP)
        return seconds

    def __del__(self) -> None:
        self.process.kill()
        self.process.wait()


def serve(folder: Path, threads: int, int8: bool) -> None:
    """The main function of onnxruntime's process.

    The folder has the model lstm.onnx and its input x.npy. The output of a first call is written to
    y.npy, and 0 is printed. Then every line of standard input is a number of calls: the process
    makes these calls and prints the seconds per call. With `int8` the model is quantized first.
    """
    import onnxruntime

    path, x = folder / "lstm.onnx", {"X": np.load(folder / "x.npy")}
    if int8:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(path, path, op_types_to_quantize=["LSTM"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    np.save(folder / "y.npy", session.run(None, x)[0])
    print(0, flush=True)
    for line in sys.stdin:
        for _ in range(2):  # the first round, right after a stop, only warms up
            start = time.perf_counter()
            for _ in range(int(line)):
                session.run(None, x)
            seconds = (time.perf_counter() - start) / int(line)
        print(seconds, flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # quantize_dynamic logs advice
    serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["int8"])
