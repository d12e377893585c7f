"""What docs/numerics.md promises under "The same bits", by random calls on the CPU."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import _build

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels")
Results = dict[str, Tensor]


class Case(NamedTuple):
    """A layer, a batch, and how it is called."""

    lstm: fastlstm.LSTM
    x: Tensor  # [T,B,I]
    h: Tensor
    c: Tensor
    lengths: Tensor | None

    @property
    def is_16_bits(self) -> bool:
        return self.x.dtype in (torch.bfloat16, torch.float16)


def draw(rng: random.Random) -> Case:
    """Sizes from one to some beyond a tile, a chunk of steps, and what each thread is worth."""
    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
    I, H = rng.choice([1, 3, 17, 40, 96]), rng.choice([1, 5, 16, 33, 64, 130])
    T, B = rng.choice([1, 1, 2, 7, 30, 70]), rng.choice([1, 2, 3, 8, 21, 70])
    options: dict[str, Any] = {
        "num_layers": rng.choice([1, 1, 2]),
        "bidirectional": rng.random() < 0.3,
        "bias": rng.random() < 0.8,
        "proj_size": rng.randint(1, H - 1) if H > 1 and rng.random() < 0.2 else 0,
    }
    torch.manual_seed(rng.randrange(1 << 30))
    lstm = fastlstm.LSTM(I, H, dtype=dtype, **options)
    lstm.engine = rng.choice(["auto", "tiled", "tiled", "stepwise"])
    count = lstm.num_layers * (2 if lstm.bidirectional else 1)
    h, c = torch.randn(count, B, lstm.proj_size or H), torch.randn(count, B, H)
    lengths = torch.tensor([rng.randint(1, T) for _ in range(B)]) if rng.random() < 0.3 else None
    return Case(lstm, torch.randn(T, B, I).to(dtype), h.to(dtype), c.to(dtype), lengths)


def run(case: Case) -> Results:
    """The outputs, and every gradient of a loss whose own gradients are all different."""
    lstm, _, _, _, lengths = case
    return differentiate(case, lambda x, hx: lstm(x, hx, lengths=lengths))


def run_packed(case: Case) -> Results:
    lengths = cast(Tensor, case.lengths)
    in_order = sorted(lengths.tolist(), reverse=True)

    def call(x: Tensor, hx: tuple[Tensor, Tensor]) -> Any:
        data = pack_padded_sequence(x, lengths, enforce_sorted=lengths.tolist() == in_order)
        output, state = case.lstm(data, hx)
        return pad_packed_sequence(output)[0], state

    return differentiate(case, call)


def differentiate(case: Case, call: Callable[..., Any]) -> Results:
    leaves = [t.detach().clone().requires_grad_() for t in (case.x, case.h, case.c)]
    output, (h_n, c_n) = call(leaves[0], (leaves[1], leaves[2]))
    results = {"output": output, "h_n": h_n, "c_n": c_n}
    weights = dict(case.lstm.named_parameters())
    loss = sum(result.float().sin().sum() for result in results.values())
    gradients = torch.autograd.grad(loss, [*leaves, *weights.values()])
    names = ["d input", "d h_0", "d c_0", *(f"d {name}" for name in weights)]
    results |= dict(zip(names, gradients, strict=True))
    return {name: result.detach() for name, result in results.items()}


def outputs_of(results: Results) -> Results:
    return {name: results[name] for name in ("output", "h_n", "c_n")}


def again(case: Case, rng: random.Random) -> tuple[Results, Results]:
    return run(case), run(case)


def on_other_threads(case: Case, rng: random.Random) -> tuple[Results, Results]:
    before, threads = run(case), torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 3)
    try:
        after = run(case)
    finally:
        torch.set_num_threads(threads)
    return before, after


def with_other_rows(case: Case, rng: random.Random) -> tuple[Results, Results]:
    batch = case.x.size(1)
    rows = rng.sample(range(batch), rng.randint(1, batch))
    lengths = None if case.lengths is None else case.lengths[rows]
    some = case._replace(x=case.x[:, rows], h=case.h[:, rows], c=case.c[:, rows], lengths=lengths)
    names = {"output", "h_n", "c_n"}
    if not case.lstm.bidirectional:
        names |= {"d input", "d h_0", "d c_0"}
    elif case.lstm.num_layers == 1:
        names |= {"d h_0", "d c_0"}
    whole, part = run(case), run(some)
    return {name: whole[name][:, rows] for name in names}, {name: part[name] for name in names}


def without_gradients(case: Case, rng: random.Random) -> tuple[Results, Results]:
    lstm, x, h, c, lengths = case
    with torch.no_grad():
        output, (h_n, c_n) = lstm(x, (h, c), lengths=lengths)
    return outputs_of(run(case)), {"output": output, "h_n": h_n, "c_n": c_n}


def packed(case: Case, rng: random.Random) -> tuple[Results, Results]:
    T, B = case.x.shape[:2]
    lengths = [T, *(rng.randint(1, T) for _ in range(B - 1))]
    if in_order := rng.random() < 0.5:
        lengths.sort(reverse=True)
    case = case._replace(lengths=torch.tensor(lengths))
    before, after = run(case), run_packed(case)
    if not in_order:  # the rows that weights sum over are
        before = {
            name: r for name, r in before.items() if "weight" not in name and "bias" not in name
        }
    return before, {name: after[name] for name in before}


def in_two_calls(case: Case, rng: random.Random) -> tuple[Results, Results]:
    lstm, x, h, c, _ = case
    at = rng.randint(1, len(x))
    with torch.no_grad():
        output, state = lstm(x, (h, c))
        first, middle = lstm(x[:at], (h, c))
        if lstm.bidirectional or case.is_16_bits:  # which round c between the calls
            return ({}, {}) if lstm.bidirectional else ({"output": output[:at]}, {"output": first})
        second, last = lstm(x[at:], middle) if at < len(x) else (x.new_empty(0), middle)
    whole = {"output": output, "h_n": state[0], "c_n": state[1]}
    return whole, {"output": torch.cat([first, second]), "h_n": last[0], "c_n": last[1]}


def step_by_step(case: Case, rng: random.Random) -> tuple[Results, Results]:
    lstm, x, h, c, _ = case
    if lstm.proj_size or lstm.bidirectional or lstm.num_layers > 1:
        return {}, {}
    cell = fastlstm.LSTMCell(lstm.input_size, lstm.hidden_size, lstm.bias, dtype=x.dtype)
    cell.load_state_dict({name[:-3]: w for name, w in lstm.state_dict().items()})
    cell.engine = lstm.engine
    with torch.no_grad():
        output, (_, c_n) = lstm(x, (h, c))
        found, state = [], (h[0], c[0])
        for row in x[: 1 if case.is_16_bits else None]:
            state = cell(row, state)
            found.append(state[0])
    whole = {"output": output[: len(found)]} | ({} if case.is_16_bits else {"c_n": c_n[0]})
    return whole, {"output": torch.stack(found), "c_n": state[1]}


OF_ALL = [again, without_gradients]
OF_TILED = [
    *OF_ALL,
    on_other_threads,
    with_other_rows,
    packed,
    in_two_calls,
    step_by_step,
]


def check(seed: int) -> None:
    rng = random.Random(seed)
    case = draw(rng)
    promise = rng.choice(OF_ALL if case.lstm.engine == "stepwise" else OF_TILED)
    before, after = promise(case, rng)
    different = [name for name in before if not torch.equal(before[name], after[name])]
    about = f"{promise.__name__} of seed {seed}: {case.lstm}, {tuple(case.x.shape)} {case.x.dtype}"
    assert not different, f"{about}: {different}"


@pytest.mark.parametrize("block", range(3))
def test_some(block: int) -> None:
    for seed in range(20 * block, 20 * (block + 1)):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_two_thousand(block: int) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        check(seed)
