"""The cross-entropy over the vocabulary, computed in blocks of tokens to save memory.

The scores of all tokens [tokens,vocabulary] would be by far the largest tensor of training, and
memory would hold three of them (scores, log-softmax, gradient). Here the forward pass computes the
loss and the gradients of one block after the other, and keeps only the gradients.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 800  # tokens; larger blocks are not faster; 800 x 10,000 float32 scores are 32 MB


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, *constants: Any
    ) -> tuple[Tensor, Tensor]:
        targets, token_weights, label_smoothing = constants
        w, b = (parameter.detach().requires_grad_() for parameter in (weight, bias))
        # Under autocast the scores are bfloat16, and log_softmax converts them to this dtype.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        grads, losses, nlls = [], [], []
        # Blocks have equal sizes: a small last block would read the whole weight for a few tokens.
        count = max(1, math.ceil(len(hidden) / BLOCK))
        blocks = (tensor.chunk(count) for tensor in (hidden, targets, token_weights))
        for h, target, factor in zip(*blocks, strict=True):
            leaf = h.detach().requires_grad_()
            with torch.enable_grad():
                log_probs = F.linear(leaf, w, b).log_softmax(1, dtype)
                nll = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1)
                smooth = nll.lerp(-log_probs.mean(1), label_smoothing) if label_smoothing else nll
                total = (smooth * factor).sum()
            total.backward()
            grads.append(leaf.grad)
            losses.append(total.detach())
            nlls.append(nll.detach().sum())
        ctx.save_for_backward(torch.cat(grads), w.grad, b.grad)
        loss, nll = (torch.stack(parts).sum() for parts in (losses, nlls))
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return (*(saved * grad for saved in ctx.saved_tensors), None, None, None)


def linear_cross_entropy(
    hidden: Tensor, linear: nn.Linear, targets: Tensor, weights: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Computes the weighted sum of the cross-entropies of ``linear(hidden)``, in nats.

    `hidden` [N,H] has the inputs of the output layer for N tokens, `targets` int64 [N] the indices
    of the correct words, and `weights` [N] a factor for the loss of each token.
    `label_smoothing` is the share of the target that is spread over the vocabulary.

    Returns the sum, and the sum without weights and label smoothing. Both are scalars in float32,
    or in float64 if `linear` is float64. The first can be differentiated once, the second cannot.
    """
    constants = targets, weights, label_smoothing
    return _LinearCrossEntropy.apply(hidden, linear.weight, linear.bias, *constants)
