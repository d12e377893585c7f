"""A character language model in the style of AWD-LSTM, on the sources of Python's own library.

Weight drop on W_hh, one dropout mask for all steps (variational dropout), tied embeddings, and
truncated backpropagation: the state goes on from window to window, the gradient does not
(Merity, Keskar & Socher, 2018). Trains with fastlstm.LSTM, then the same with torch.nn.LSTM::

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

LSTMS = {"fastlstm": fastlstm.LSTM, "torch": nn.LSTM}
State = tuple[Tensor, Tensor]


def library_text() -> tuple[str, str]:
    """Training and validation text: every tenth package file is held out."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        f for name in ("asyncio", "email", "http", "json") for f in stdlib.glob(f"{name}/*.py")
    )
    texts = [f.read_text(errors="ignore") for f in files]
    train = "".join(text for k, text in enumerate(texts) if k % 10)
    return train, "".join(texts[::10])


class WeightDrop(nn.Module):
    """A parametrization: dropout on the elements of a weight, drawn anew for each window."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, self.p, self.training)


def variational_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drops the same features [B,E] at every step of x [T,B,E] (Gal & Ghahramani, 2016)."""
    return x * F.dropout(torch.ones_like(x[:1]), p, training)


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int, hidden: int, layers: int, p: float, lstm: str) -> None:
        super().__init__()
        self.p = p
        self.embed = nn.Embedding(vocabulary, hidden)
        self.lstms = nn.ModuleList(LSTMS[lstm](hidden, hidden) for _ in range(layers))
        self.output = nn.Linear(hidden, vocabulary)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.output.weight = self.embed.weight  # tied: Press & Wolf (2017)
        for module in self.lstms:
            fastlstm.init.forget_bias_(module)
            parametrize.register_parametrization(module, "weight_hh_l0", WeightDrop(p))

    def forward(self, characters: Tensor, states: list[State | None]) -> tuple[Tensor, list[State]]:
        """characters [T,B]; returns the logits [T,B,V] and each layer's last state."""
        x, last = self.embed(characters), []
        for lstm, state in zip(self.lstms, states, strict=True):
            x, state = lstm(variational_dropout(x, self.p, self.training), state)
            last.append(state)
        return self.output(variational_dropout(x, self.p, self.training)), last


def columns(text: str, vocabulary: dict[str, int], batch: int) -> Tensor:
    """The text as [N,B]: B stretches that are read side by side. Unknown characters are 0."""
    ids = torch.tensor([vocabulary.get(c, 0) for c in text])
    return ids[: len(ids) // batch * batch].view(batch, -1).t().contiguous()


def bits(model: LanguageModel, data: Tensor, window: int) -> float:
    """Bits per character, with the state carried through all of the data [N,B]."""
    model.eval()
    states: list[State | None] = [None] * len(model.lstms)
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(data) - 1, window):
            target = data[start + 1 : start + 1 + window]
            logits, states = model(data[start : start + len(target)], states)
            total += F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
    return total / ((len(data) - 1) * data.size(1)) / math.log(2)


def train(lstm: str, args: argparse.Namespace) -> tuple[float, float]:
    """Bits per character of held-out text, and the seconds that training took."""
    torch.manual_seed(args.seed)
    text, held_out = library_text()
    vocabulary = {c: k for k, c in enumerate(["", *sorted(set(text))])}
    data = columns(text, vocabulary, args.batch)
    model = LanguageModel(len(vocabulary), args.hidden, args.layers, args.dropout, lstm)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    states: list[State | None] = [None] * args.layers
    position, start = 0, time.perf_counter()
    for step in range(args.steps):
        if position + args.window >= len(data):
            position, states = 0, [None] * args.layers
        inputs = data[position : position + args.window]
        target = data[position + 1 : position + 1 + args.window]
        position += args.window
        model.train()
        logits, last = model(inputs, states)
        states = [(h.detach(), c.detach()) for h, c in last]  # the gradient ends here
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
    parser.add_argument("--lstm", nargs="+", choices=LSTMS, default=list(LSTMS))
    parser.add_argument("--steps", type=int, default=300, help="windows to train on")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--window", type=int, default=64, help="steps of truncated backpropagation")
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
