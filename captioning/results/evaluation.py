"""Scores of a COCO results file against a COCO captions file."""

from pathlib import Path

from captioning.console import short
from captioning.data import CaptionDataset
from captioning.errors import CaptioningError
from captioning.files import read_json
from captioning.results.metrics import Scores, score_captions


def read_results(path: str | Path) -> dict[int, str]:
    """Read [{"image_id": 1, "caption": "..."}, ...]; one caption for each picture."""
    data = read_json(path)
    if not isinstance(data, list):
        raise CaptioningError(f"{path}: expected a list of results, got {type(data).__name__}")
    results: dict[int, str] = {}
    for row in data:
        fits = isinstance(row, dict) and isinstance(row.get("caption"), str)
        if not fits or type(row.get("image_id")) is not int:
            raise CaptioningError(
                f'{path}: expected {{"image_id": 1, "caption": "..."}}, got {short(row)}'
            )
        if row["image_id"] in results:
            raise CaptioningError(f"{path}: picture {row['image_id']} has two captions")
        results[row["image_id"]] = row["caption"]
    return results


def evaluate(results: dict[int, str], dataset: CaptionDataset, meteor: bool = False) -> Scores:
    """Score results, all of pictures of the data set; those without a caption are noted."""
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
