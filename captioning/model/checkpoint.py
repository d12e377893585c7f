"""Reads and writes checkpoints. A checkpoint is one file that holds a captioner.

The file has only tensors and plain containers, and it is read with ``weights_only=True``. So no
code of an untrusted checkpoint can run.
"""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
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
from captioning.model.layers import LSTMS, check_lstm
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
        if self.model.lstm not in LSTMS:  # without the folder, which may name a person
            data["lstm"] = os.path.basename(self.model.lstm)
        data["neighbors"] = self.neighbors.state_dict() if self.neighbors else None
        buffer = io.BytesIO()  # the errors of torch.save do not say why a file cannot be written
        torch.save(data, buffer)
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: str | Path, lstm: str = "fastlstm", device: str = "cpu") -> Checkpoint:
    """Reads a checkpoint.

    Args:
        path: the file.
        lstm: the LSTM to run: "fastlstm", "torch" for nn.LSTM, "reference", or "FILE.py:CLASS" for
            a class of your own. A captioner that was trained with a class of one's own needs that
            class again: a checkpoint holds no code, and no file that it names is run.
        device: the device of the model, which is in eval mode.

    Raises:
        CaptioningError: the file is missing, damaged, or not a checkpoint of this version; or
            it was trained with another LSTM.
    """
    if not os.path.isfile(path):
        raise CaptioningError(f"{path}: no such file; expected a captioner such as best.pt")
    check_lstm(lstm)
    with _refuse_damage(path):
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():  # PyTorch does not check CRCs
                raise ValueError(f"{broken} has a wrong CRC")
        data = torch.load(path, map_location="cpu", weights_only=True)
        if data["format"] != FORMAT:
            raise ValueError(f"expected a checkpoint of {FORMAT}, got {abbreviate(data['format'])}")
        vocabulary = Vocabulary(data["vocabulary"])
        model, weights = Captioner(ModelConfig(**data["model"]), lstm), data["weights"]
        own, names = data.get("lstm"), (set(weights), set(model.state_dict()))
        others = {n for n in names[0] ^ names[1] if n.startswith("decoder.lstm.")}
    if (own and lstm in LSTMS) or (others and lstm not in LSTMS):
        hint = f"give its file, --lstm {own}" if own else "leave --lstm out"
        expected = f"expected the LSTM that it was trained with, {own or 'fastlstm'}"
        raise CaptioningError(f"{path}: {expected}; got {lstm}; {hint}")
    with _refuse_damage(path):
        model.load_state_dict(weights)
        transform = Transform(**data["cnn"].pop("transform"))
        cnn = CNNConfig(**data["cnn"], transform=transform)
        search, stored = DecodeConfig(**data["search"]), data["neighbors"]
        neighbors, training = stored and Neighbors.from_state_dict(stored), dict(data["training"])
    # The CNN's weights may be a file. A file of that name next to the checkpoint is preferred,
    # because both may have been moved together.
    moved = os.path.join(os.path.dirname(path), os.path.basename(cnn.weights))
    if os.path.isfile(moved):
        cnn = replace(cnn, weights=moved)
    return Checkpoint([model.to(device).eval()], vocabulary, cnn, search, neighbors, training)


@contextlib.contextmanager
def _refuse_damage(path: str | Path) -> Iterator[None]:
    """Turns each exception into the error that the file is damaged."""
    try:
        yield
    except Exception as error:  # a damaged file raises exceptions of many kinds
        reason = "damaged, or not a captioner of this version: " + " ".join(str(error).split())
        raise CaptioningError(f"{path} is {reason[:350]}") from error


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
