"""`captioning demo`: draw, train, caption, score, report; minutes on two CPU cores.

It is the pipeline of real data on a small scale: COCO files, a frozen pretrained CNN, a feature
cache, the LSTM decoder, and validation on captions that the model writes by itself.
"""

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch

from captioning.cnn import (
    CNNConfig,
    Extraction,
    FeatureTable,
    FrozenCNN,
    extract_features,
    load_cnn,
)
from captioning.config import ModelConfig, TrainConfig
from captioning.console import say
from captioning.data import Vocabulary, load_coco
from captioning.demo import scenes
from captioning.errors import CaptioningError
from captioning.files import lock_folder, read_json, write_json
from captioning.model import DECODERS, Captioner, Checkpoint, CNNIdentity, load_checkpoint
from captioning.results import (
    Picture,
    Scores,
    Section,
    file_maps,
    score_captions,
    write_contact_sheet,
    write_report,
)
from captioning.search import best_captions
from captioning.training import train

TEXT = {
    "val": "New pictures. Their combinations of count, size, colour, shape and background occur in "
    "the training pictures.",
    "unseen": "Combinations of count, size, colour, shape and background that no training picture "
    "shows.",
}


def demo(
    output: str | Path,
    epochs: int | None = None,
    lstm: str = "fastlstm",
    fresh: bool = False,
    seed: int = 0,
    decoder: str = "lstm",
    splits: dict[str, int] = scenes.SPLITS,
) -> dict[str, Section]:
    """Run the whole demonstration in the folder `output`.

    Args:
        output: where everything goes; what a former run left there is used again.
        epochs: passes over the captions; if None, as many as the decoder needs.
        lstm: "fastlstm", "torch" or "reference".
        fresh: train again even if `output` holds a captioner of the same settings.
        seed: of pictures, initial weights and order.
        decoder: a name in `captioning.model.DECODERS`.
        splits: number of pictures per split.

    Returns:
        The sections of the report, by split.
    """
    output, settings, start = Path(output), DECODERS[decoder].demo, time.perf_counter()
    epochs = settings.epochs if epochs is None else epochs
    config = TrainConfig(epochs=epochs, batch_size=128, learning_rate=4e-3, seed=seed)
    with lock_folder(output, *_FILES):
        say(f"1/5  drawing {sum(splits.values()):,} pictures with five captions each")
        root = scenes.generate(output / "scenes", splits, seed)

        say("2/5  encoding each picture once with the frozen, pretrained CNN")
        cnn = load_cnn(CNNConfig("scenes_cnn", pool=settings.pool))
        tables = {split: _encode(cnn, root, split, output, seed) for split in splits}
        captions = [caption for image in tables["train"].images for caption in image.captions]
        vocabulary = Vocabulary.build(captions)
        vocabulary.save(output / "vocabulary.json")
        sizes = ModelConfig(
            cnn.feature_shape[-1],
            len(vocabulary),
            settings.embed_size,
            settings.hidden_size,
            decoder=decoder,
            grid=cnn.grid,
        )
        torch.manual_seed(seed)
        model = Captioner(sizes, lstm)
        model.set_word_frequencies(map(vocabulary.encode, captions))
        checkpoint = Checkpoint(model, vocabulary, CNNIdentity.of(cnn), {})
        recipe = json.dumps([asdict(config), asdict(sizes), checkpoint.cnn.fingerprint, splits])
        recipe = hashlib.sha256(recipe.encode()).hexdigest()
        trained = (output / "trained.json").exists() and read_json(output / "trained.json")
        if fresh or trained != recipe:
            if trained and not fresh:
                say(f"3/5  training again: {output / 'best.pt'} was trained with other settings")
            say(f"3/5  training an LSTM ({lstm}) on {len(captions):,} captions")
            _train(checkpoint, config, tables, output)
            write_json(output / "trained.json", recipe)
        else:
            say(f"3/5  {output / 'best.pt'} is trained already; --fresh trains again")
        return _report(output, lstm, cnn, tables, start)


_FILES = ["vocabulary.json", "trained.json", "report.html", "contact_sheet.png"]
_FILES += [f"results_{split}.json" for split in TEXT]


def _encode(cnn: FrozenCNN, root: Path, split: str, output: Path, seed: int) -> FeatureTable:
    dataset = load_coco(root / "annotations" / f"captions_{split}.json", root / split)
    path = output / "features" / f"{split}-{seed}-{scenes.VERSION}.safetensors"
    cache = extract_features(cnn, dataset.images, path, Extraction(stale="replace"))
    return FeatureTable(dataset, cache)


def _train(
    checkpoint: Checkpoint, config: TrainConfig, tables: dict[str, FeatureTable], output: Path
) -> None:
    # If this run is killed, the files that it leaves do not count as finished.
    (output / "trained.json").unlink(missing_ok=True)
    shutil.rmtree(output / "tensorboard", ignore_errors=True)
    train(checkpoint, config, tables["train"], tables["val"], output)


def _report(
    output: Path, lstm: str, cnn: FrozenCNN, tables: dict[str, FeatureTable], start: float
) -> dict[str, Section]:
    """Caption, score and report with the captioner in `output`; the run began at `start`."""
    say("4/5  captioning and scoring pictures that training never saw")
    checkpoint = load_checkpoint(output / "best.pt", lstm)
    history = load_checkpoint(output / "last.pt").training["history"]
    sections = {split: _caption(checkpoint, tables[split], split, output) for split in TEXT}
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
    maps_for = file_maps(checkpoint, cnn)
    title, parts = "Captions of drawn scenes", list(sections.values())
    write_report(report, title, text, parts, history, maps_for)
    write_contact_sheet(sheet, title, parts, history)
    for split, section in sections.items():
        say("", *f"{split}: {section.scores}".splitlines())
        say("facts: " + "  ".join(f"{k} {v:.3f}" for k, v in section.facts.items()))
    say("", f"all facts right with the pictures shuffled: {blind:.3f}")
    say(f"training {seconds:.0f} s, this run {time.perf_counter() - start:.0f} s")
    say(f"report: {report}", f"contact sheet: {sheet}")
    return sections


def _truth(table: FeatureTable) -> dict[int, scenes.Facts]:
    try:
        return {image.id: scenes.Facts(**(image.facts or {})) for image in table.images}
    except TypeError as error:
        raise CaptioningError(f"the scenes are damaged, remove them: {error}") from error


def _caption(checkpoint: Checkpoint, table: FeatureTable, split: str, output: Path) -> Section:
    written = best_captions(checkpoint.model, checkpoint.vocabulary, table.read(), table.ids)
    results = [{"image_id": i, "caption": caption} for i, caption in written.items()]
    write_json(output / f"results_{split}.json", results)
    truth = _truth(table)
    pictures = [
        Picture(
            image.id,
            image.path,
            written[image.id],
            image.captions,
            scenes.parse(written[image.id]) == truth[image.id],
        )
        for image in table.images
    ]
    scores: Scores = score_captions(written, table.references)
    return Section(split, TEXT[split], pictures, scores, scenes.fact_scores(written, truth))


def _blind(checkpoint: Checkpoint, table: FeatureTable) -> float:
    """The score with each picture's features given to another picture."""
    features = table.read().roll(1, 0)
    written = best_captions(checkpoint.model, checkpoint.vocabulary, features, table.ids)
    return scenes.fact_scores(written, _truth(table))["all"]
