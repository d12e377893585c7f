"""The decoders, by name: each file registers its class (docs/extending.md says how to add one)."""

from captioning.decoders import attention, lstm  # noqa: F401
from captioning.decoders.base import DECODERS, Attentive, Decoder, decoder_class

__all__ = ["DECODERS", "Attentive", "Decoder", "decoder_class"]
