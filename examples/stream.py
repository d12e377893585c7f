"""Streaming: an LSTM processes frames of sound one by one, as they come from a microphone.

The model has an nn.LSTM, as many trained models have. `fastlstm.prepack` converts the LSTM and
prepacks its weights, in float32, bfloat16 or int8. Each copy of the model processes the same
sound, on one thread. The real-time factor is the computing time for one second of sound. If
onnxruntime and onnxscript are installed, onnxruntime runs the model as well::

    python examples/stream.py
    python examples/stream.py --hidden 1024 --layers 3 --seconds 30
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlstm

RATE, WINDOW, HOP, BANDS, SOUNDS = 16000, 400, 160, 80, 42  # a frame of 25 ms every 10 ms
State = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]  # (frame, state) -> (scores, state)


class Recognizer(nn.Module):
    """Computes, for each frame, the scores of `SOUNDS` kinds of sound."""

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, hidden_size, num_layers)
        self.linear = nn.Linear(hidden_size, SOUNDS)

    def forward(self, frame: Tensor, state: State) -> tuple[Tensor, State]:
        """Takes a frame [1,1,BANDS] and a state: h and c, each [num_layers,1,hidden_size].

        Returns:
            The scores [1,1,SOUNDS] and the state after the frame.
        """
        output, state = self.lstm(frame, state)
        return self.linear(output), state

    def start(self) -> State:
        """Returns the state before the first frame."""
        zeros = torch.zeros(self.lstm.num_layers, 1, self.lstm.hidden_size)
        return zeros, zeros.clone()  # two tensors, because torch.export makes them two inputs


def listen(seconds: int) -> Tensor:
    """Returns frames [T,BANDS] of a noisy tone of changing pitch: its log spectrum in bands."""
    t = torch.arange(seconds * RATE) / RATE
    pitch = 200 + 100 * (3 * t).sin() + 50 * (17 * t).cos()
    wave = torch.sin(2 * torch.pi * pitch.cumsum(0) / RATE) + 0.1 * torch.randn(len(t))
    spectrum = torch.fft.rfft(wave.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)).abs()
    return (F.adaptive_avg_pool1d(spectrum, BANDS) + 1e-3).log()


def onnxruntime_step(model: Recognizer) -> Step:
    """Returns the step of the same model in onnxruntime, on one thread."""
    import onnxruntime

    file, state = io.BytesIO(), model.start()
    model = fastlstm.convert(copy.deepcopy(model))
    table = {"custom_translation_table": fastlstm.onnx.translations(), "verbose": False}
    example = torch.zeros(1, 1, BANDS), state
    torch.onnx.export(model, example, dynamo=True, **table).save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options)
    names = [input.name for input in session.get_inputs()]

    def step(frame: Tensor, state: State) -> tuple[Tensor, State]:
        given = {name: t.numpy() for name, t in zip(names, (frame, *state), strict=True)}
        scores, h, c = map(torch.from_numpy, session.run(None, given))
        return scores, (h, c)

    return step


@torch.inference_mode()
def run(step: Step, frames: Tensor, state: State) -> tuple[Tensor, float]:
    """Runs a step on every frame; returns the scores [T,SOUNDS] and the seconds."""
    for frame in frames[:20]:  # warm up
        step(frame.view(1, 1, -1), state)
    scores, start = torch.empty(len(frames), SOUNDS), time.perf_counter()
    for t, frame in enumerate(frames):
        scores[t], state = step(frame.view(1, 1, -1), state)
    return scores, time.perf_counter() - start


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("hidden", 640), ("layers", 2), ("seconds", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    frames, model = listen(args.seconds), Recognizer(args.hidden, args.layers).eval()
    expected, errors, steps = torch.empty(0), {}, {"nn.LSTM": model}
    if all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnxscript")):
        steps["onnxruntime"] = onnxruntime_step(model)
    for weights in (torch.float32, torch.bfloat16, torch.int8):
        prepacked = fastlstm.prepack(copy.deepcopy(model), weights, convert=True)
        steps[f"prepack, {str(weights).removeprefix('torch.')}"] = prepacked
    print(f"{len(frames)} frames of {1000 * HOP / RATE:.0f} ms")
    for name, step in steps.items():
        scores, seconds = run(step, frames, model.start())
        expected = expected if errors else scores
        errors[name] = float((scores - expected).norm() / expected.norm())
        print(
            f"{name:<18} {len(frames) / seconds:>7,.0f} frames a second, real-time factor "
            f"{seconds / args.seconds:.4f}, error {errors[name]:.0e}"
        )
    return errors


if __name__ == "__main__":
    main()
