"""Scores captions against references by BLEU-1 to 4, ROUGE-L, CIDEr-D and METEOR.

The scorers are pycocoevalcap's. They get the words of `ptb_tokenize`, so only METEOR needs Java.
"""

import contextlib
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from captioning.data.tokenizer import ptb_tokenize
from captioning.errors import CaptioningError

FEW_PICTURES = 50  # a note says that the scores of fewer pictures mean little


@dataclass(frozen=True)
class Scores:
    """The scores of a set of captions. CIDEr-D is from 0 to 10, the other scores from 0 to 1."""

    overall: dict[str, float]  # the score of all captions, by its name
    per_image: dict[int, dict[str, float]]  # the scores of each caption, by the picture's id
    notes: list[str]  # sentences that a reader must know about the scores
    captions: dict[int, str] = field(
        default_factory=dict
    )  # the captions that were scored, by the picture's id

    def __str__(self) -> str:
        line = "  ".join(f"{name} {value:.3f}" for name, value in self.overall.items())
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])


def score_captions(
    captions: Mapping[int, str], references: Mapping[int, Sequence[str]], meteor: bool = False
) -> Scores:
    """Scores one caption of each picture against captions by people.

    Args:
        captions: the caption of each picture, by id. A note counts pictures without a caption.
        references: the captions by people, by the picture's id.
        meteor: whether to add METEOR. A note says so if Java is missing.

    Raises:
        CaptioningError: there is no caption, or a picture has no reference.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    if not captions:
        raise CaptioningError("there is no caption to score")
    check_references(captions, references)
    ids = list(captions)
    written = {i: [" ".join(ptb_tokenize(captions[i]))] for i in ids}
    expected = {i: [" ".join(ptb_tokenize(r)) for r in references[i]] for i in ids}

    bleu = [f"BLEU-{n}" for n in range(1, 5)], Bleu(4)
    scorers: list[tuple[list[str], Any]] = [bleu, (["ROUGE-L"], Rouge()), (["CIDEr-D"], Cider())]
    notes = _notes([words[0] for words in written.values()])
    if missing := len(references) - len(ids):
        notes.append(f"{missing} of {len(references)} pictures have no caption")
    if meteor and shutil.which("java"):
        from pycocoevalcap.meteor.meteor import Meteor

        scorers.append((["METEOR"], Meteor()))
    elif meteor:
        notes.insert(0, "METEOR needs Java, which was not found")
    overall: dict[str, float] = {}
    columns: list[list[float]] = []  # for each score, its values of all pictures
    for names, scorer in scorers:
        with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints its progress
            total, values = scorer.compute_score(expected, written)
        overall |= zip(names, np.atleast_1d(total).tolist(), strict=True)
        columns += np.atleast_2d(values).tolist()
    rows = (dict(zip(overall, row, strict=True)) for row in zip(*columns, strict=True))
    return Scores(overall, dict(zip(ids, rows, strict=True)), notes, dict(captions))


def check_references(ids: Iterable[int], references: Mapping[int, Sequence[str]]) -> None:
    """Refuses pictures that have no reference. `ids` are the pictures to score."""
    if unknown := [i for i in ids if not references.get(i)]:
        raise CaptioningError(f"pictures without a reference, by their id: {unknown[:5]}")


def brief(scores: Mapping[str, float]) -> str:
    """Returns a text with CIDEr-D and BLEU-4."""
    return f"CIDEr-D {scores['CIDEr-D']:.3f}, BLEU-4 {scores['BLEU-4']:.3f}"


def _notes(written: Sequence[str]) -> list[str]:
    """Returns the notes about the scores of these captions."""
    notes = []
    # The weight of an n-gram is log(pictures / pictures with it). For one picture it is log(1) = 0.
    if len(written) == 1:
        notes.append("CIDEr-D of a single picture is 0, whatever its caption")
    elif len(written) < FEW_PICTURES:
        notes.append(f"{len(written)} pictures are few: their CIDEr-D and BLEU-4 mean little")
    if len(set(written)) == 1 < len(written):
        notes.append("every picture got the same caption, so it does not depend on the picture")
    return notes
