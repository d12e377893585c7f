"""Cross-entropy over the vocabulary that never holds more than one block of scores.

The scores of all tokens, [tokens, vocabulary], would be by far the largest tensor of training,
three times over (scores, log-softmax, gradient). Here each block of tokens is scored, and its
gradient computed, at once; what stays is of the size of the inputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 512  # tokens; beyond it nothing is gained, and 512 x 10,000 float32 are 20 MB


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ w.T + bias. In float32 by oneDNN: MKL leaves AVX-512 unused on other makers' CPUs."""
    if _ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")
    return F.linear(x, w, bias)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        label_smoothing: float,
        block: int,
    ) -> Tensor:
        need_grad = any(ctx.needs_input_grad[:3])
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        else:
            dtype = hidden.dtype
        score_dtype = torch.promote_types(dtype, torch.float32)
        w, b = weight.detach().to(dtype), bias.detach().to(dtype)
        loss = hidden.new_zeros((), dtype=score_dtype)
        if need_grad:
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros_like(weight.t(), dtype=score_dtype)
            grad_bias = torch.zeros_like(bias, dtype=score_dtype)
        for begin in range(0, len(hidden), block):
            rows = slice(begin, begin + block)
            h, target = hidden[rows].to(dtype), targets[rows].unsqueeze(1)
            share = token_weights[rows].to(score_dtype).unsqueeze(1)
            log_probs = _product(h, w, b).log_softmax(1, score_dtype)
            nll = (label_smoothing - 1) * log_probs.gather(1, target)
            if label_smoothing:
                nll -= label_smoothing * log_probs.mean(1, keepdim=True)
            loss += (share * nll).sum()
            if need_grad:
                grad = log_probs.exp_()
                if label_smoothing:
                    grad -= label_smoothing / grad.size(1)
                grad.scatter_add_(1, target, grad.new_full(target.shape, label_smoothing - 1))
                # The tokens' weights are multiplied to the small factors of what follows.
                grad_bias.addmv_(grad.t(), share.squeeze(1))
                grad = grad.to(dtype)
                grad_hidden[rows] = _product(grad, w.t()) * share
                grad_weight += _product((h * share).to(dtype).t(), grad.t())
        if need_grad:
            ctx.save_for_backward(
                grad_hidden, grad_weight.t().to(weight.dtype), grad_bias.to(bias.dtype)
            )
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*(saved * grad.to(saved.dtype) for saved in ctx.saved_tensors), *[None] * 4)


def linear_cross_entropy(
    hidden: Tensor,
    linear: nn.Linear,
    targets: Tensor,
    token_weights: Tensor,
    label_smoothing: float = 0.0,
    block: int = BLOCK,
) -> Tensor:
    """The weighted sum of the cross-entropies of ``linear(hidden)``, in nats.

    Args:
        hidden: [N,H].
        linear: the output layer, H to V.
        targets: int64 [N], indices of the words that were right.
        token_weights: [N], the factor of each token's loss; 0 leaves it out. No gradient.
        label_smoothing: share of the target spread evenly over the vocabulary.
        block: number of tokens scored at once.

    Returns:
        A scalar in float32, or float64 for float64 input. Differentiable once.
    """
    return _LinearCrossEntropy.apply(
        hidden, linear.weight, linear.bias, targets, token_weights, label_smoothing, block
    )
