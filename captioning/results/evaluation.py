"""Scores of a COCO results file against a COCO captions file, and its report."""

from dataclasses import replace
from pathlib import Path

from captioning.console import short
from captioning.data import CaptionDataset, is_picture_id, picture_folder
from captioning.errors import CaptioningError
from captioning.files import read_json
from captioning.model import Checkpoint
from captioning.results.attention_maps import file_maps
from captioning.results.metrics import Scores, score_captions
from captioning.results.report import History, Picture, Section, write_report


def read_results(path: str | Path) -> dict[int, str]:
    """Read [{"image_id": 1, "caption": "..."}, ...]; one caption for each picture."""
    data = read_json(path)
    if not isinstance(data, list):
        raise CaptioningError(f"{path}: expected a list of results, got {type(data).__name__}")
    results: dict[int, str] = {}
    for row in data:
        fits = isinstance(row, dict) and isinstance(row.get("caption"), str)
        if not fits or not is_picture_id(row.get("image_id")):
            raise CaptioningError(
                f'{path}: expected {{"image_id": 1, "caption": "..."}}, got {short(row)}'
            )
        if row["image_id"] in results:
            raise CaptioningError(f"{path}: picture {row['image_id']} has two captions")
        results[row["image_id"]] = row["caption"]
    return results


def evaluate(results: dict[int, str], dataset: CaptionDataset, meteor: bool = False) -> Scores:
    """Score results; pictures of the data set without a caption are noted.

    Raises:
        CaptioningError: results of pictures that the data set does not have.
    """
    references = dataset.references
    if unknown := [i for i in results if i not in references]:
        raise CaptioningError(
            f"{len(unknown)} results are of pictures that the captions file does not have: "
            f"{unknown[:5]}"
        )
    scores = score_captions(results, references, meteor)
    if missing := len(references) - len(results):
        scores.notes.append(f"{missing} of {len(references)} pictures have no caption")
    return scores


def with_pictures(
    dataset: CaptionDataset, annotations: str | Path, image_folder: str | Path | None = None
) -> CaptionDataset:
    """A data set of `load_references` with the files of its pictures, for the report.

    Missing pictures are scored too, and the report says why they cannot be shown.
    """
    folder = picture_folder(read_json(annotations), annotations, image_folder)
    return CaptionDataset([replace(i, path=folder / i.path) for i in dataset.images])


def write_evaluation(
    path: str | Path,
    results: dict[int, str],
    dataset: CaptionDataset,
    scores: Scores,
    checkpoint: Checkpoint | None = None,
    history: History = (),
    name: str = "captions",
) -> None:
    """The HTML report: best, worst and random pictures, distribution of scores.

    A checkpoint with attention adds its maps, and `history` the training curves; `name` is that of
    the captions.
    """
    pictures = [
        Picture(image.id, image.path, results[image.id], image.captions)
        for image in dataset.images
        if image.id in results
    ]
    section = Section(name, f"{len(pictures)} pictures", pictures, scores)
    maps_for = file_maps(checkpoint) if checkpoint else None
    write_report(path, "Evaluation of captions", "", [section], history, maps_for)
