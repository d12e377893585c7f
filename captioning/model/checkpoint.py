"""Reads and writes checkpoints. A checkpoint is one file that holds a captioner.

The file has only tensors and plain containers, and it is read with ``weights_only=True``. So no
code of an untrusted checkpoint can run.
"""

import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from captioning.cnn.pretrained import CNNConfig
from captioning.console import abbreviate
from captioning.data.images import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.errors import CaptioningError
from captioning.files import write_atomically
from captioning.model.captioner import Captioner
from captioning.model.neighbors import Neighbors
from captioning.settings import DecodeConfig, ModelConfig

FORMAT = "fastlstm.captioning/3"


@dataclass
class Checkpoint:
    """A captioner with all that it needs, or an ensemble of several captioners.

    Attributes:
        models: the captioner, or all captioners of the ensemble.
        vocabulary: the words, the same for all captioners.
        cnn: the frozen CNN, the same for all captioners.
        search: the beam search that training chose.
        neighbors: the training pictures that help to rank captions, or None.
        training: the data that training needs to resume, and its `history` of epochs.
    """

    models: list[Captioner]
    vocabulary: Vocabulary
    cnn: CNNConfig
    search: DecodeConfig = DecodeConfig()
    neighbors: Neighbors | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Captioner:
        """The captioner, or the first of several."""
        return self.models[0]

    def save(self, path: str | Path) -> None:
        """Writes the checkpoint, with the first captioner only."""
        data: dict[str, Any] = {"format": FORMAT, "vocabulary": self.vocabulary.words}
        data |= {"model": asdict(self.model.config), "weights": self.model.state_dict()}
        data |= {"cnn": asdict(self.cnn), "search": asdict(self.search), "training": self.training}
        data["neighbors"] = self.neighbors.state_dict() if self.neighbors else None
        buffer = io.BytesIO()  # the errors of torch.save do not say why a file cannot be written
        torch.save(data, buffer)
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: str | Path, lstm: str = "fastlstm", device: str = "cpu") -> Checkpoint:
    """Reads a checkpoint.

    Args:
        path: the file.
        lstm: the LSTM to run: "fastlstm", "torch" for nn.LSTM, or "reference".
        device: the device of the model, which is in eval mode.

    Raises:
        CaptioningError: the file is missing, damaged, or not a checkpoint of this version.
    """
    if not os.path.isfile(path):
        raise CaptioningError(f"{path}: no such file; expected a captioner such as best.pt")
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():  # PyTorch does not check CRCs
                raise ValueError(f"{broken} has a wrong CRC")
        data = torch.load(path, map_location="cpu", weights_only=True)
        if data["format"] != FORMAT:
            raise ValueError(f"expected a checkpoint of {FORMAT}, got {abbreviate(data['format'])}")
        vocabulary = Vocabulary(data["vocabulary"])
        model = Captioner(ModelConfig(**data["model"]), lstm)
        model.load_state_dict(data["weights"])
        transform = Transform(**data["cnn"].pop("transform"))
        cnn = CNNConfig(**data["cnn"], transform=transform)
        search, stored = DecodeConfig(**data["search"]), data["neighbors"]
        neighbors, training = stored and Neighbors.from_state_dict(stored), dict(data["training"])
    except Exception as error:  # a damaged file raises exceptions of many kinds
        reason = "damaged, or not a captioner of this version: " + " ".join(str(error).split())
        raise CaptioningError(f"{path} is {reason[:350]}") from error
    # The CNN's weights may be a file. A file of that name next to the checkpoint is preferred,
    # because both may have been moved together.
    moved = os.path.join(os.path.dirname(path), os.path.basename(cnn.weights))
    if os.path.isfile(moved):
        cnn = replace(cnn, weights=moved)
    return Checkpoint([model.to(device).eval()], vocabulary, cnn, search, neighbors, training)


def load_ensemble(
    paths: Sequence[str | Path], lstm: str = "fastlstm", device: str = "cpu"
) -> Checkpoint:
    """Reads one checkpoint, or several as an ensemble.

    An ensemble averages the probabilities of words, or in beam search the scores of whole captions.
    It has the largest beam size of the checkpoints, their mean length penalty and mean weight of
    similar pictures, and the first checkpoint's history. `lstm`, `device`: see `load_checkpoint`.

    Raises:
        CaptioningError: see `load_checkpoint`; or the words or the CNNs of the checkpoints differ.
    """
    checkpoints = [load_checkpoint(path, lstm, device) for path in paths]
    first = checkpoints[0]
    for path, other in zip(paths, checkpoints, strict=True):
        same_words = other.vocabulary.words == first.vocabulary.words
        if not same_words or other.cnn.fingerprint != first.cnn.fingerprint:
            wanted, got = (f"{cnn.name}, pooled by {cnn.pool}" for cnn in (first.cnn, other.cnn))
            expected = f"expected the words and the CNN of {paths[0]} ({wanted}), for an ensemble"
            hint = "train --members N makes such captioners"
            raise CaptioningError(f"{path}: {expected}; got other words or CNN ({got}); {hint}")
    size = max(c.search.beam_size for c in checkpoints)
    penalty = fmean(c.search.length_penalty for c in checkpoints)
    weight = fmean(c.search.neighbors for c in checkpoints)
    search = replace(first.search, beam_size=size, length_penalty=penalty, neighbors=weight)
    neighbors = next((c.neighbors for c in checkpoints if c.neighbors), None)
    return replace(first, models=[c.model for c in checkpoints], search=search, neighbors=neighbors)
