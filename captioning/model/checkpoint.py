"""One file that holds a captioner: weights, words, sizes, CNN, search, similar pictures, training.

It holds tensors and plain containers only and is read with ``weights_only=True``: opening an
untrusted checkpoint runs no code.
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
from captioning.console import short
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
    """A captioner as it is saved, or several that write together.

    Attributes:
        models: one captioner, or all that write together.
        vocabulary: their words.
        cnn: their CNN.
        search: the beam search that training chose.
        neighbors: similar training pictures, which help beam search, or None.
        training: what training needs to resume, and its `history` of epochs.
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
        """Write the file atomically: a full disk or a killed process leaves the old file."""
        data = {
            "format": FORMAT,
            "vocabulary": self.vocabulary.words,
            "model": asdict(self.model.config),
            "weights": self.model.state_dict(),
            "cnn": asdict(self.cnn),
            "search": asdict(self.search),
            "neighbors": self.neighbors.state_dict() if self.neighbors else None,
            "training": self.training,
        }
        buffer = io.BytesIO()  # torch.save hides why a file cannot be written
        torch.save(data, buffer)
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: str | Path, lstm: str = "fastlstm", device: str = "cpu") -> Checkpoint:
    """Read a checkpoint; the model is in eval mode, and its LSTM one of `LSTMS`.

    A file that is damaged or of another kind is a CaptioningError.
    """
    if not os.path.isfile(path):
        raise CaptioningError(f"{path}: no such file; expected a captioner, such as best.pt")
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():  # PyTorch does not look at the CRCs
                raise ValueError(f"the CRC of {broken} is wrong")
        data = torch.load(path, map_location="cpu", weights_only=True)
        if data["format"] != FORMAT:
            raise ValueError(f"expected a checkpoint of {FORMAT}, got {short(data['format'])}")
        vocabulary = Vocabulary(data["vocabulary"])
        model = Captioner(ModelConfig(**data["model"]), lstm)
        model.load_state_dict(data["weights"])
        transform = Transform(**data["cnn"].pop("transform"))
        cnn = CNNConfig(**data["cnn"], transform=transform)
        search, near = DecodeConfig(**data["search"]), data["neighbors"]
        neighbors = Neighbors.from_state_dict(near) if near else None
        training = dict(data["training"])
    except Exception as error:  # a damaged file raises anything
        reason = " ".join(str(error).split())[:300]
        raise CaptioningError(
            f"{path} is no captioner of this version, or damaged: {reason}"
        ) from error
    beside = os.path.join(os.path.dirname(path), os.path.basename(cnn.weights))
    if os.path.isfile(beside):  # weights in a file, which moved with the checkpoint
        cnn = replace(cnn, weights=beside)
    models = [model.to(device).eval()]
    return Checkpoint(models, vocabulary, cnn, search, neighbors, training)


def load_ensemble(
    paths: Sequence[str | Path], lstm: str = "fastlstm", device: str = "cpu"
) -> Checkpoint:
    """Read a checkpoint, or several that write together; the history is that of the first.

    They have as many beams as the one with most; their length penalty, and the weight of similar
    pictures, are the mean of theirs.

    Raises:
        CaptioningError: as of `load_checkpoint`, or their words or CNNs are not the same.
    """
    found = [load_checkpoint(path, lstm, device) for path in paths]
    first = found[0]
    for path, other in zip(paths, found, strict=True):
        same_words = other.vocabulary.words == first.vocabulary.words
        if not same_words or other.cnn.fingerprint != first.cnn.fingerprint:
            wanted, got = (f"{one.cnn.name}, pooled by {one.cnn.pool}" for one in (first, other))
            raise CaptioningError(
                f"{path}: expected the words and the CNN of {paths[0]} ({wanted}), got others "
                f"({got}); train --members makes captioners that fit"
            )
    if len(found) == 1:
        return first
    search = DecodeConfig(
        beam_size=max(one.search.beam_size for one in found),
        length_penalty=fmean(one.search.length_penalty for one in found),
        neighbors=fmean(one.search.neighbors for one in found),
    )
    neighbors = next((one.neighbors for one in found if one.neighbors), None)
    return replace(first, models=[one.model for one in found], search=search, neighbors=neighbors)
