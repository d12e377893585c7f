"""Random programs of single steps: an LSTMCell does what nn.LSTMCell does, whatever is done to it.

    python tests/step_programs.py 1234        # one program
    python tests/step_programs.py 0 5000      # those of 5,000 seeds

A program trains a cell by some loops of steps. It draws what users and libraries do between the
steps: hooks, writing in place, freed memory, exceptions, checkpoints, second derivatives. It leaves
a record: every gradient, every call of a hook, every error, and the tensors that are still alive at
its end. Both cells must leave the same.

Left out: hooks of c, since on the CPU nn.LSTMCell computes h from c in an operation of its own (not
on a GPU); writing to weights in place, where autograd checks all of ours; after giving a weight
other data or freeing a state second derivatives, a second backward and gradients of some inputs
alone, where we need more of them as they were, and say so.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Any

import torch
from fuzzed_calls import Draw, main
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fastlstm

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Record = list[tuple[str, Any]]
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Stop(Exception):
    """Raised by a hook in the middle of backward."""


class Program:
    """What the steps of one cell are made to do, drawn from a seed."""

    def __init__(self, seed: int, kind: type[nn.Module]) -> None:
        self.draw = Draw(seed)
        self.record: Record = []
        self.states: list[weakref.ref[Tensor]] = []
        self.oldest = torch.ones((), requires_grad=True) * 1
        self.sizes = self.draw.size(1, 5), self.draw.size(1, 6)
        self.batch = self.draw.pick(1, 2, 3, 400)
        bias = self.draw.chance(0.8)
        plain = nn.LSTMCell(*self.sizes, bias, dtype=torch.float64)
        self.cell = kind(*self.sizes, bias, dtype=torch.float64)
        self.cell.load_state_dict(plain.state_dict())

    def run(self) -> Record:
        if self.draw.chance(0.15):
            parametrizations.weight_norm(self.cell, "weight_hh")
        for name, parameter in self.cell.named_parameters():
            parameter.requires_grad_(not self.draw.chance(0.1))
            if parameter.requires_grad and self.draw.chance(0.2):
                parameter.register_hook(partial(self.note, f"hook of {name}"))
            if parameter.requires_grad and self.draw.chance(0.1):
                parameter.register_post_accumulate_grad_hook(
                    lambda p, name=name: self.note(f"hook after {name}", p.grad)
                )
        for _ in range(self.draw.size(1, 3)):
            in_thread = self.draw.chance(0.1)
            if in_thread:
                thread = threading.Thread(target=self.iteration)
                thread.start()
                thread.join()
            else:
                self.iteration()
            if self.draw.chance(0.5):
                self.cell.zero_grad()
        # What a failed backward left in autograd's queue goes before the oldest node's turn.
        self.oldest.backward()
        gc.collect()
        deadline = time.monotonic() + 1  # a thread's queue dies some time after join()
        while (alive := sum(s() is not None for s in self.states)) and time.monotonic() < deadline:
            time.sleep(0.001)
        self.record.append(("alive", alive))
        return self.record

    def note(self, what: str, value: Any) -> None:
        self.record.append((what, value.detach().clone() if isinstance(value, Tensor) else value))

    def attempt(self, what: str, action: Callable[[], Any]) -> None:
        """Carries an action out; of one that fails only the error is noted, not how far it came."""
        begin = len(self.record)
        try:
            action()
        except (RuntimeError, Stop) as error:
            del self.record[begin:]
            self.note(what, type(error).__name__)
            self.cell.zero_grad()

    # --- forward ---

    def input(self) -> Tensor:
        x = self.draw.restride(self.draw.values(self.batch, self.sizes[0]))
        if self.draw.chance(0.1):
            x = torch._neg_view(x)
        if self.draw.chance(0.05):
            x = torch._efficientzerotensor(self.batch, self.sizes[0], dtype=torch.float64)
        return x.requires_grad_(self.draw.chance(0.5) and not x._is_zerotensor())

    def step(self) -> Step:
        def step(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            stepped: tuple[Tensor, Tensor] = self.cell(x, (h, c))
            return stepped

        if not self.draw.chance(0.15):
            return step
        reentrant = self.draw.chance(0.3)
        return lambda x, h, c: checkpoint(step, x, h, c, use_reentrant=reentrant)  # type: ignore

    def iteration(self) -> None:
        step, inputs, states, self.changed = self.step(), [], [], False
        h, c = (self.draw.values(self.batch, self.sizes[1]) for _ in range(2))
        h.requires_grad_(self.draw.chance(0.3)), c.requires_grad_(self.draw.chance(0.3))
        loss = h.new_zeros(())
        anomaly = self.draw.chance(0.05)
        with torch.autograd.set_detect_anomaly(anomaly) if anomaly else nullcontext():
            for t in range(self.draw.size(1, 6)):
                x = self.input()
                inputs.append(x)
                h, c = step(x, h, c)
                self.states += map(weakref.ref, (h, c))
                h, c = self.change(h, c)
                states.append((h, c))
                loss = loss + (h * (t + 1)).sin().sum() + c.mean() * self.draw.pick(0, 1)
                if self.draw.chance(0.1):
                    self.attempt("other data", self.replace_data)
            self.hook_to_all(states)
            for _ in range(self.draw.pick(0, 0, 0, 1)):
                self.attempt("other data", self.replace_data)
            self.backward(loss, inputs, states)

    def change(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """What happens to a state before the next step."""
        if h.requires_grad and self.draw.chance(0.2):
            h.register_hook(lambda grad: self.note("early hook of h", grad))
        kind = self.draw.pick(*["none"] * 6, "h in place", "c in place", "detach", "scale", "keep")
        if kind == "h in place":
            h.mul_(0.5)
        elif kind == "c in place":
            c.add_(0.5)
        elif kind == "detach":
            h, c = h.detach(), c.detach()
        elif kind == "scale":
            h = h * 0.9
        elif kind == "keep" and h.requires_grad:
            h.retain_grad()
        return h, c

    def hook_to_all(self, states: list[tuple[Tensor, Tensor]]) -> None:
        for h, _ in states:
            if not h.requires_grad:
                continue
            kind = self.draw.pick(*["none"] * 8, "count", "scale", "free", "stop")
            if kind == "count":
                h.register_hook(lambda grad: self.note("hook of h", grad))
            elif kind == "scale":
                h.register_hook(lambda grad: grad * 2)
            elif kind == "free":  # as FSDP does with what backward has used
                h.register_hook(partial(self.free, h.untyped_storage()))
                self.changed = True
            elif kind == "stop":
                h.register_hook(self.stop)

    def stop(self, _: Tensor) -> None:
        raise Stop

    def free(self, storage: torch.UntypedStorage, _: Tensor) -> None:
        storage.resize_(0)

    def replace_data(self) -> None:
        weight = self.draw.pick(*self.cell.parameters())
        self.changed = True
        weight.data = weight.data * 0.75

    # --- backward ---

    def backward(
        self, loss: Tensor, inputs: list[Tensor], states: list[tuple[Tensor, Tensor]]
    ) -> None:
        if not loss.requires_grad:
            self.note("no gradient", None)
            return
        kinds = ["twice", "parts", "some", "second", "scaled"]
        kind = "once" if self.changed else self.draw.pick("once", "once", *kinds)
        again = {"retain_graph": True}
        if kind == "twice":
            self.attempt("first of two", lambda: loss.backward(**again))
        elif kind == "some":
            wanted = [t for t in (*inputs, *self.cell.parameters()) if t.requires_grad]
            wanted = [t for t in wanted if self.draw.chance(0.5)]
            self.attempt("some", lambda: self.gradients(loss, wanted, **again))
        elif kind == "scaled":
            self.attempt("scaled", lambda: self.scaled(loss, **again))
        elif kind == "second":
            self.attempt("second derivative", lambda: self.second_derivative(loss, inputs))
        elif kind == "parts":
            h = self.draw.pick(*states)[0]
            if h.requires_grad:
                self.attempt("a part", lambda: h.sum().backward(**again))
        self.attempt("backward", loss.backward)
        if self.record[-1:] == [("backward", "RuntimeError")]:
            return
        for name, tensor in (*self.cell.named_parameters(), *(("x", x) for x in inputs)):
            if tensor.is_leaf:
                self.note(name, tensor.grad)

    def gradients(self, loss: Tensor, wanted: list[Tensor], **options: bool) -> None:
        if wanted:
            for gradient in torch.autograd.grad(loss, wanted, allow_unused=True, **options):
                self.note("gradient", gradient)

    def scaled(self, loss: Tensor, **options: bool) -> None:
        """In place, as clipping and all-reduce do with gradients."""
        wanted = [p for p in self.cell.parameters() if p.requires_grad]
        if wanted:
            for gradient in torch.autograd.grad(loss, wanted, **options):
                gradient.mul_(2)
                self.note("scaled", gradient)

    def second_derivative(self, loss: Tensor, inputs: list[Tensor]) -> None:
        wanted = [t for t in (*inputs, *self.cell.parameters()) if t.requires_grad]
        if wanted:
            found = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
            squares = [g.square().sum() for g in found if g is not None]
            torch.stack(squares).sum().backward(retain_graph=True)


def in_order(record: Record) -> Record:
    """Hooks that follow each other sorted by name: autograd promises no order among branches."""
    blocks = groupby(record, key=lambda entry: "hook" in entry[0])
    return [
        entry
        for is_hook, block in blocks
        for entry in (sorted(block, key=lambda entry: entry[0]) if is_hook else block)
    ]


def compare(seed: int) -> None:
    """Raises AssertionError where the two cells differ."""
    kinds = (fastlstm.LSTMCell, nn.LSTMCell)
    ours, theirs = (in_order(Program(seed, kind).run()) for kind in kinds)
    assert [what for what, _ in ours] == [what for what, _ in theirs], "other notes"
    for (what, mine), (_, other) in zip(ours, theirs, strict=True):
        if what == "alive":
            assert mine <= other, f"alive: {mine}, nn.LSTMCell: {other}"
        elif isinstance(mine, Tensor) and isinstance(other, Tensor):
            close = {"rtol": 1e-9, "atol": 1e-12, "equal_nan": True}
            torch.testing.assert_close(mine, other, **close, msg=lambda m, w=what: f"{w}: {m}")
        else:
            assert mine == other, f"{what}: {mine}, nn.LSTMCell: {other}"


def run(seed: int) -> str | None:
    """Compares the two records; returns where they differ."""
    try:
        compare(seed)
    except Exception:
        return f"seed {seed}:\n{traceback.format_exc(limit=-3)}"
    return None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], run))
