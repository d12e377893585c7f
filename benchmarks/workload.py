"""Turn a case into a step: a callable that does the work once, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import peers
import torch
from cases import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm

SEED = 0
FILL = (0.6, 0.75)  # of ragged batches: real steps / (B * T)

# Largest difference between two implementations, over the largest value: it only shows that both
# did the same work. Accuracy has its own tests.
AGREEMENT = {
    "float64": 1e-9,
    "float32": 1e-3,
    "tf32": 5e-2,
    "products in bfloat16": 5e-2,
    "bfloat16": 1e-1,
    "float16": 2e-2,
    "int8": 1e-1,
}


@dataclass
class Workload:
    """`step()` does the work of a case once and returns the output.

    `leaves` are the input and the weights: in training their .grad is the gradient of that step.
    """

    step: Callable[[], Tensor]
    leaves: list[Tensor]

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


def ragged_lengths(batch: int, steps: int) -> Tensor:
    """The same lengths [B] for the same sizes: uniform, one of them T, the sum within `FILL`."""
    if batch == 1:
        return torch.tensor([steps])
    generator = torch.Generator().manual_seed(SEED)
    while True:
        lengths = torch.randint(max(1, steps // 3), steps + 1, (batch,), generator=generator)
        lengths[torch.randint(batch, (1,), generator=generator)] = steps
        if FILL[0] <= lengths.sum().item() / (batch * steps) <= FILL[1]:
            return lengths


def loop_with_resets(call: Callable[..., Any], reset: Tensor) -> Callable[..., Any]:
    """nn.LSTM called for one step at a time, its state [L,B,H] zeroed where `reset` [T,B] says."""
    keep = (~reset).float().unsqueeze(-1)

    def forward(x: Tensor) -> tuple[Tensor, None]:
        output, state = call(x[:1])
        outputs = [output]
        for x_t, keep_t in zip(x[1:].split(1), keep[1:], strict=True):
            output, state = call(x_t, tuple(keep_t * s for s in state))
            outputs.append(output)
        return torch.cat(outputs), None

    return forward


def padded_and_packed(call: Callable[..., Any], lengths: Tensor) -> Callable[..., Any]:
    """nn.LSTM called with a padded batch x [T,B,I], which is packed for it."""

    def forward(x: Tensor) -> tuple[Tensor, Any]:
        output, state = call(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=len(x))[0], state

    return forward


def loop_over_steps(cell: Callable[..., Any]) -> Callable[..., Any]:
    """An LSTMCell called for one step of x [T,B,I] after the other."""

    def forward(x: Tensor) -> tuple[Tensor, None]:
        state, outputs = None, []
        for x_t in x.unbind():
            state = cell(x_t, state)
            outputs.append(state[0])
        return torch.stack(outputs), None

    return forward


def build_module(case: Case, implementation: str, device: str) -> nn.Module:
    """Builds the module of a case: that of torch.nn or torch.ao, else ours by an engine."""
    layers: dict[str, Any] = {}
    if case.module == "LSTM":
        names = ("num_layers", "bidirectional", "proj_size")
        layers = {name: getattr(case, name) for name in names}
    is_ours = not implementation.startswith("torch.")
    kind = getattr(fastlstm if is_ours else nn, case.module)
    torch.manual_seed(SEED)
    module: Any = kind(case.input_size, case.hidden_size, **layers, device=device, dtype=case.dtype)
    if case.saturated:
        with torch.no_grad():
            module.bias_ih_l0[: case.hidden_size] -= 100
    module.train(case.mode == "training")
    if implementation == "torch.ao":
        return peers.quantized_by_torch_ao(module)
    if case.prepacked and is_ours:
        return fastlstm.prepack(module, getattr(torch, case.prepacked))
    if is_ours:
        module.engine = implementation
    return module


def build(
    case: Case,
    implementation: str,
    device: str,
) -> Workload:
    """Builds the workload of a case: equal inputs and weights for every implementation.

    Args:
        case: what to build.
        implementation: "torch.nn", a peer as in `Case.beside`, or one of
            `fastlstm.functional.ENGINES`.
        device: "cpu" or "cuda".
    """
    in_process = implementation.startswith("onnxruntime")
    module = build_module(case, "torch.nn" if in_process else implementation, device)
    call: Any = module
    # On the device: a CPU would take longer to draw the input than a GPU to walk it.
    generator = torch.Generator(device).manual_seed(SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(case.dtype)

    B, T, I, H = case.batch, case.steps, case.input_size, case.hidden_size
    cell = case.module == "LSTMCell"
    x = draw(B, I) if cell and T == 1 else draw(T, B, I)
    if in_process:
        return Workload(peers.Onnxruntime(module, x, implementation.endswith("int8")), [x])
    if cell and T > 1:
        call = loop_over_steps(call)
    arguments: tuple[Any, ...] = ()
    if T == 1 and not case.lengths:  # one step of decoding continues from a state
        count = () if cell else (case.num_layers * (1 + case.bidirectional),)
        arguments = ((draw(*count, B, case.output_size), draw(*count, B, H)),)
    if case.ragged:
        packed = pack_padded_sequence(x, ragged_lengths(B, T), enforce_sorted=False)
        x = packed.data
    if case.lengths:
        lengths = ragged_lengths(B, T)
        is_torch = implementation == "torch.nn"
        call = padded_and_packed(call, lengths) if is_torch else partial(call, lengths=lengths)
    if case.resets:
        reset = torch.rand((T, B), generator=generator, device=device) < 2 / T
        if implementation == "torch.nn":
            call = loop_with_resets(call, reset)
        else:
            call = partial(call, reset=reset)

    def forward() -> Tensor:
        result = call(packed._replace(data=x) if case.ragged else x, *arguments)[0]
        return result.data if isinstance(result, PackedSequence) else result

    if case.mode == "inference":
        return Workload(forward, [x])

    workload = Workload(forward, [x.requires_grad_(), *module.parameters()])
    grad_output = draw(*x.shape[:-1], case.output_size * (1 + case.bidirectional))

    def training_step() -> Tensor:
        workload.clear()
        output = forward()
        output.backward(grad_output)
        return output

    workload.step = training_step
    return workload


def check_agreement(case: Case, expected: Workload, actual: Workload) -> None:
    """Runs both once.

    Raises:
        RuntimeError: their outputs or gradients differ by more than rounding.
    """
    pairs: list[tuple[Any, Any]] = [(expected.step().detach(), actual.step().detach())]
    if case.mode == "training":
        pairs += [(a.grad, b.grad) for a, b in zip(expected.leaves, actual.leaves, strict=True)]
    for a, b in pairs:
        error = (a - b).abs().max().item() / (a.abs().max().item() or 1)
        if not error <= max(AGREEMENT[case.precision], AGREEMENT[case.prepacked or "float32"]):
            raise RuntimeError(f"{case}: the results differ by {error:.1e} of the largest value")


@contextmanager
def settings(case: Case) -> Iterator[None]:
    """Gradients on or off, and how float32 is multiplied on a GPU and a CPU, as the case says."""
    mkldnn: Any = torch.backends.mkldnn  # whose stubs lack rnn
    rnn = mkldnn.rnn
    gpu: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul  # nn.LSTM, ours
    before = [backend.allow_tf32 for backend in gpu], rnn.fp32_precision
    for backend in gpu:
        backend.allow_tf32 = case.precision == "tf32"
    precisions = {"products in bfloat16": "bf16", "tf32": "tf32"}
    rnn.fp32_precision = precisions.get(case.precision, "none")
    try:
        with torch.set_grad_enabled(case.mode == "training"):
            yield
    finally:
        rnn.fp32_precision = before[1]
        for backend, allowed in zip(gpu, before[0], strict=True):
            backend.allow_tf32 = allowed
