"""Cross-entropy over the vocabulary that never holds more than one block of scores.

The scores of all tokens, [tokens, vocabulary], would be by far the largest tensor of training,
three times over (scores, log-softmax, gradient). Here each block of tokens is scored, and its
gradient computed, at once; what stays is of the size of the inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 512  # tokens; beyond it nothing is gained, and 512 x 10,000 float32 are 20 MB


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
            grad_weight = torch.zeros_like(weight, dtype=score_dtype)
            grad_bias = torch.zeros_like(bias, dtype=score_dtype)
        for begin in range(0, len(hidden), block):
            rows = slice(begin, begin + block)
            h, target = hidden[rows].to(dtype), targets[rows].unsqueeze(1)
            share = token_weights[rows].to(score_dtype).unsqueeze(1)
            scores = torch.addmm(b, h, w.t()).to(score_dtype)
            log_sum = scores.logsumexp(1, keepdim=True)
            nll = log_sum - (1 - label_smoothing) * scores.gather(1, target)
            if label_smoothing:
                nll -= label_smoothing * scores.mean(1, keepdim=True)
            loss += (share * nll).sum()
            if need_grad:
                grad = scores.sub_(log_sum).exp_()
                if label_smoothing:
                    grad -= label_smoothing / grad.size(1)
                grad.scatter_add_(1, target, grad.new_full(target.shape, label_smoothing - 1))
                grad = grad.mul_(share).to(dtype)
                grad_hidden[rows] = grad @ w
                if dtype == score_dtype:
                    grad_weight.addmm_(grad.t(), h)
                else:
                    grad_weight += grad.t() @ h
                grad_bias += grad.sum(0, dtype=score_dtype)
        if need_grad:
            ctx.save_for_backward(
                grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)
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
