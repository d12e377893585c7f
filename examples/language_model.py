"""A character language model in the style of AWD-LSTM, trained on the source code of Python.

As in AWD-LSTM (Merity, Keskar & Socher, 2018), the model has weight drop on W_hh, dropout with one
mask for all steps, and tied embeddings. Weight drop and dropout are options of fastlstm.LSTM. The
training uses truncated backpropagation: a window starts from the last state of the window before,
but the gradient stops there. The program trains the same model with nn.LSTM as well::

    python examples/language_model.py
    python examples/language_model.py --lstm fastlstm --steps 2000 --hidden 512
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastlstm

LSTMS = ["fastlstm", "torch"]
State = tuple[Tensor, Tensor]


def library_text() -> tuple[str, str]:
    """Returns the text for training and for validation, from packages of Python's library.

    Every tenth file is for validation.
    """
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    packages = ("asyncio", "email", "http", "json")
    files = sorted(f for name in packages for f in stdlib.glob(f"{name}/*.py"))
    texts = [f.read_text(errors="ignore") for f in files]
    return "".join(text for k, text in enumerate(texts) if k % 10), "".join(texts[::10])


def variational_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Applies one dropout mask [B,E] to every step of x [T,B,E] (Gal & Ghahramani, 2016)."""
    return x * F.dropout(torch.ones_like(x[:1]), p, training)


class TorchLSTM(nn.Module):
    """fastlstm.LSTM with `input_dropout` and `weight_dropout`, written with nn.LSTM.

    With the same seed, it draws the same masks as fastlstm.LSTM.
    """

    def __init__(self, hidden: int, layers: int, p: float) -> None:
        super().__init__()
        self.p = p
        self.layers = nn.ModuleList(nn.LSTM(hidden, hidden) for _ in range(layers))
        # unsafe=True skips a check that would draw a mask, so the seed gives the same masks.
        for module in self.layers:
            parametrize.register_parametrization(module, "weight_hh_l0", nn.Dropout(p), unsafe=True)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """x [T,B,H], state h and c [layers,B,H]; returns the output [T,B,H] and the last state."""
        last = []
        for k, lstm in enumerate(self.layers):
            given = None if state is None else (state[0][k : k + 1], state[1][k : k + 1])
            x, after = lstm(variational_dropout(x, self.p, self.training), given)
            last.append(after)
        return x, (torch.cat([h for h, _ in last]), torch.cat([c for _, c in last]))


class LanguageModel(nn.Module):
    """An embedding, the LSTM, and a linear layer that shares its weight with the embedding."""

    def __init__(self, vocabulary: int, hidden: int, layers: int, p: float, lstm: str) -> None:
        super().__init__()
        self.p = p
        self.embed = nn.Embedding(vocabulary, hidden)
        if lstm == "torch":
            self.lstm = TorchLSTM(hidden, layers, p)
        else:
            self.lstm = fastlstm.LSTM(hidden, hidden, layers, input_dropout=p, weight_dropout=p)
        for module in filter(lambda m: isinstance(m, nn.RNNBase), self.modules()):
            fastlstm.init.forget_bias_(module)
        self.output = nn.Linear(hidden, vocabulary)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.output.weight = self.embed.weight  # tied embeddings: Press & Wolf (2017)

    def forward(self, characters: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Takes characters [T,B] and a state; returns the logits [T,B,V] and the last state."""
        x, state = self.lstm(self.embed(characters), state)
        return self.output(variational_dropout(x, self.p, self.training)), state


def columns(text: str, vocabulary: dict[str, int], batch: int) -> Tensor:
    """Returns the text as [N,B] indices: B pieces that are read in parallel.

    Characters that the vocabulary does not have get index 0.
    """
    ids = torch.tensor([vocabulary.get(c, 0) for c in text])
    return ids[: len(ids) // batch * batch].view(batch, -1).t().contiguous()


def bits(model: LanguageModel, data: Tensor, window: int) -> float:
    """Returns the bits per character on data [N,B]. The state is kept from window to window."""
    model.eval()
    state, total = None, 0.0
    with torch.no_grad():
        for start in range(0, len(data) - 1, window):
            target = data[start + 1 : start + 1 + window]
            logits, state = model(data[start : start + len(target)], state)
            total += F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
    return total / ((len(data) - 1) * data.size(1)) / math.log(2)


def train(lstm: str, args: argparse.Namespace) -> tuple[float, float]:
    """Trains a model; returns the bits per character of held-out text and the training seconds."""
    torch.manual_seed(args.seed)
    text, held_out = library_text()
    vocabulary = {c: k for k, c in enumerate(["", *sorted(set(text))])}
    data = columns(text, vocabulary, args.batch)
    model = LanguageModel(len(vocabulary), args.hidden, args.layers, args.dropout, lstm)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    position, state, start = 0, None, time.perf_counter()
    for step in range(args.steps):
        if position + args.window >= len(data):
            position, state = 0, None
        inputs, target = (data[k : k + args.window] for k in (position, position + 1))
        position += args.window
        logits, (h, c) = model(inputs, state)
        state = (h.detach(), c.detach())  # the gradient does not flow into the window before
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"{lstm}: step {step}, {loss.item() / math.log(2):.2f} bits", flush=True)
    seconds = time.perf_counter() - start
    return bits(model, columns(held_out, vocabulary, args.batch), args.window), seconds


def main(argv: list[str] | None = None) -> dict[str, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lstm", nargs="+", choices=LSTMS, default=LSTMS)
    parser.add_argument("--steps", type=int, default=300, help="number of windows to train on")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--window", type=int, default=64, help="number of steps in a window")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    results = {lstm: train(lstm, args) for lstm in args.lstm}
    for lstm, (value, seconds) in results.items():
        print(f"{lstm:>8}: {value:.3f} bits per character of held-out text, {seconds:.1f} s")
    return results


if __name__ == "__main__":
    main()
