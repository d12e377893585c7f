"""A trained captioner that writes captions for pictures; `captioning.load` makes one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from PIL import Image

from captioning.cnn.features import FeatureCache
from captioning.cnn.pretrained import FrozenCNN, load_cnn
from captioning.console import progress, say
from captioning.data.coco import load_coco_unchanged
from captioning.data.images import ImageError
from captioning.errors import CaptioningError
from captioning.model.checkpoint import Checkpoint, load_ensemble
from captioning.model.layers import prepack_lstms
from captioning.results.metrics import Scores, check_references, score_captions
from captioning.search.generate import Caption, CaptionedFile, caption_files
from captioning.settings import DecodeConfig, choose_device

Picture = str | Path | Image.Image


def load(
    *paths: str | Path, device: str = "auto", lstm: str = "fastlstm", lstm_weights: str = "float32"
) -> "ImageCaptioner":
    """Loads a captioner, or several as an ensemble, with the CNN that it was trained on.

    Args:
        paths: the checkpoints, such as "runs/mine/best.pt".
        device: "cpu", "cuda", "cuda:1" and so on; "auto" for CUDA if there is a GPU.
        lstm: the LSTM to run: "fastlstm", "torch" for nn.LSTM, "reference", or "FILE.py:CLASS" if
            the captioner was trained with an LSTM of your own.
        lstm_weights: dtype of the LSTM's weights on a CPU: "float32", "bfloat16" or "int8".

    Returns:
        The captioner. Call it with pictures.

    Raises:
        CaptioningError: a file is missing or damaged, or the checkpoints do not fit together.
    """
    if not paths:
        raise CaptioningError("load: expected a captioner such as best.pt, got no path")
    device = choose_device(device)
    checkpoint = load_ensemble(paths, lstm, device)
    for model in checkpoint.models:
        prepack_lstms(model, lstm_weights)
    return ImageCaptioner(checkpoint, load_cnn(checkpoint.cnn).to(device))


class ImageCaptioner:
    """A captioner or an ensemble, with its CNN.

    Attributes:
        checkpoint: the `Checkpoint`: models, words, search, and the history of training.
        cnn: the frozen CNN.
    """

    def __init__(self, checkpoint: Checkpoint, cnn: FrozenCNN) -> None:
        self.checkpoint, self.cnn = checkpoint, cnn

    @overload
    def __call__(self, pictures: Picture, **search: Any) -> str: ...
    @overload
    def __call__(self, pictures: Sequence[Picture], **search: Any) -> list[str]: ...
    def __call__(self, pictures: Picture | Sequence[Picture], **search: Any) -> str | list[str]:
        """Returns the best caption of a picture, or a list of captions for a list of pictures.

        Args:
            pictures: the path of a picture, a PIL picture, or a list of these.
            search: fields of `DecodeConfig`, such as ``beam_size=3`` or ``method="greedy"``; the
                search that training chose has the others.

        Raises:
            ImageError: a picture is missing, broken or too large.
            CaptioningError: the list is empty, or a value is wrong.
        """
        is_one = isinstance(pictures, Picture)
        captions = self.all_captions([pictures] if is_one else pictures, **search)  # type: ignore[arg-type]
        texts = [ranked[0].text for ranked in captions]
        return texts[0] if is_one else texts

    def all_captions(self, pictures: Sequence[Any], **search: Any) -> list[list[Caption]]:
        """Returns all captions of the search for each picture of a list, best first.

        Arguments and errors are those of a call of the captioner.
        """
        pictures = list(pictures)
        if not pictures:
            raise CaptioningError("pictures: expected at least one picture, got an empty list")
        for picture in pictures:
            if not isinstance(picture, Picture):
                expected = "expected paths and PIL pictures"
                raise CaptioningError(f"pictures: {expected}, got a {type(picture).__name__}")
        results = [*self.stream(pictures, **search)]
        for result in results:
            if result.error:
                raise ImageError(result.error)
        return [result.captions for result in results]

    def stream(
        self, pictures: Sequence[Picture], cache: FeatureCache | None = None, **search: Any
    ) -> Iterator[CaptionedFile]:
        """Writes captions for many pictures, of which broken ones do not stop the others.

        Args:
            pictures: paths and PIL pictures.
            cache: the features of exactly these pictures, or None to encode them.
            search: fields of `DecodeConfig`.

        Returns:
            An iterator with a result for each picture, in order.
        """
        paths = [Path(p) if isinstance(p, str) else p for p in pictures]
        return caption_files(self.checkpoint, self.cnn, paths, self.search(**search), cache)

    def search(self, **changes: Any) -> DecodeConfig:
        """Returns the search that training chose, with changes of its fields."""
        try:
            return replace(self.checkpoint.search, **changes)
        except TypeError as error:
            names = ", ".join(DecodeConfig.__dataclass_fields__)
            raise CaptioningError(
                f"expected settings of {names}; got {', '.join(changes)}"
            ) from error

    def evaluate(
        self,
        data: str | Path,
        images: str | Path | None = None,
        *,
        meteor: bool = False,
        **search: Any,
    ) -> Scores:
        """Writes captions for captioned pictures and scores them; prints what it scores.

        Args:
            data: a folder that `captioning prepare` wrote, whose test split is scored, or its val
                split if there is no other; or a captions file in COCO's format.
            images: the folder of the pictures, if the captions file does not name it.
            meteor: whether to add METEOR, which needs Java.
            search: fields of `DecodeConfig`, as in a call of the captioner.

        Returns:
            The scores: `overall`, `per_image` by the picture's id, and `captions` by the same id.

        Raises:
            CaptioningError: there is no captions file, or a picture has no captions in it.
        """
        file = captions_file(data)
        dataset = load_coco_unchanged(file, images, need_folder=True)
        check_references(dataset.references, dataset.references)
        say(f"{len(dataset.images):,} pictures of {file}")
        results = self.stream([image.path for image in dataset.images], **search)
        bar = progress(results, "caption", total=len(dataset.images), unit="img")
        captions = {}
        for image, result in zip(dataset.images, bar, strict=True):
            if result.error:
                say(result.error, error=True)
            else:
                captions[image.id] = result.captions[0].text
        return score_captions(captions, dataset.references, meteor)


def captions_file(data: str | Path) -> Path:
    """Returns the captions file to score by: `data`, or the test or val split of a folder."""
    data = Path(data)
    if not data.is_dir():
        return data
    files = [data / f"captions_{split}.json" for split in ("test", "val")]
    if found := next((file for file in files if file.is_file()), None):
        return found
    expected = "expected a folder with captions_test.json or captions_val.json, as of `prepare`"
    raise CaptioningError(f"{data}: {expected}, or a captions file in COCO's format")
