"""Image captioning on `fastlstm.LSTM`: a frozen CNN encoder and an LSTM decoder.

The public names of docs/reference/captioning.md can be imported from here.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# By folder, which is imported when a name is asked for: `captioning --help` waits for none.
_PUBLIC = {
    "config": ("ModelConfig", "TrainConfig"),
    "cnn": ("CNNChoice", "Extraction"),
    "errors": ("CaptioningError",),
    "model": "Attentive Checkpoint Decoder decoder_class load_checkpoint load_ensemble "
    "register".split(),
    "results": ("score_captions",),
    "search": ("Caption", "DecodeConfig", "best_captions", "caption_files"),
    "training": ("TrainingRequest", "train_captioner"),
}
__all__ = [name for names in _PUBLIC.values() for name in names]


def __getattr__(name: str) -> Any:
    for folder, names in _PUBLIC.items():
        if name in names:
            try:
                return getattr(importlib.import_module(f"captioning.{folder}"), name)
            except ModuleNotFoundError as error:
                missing = str(error.name).partition(".")[0]
                if missing in ("captioning", "fastlstm"):
                    raise
                told = f"captioning needs {missing}: pip install ./captioning"
                raise ModuleNotFoundError(told, name=missing) from error
    raise AttributeError(f"module 'captioning' has no attribute {name!r}")
