"""Image captioning on `fastlstm.LSTM`: a frozen CNN encoder and an LSTM decoder.

The public names of docs/reference/captioning.md can be imported from here.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# By folder, which is imported when a name is asked for: `captioning --help` waits for none.
_PUBLIC = {
    "config": ("ModelConfig", "TrainConfig"),
    "cnn": ("CNNChoice", "Extraction"),
    "errors": ("CaptioningError",),
    "model": ("Attentive", "Checkpoint", "Decoder", "decoder_class", "load_checkpoint", "register"),
    "results": ("score_captions",),
    "search": ("Caption", "DecodeConfig", "best_captions", "caption_files"),
    "training": ("TrainingRequest", "train_captioner"),
}
__all__ = [name for names in _PUBLIC.values() for name in names]

# Where modules were before they had folders, and where the names that they gave are now.
_MOVED = {
    "caption": "search",
    "checkpoint": "model",
    "decoders": "model.decoders",
    "features": "cnn",
    "generate": "search",
    "metrics": "results",
    "request": "training",
    "scenes": "demo.scenes",
}


def __getattr__(name: str) -> Any:
    for folder, names in _PUBLIC.items():
        if name in names:
            try:
                return getattr(importlib.import_module(f"captioning.{folder}"), name)
            except ModuleNotFoundError as error:
                missing = str(error.name).partition(".")[0]
                if missing in ("captioning", "fastlstm"):
                    raise
                told = f"captioning needs {missing}: pip install 'fastlstm[captioning]'"
                raise ModuleNotFoundError(told, name=missing) from error
    raise AttributeError(f"module 'captioning' has no attribute {name!r}")


class _Moved(MetaPathFinder, Loader):
    """Imports the modules of `_MOVED`, and what is in them, by their old names."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        package, *module = name.split(".")
        is_moved = package == "captioning" and module and module[0] in _MOVED
        return ModuleSpec(name, self) if is_moved else None

    def exec_module(self, module: ModuleType) -> None:
        _, first, *rest = module.__name__.split(".")
        new = ".".join(["captioning", _MOVED[first], *rest])
        sys.modules[module.__name__] = importlib.import_module(new)


sys.meta_path.insert(0, _Moved())
