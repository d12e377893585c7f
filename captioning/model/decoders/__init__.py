"""The decoders, by name: each file registers its class (docs/extending.md says how to add one)."""

from captioning.model.decoders import attention, lstm
from captioning.model.decoders.base import (
    DECODERS,
    Attentive,
    Decoder,
    decoder_class,
    model_config,
    register,
)
