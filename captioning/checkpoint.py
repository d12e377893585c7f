"""One file that holds a captioner: weights, words, configuration, CNN identity, training state.

It holds tensors and plain containers only and is read with ``weights_only=True``: opening a
checkpoint from a stranger runs none of their code.
"""

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from captioning.cnn import CNNConfig, FrozenCNN, load_cnn
from captioning.errors import CaptioningError
from captioning.files import write_atomically
from captioning.images import Transform
from captioning.model import Captioner, ModelConfig
from captioning.vocabulary import Vocabulary

FORMAT = "fastlstm.captioning/1"


@dataclass(frozen=True)
class CNNIdentity:
    """Which frozen CNN the features come from, so that captioning uses the very same one.

    Args:
        config: its name, weights and pooling.
        transform: what its pictures go through.
        fingerprint: `FrozenCNN.fingerprint`.
        weights: its own weights if no name stands for them (imported captioners).
    """

    config: CNNConfig
    transform: Transform
    fingerprint: str
    weights: dict[str, torch.Tensor] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, cnn: FrozenCNN) -> "CNNIdentity":
        return cls(cnn.config, cnn.transform, cnn.fingerprint())

    def load(self) -> FrozenCNN:
        """The CNN, with the transform of the checkpoint.

        Raises:
            CaptioningError: this machine's weights differ from those that trained the captioner.
        """
        cnn = load_cnn(self.config)
        if self.weights is not None:
            cnn.load_state_dict(self.weights)
        cnn.transform = self.transform
        if cnn.fingerprint() != self.fingerprint:
            raise CaptioningError(
                f"the weights of {self.config.name} here are not those that this captioner was "
                "trained on; its captions would be nonsense"
            )
        return cnn


@dataclass
class Checkpoint:
    """A captioner as it is saved; `training` is whatever the trainer needs to go on."""

    model: Captioner
    vocabulary: Vocabulary
    cnn: CNNIdentity
    training: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the file atomically: a full disk or a killed process leaves the old one."""
        data = {
            "format": FORMAT,
            "vocabulary": self.vocabulary.words,
            "model": asdict(self.model.config),
            "weights": self.model.state_dict(),
            "cnn": {
                "config": asdict(self.cnn.config),
                "transform": self.cnn.transform.to_dict(),
                "fingerprint": self.cnn.fingerprint,
                "weights": self.cnn.weights,
            },
            "training": self.training,
        }
        write_atomically(path, lambda file: torch.save(data, file))


def load_checkpoint(path: str | Path, lstm: str = "fastlstm", device: str = "cpu") -> Checkpoint:
    """Read a checkpoint; the model is in eval mode.

    Args:
        path: the file.
        lstm: "fastlstm", "torch" or "reference".
        device: where the model goes.

    Raises:
        CaptioningError: the file is missing, damaged or something else.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        best = Path(path) / "best.pt"  # a run was given, not its captioner
        hint = f"; expected a file, such as {best}" if best.is_file() else ""
        raise CaptioningError(f"cannot read {path}: {error.strerror or error}{hint}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CaptioningError(
            f"{path} is not a checkpoint of captioning, or damaged. (Checkpoints of yunjey's "
            "tutorial: python -m captioning import-yunjey)"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise CaptioningError(f"{path}: expected a checkpoint of format {FORMAT}, got {found}")
    vocabulary = Vocabulary(data["vocabulary"])
    config = ModelConfig(**data["model"])
    if len(vocabulary) != config.vocab_size:
        raise CaptioningError(
            f"{path}: its vocabulary has {len(vocabulary)} words, its model {config.vocab_size}"
        )
    if config.decoder == "attention" and not config.grid:
        raise CaptioningError(
            f"{path}: its attention decoder is of an older version, which did not know where a "
            "cell lies; train it again"
        )
    model = Captioner(config, lstm)
    try:
        model.load_state_dict(data["weights"])
    except RuntimeError as error:
        raise CaptioningError(f"{path}: weights do not fit the model: {error}") from error
    cnn = CNNIdentity(
        CNNConfig(**data["cnn"]["config"]),
        Transform.from_dict(data["cnn"]["transform"]),
        data["cnn"]["fingerprint"],
        data["cnn"].get("weights"),
    )
    return Checkpoint(model.to(device).eval(), vocabulary, cnn, data["training"])


def training_history(checkpoint: Checkpoint, path: str | Path) -> list[dict[str, float]]:
    """Every epoch of the run that wrote `checkpoint` to `path`.

    best.pt knows of no epoch after the best; last.pt beside it does, if it is of the same run.
    """
    history = list(checkpoint.training.get("history", ()))
    last = Path(path).with_name("last.pt")
    if history and last.exists():
        longer = load_checkpoint(last).training.get("history", ())
        if longer[: len(history)] == history:
            return list(longer)
    return history
