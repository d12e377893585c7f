"""`captioning demo` draws pictures, trains on them, captions new ones and writes a report.

It takes minutes on two CPU cores. All steps are those of real data: COCO captions files, a frozen
pretrained CNN, a feature cache, the LSTM decoder, and validation by greedy search.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from captioning.commands.arguments import add_new_captioner
from captioning.console import say
from captioning.data import scenes
from captioning.data.coco import load_coco
from captioning.files import write_json
from captioning.image_captioner import ImageCaptioner, load
from captioning.model.captioner import DECODERS
from captioning.results.figures import write_sheet
from captioning.results.report import Section, examples, write_report
from captioning.settings import choose_device
from captioning.training.pipeline import locked, train_locked
from captioning.training.processes import Process
from captioning.training.request import TrainingRequest

COMBINED_FACTS = "count, size, color, shape and background"
SECTION_TEXTS = {
    "val": f"New pictures. Their combinations of {COMBINED_FACTS} occur in the training pictures.",
    "unseen": f"Combinations of {COMBINED_FACTS} that no training picture shows.",
}


def add(parser: argparse.ArgumentParser) -> None:
    defaults = ", ".join(f"{name}: {decoder.demo['epochs']}" for name, decoder in DECODERS.items())
    option = parser.add_argument
    option("--output", type=Path, default=Path("runs/demo"), help="folder (%(default)s)")
    option("--epochs", type=int, help=f"passes over the captions ({defaults})")
    option("--seed", type=int, default=0, help="seed of pictures, weights and order (0)")
    add_new_captioner(parser)


def run(args: argparse.Namespace) -> None:
    demo(args.output, args.epochs, args.lstm, args.seed, args.decoder or "lstm", args.device)


def demo(
    output: str | Path,
    epochs: int | None = None,
    lstm: str = "fastlstm",
    seed: int = 0,
    decoder: str = "lstm",
    device: str = "auto",
    split_sizes: dict[str, int] = scenes.SPLIT_SIZES,
) -> dict[str, Section]:
    """Runs the whole demonstration in the folder `output`; returns the report's sections by split.

    A captioner that an earlier demo trained in the folder is deleted. Without `epochs` the number
    is taken from the decoder's `demo` settings. `split_sizes` has each split's number of pictures.
    """
    output, start_time = Path(output), time.perf_counter()
    settings = {"batches_of": "captions", "dropout": 0.0, "image_at": "first", "min_count": 1}
    # All captions state the same six facts, so a captioner hardly overfits without regularization.
    settings |= {"label_smoothing": 0.0, "consensus": 0.0, "ema": 0.0, "learning_rate": 4e-3}
    settings |= DECODERS[decoder].demo
    settings |= {"decoder": decoder, "seed": seed, "no_neighbors": True, "autocast": "none"}
    if epochs is not None:
        settings["epochs"] = epochs
    files: dict[str, Any] = {split: captions_file(output, split) for split in ("train", "val")}
    options: dict[str, Any] = {"cnn": "scenes_cnn", "lstm": lstm, "device": device}
    request = TrainingRequest(**files, **options, output=output, settings=settings)
    device = choose_device(device)
    with locked(output):
        say(f"1/4  drawing {sum(split_sizes.values()):,} pictures with five captions each")
        scenes.generate(output / "scenes", split_sizes, seed)
        say(f"2/4  training an LSTM ({lstm}) on {5 * split_sizes['train']:,} captions")
        for name in ("last.pt", "best.pt"):
            (output / name).unlink(missing_ok=True)
        shutil.rmtree(output / "tensorboard", ignore_errors=True)
        history = train_locked(request, Process(device=device))
        return _report(output, lstm, device, history, start_time)


def captions_file(output: Path, split: str) -> Path:
    return output / "scenes" / "annotations" / f"captions_{split}.json"


def _report(
    output: Path, lstm: str, device: str, history: list[dict[str, float]], start_time: float
) -> dict[str, Section]:
    """Captions new pictures, scores the captions, and writes the report; returns its sections."""
    say("3/4  captioning and scoring pictures that training never saw")
    captioner = load(output / "best.pt", device=device, lstm=lstm)
    sections = {split: _caption_split(captioner, output, split) for split in SECTION_TEXTS}

    say("4/4  writing the report")
    seconds = sum(entry["seconds"] for entry in history)
    text = f"Trained for {len(history)} epochs ({seconds:.0f} s) on drawn pictures. "
    text += "Captions are parsed back into facts. In green captions all six facts are right."
    report, sheet = output / "report.html", output / "contact_sheet.png"
    section_list, parts = list(sections.values()), (captioner.checkpoint, captioner.cnn)
    write_report(report, "Captions of drawn scenes", text, section_list, history, *parts)
    chosen = [(s, p) for s in section_list for p in examples(s)["Drawn at random"][:3]]
    write_sheet(sheet, {picture.path: s.captions[picture.id] for s, picture in chosen})
    for split, section in sections.items():
        results = [{"image_id": i, "caption": caption} for i, caption in section.captions.items()]
        write_json(output / f"results_{split}.json", results)
        say("", *f"{split}: {section.scores}".splitlines())
        say("facts: " + "  ".join(f"{k} {v:.3f}" for k, v in section.facts.items()))
    say("", f"training {seconds:.0f} s, this run {time.perf_counter() - start_time:.0f} s")
    say(f"report: {report}", f"contact sheet: {sheet}")
    return sections


def _caption_split(captioner: ImageCaptioner, output: Path, split: str) -> Section:
    """Captions a split by greedy search, and counts the facts that are right."""
    dataset = load_coco(captions_file(output, split))
    scores = captioner.evaluate(captions_file(output, split), method="greedy")
    captions = scores.captions
    truth = {image.id: scenes.parse(image.captions[0]) for image in dataset.images}
    facts = scenes.fact_scores(captions, truth)
    right = [i for i, caption in captions.items() if scenes.parse(caption) == truth[i]]
    return Section(split, SECTION_TEXTS[split], dataset.images, captions, scores, facts, right)
