"""One call of the ops with its arguments, the oracle's answer, and the comparison."""

import torch
from oracle import oracle

from fastlstm._call import LstmCall, layout_of

# Roundoff of each kind of arithmetic; errors are stated in multiples of it.
ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "bfloat16": 2.0**-9,
    "float16": 2.0**-11,
}
TOLERANCE = 32
# How much more error than nn.LSTM is allowed. Both round at different places and sum in different
# orders, which makes either ahead by a factor of up to 1.7.
FACTOR = 2


def dtype_of(kind):
    """kind is a dtype's name, or "tf32": float32 with products in TF32."""
    return getattr(torch, "float32" if kind == "tf32" else kind)


class Call:
    """ops: torch.ops.fastlstm or its stand-in. Values are drawn and judged on the CPU."""

    def __init__(
        self,
        kind,
        form="dense",
        directions=1,
        steps=5,
        batch=5,
        input_size=6,
        hidden_size=16,
        bias=True,
        reset=False,
        masks=False,
        norms=False,
        ops=None,
        device="cpu",
    ):
        torch.manual_seed(0)
        self.kind, self.form, self.batch_sizes, self.lengths = kind, form, None, None
        # A norm divides by deviations well below one, and errors with them.
        self.tolerance = 4 * TOLERANCE if norms else TOLERANCE
        dtype, D, T, B, H = dtype_of(kind), directions, steps, batch, hidden_size
        rand = lambda *shape: torch.randn(shape).to(dtype)
        self.h_0, self.c_0 = rand(D, B, H) / 2, rand(D, B, H) / 2
        shapes = [(4 * H, input_size), (4 * H, H)] + [(4 * H,)] * (2 * bias)
        shapes += [(4 * H,), (4 * H,), (H,), (H,)] * norms
        self.weights = [rand(*shape) / shape[-1] ** 0.5 for _ in range(D) for shape in shapes]
        if norms:
            for first in range(len(shapes) - 4, len(self.weights), len(shapes)):
                for gain in self.weights[first : first + 3]:
                    gain += 1
        lengths = [T] * B
        if form != "dense":
            lengths = [T, *torch.randint(int(form == "packed"), T + 1, (B - 1,)).tolist()]
        if form == "packed":
            lengths.sort(reverse=True)
            self.batch_sizes = torch.tensor([sum(n > t for n in lengths) for t in range(T)])
        elif form == "lengths":
            self.lengths = torch.tensor(lengths)
        self.reset = torch.rand(T, B) < 0.25 if reset else None
        self.masks = [None] * 3  # h_mask, zoneout_h, zoneout_c
        if masks:
            wanted = [True] * 3 if masks is True else masks
            self.masks = [
                torch.randint(3, shape).to(dtype) / 2 if is_there else None
                for shape, is_there in zip(
                    [(D, B, H), (D, T, B, H), (D, T, B, H)], wanted, strict=True
                )
            ]
        x, dy, dcells = rand(T, B, input_size), rand(T, B, D * H), torch.randn(D, T, B, H)
        live = torch.arange(T)[:, None] < torch.tensor(lengths)
        dy, dcells = dy * live[..., None], dcells * live[..., None]
        state = torch.float64 if kind == "float64" else torch.float32
        grads = [dy, rand(D, B, H), rand(D, B, H), dcells.to(state)]

        wide = [
            t.to(torch.float64, copy=True).requires_grad_()
            for t in (x, self.h_0, self.c_0, *self.weights)
        ]
        outputs = oracle(
            *wide[:3],
            wide[3:],
            lengths,
            self.reset,
            *(m if m is None else m.double() for m in self.masks),
        )
        gradients = torch.autograd.grad(outputs, wide, [g.double() for g in grads])
        flat = lambda t, dim: t[live] if dim == 0 else t[:, live]
        self.input, self.grads = x, grads
        self.expected = [o.detach() for o in outputs]
        grad_input, grad_h_0, grad_c_0, *grad_weights = gradients
        if form == "packed":
            self.input = flat(x, 0)
            self.masks[1:] = [m if m is None else flat(m, 1) for m in self.masks[1:]]
            self.grads = [flat(dy, 0), *grads[1:3], flat(grads[3], 1)]
            self.expected[0], self.expected[3] = flat(outputs[0], 0), flat(outputs[3], 1)
            grad_input = flat(grad_input, 0)
        each = len(shapes)
        grad_weights = [g for i, g in enumerate(grad_weights) if i % each != 3 or not bias]
        self.expected_gradients = [grad_input, grad_h_0, grad_c_0, *grad_weights]
        self.live, self.ops, self.layout = live, ops, layout_of(bias, layer_norm=norms)
        move = lambda t: None if t is None else t.to(device)
        self.input, self.h_0, self.c_0 = move(self.input), move(self.h_0), move(self.c_0)
        self.weights, self.grads = [move(w) for w in self.weights], [move(g) for g in self.grads]
        self.lengths, self.reset = move(self.lengths), move(self.reset)
        self.masks = [move(m) for m in self.masks]

    def arguments(self):
        """The tensors of a layer, as both ops take them."""
        return LstmCall(
            self.input,
            self.h_0,
            self.c_0,
            self.weights,
            self.layout,
            self.batch_sizes,
            self.lengths,
            self.reset,
            *self.masks,
        )

    def forward(self, engine):
        return self.ops.lstm(*self.arguments(), True, True, False, engine)

    def backward(
        self, saved, engine, grads=None, state_needs_grad=True, per_row=False, recompute=False
    ):
        output, _, _, cells, gates = saved
        gates = gates.new_empty(0) if recompute else gates
        return self.ops.lstm_backward(
            *self.arguments(),
            *(grads or self.grads),
            output,
            cells,
            gates,
            True,
            state_needs_grad,
            per_row,
            engine,
        )

    def check_close(self, actual, expected, what):
        assert actual.shape == expected.shape, what
        bound = self.tolerance * ROUNDOFF[self.kind] * max(1, expected.abs().max().item())
        error = (actual.cpu().double() - expected).abs().max().item()
        assert error <= bound, f"{what}: {error} > {bound}"  # not for a NaN either

    def check_forward(self, results):
        for actual, expected, what in zip(
            results, self.expected, ("output", "h_n", "c_n", "cells"), strict=False
        ):
            if what == "cells" and self.form == "lengths":
                actual = actual.cpu() * self.live[..., None]  # carried state where a row is dead
            self.check_close(actual, expected, what)

    def check_backward(self, results):
        grad_input, grad_h_0, grad_c_0, grad_weights = results
        actual = [grad_input, grad_h_0, grad_c_0, *grad_weights]
        assert len(actual) == len(self.expected_gradients)
        for i, (a, e) in enumerate(zip(actual, self.expected_gradients, strict=True)):
            self.check_close(a, e, f"gradient {i}")
