"""`captioning demo`: draw, train, caption, score, report; minutes on two CPU cores.

It is the pipeline of real data on a small scale: COCO files, a frozen pretrained CNN, a feature
cache, the LSTM decoder, and validation on captions that the model writes by itself.
"""

import shutil
import time
from pathlib import Path

from captioning import results
from captioning.cnn import FeatureTable, extract_features, load_cnn
from captioning.console import say
from captioning.data import load_coco
from captioning.demo import scenes
from captioning.files import write_json
from captioning.model import DECODERS, Checkpoint, load_checkpoint
from captioning.search import DecodeConfig, best_captions
from captioning.settings import TrainConfig, choose_device
from captioning.training import TrainingRequest, train_captioner

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
    device: str = "auto",
    splits: dict[str, int] = scenes.SPLITS,
) -> dict[str, results.Section]:
    """Run the whole demonstration in the folder `output`.

    Pictures and features of a former run are used again. Without `epochs` there are as many as the
    decoder needs. `seed` is that of pictures, initial weights and order; `splits` has the number of
    pictures per split. Returns the sections of the report, by split.
    """
    output, start = Path(output), time.perf_counter()
    settings = {"batches_of": "captions", "dropout": 0.0, "image_at": "first", "min_count": 1}
    # The settings of a large set: the captions say all, so nothing can be learned by heart.
    large = {n: getattr(TrainConfig(), n) for n in ("label_smoothing", "consensus", "ema")}
    settings |= {**large, "learning_rate": 4e-3, **DECODERS[decoder].demo}
    settings |= {"decoder": decoder, "seed": seed, "no_neighbors": True, "autocast": "none"}
    if epochs is not None:
        settings["epochs"] = epochs
    say(f"1/4  drawing {sum(splits.values()):,} pictures with five captions each")
    files = scenes.generate(output / "scenes", splits, seed) / "annotations"
    say(f"2/4  training an LSTM ({lstm}) on {5 * splits['train']:,} captions")
    for name in ("last.pt", "best.pt"):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "tensorboard", ignore_errors=True)
    request = TrainingRequest(
        train=files / "captions_train.json",
        val=files / "captions_val.json",
        output=output,
        lstm=lstm,
        cnn="scenes_cnn",
        device=device,
        settings=settings,
    )
    history = train_captioner(request)
    return _report(output, lstm, choose_device(device), history, start)


def _report(
    output: Path, lstm: str, device: str, history: list[dict[str, float]], start: float
) -> dict[str, results.Section]:
    """Caption, score and report with the captioner in `output`; the run began at `start`."""
    say("3/4  captioning and scoring pictures that training never saw")
    checkpoint = load_checkpoint(output / "best.pt", lstm, device)
    cnn, tables = load_cnn(checkpoint.cnn).to(device), {}
    for split in TEXT:
        file = output / "scenes" / "annotations" / f"captions_{split}.json"
        dataset = load_coco(file)
        cache = extract_features(cnn, dataset.images, output / "features", file)
        tables[split] = FeatureTable(dataset, cache)
    sections = {split: _caption(checkpoint, tables[split], split) for split in TEXT}
    blind = _blind(checkpoint, tables["val"])

    say("4/4  writing the report")
    seconds = sum(entry["seconds"] for entry in history)
    text = (
        f"Trained for {len(history)} epochs ({seconds:.0f} s) on drawn pictures. Captions are "
        f"parsed back into facts; green ones have all six right. With shuffled pictures, "
        f"{blind:.1%} of the captions would be right: nothing can be guessed without looking."
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
    greedy = DecodeConfig("greedy")
    written = best_captions(checkpoint, table.read(), table.ids, config=greedy)
    truth, scores = _truth(table), results.score_captions(written, table.references)
    facts = scenes.fact_scores(written, truth)
    right = [i for i, caption in written.items() if scenes.parse(caption) == truth[i]]
    return results.Section(split, TEXT[split], table.images, written, scores, facts, right)


def _blind(checkpoint: Checkpoint, table: FeatureTable) -> float:
    """The score with each picture's features given to another picture."""
    features, greedy = table.read().roll(1, 0), DecodeConfig("greedy")
    written = best_captions(checkpoint, features, table.ids, config=greedy)
    return scenes.fact_scores(written, _truth(table))["all"]
