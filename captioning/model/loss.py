"""Cross-entropy over the vocabulary, with only one block of scores in memory at a time.

The scores of all tokens, [tokens, vocabulary], would be by far the largest tensor of training, and
it would exist three times (scores, log-softmax, gradient). Here the gradients of each block of
tokens are computed with its loss, and only they are kept.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 800  # tokens; larger ones are not faster; 800 x 10,000 float32 are 32 MB


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
    ) -> tuple[Tensor, Tensor]:
        w, b = (parameter.detach().requires_grad_() for parameter in (weight, bias))
        dtype = torch.promote_types(weight.dtype, torch.float32)  # autocast's scores are bfloat16
        grads, losses, nlls = [], [], []
        # Blocks have equal sizes: a small last one would read the weight for a few tokens.
        count = max(1, math.ceil(len(hidden) / BLOCK))
        blocks = (tensor.chunk(count) for tensor in (hidden, targets, token_weights))
        for h, target, share in zip(*blocks, strict=True):
            part = h.detach().requires_grad_()
            with torch.enable_grad():
                log_probs = F.linear(part, w, b).log_softmax(1, dtype)
                own = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1)
                smooth = own.lerp(-log_probs.mean(1), label_smoothing) if label_smoothing else own
                total = (smooth * share).sum()
            total.backward()
            grads.append(part.grad)
            losses.append(total.detach())
            nlls.append(own.detach().sum())
        ctx.save_for_backward(torch.cat(grads), w.grad, b.grad)
        loss, nll = (torch.stack(parts).sum() for parts in (losses, nlls))
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return (*(saved * grad for saved in ctx.saved_tensors), None, None, None)


def linear_cross_entropy(
    hidden: Tensor,
    linear: nn.Linear,
    targets: Tensor,
    token_weights: Tensor,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the cross-entropies of ``linear(hidden)``, in nats, `BLOCK` at a time.

    From hidden [N,H], the indices of the correct words, int64 [N], and the factor of each token's
    loss [N]. The sum is a scalar in float32, or float64 for float64 input, differentiable once; the
    second result is without weights and label smoothing, to compare, and has no gradient.
    """
    return _LinearCrossEntropy.apply(
        hidden, linear.weight, linear.bias, targets, token_weights, label_smoothing
    )
