"""Builds the workload of a case: a function that runs the case once, with its input and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import peers
import torch
from cases import Case
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm

SEED = 0
FILL = (0.6, 0.75)  # the range of (sum of the lengths) / (B * T) in a ragged batch

# The largest difference allowed between two implementations, divided by the largest value. It only
# shows that both did the same work; tests and numerics.py measure the accuracy.
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
    """The work of a case.

    Attributes:
        step: runs the case once and returns the output.
        leaves: in training the input and the weights, whose .grad is the gradient of the last step;
            in inference only the input.
    """

    step: Callable[[], Tensor]
    leaves: list[Tensor]

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


def ragged_lengths(batch: int, steps: int) -> Tensor:
    """Returns random lengths [B]: uniform, at least one of them T, with a sum within `FILL`.

    All lengths are T if there is one row or one step. The same sizes always get the same lengths.
    """
    if batch == 1 or steps == 1:
        return torch.full((batch,), steps)
    generator = torch.Generator().manual_seed(SEED)
    while True:
        lengths = torch.randint(max(1, steps // 3), steps + 1, (batch,), generator=generator)
        lengths[torch.randint(batch, (1,), generator=generator)] = steps
        if FILL[0] <= lengths.sum().item() / (batch * steps) <= FILL[1]:
            return lengths


def loop_with_resets(call: Callable[..., Any], reset: Tensor) -> Callable[..., Any]:
    """Returns a function of x [T,B,I] that calls nn.LSTM once for every step.

    The state of row b is set to zero before step t > 0 if reset[t,b].
    """
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
    """Returns a function of a padded batch x [T,B,I] that packs x, calls nn.LSTM and pads again."""

    def forward(x: Tensor) -> tuple[Tensor, Any]:
        output, state = call(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=len(x))[0], state

    return forward


def loop_over_steps(cell: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of x [T,B,I] that calls an LSTMCell once for every step."""

    def forward(x: Tensor) -> tuple[Tensor, None]:
        state, outputs = None, []
        for x_t in x.unbind():
            state = cell(x_t, state)
            outputs.append(state[0])
        return torch.stack(outputs), None

    return forward


def build_module(case: Case, implementation: str, device: str) -> nn.Module:
    """Builds the module of a case by "torch.nn", "torch.ao" or an engine of fastlstm."""
    layers: dict[str, Any] = {}
    if case.module == "LSTM":
        names = ("num_layers", "bidirectional", "proj_size")
        layers = {name: getattr(case, name) for name in names}
    is_ours = not implementation.startswith("torch.")
    kind = getattr(fastlstm if is_ours else nn, case.module)
    torch.manual_seed(SEED)
    # The weights are drawn in float32, so that they are the same in all dtypes but for rounding.
    module: Any = kind(case.input_size, case.hidden_size, **layers, device=device).to(case.dtype)
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


def build(case: Case, implementation: str, device: str) -> Workload:
    """Builds the workload of a case, with the same input and weights for every implementation.

    An implementation is a name that `Case.peer` lists, or one of `fastlstm.functional.ENGINES`.
    """
    by_onnxruntime = implementation.startswith("onnxruntime")
    module = build_module(case, "torch.nn" if by_onnxruntime else implementation, device)
    call: Any = module
    # The input is drawn on the device, because drawing it on a CPU is slow for large cases.
    generator = torch.Generator(device).manual_seed(SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(case.dtype)

    B, T, I, H = case.batch, case.steps, case.input_size, case.hidden_size
    is_cell = case.module == "LSTMCell"
    x = draw(B, I) if is_cell and T == 1 else draw(T, B, I)
    if by_onnxruntime:
        return Workload(peers.Onnxruntime(module, x, implementation.endswith("int8")), [x])
    if is_cell and T > 1:
        call = loop_over_steps(call)
    arguments: tuple[Any, ...] = ()
    if T == 1 and not case.lengths:  # a single step starts from a state, as in decoding
        leading = () if is_cell else (case.num_layers * (1 + case.bidirectional),)
        arguments = ((draw(*leading, B, case.output_size), draw(*leading, B, H)),)
    if case.ragged:
        packed = pack_padded_sequence(x, ragged_lengths(B, T), enforce_sorted=False)
        x = packed.data
    if case.lengths:
        lengths = ragged_lengths(B, T)
        is_torch = implementation == "torch.nn"
        call = padded_and_packed(call, lengths) if is_torch else partial(call, lengths=lengths)
    if case.resets:
        reset = torch.rand((T, B), generator=generator, device=device) < 2 / T
        is_torch = implementation == "torch.nn"
        call = loop_with_resets(call, reset) if is_torch else partial(call, reset=reset)

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


def results(workload: Workload) -> list[Tensor]:
    """Runs a workload once and returns its output and, in training, its gradients."""
    output = workload.step().detach()
    return [output, *(leaf.grad for leaf in workload.leaves if leaf.grad is not None)]


def difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Returns the largest difference of two lists of tensors, relative to each tensor's maximum."""
    pairs = zip(expected, actual, strict=True)
    ratios = [(a - b).abs().max() / (a.abs().max().item() or 1) for a, b in pairs]
    return torch.stack([ratio.double() for ratio in ratios]).max().item()  # NaN if one is


def check_agreement(case: Case, expected: Workload, actual: Workload) -> None:
    """Runs two workloads once and compares their outputs and, in training, their gradients.

    In bfloat16 and float16 two results can differ more from each other than `AGREEMENT` allows.
    Then the actual results are compared with nn.LSTM in float64, from which they may differ by
    1.5 times as much as the expected results.

    Raises:
        RuntimeError: they differ by more than that.
    """
    theirs, ours = results(expected), results(actual)
    error = difference(theirs, ours)
    allowed = max(AGREEMENT[case.precision], AGREEMENT[case.prepacked or "float32"])
    if not error <= allowed and case.precision in ("bfloat16", "float16"):
        device = str(actual.leaves[0].device)
        exact = results(build(replace(case, precision="float64"), "torch.nn", device))
        error, allowed = difference(exact, ours), 1.5 * difference(exact, theirs)
    if not error <= allowed:
        raise RuntimeError(f"{case}: the results differ by {error:.1e} of the largest value")


@contextmanager
def settings(case: Case) -> Iterator[None]:
    """A context with the settings of a case: gradients on or off, and the precision of float32."""
    mkldnn: Any = torch.backends.mkldnn  # typed as Any because its type stubs lack `rnn`
    rnn = mkldnn.rnn
    # cudnn is for nn.LSTM on a GPU, cuda.matmul for fastlstm.
    gpu: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
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
