"""A published model, converted: the voice encoder of Resemblyzer, nn.LSTM with 3 layers of 256.

It makes of 1.6 seconds of speech a vector that tells who is speaking (Wan et al., 2018). The
weights are inside the package; the libraries for sound that it depends on are not needed here::

    pip install --no-deps resemblyzer
    python examples/published_model.py

The spectrograms are random, so the vectors mean nothing. What counts is how much they differ from
those of nn.LSTM, and the time.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import fastlstm


class VoiceEncoder(nn.Module):
    """The network of resemblyzer.VoiceEncoder, with its names."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Mel spectrograms [B,160,40] to vectors [B,256] of length 1."""
        _, (h_n, _) = self.lstm(mels)
        return nn.functional.normalize(self.linear(h_n[-1]).relu())


def load() -> VoiceEncoder:
    """With the weights that are in the installed package."""
    package = find_spec("resemblyzer")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("resemblyzer is not installed: pip install --no-deps resemblyzer")
    file = Path(package.submodule_search_locations[0]) / "pretrained.pt"
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    encoder = VoiceEncoder().eval()
    encoder.load_state_dict(state, strict=False)  # it also holds two numbers of the training loss
    return encoder


def main(arguments: list[str] | None = None) -> list[fastlstm.Comparison]:
    """Prints a row for each way to run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--windows", type=int, default=1, help="batch size (default: 1)")
    parser.add_argument("--seconds", type=float, default=2, help="to measure each (default: 2)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    return fastlstm.compare(load(), torch.rand(options.windows, 160, 40), seconds=options.seconds)


if __name__ == "__main__":
    main()
