"""Frozen inference on the CPU: `fastlstm.prepack` beside nn.LSTM, onnxruntime and torch.ao.

    python benchmarks/frozen.py --output benchmarks/results/frozen-NAME-DATE.json

Ratios of times, peer / fastlstm (above 1 fastlstm is faster), of one layer without gradients. Each
pair is called in alternation; onnxruntime has a process of its own, and so has fastlstm beside it.
Each of the two is stopped while the other works, since both keep threads that wait for work. Peers
that are not installed are left out by name.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import machine
import torch
from cases import DENSE, ONE_STEP
from markdown import table
from report import write_json
from timing import Effort, alternate, cpu_clock, settle_malloc
from torch import Tensor, nn

import fastlstm

Shape = tuple[int, int, int, int]  # B, T, I, H
Step = Callable[[], object]

#: The shapes at which onnxruntime was found ahead.
NINE: tuple[Shape, ...] = (
    (1, 32, 64, 64),
    (16, 32, 64, 128),
    (1, 100, 256, 256),
    (32, 35, 200, 200),
    (128, 20, 256, 512),
    (64, 100, 128, 256),
    (16, 200, 512, 512),
    (1, 1, 256, 512),
    (32, 1, 256, 512),
)


@dataclass(frozen=True)
class Comparison:
    """Ours and a peer on some shapes, and the least mean and single ratio."""

    title: str
    ours: str
    peer: str
    shapes: tuple[Shape, ...]
    mean: float
    worst: float | None = None


COMPARISONS = (
    Comparison("float32", "float32", "onnxruntime", NINE, 1.1, 0.95),
    Comparison("float32", "float32", "nn.LSTM", DENSE, 1.5, 1.1),
    Comparison("one step, float32", "float32", "nn.LSTM", ONE_STEP, 5, 2),
    Comparison("one step, float32", "float32 cell", "nn.LSTMCell", ONE_STEP, 2, 1.2),
    Comparison("one step, bfloat16", "bfloat16 cell", "nn.LSTMCell", ONE_STEP, 2.5),
    Comparison("one step, int8", "int8 cell", "nn.LSTMCell", ONE_STEP, 4),
    Comparison("one step, int8", "int8 cell", "torch.ao cell", ONE_STEP, 1.3),
    Comparison("int8", "int8", "torch.ao", DENSE, 1.5),
    Comparison("int8", "int8", "onnxruntime int8", DENSE, 1.1),
    Comparison("layer norm, float32", "float32 norm", "LayerNormLSTM", NINE, 1.1, 1),
    Comparison("layer norm, bfloat16", "bfloat16 norm", "LayerNormLSTM", NINE, 1.1, 1),
    Comparison("layer norm, int8", "int8 norm", "LayerNormLSTM", NINE, 1.1, 1),
)


def layer(shape: Shape, name: str = "") -> tuple[Any, tuple[Tensor, tuple[Tensor, ...]]]:
    """A layer of torch.nn, or a LayerNormLSTM, and its arguments, the same in every process."""
    batch, steps, input_size, hidden_size = shape
    torch.manual_seed(0)
    cell = "cell" in name.lower()
    kind: Any = fastlstm.LayerNormLSTM if "norm" in name.lower() else nn.LSTM
    module: nn.Module = (nn.LSTMCell if cell else kind)(input_size, hidden_size)
    dims = (batch,) if cell else (1, batch)
    state = tuple(torch.randn(*dims, hidden_size).tanh() for _ in range(2))
    x = torch.randn(batch, input_size) if cell else torch.randn(steps, batch, input_size)
    return module.eval(), (x, state)


def torch_step(name: str, shape: Shape) -> Step:
    """nn, torch.ao and fastlstm, packed or a LayerNormLSTM that is not, by name."""
    module, arguments = layer(shape, name)
    if name.startswith("torch.ao"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated
            wrapped = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(module), {type(module)}, dtype=torch.qint8
            )
        module = wrapped[0]
    elif not name.startswith(("nn.", "LayerNorm")):
        weights = getattr(torch, name.split(maxsplit=1)[0])
        module = fastlstm.prepack(
            module, None if weights is torch.float32 else weights, convert=True
        )
    return lambda: module(*arguments)


def onnxruntime_step(name: str, shape: Shape) -> Step:
    """An ONNX LSTM of opset 17; in int8 by onnxruntime's own dynamic quantization."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    module, (x, (h, c)) = layer(shape)
    hidden = module.hidden_size

    def in_order(weight: Tensor) -> Any:  # ONNX has i, o, f, g
        i, f, g, o = weight.detach().numpy().reshape(4, hidden, -1)
        return np.concatenate([i, o, f, g])[None]

    biases = (in_order(module.bias_ih_l0), in_order(module.bias_hh_l0))
    initializers = {
        "W": in_order(module.weight_ih_l0),
        "R": in_order(module.weight_hh_l0),
        "B": np.concatenate(biases, axis=1)[:, :, 0],
    }
    inputs = {"X": x.numpy(), "h": h.numpy(), "c": c.numpy()}
    node = helper.make_node(
        "LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "Y_h", "Y_c"], hidden_size=hidden
    )
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "lstm",
        [helper.make_tensor_value_info(n, floats, v.shape) for n, v in inputs.items()],
        [helper.make_tensor_value_info(n, floats, None) for n in ("Y", "Y_h", "Y_c")],
        [numpy_helper.from_array(v, n) for n, v in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "lstm.onnx")
        onnx.save(model, path)
        if name.endswith("int8"):
            from onnxruntime.quantization import quantize_dynamic

            quantize_dynamic(path, path, op_types_to_quantize=["LSTM"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def make_step(name: str, shape: Shape) -> Step:
    return (onnxruntime_step if name.startswith("onnxruntime") else torch_step)(name, shape)


def _serve(name: str, shape: Shape, threads: int, pipe: Connection) -> None:
    """A process that runs a step as often as it is told, and says how long a call took."""
    torch.set_num_threads(threads)
    settle_malloc()
    with torch.inference_mode():
        step = make_step(name, shape)
        while calls := pipe.recv():
            cpu_clock(step, calls)  # after its rest
            pipe.send(cpu_clock(step, calls))


class ProcessStep:
    """A step in a process of its own."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        threads = torch.get_num_threads()
        self.process = context.Process(target=_serve, args=(name, shape, threads, theirs))
        self.process.start()

    def _signal(self, what: int) -> None:
        if self.process.pid:
            os.kill(self.process.pid, what)

    def run(self, calls: int) -> float:
        self._signal(signal.SIGCONT)
        self.pipe.send(calls)
        seconds: float = self.pipe.recv()
        self._signal(signal.SIGSTOP)
        return seconds

    def __call__(self) -> object:
        return self.run(1)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self.pipe.send(0)
        self.process.join()


def process_clock(step: Any, calls: int) -> float:
    seconds: float = step.run(calls)
    return seconds


def measure(comparison: Comparison, shape: Shape, effort: Effort) -> float:
    """The median of peer / ours."""
    names = (comparison.peer, comparison.ours)
    if not comparison.peer.startswith("onnxruntime"):
        peer, ours = (make_step(name, shape) for name in names)
        return alternate(peer, ours, cpu_clock, effort).ratio
    steps = [ProcessStep(name, shape) for name in names]
    try:
        return alternate(steps[0], steps[1], process_clock, effort).ratio
    finally:
        for step in steps:
            step.close()


def compare(only: str | None, effort: Effort) -> dict[str, Any]:
    """Measures the comparisons, or those with the peer `only`."""
    results = []
    for comparison in COMPARISONS:
        package = comparison.peer.split(maxsplit=1)[0].split(".")[0]
        if only and only != comparison.peer:
            continue
        if package == "onnxruntime" and not importlib.util.find_spec(package):
            print(f"{comparison.peer}: not installed")
            continue
        ratios = []
        for shape in comparison.shapes:
            with torch.inference_mode():
                ratios.append(measure(comparison, shape, effort))
            print(f"{comparison.title} / {comparison.peer} {shape}: {ratios[-1]:.2f}", flush=True)
        results.append({"title": comparison.title, "peer": comparison.peer, "ratios": ratios})
    command = machine.command("frozen", sys.argv[1:])
    return {"command": command, **machine.describe("cpu"), "results": results}


def report(comparison: Comparison, ratios: list[float]) -> list[str]:
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    asked = f"{comparison.mean:g}" + (f", {comparison.worst:g}" if comparison.worst else "")
    worst = min(ratios)
    at = comparison.shapes[ratios.index(worst)]
    return [comparison.title, comparison.peer, f"{mean:.2f}", f"{worst:.2f}", f"{at}", asked]


def as_table(record: dict[str, Any]) -> str:
    comparisons = {(c.title, c.peer): c for c in COMPARISONS}
    rows = [report(comparisons[r["title"], r["peer"]], r["ratios"]) for r in record["results"]]
    header = ["fastlstm.prepack", "beside", "mean", "worst", "at (B, T, I, H)", "aim: mean, worst"]
    return f"{machine.line(record)}. `{record['command']}`\n\n{table(header, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.6, help="per pair; default: 0.6")
    parser.add_argument("--only", metavar="PEER", help="only comparisons with this peer")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="every ratio")
    args = parser.parse_args()
    settle_malloc()
    record = compare(args.only, Effort(args.seconds))
    if args.output:
        write_json(args.output, record)
    print(as_table(record))


if __name__ == "__main__":
    main()
