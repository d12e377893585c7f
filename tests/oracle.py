"""The oracle: an LSTM layer written as plainly as possible, row by row and step by step.

Tests call it in float64 and take its results as the truth. It imports nothing of fastlstm and calls
no LSTM of torch; its gradients come from autograd. Unlike the code of fastlstm it masks no padding:
it computes only the real steps of each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def oracle(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Sequence[int] | None = None,
    reset: Tensor | None = None,
    h_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes one layer.

    Args:
        input: [T,B,I].
        h_0: [D,B,P].
        c_0: [D,B,H].
        weights: for each direction W_ih, W_hh, the two biases if any, W_hr if any; with layer
            normalization then gain_ih, gain_hh, gain_c and bias_c.
        lengths: the number of real steps of each row; default: all.
        reset: [T,B], True where the state becomes zero before the step.
        h_mask: [D,B,P], a factor of h in the product with W_hh.
        zoneout_h: [D,T,B,P], the share of the old h in the new h.
        zoneout_c: [D,T,B,H], the share of the old c in the new c.

    Returns:
        output [T,B,D*P], h_n [D,B,P], c_n [D,B,H] and cells [D,T,B,H]. Output and cells are zero
        after the end of each row.
    """

    def normed(x: Tensor, gain: Tensor) -> Tensor:
        x = x - x.sum() / x.numel()
        return gain * x / torch.sqrt((x @ x) / x.numel() + 1e-5)

    steps, batch = input.shape[:2]
    directions, per_direction = h_0.shape[0], len(weights) // h_0.shape[0]
    hidden_size = c_0.shape[2]
    lengths = [steps] * batch if lengths is None else lengths
    outputs: list[list[list[Tensor]]] = [[[] for _ in range(steps)] for _ in range(directions)]
    cells: list[list[list[Tensor]]] = [[[] for _ in range(steps)] for _ in range(directions)]
    h_n: list[list[Tensor]] = [[] for _ in range(directions)]
    c_n: list[list[Tensor]] = [[] for _ in range(directions)]
    for d in range(directions):
        W_ih, W_hh, *rest = weights[d * per_direction : (d + 1) * per_direction]
        norms, rest = (rest[-4:], rest[:-4]) if per_direction >= 6 else (None, rest)
        bias = rest[0] + rest[1] if len(rest) >= 2 else torch.zeros(4 * hidden_size).to(W_ih)
        for b in range(batch):
            h, c = h_0[d, b], c_0[d, b]
            real = range(lengths[b])
            for t in reversed(real) if d else real:
                if reset is not None and reset[t, b]:
                    h, c = torch.zeros_like(h), torch.zeros_like(c)
                before_h, before_c = h, c
                if h_mask is not None:
                    h = h * h_mask[d, b]
                from_x, from_h = W_ih @ input[t, b], W_hh @ h
                if norms is not None:
                    from_x, from_h = normed(from_x, norms[0]), normed(from_h, norms[1])
                a = from_x + from_h + bias
                i, f, g, o = (a[k * hidden_size : (k + 1) * hidden_size] for k in range(4))
                c = c / (1 + torch.exp(-f)) + torch.tanh(g) / (1 + torch.exp(-i))
                normed_c = c if norms is None else normed(c, norms[2]) + norms[3]
                h = torch.tanh(normed_c) / (1 + torch.exp(-o))
                if len(rest) % 2:  # W_hr
                    h = rest[-1] @ h
                if zoneout_h is not None:
                    h = h + zoneout_h[d, t, b] * (before_h - h)
                if zoneout_c is not None:
                    c = c + zoneout_c[d, t, b] * (before_c - c)
                outputs[d][t].append(h)
                cells[d][t].append(c)
            for t in range(lengths[b], steps):
                outputs[d][t].append(torch.zeros_like(h))
                cells[d][t].append(torch.zeros_like(c))
            h_n[d].append(h)
            c_n[d].append(c)

    def join(rows: list[Tensor], state: Tensor) -> Tensor:
        """Stacks the rows; an empty batch takes its shape and dtype from a state."""
        return torch.stack(rows) if rows else state[0]

    return (
        torch.cat([torch.stack([join(t, h_0) for t in outputs[d]]) for d in range(directions)], -1),
        torch.stack([join(h_n[d], h_0) for d in range(directions)]),
        torch.stack([join(c_n[d], c_0) for d in range(directions)]),
        torch.stack([torch.stack([join(t, c_0) for t in cells[d]]) for d in range(directions)]),
    )
