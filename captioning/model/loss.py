"""Cross-entropy over the vocabulary, with only one block of scores in memory at a time.

The scores of all tokens, [tokens, vocabulary], would be by far the largest tensor of training, and
it would exist three times (scores, log-softmax, gradient). Here each block of tokens is scored, and
its scores become probabilities and their gradient in place; only the gradients are kept.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 800  # tokens at most; larger ones are not faster; 800 x 10,000 float32 are 32 MB


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
    ) -> tuple[Tensor, Tensor]:
        need_grad = any(ctx.needs_input_grad[:3])
        dtype, device = hidden.dtype, hidden.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        score_dtype = torch.promote_types(dtype, torch.float32)
        w, b = weight.detach().to(dtype), bias.detach().to(dtype)
        loss = hidden.new_zeros((), dtype=score_dtype)
        nll = torch.zeros_like(loss)  # the same without label smoothing and weights
        grad_hidden, grad_weight = torch.empty_like(hidden), None
        grad_bias = torch.zeros_like(bias, dtype=score_dtype)
        # Blocks have equal sizes: a small last one would read the weight for a few tokens.
        tokens = max(1, len(hidden))
        size = min(block, 16 * math.ceil(tokens / math.ceil(tokens / block) / 16))
        for begin in range(0, tokens, size):
            rows = slice(begin, begin + size)
            h, target = hidden[rows].to(dtype), targets[rows].unsqueeze(1)
            share = token_weights[rows].to(score_dtype).unsqueeze(1)
            scores = F.linear(h, w, b).to(score_dtype)
            log_sum = scores.amax(1, keepdim=True)
            right = scores.gather(1, target)
            expected = right
            if label_smoothing:
                expected = right.lerp(scores.mean(1, keepdim=True), label_smoothing)
            probs = torch.softmax(scores, 1, out=scores)
            log_sum -= probs.amax(1, keepdim=True).log_()  # of exp(max - log_sum)
            loss += (share * (log_sum - expected)).sum()
            nll += (log_sum - right).sum()
            if need_grad:
                grad = probs
                if label_smoothing:
                    grad -= label_smoothing / grad.size(1)
                grad.scatter_add_(1, target, grad.new_full(target.shape, label_smoothing - 1))
                # The tokens' weights are applied to the smaller factors below.
                grad_bias.addmv_(grad.t(), share.squeeze(1))
                grad = grad.to(dtype)
                grad_hidden[rows] = grad @ w * share
                product = grad.t() @ (h * share).to(dtype)
                grad_weight = product if grad_weight is None else grad_weight.add_(product)
                del grad, product
            del scores, probs  # before the next block
        if grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
            ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        gradients = (
            torch.mul(saved, grad, out=saved.new_empty(saved.shape, dtype=dtype))
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None, None, None)


def linear_cross_entropy(
    hidden: Tensor,
    linear: nn.Linear,
    targets: Tensor,
    token_weights: Tensor,
    label_smoothing: float = 0.0,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the cross-entropies of ``linear(hidden)``, in nats, `block` at a time.

    From hidden [N,H], the indices of the correct words, int64 [N], and the factor of each token's
    loss [N]. The sum is a scalar in float32, or float64 for float64 input, differentiable once; the
    second result is without weights and label smoothing, to compare, and has no gradient.
    """
    return _LinearCrossEntropy.apply(
        hidden, linear.weight, linear.bias, targets, token_weights, label_smoothing, block
    )
