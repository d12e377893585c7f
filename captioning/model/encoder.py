"""The encoder behind the frozen CNN: a new Linear and BatchNorm1d into the decoder's space."""

import torch
from torch import Tensor, nn


class EncoderCNN(nn.Module):
    """Features of the frozen CNN to vectors of `embed_size`, as the decoder reads them.

    Args:
        feature_size: C, size of a feature vector.
        embed_size: E, size of the vectors.
    """

    def __init__(self, feature_size: int, embed_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_size, embed_size)
        self.bn = nn.BatchNorm1d(embed_size, momentum=0.01)

    def embed(self, features: Tensor) -> Tensor:
        """Features [B,C] or [B,cells,C] to [B,E] or [B,cells,E]."""
        if not torch.is_autocast_enabled(features.device.type):  # which casts float16 by itself
            features = features.to(self.linear.weight.dtype)
        return self.bn(self.linear(features).flatten(0, -2)).unflatten(0, features.shape[:-1])
