"""Image captioning on `fastlstm.LSTM`: a frozen CNN encoder and an LSTM decoder."""

import importlib
from typing import Any

__version__ = "0.1.0"

# The public names by module, imported at their first use: `captioning --help` needs no torch.
_PUBLIC = {
    "settings": ("DecodeConfig", "ModelConfig", "TrainConfig"),
    "cnn.pretrained": ("CNNConfig", "load_cnn"),
    "data.images": ("ImageError",),
    "errors": ("CaptioningError",),
    "image_captioner": ("ImageCaptioner", "load"),
    "model.captioner": ("DECODERS",),
    "model.checkpoint": ("Checkpoint", "load_checkpoint", "load_ensemble"),
    "model.decoder": ("Decoder",),
    "results.metrics": ("score_captions",),
    "search.generate": ("Caption", "best_captions", "caption_files"),
    "training.pipeline": ("train_captioner",),
    "training.request": ("TrainingRequest",),
}
__all__ = [name for names in _PUBLIC.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _PUBLIC.items():
        if name in names:
            return getattr(importlib.import_module(f"captioning.{module}"), name)
    raise AttributeError(f"module 'captioning' has no attribute {name!r}")
