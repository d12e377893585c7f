"""A character language model in the style of AWD-LSTM, on the sources of Python's own library.

Weight drop on W_hh and one dropout mask for all steps, both options of fastlstm.LSTM; tied
embeddings; truncated backpropagation: the state goes on from window to window, the gradient does
not (Merity, Keskar & Socher, 2018). Then the same with nn.LSTM::

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
    """Training and validation text: every tenth file of some packages is held out."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    packages = ("asyncio", "email", "http", "json")
    files = sorted(f for name in packages for f in stdlib.glob(f"{name}/*.py"))
    texts = [f.read_text(errors="ignore") for f in files]
    return "".join(text for k, text in enumerate(texts) if k % 10), "".join(texts[::10])


def variational_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drops the same features [B,E] at every step of x [T,B,E] (Gal & Ghahramani, 2016)."""
    return x * F.dropout(torch.ones_like(x[:1]), p, training)


class TorchLSTM(nn.Module):
    """What fastlstm.LSTM does itself, around nn.LSTM; a seed gives the same masks."""

    def __init__(self, hidden: int, layers: int, p: float) -> None:
        super().__init__()
        self.p = p
        self.layers = nn.ModuleList(nn.LSTM(hidden, hidden) for _ in range(layers))
        for module in self.layers:  # unsafe: without a draw of its own
            parametrize.register_parametrization(module, "weight_hh_l0", nn.Dropout(p), unsafe=True)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        last = []
        for k, lstm in enumerate(self.layers):
            given = None if state is None else (state[0][k : k + 1], state[1][k : k + 1])
            x, after = lstm(variational_dropout(x, self.p, self.training), given)
            last.append(after)
        return x, (torch.cat([h for h, _ in last]), torch.cat([c for _, c in last]))


class LanguageModel(nn.Module):
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
        self.output.weight = self.embed.weight  # tied: Press & Wolf (2017)

    def forward(self, characters: Tensor, state: State | None) -> tuple[Tensor, State]:
        """characters [T,B]; returns the logits [T,B,V] and the last state."""
        x, state = self.lstm(self.embed(characters), state)
        return self.output(variational_dropout(x, self.p, self.training)), state


def columns(text: str, vocabulary: dict[str, int], batch: int) -> Tensor:
    """The text as [N,B]: B stretches that are read side by side. Unknown characters are 0."""
    ids = torch.tensor([vocabulary.get(c, 0) for c in text])
    return ids[: len(ids) // batch * batch].view(batch, -1).t().contiguous()


def bits(model: LanguageModel, data: Tensor, window: int) -> float:
    """Bits per character, with the state carried through all of the data [N,B]."""
    model.eval()
    state, total = None, 0.0
    with torch.no_grad():
        for start in range(0, len(data) - 1, window):
            target = data[start + 1 : start + 1 + window]
            logits, state = model(data[start : start + len(target)], state)
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
    position, state, start = 0, None, time.perf_counter()
    for step in range(args.steps):
        if position + args.window >= len(data):
            position, state = 0, None
        inputs, target = (data[k : k + args.window] for k in (position, position + 1))
        position += args.window
        logits, (h, c) = model(inputs, state)
        state = (h.detach(), c.detach())  # the gradient ends here
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
