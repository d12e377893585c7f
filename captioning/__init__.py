"""Image captioning on `fastlstm.LSTM`: a frozen CNN encoder and an LSTM decoder.

The public names of docs/reference/captioning.md can be imported from here.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# By folder, which is imported when a name is asked for: `captioning --help` waits for none.
_PUBLIC = {
    "settings": ("ModelConfig", "TrainConfig"),
    "cnn": ("CNNConfig", "load_cnn"),
    "errors": ("CaptioningError",),
    "model": ("Attentive", "Checkpoint", "Decoder", "load_checkpoint", "load_ensemble", "register"),
    "results": ("score_captions",),
    "search": ("Caption", "DecodeConfig", "best_captions", "caption_files"),
    "training": ("TrainingRequest", "train_captioner"),
}
__all__ = [name for names in _PUBLIC.values() for name in names]


def __getattr__(name: str) -> Any:
    for folder, names in _PUBLIC.items():
        if name in names:
            return getattr(importlib.import_module(f"captioning.{folder}"), name)
    raise AttributeError(f"module 'captioning' has no attribute {name!r}")
