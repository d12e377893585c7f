"""One call of the ops: its arguments, the results of the oracle, and the comparison of both."""

from collections.abc import Sequence
from typing import Any

import torch
from samples import Sample, floating, with_floating
from torch import Tensor

from fastlstm.engine.call import LstmCall

# Tolerances are multiples of these unit roundoffs; for bfloat16, of half its unit roundoff 2**-8.
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11}
ROUNDOFF |= {"bfloat16": 2.0**-9, "float16": 2.0**-11}
TOLERANCE = 32
# The largest error that is allowed, divided by nn.LSTM's error. Two LSTMs that sum in different
# orders round differently: the error of one may be up to 1.7 times the error of the other.
MAX_ERROR_RATIO = 2


def dtype_of(kind: str) -> torch.dtype:
    """Returns the dtype of a kind: the name of a dtype, or "tf32", float32 multiplied in TF32."""
    dtype: torch.dtype = getattr(torch, "float32" if kind == "tf32" else kind)
    return dtype


KINDS = ["float32", "tf32", "bfloat16", "float16"]
RAGGED: dict[str, Any] = {"form": "lengths", "reset": True, "directions": 2}
PACKED: dict[str, Any] = {"form": "packed", "directions": 2}
# Engines and options of calls that are tested in the emulator of a GPU and on a GPU.
GPU_CALLS: list[tuple[str, dict[str, Any]]] = [
    *((engine, {"form": form, "directions": 2, "batch": batch})
      for engine, batch in (("stepwise", 5), ("persistent", 5), ("persistent", 13))
      for form in ("dense", "packed", "lengths")),
    ("stepwise", {"h_mask": True, "reset": True, "bias": False}),
    ("stepwise", {"h_mask": True, **RAGGED}), ("stepwise", {"h_mask": True, **PACKED}),
    ("stepwise", {"proj_size": 5, "bias": False}),
    *(("stepwise", {"proj_size": 5, "h_mask": True, **form}) for form in (RAGGED, PACKED)),
    *(("stepwise", {"norms": True, **form}) for form in ({}, RAGGED, PACKED)),
    ("stepwise", {"norms": True, "h_mask": True, "reset": True, "bias": False}),
    ("stepwise", {"norms": True, "hidden_size": 270, "steps": 2, "batch": 3}),
    # Thread blocks exchange padded rows; results and gradients must have no padding.
    ("persistent", RAGGED), ("persistent", {"bias": False, "hidden_size": 15}),
    ("persistent", {"hidden_size": 10, **PACKED}), ("persistent", {"hidden_size": 13, **RAGGED}),
    ("persistent", {"steps": 1}), ("persistent", {"batch": 1}),
    ("persistent", {"batch": 21, "steps": 3, **PACKED}),
]  # fmt: skip


class Call:
    """The arguments of the ops for a sample, as attributes, which a test may change before a call.

    `form` is "dense", "packed" or "lengths". Values are drawn and compared on the CPU.
    """

    def __init__(
        self,
        kind: str,
        form: str = "dense",
        directions: int = 1,
        steps: int = 5,
        batch: int = 5,
        ops: Any = None,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.kind, self.form, self.ops = kind, form, ops or torch.ops.fastlstm
        # Layer normalization divides by a standard deviation well below one: errors grow.
        self.tolerance = 4 * TOLERANCE if options.get("norms") else TOLERANCE
        drawn = torch.randint(1, steps + 1, (batch - 1,)).tolist()
        if form == "lengths" and drawn:
            drawn[-1] = 0
        lengths = (steps, *sorted(drawn, reverse=True))
        options = {"input_size": 6, "hidden_size": 16, "directions": directions} | options
        if form != "dense":
            options |= {"lengths": lengths, "packed": form == "packed"}
        sample = Sample("call", steps, batch, **options)
        padded = sample.padded(dtype_of(kind))
        self.real = torch.arange(steps)[:, None] < torch.tensor(sample.lengths or [steps] * batch)
        self.grads = [grad.to(device) for grad in self._expect(sample, padded)]
        given = sample.as_layer(padded)
        for name, value in given.items():
            if isinstance(value, Tensor) and name != "batch_sizes":
                given[name] = value.to(device)
        given["weights"] = [weight.to(device) for weight in given["weights"]]
        vars(self).update(given)

    def _expect(self, sample: Sample, padded: dict[str, Any]) -> list[Tensor]:
        """Stores the oracle's results and gradients; returns the gradients given to backward."""
        wide = [t.to(torch.float64, copy=True).requires_grad_() for t in floating(padded)]
        h_mask = padded["h_mask"].double() if sample.h_mask else None
        outputs = sample.oracle({**with_floating(padded, wide), "h_mask": h_mask})
        cells_dtype = torch.float64 if self.kind == "float64" else torch.float32
        grads: list[Tensor] = [torch.randn(r.shape).to(dtype_of(self.kind)) for r in outputs]
        grads[3] = grads[3].to(cells_dtype)
        if self.form == "lengths":
            for grad in (grads[0], grads[3]):
                grad *= self.real[..., None]
        gradients = torch.autograd.grad(outputs, wide, [g.double() for g in grads])
        grad_input, grad_h_0, grad_c_0, *grad_weights = gradients
        if self.form == "packed":
            grad_input = grad_input[self.real]
        if sample.bias:  # the op returns one gradient for both biases
            per_direction = len(grad_weights) // sample.directions
            grad_weights = [g for k, g in enumerate(grad_weights) if k % per_direction != 3]
        self.expected = [result.detach() for result in outputs]
        self.expected_gradients = [grad_input, grad_h_0, grad_c_0, *grad_weights]
        return grads

    def arguments(self) -> LstmCall:
        return LstmCall(*(getattr(self, name) for name in LstmCall._fields))

    def forward(self, engine: str) -> tuple[Tensor, ...]:
        return self.ops.lstm(*self.arguments(), True, True, engine)

    def backward(
        self,
        saved: Sequence[Tensor],
        engine: str,
        grads: list[Tensor | None] | None = None,
        return_d_gates: bool = False,
    ) -> tuple[Any, ...]:
        output, _, _, cells, gates = saved
        given = *self.arguments(), *(grads or self.grads), output, cells, gates
        return self.ops.lstm_backward(*given, True, True, return_d_gates, engine)

    def check(self, engine: str) -> None:
        saved = self.forward(engine)
        self.check_forward(saved)
        self.check_backward(self.backward(saved, engine))

    def check_close(self, actual: Tensor, expected: Tensor, what: str) -> None:
        assert actual.shape == expected.shape, what
        bound = self.tolerance * ROUNDOFF[self.kind] * max(1, expected.abs().max().item())
        error = (actual.cpu().double() - expected).abs().max().item()
        assert error <= bound, f"{what}: error {error}, expected at most {bound}"  # fails on NaN

    def check_forward(self, results: Sequence[Tensor]) -> None:
        names = "output", "h_n", "c_n", "cells"
        for actual, expected, what in zip(results, self.expected, names, strict=False):
            if what == "cells" and self.form == "lengths":
                actual = actual.cpu() * self.real[..., None]  # unspecified after the end of a row
            self.check_close(actual, expected, what)

    def check_backward(self, results: Sequence[Any]) -> None:
        grad_input, grad_h_0, grad_c_0, grad_weights = results
        actual = [grad_input, grad_h_0, grad_c_0, *grad_weights]
        assert len(actual) == len(self.expected_gradients)
        for i, (a, e) in enumerate(zip(actual, self.expected_gradients, strict=True)):
            self.check_close(a, e, f"gradient {i}")
