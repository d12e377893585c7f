"""The former place of the prepacked layers: an import or a pickle of an old name is an error."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("PackedLSTM", "PackedLSTMCell"):
        remedy = "if a pickle has the old name, prepack its model again"
        raise ImportError(f"fastlstm.{name} is now fastlstm.Prep{name[1:]}; {remedy}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
