"""One file that holds a captioner: weights, words, configuration, CNN identity, training state.

It holds tensors and plain containers only and is read with ``weights_only=True``: opening an
untrusted checkpoint runs no code.
"""

import io
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from captioning.cnn import CNNConfig, FrozenCNN, load_cnn
from captioning.config import BeamConfig, from_dict
from captioning.console import short
from captioning.data import Transform, Vocabulary
from captioning.errors import CaptioningError, naming
from captioning.files import write_atomically
from captioning.model.captioner import Captioner
from captioning.model.decoders import model_config
from captioning.model.neighbors import Neighbors
from captioning.model.tensors import check_fit, check_numbers, load_tensors

FORMAT = "fastlstm.captioning/1"


@dataclass(frozen=True)
class CNNIdentity:
    """Which frozen CNN the features come from, so that captioning uses the same one."""

    config: CNNConfig
    transform: Transform
    fingerprint: str
    # Those of an imported captioner, which have no name; and the checkpoint's name in messages.
    weights: dict[str, torch.Tensor] | None = field(default=None, compare=False)
    origin: str = field(default="this captioner", compare=False)

    @classmethod
    def of(cls, cnn: FrozenCNN) -> "CNNIdentity":
        """Describes a CNN that is loaded."""
        return cls(cnn.config, cnn.transform, cnn.fingerprint())

    def load(self) -> FrozenCNN:
        """The CNN; a CaptioningError if its weights here are not those that it was trained on."""
        beside = os.path.join(os.path.dirname(self.origin), os.path.basename(self.config.weights))
        found = os.path.isfile(beside)  # weights in a file, which moved with the checkpoint
        cnn = load_cnn(replace(self.config, weights=beside) if found else self.config)
        if self.weights is not None:
            what = f"{self.origin}: weights of its CNN"
            check_fit(cnn.state_dict(), self.weights, what)
            check_numbers(self.weights, what)
            cnn.load_state_dict(dict(self.weights))
        cnn.transform = self.transform
        if cnn.fingerprint() != self.fingerprint:
            raise CaptioningError(
                f"{self.origin}: the weights of {self.config.name} here are not those that it was "
                "trained on; its captions would be nonsense"
            )
        return cnn


@dataclass
class Checkpoint:
    """A captioner as it is saved; `training` is what the trainer needs to resume."""

    model: Captioner
    vocabulary: Vocabulary
    cnn: CNNIdentity
    training: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the file atomically: a full disk or a killed process leaves the old file."""
        data = {
            "format": FORMAT,
            "vocabulary": self.vocabulary.words,
            "model": asdict(self.model.config),
            "weights": self.model.state_dict(),
            "cnn": {
                "config": asdict(self.cnn.config),
                "transform": asdict(self.cnn.transform),
                "fingerprint": self.cnn.fingerprint,
                "weights": self.cnn.weights,
            },
            "training": self.training,
            "beam": asdict(self.model.beam),
        }
        if self.model.neighbors:
            data["neighbors"] = self.model.neighbors.state_dict()

        def write(file: BinaryIO) -> None:
            buffer = io.BytesIO()  # torch.save hides why a file cannot be written
            torch.save(data, buffer)
            file.write(buffer.getbuffer())

        write_atomically(path, write)


def load_checkpoint(path: str | Path, lstm: str = "fastlstm", device: str = "cpu") -> Checkpoint:
    """Read a checkpoint; the model is in eval mode.

    Args:
        path: the file.
        lstm: "fastlstm", "torch" or "reference".
        device: of the model.

    Raises:
        CaptioningError: the file is missing, damaged or of another kind.
    """
    if (best := Path(path) / "best.pt").is_file():
        raise CaptioningError(f"{path} is a folder: expected a file, such as {best}")
    hint = ". (Checkpoints of yunjey's tutorial: python -m captioning import-yunjey)"
    data = load_tensors(path, hint)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise CaptioningError(f"{path}: expected a checkpoint of {FORMAT}, got {short(found)}")
    with naming(path):
        parts = {name: _part(data, name, kind) for name, kind in _PARTS.items()}
        vocabulary = Vocabulary(parts["vocabulary"])
        model = _model(parts["model"], parts["weights"], vocabulary, lstm)
        model.beam = from_dict(BeamConfig, data.get("beam", {}), "beam")
        if "neighbors" in data:
            size = model.config.feature_size
            model.neighbors = Neighbors.from_state_dict(data["neighbors"], size)
        cnn = CNNIdentity(
            from_dict(CNNConfig, _part(parts["cnn"], "config", dict), "cnn"),
            from_dict(Transform, _part(parts["cnn"], "transform", dict), "cnn"),
            _part(parts["cnn"], "fingerprint", str),
            parts["cnn"].get("weights"),
            str(path),
        )
        _check_training(parts["training"])
    return Checkpoint(model.to(device).eval(), vocabulary, cnn, parts["training"])


_PARTS = {"vocabulary": list, "model": dict, "weights": dict, "cnn": dict, "training": dict}


def _part(data: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(data.get(name), kind):
        raise CaptioningError(f"expected {name}, a {kind.__name__}, got {short(data.get(name))}")
    return data[name]


def _model(settings: dict[str, Any], weights: Any, vocabulary: Vocabulary, lstm: str) -> Captioner:
    config = model_config(settings)
    if len(vocabulary) != config.vocab_size:
        raise CaptioningError(
            f"its vocabulary has {len(vocabulary)} words, its model {config.vocab_size}"
        )
    check_numbers(weights, "weights")
    with torch.device("meta"):  # so that a file gets no more memory than its weights explain
        check_fit(Captioner(config, lstm).state_dict(), weights, "weights")
    model = Captioner(config, lstm)
    model.load_state_dict(dict(weights))
    return model


def _check_training(training: dict[str, Any]) -> None:
    """Check what trainer and reports read; an imported captioner has none of it."""
    kinds = {"config": dict, "trainer": dict, "history": list, "features": str}
    for name in kinds.keys() & training.keys():
        _part(training, name, kinds[name])
    for entry in training.get("history", ()):
        fits = isinstance(entry, dict) and {type(v) for v in entry.values()} <= {int, float}
        if not fits or "epoch" not in entry or not {"loss", "reward"} & entry.keys():
            raise CaptioningError(f"history: expected numbers by name, got {short(entry)}")
