"""`captioning demo`: draw, train, caption, score, report; minutes on two CPU cores.

It is the pipeline of real data on a small scale: COCO files, a frozen pretrained CNN, a feature
cache, the LSTM decoder, and validation on captions that the model writes by itself.
"""

import shutil
import time
from dataclasses import asdict
from pathlib import Path

from captioning import results
from captioning.cnn import CNNChoice, FeatureTable
from captioning.config import TrainConfig
from captioning.console import say
from captioning.demo import scenes
from captioning.files import lock_folder, write_json
from captioning.model import DECODERS, Checkpoint, load_checkpoint
from captioning.search import best_captions
from captioning.training import TrainingRequest, prepare_training, train

TEXT = {
    "val": "New pictures. Their combinations of count, size, color, shape and background occur in "
    "the training pictures.",
    "unseen": "Combinations of count, size, color, shape and background that no training picture "
    "shows.",
}


def demo(
    output: str | Path,
    epochs: int | None = None,
    lstm: str = "fastlstm",
    seed: int = 0,
    decoder: str = "lstm",
    splits: dict[str, int] = scenes.SPLITS,
) -> dict[str, results.Section]:
    """Run the whole demonstration in the folder `output`.

    Pictures and features of a former run are used again. Without `epochs` there are as many as the
    decoder needs. `seed` is that of pictures, initial weights and order; `splits` has the number of
    pictures per split. Returns the sections of the report, by split.
    """
    output, settings, start = Path(output), DECODERS[decoder].demo, time.perf_counter()
    epochs = settings.epochs if epochs is None else epochs
    config = TrainConfig(epochs, learning_rate=4e-3, seed=seed)
    with lock_folder(output):
        say(f"1/5  drawing {sum(splits.values()):,} pictures with five captions each")
        files = scenes.generate(output / "scenes", splits, seed) / "annotations"

        say("2/5  encoding each picture once with the frozen, pretrained CNN")
        request = TrainingRequest(
            train=files / "captions_train.json",
            val=files / "captions_val.json",
            test=files / "captions_unseen.json",
            output=output,
            min_count=1,
            lstm=lstm,
            cnn=CNNChoice("scenes_cnn", pool=settings.pool),
            model={"decoder": decoder, "dropout": 0.0, **settings.model},
            settings=asdict(config),
        )
        checkpoint, config, tables = prepare_training(request)
        say(f"3/5  training an LSTM ({lstm}) on {5 * splits['train']:,} captions")
        shutil.rmtree(output / "tensorboard", ignore_errors=True)
        train(checkpoint, config, tables["train"], tables["val"], output)
        tables["unseen"] = tables.pop("test")
        return _report(output, lstm, tables, start)


def _report(
    output: Path, lstm: str, tables: dict[str, FeatureTable], start: float
) -> dict[str, results.Section]:
    """Caption, score and report with the captioner in `output`; the run began at `start`."""
    say("4/5  captioning and scoring pictures that training never saw")
    checkpoint = load_checkpoint(output / "best.pt", lstm)
    history = load_checkpoint(output / "last.pt").training["history"]
    sections = {split: _caption(checkpoint, tables[split], split) for split in TEXT}
    blind = _blind(checkpoint, tables["val"])

    say("5/5  writing the report")
    seconds = sum(entry["seconds"] for entry in history)
    text = (
        f"Trained for {len(history)} epochs ({seconds:.0f} s) on "
        f"{len(tables['train'].images):,} drawn pictures. Captions are parsed back into facts; "
        f"green ones have all six right. With shuffled pictures, {blind:.1%} of the captions "
        "would be right: nothing can be guessed without looking."
    )
    report, sheet = output / "report.html", output / "contact_sheet.png"
    parts = list(sections.values())
    results.write_report(report, "Captions of drawn scenes", text, parts, history, checkpoint)
    drawn = [(s, p) for s in parts for p in results.choose(s)["Drawn at random"][:3]]
    results.write_sheet(sheet, {picture.path: s.captions[picture.id] for s, picture in drawn})
    for split, section in sections.items():
        written = [{"image_id": i, "caption": text} for i, text in section.captions.items()]
        write_json(output / f"results_{split}.json", written)
        say("", *f"{split}: {section.scores}".splitlines())
        say("facts: " + "  ".join(f"{k} {v:.3f}" for k, v in section.facts.items()))
    say("", f"all facts right with the pictures shuffled: {blind:.3f}")
    say(f"training {seconds:.0f} s, this run {time.perf_counter() - start:.0f} s")
    say(f"report: {report}", f"contact sheet: {sheet}")
    return sections


def _truth(table: FeatureTable) -> dict[int, scenes.Facts]:
    return {image.id: scenes.Facts(**(image.facts or {})) for image in table.images}


def _caption(checkpoint: Checkpoint, table: FeatureTable, split: str) -> results.Section:
    written = best_captions(checkpoint.model, checkpoint.vocabulary, table.read(), table.ids)
    truth, scores = _truth(table), results.score_captions(written, table.references)
    facts = scenes.fact_scores(written, truth)
    right = [i for i, caption in written.items() if scenes.parse(caption) == truth[i]]
    return results.Section(split, TEXT[split], table.images, written, scores, facts, right)


def _blind(checkpoint: Checkpoint, table: FeatureTable) -> float:
    """The score with each picture's features given to another picture."""
    features = table.read().roll(1, 0)
    written = best_captions(checkpoint.model, checkpoint.vocabulary, features, table.ids)
    return scenes.fact_scores(written, _truth(table))["all"]
