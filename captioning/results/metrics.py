"""Scores of captions against references, by pycocoevalcap's scorers (no Java).

BLEU-1..4, ROUGE-L and CIDEr-D are its pure Python classes, on words from `ptb_tokenize`. METEOR
is added where Java is.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from captioning.data import ptb_tokenize
from captioning.errors import CaptioningError


@dataclass(frozen=True)
class Scores:
    """The scores of a set of captions.

    Attributes:
        overall: score of the whole set by name; CIDEr-D is 0..10, the others 0..1.
        per_image: the same for each picture.
        notes: what a reader must know about the scores.
    """

    overall: dict[str, float]
    per_image: dict[int, dict[str, float]]
    notes: list[str]

    def __str__(self) -> str:
        line = "  ".join(f"{name} {value:.3f}" for name, value in self.overall.items())
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])


def score_captions(
    captions: Mapping[int, str], references: Mapping[int, Sequence[str]], meteor: bool = False
) -> Scores:
    """Score one caption per picture against its references.

    Args:
        captions: picture id to caption.
        references: picture id to captions by people; ids without a caption are not scored.
        meteor: whether to add METEOR, if there is Java.

    Raises:
        CaptioningError: no captions, a picture without references, or pycocoevalcap is missing.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise CaptioningError("scores need pycocoevalcap: pip install pycocoevalcap") from error
    if not captions:
        raise CaptioningError("there is no caption to score")
    if unknown := [i for i in captions if not references.get(i)]:
        raise CaptioningError(f"captions of pictures without references: {unknown[:5]}")
    ids = list(captions)
    written = {i: [" ".join(ptb_tokenize(captions[i]))] for i in ids}
    expected = {i: [" ".join(ptb_tokenize(r)) for r in references[i]] for i in ids}

    overall: dict[str, float] = {}
    per_image: dict[int, dict[str, float]] = {i: {} for i in ids}

    def add(
        names: Sequence[str], totals: Sequence[float], lists: Sequence[Sequence[float]]
    ) -> None:
        for name, total, values in zip(names, totals, lists, strict=True):
            overall[name] = float(total)
            for i, value in zip(ids, values, strict=True):
                per_image[i][name] = float(value)

    totals, lists = Bleu(4).compute_score(expected, written, verbose=0)
    add([f"BLEU-{n}" for n in range(1, 5)], totals, lists)
    for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr-D", Cider())):
        total, values = scorer.compute_score(expected, written)
        add([name], [total], [values])
    notes = _notes([words[0] for words in written.values()])
    if meteor and shutil.which("java"):
        from pycocoevalcap.meteor.meteor import Meteor

        total, values = Meteor().compute_score(expected, written)
        add(["METEOR"], [total], [values])
    elif meteor:
        notes.insert(0, "METEOR needs Java, which was not found")
    return Scores(overall, per_image, notes)


def _notes(written: Sequence[str]) -> list[str]:
    """What a reader must know about the scores of these captions."""
    notes = []
    if len(written) == 1:
        notes.append(
            "CIDEr-D of one picture is 0 by construction: it weighs words by how few pictures have "
            "them"
        )
    elif len(written) < 50:
        notes.append(f"{len(written)} pictures are few: their CIDEr-D and BLEU-4 mean little")
    if len(set(written)) == 1 < len(written):
        notes.append("every picture got the same caption, so it does not depend on the picture")
    return notes
