"""Compares nn.LSTM and fastlstm in a published model: the voice encoder of Resemblyzer.

The encoder is an nn.LSTM with 3 layers of 256 units. It turns 1.6 seconds of speech into a vector
that identifies the speaker (Wan et al., 2018). Its weights are in the package resemblyzer, whose
dependencies are not needed here::

    pip install --no-deps resemblyzer
    python examples/published_model.py

The spectrograms are random, so the vectors mean nothing. The example shows how much they differ
from the vectors with nn.LSTM, and how long each takes.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import fastlstm


class VoiceEncoder(nn.Module):
    """The network of resemblyzer.VoiceEncoder, with the same parameter names."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Turns mel spectrograms [B,160,40] into vectors [B,256] of length 1."""
        _, (h_n, _) = self.lstm(mels)
        return nn.functional.normalize(self.linear(h_n[-1]).relu())


def load() -> VoiceEncoder:
    """Returns the encoder with the weights of the installed package."""
    package = find_spec("resemblyzer")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("resemblyzer is not installed: pip install --no-deps resemblyzer")
    file = Path(package.submodule_search_locations[0]) / "pretrained.pt"
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    encoder = VoiceEncoder().eval()
    # strict=False, because the file also has two parameters of the training loss.
    encoder.load_state_dict(state, strict=False)
    return encoder


def main(arguments: list[str] | None = None) -> list[fastlstm.Comparison]:
    """Prints a row for each way to run the encoder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--windows", type=int, default=1, help="batch size (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=2, help="seconds to measure each (default: 2)"
    )
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    return fastlstm.compare(load(), torch.rand(options.windows, 160, 40), seconds=options.seconds)


if __name__ == "__main__":
    main()
