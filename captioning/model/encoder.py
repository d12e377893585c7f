"""The encoder: a frozen CNN, then a new Linear and BatchNorm1d into the decoder's space."""

import torch
from torch import Tensor, nn

from captioning.cnn import FrozenCNN


class EncoderCNN(nn.Module):
    """Pictures to vectors of `embed_size`; only `linear` and `bn` are trained.

    Args:
        feature_size: C, size of a feature vector.
        embed_size: E, size of the vectors that the decoder reads.
        cnn: the frozen CNN; None when features come from a cache.
    """

    def __init__(self, feature_size: int, embed_size: int, cnn: FrozenCNN | None = None) -> None:
        super().__init__()
        self.cnn = cnn
        self.linear = nn.Linear(feature_size, embed_size)
        self.bn = nn.BatchNorm1d(embed_size, momentum=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B,3,H,W] to [B,E], or to [B,cells,E] if the CNN pools to a grid."""
        if self.cnn is None:
            raise RuntimeError("this encoder was built without a CNN: it reads features only")
        return self.embed(self.cnn(images))

    def embed(self, features: Tensor) -> Tensor:
        """Features [B,C] or [B,cells,C] of the frozen CNN to [B,E] or [B,cells,E]."""
        if not torch.is_autocast_enabled(features.device.type):  # which casts float16 by itself
            features = features.to(self.linear.weight.dtype)
        return self.bn(self.linear(features).flatten(0, -2)).unflatten(0, features.shape[:-1])
