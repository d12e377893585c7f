"""From a request for training to a captioner that was validated and tested."""

import contextlib
from pathlib import Path

import torch
import torch.distributed as dist

from captioning.cnn import FeatureTable
from captioning.config import SMALL_SET
from captioning.console import progress, say
from captioning.errors import CaptioningError
from captioning.files import lock_folder
from captioning.model import Checkpoint, Neighbors, freeze, load_checkpoint
from captioning.results import score_captions
from captioning.search import DecodeConfig, agreement, best_captions, decode_batch, rank
from captioning.training.preparation import prepare_training
from captioning.training.processes import distributed
from captioning.training.request import TrainingRequest
from captioning.training.run import train

NEIGHBOR_WEIGHTS = (0, 1, 2, 3, 4, 6, 8)  # the first of the best is taken
LEGEND = {
    "loss": "loss: nats per word, given the words before it, on --train with dropout and on --val",
    "reward": "reward: mean CIDEr-D of captions drawn for pictures of --train",
}
SCORES = "CIDEr-D, BLEU-4: of the captions that greedy search writes for --val"


def train_captioner(request: TrainingRequest) -> list[dict[str, float]]:
    """Train as requested: writes last.pt and best.pt to `request.output`.

    Under torchrun, every process calls this with the same request.

    Returns:
        What happened in each epoch: its loss or reward and, with `val`, the scores.

    Raises:
        CaptioningError: the request contradicts itself, its files, or the captioner that it
            continues with.
    """
    output, lstm = request.output, request.lstm
    with (
        distributed(request.extraction.device) as process,
        lock_folder(output) if process.is_first else contextlib.nullcontext(),
    ):
        if (output / "last.pt").exists() and not request.resume:
            raise CaptioningError(
                f"{output} holds a captioner already: --resume, or another --output"
            )
        if not process.is_first:  # until the first has encoded the pictures
            dist.barrier()
        checkpoint, config, tables = prepare_training(request)
        if process.is_first and process.world_size > 1:
            dist.barrier()
        table, val = tables["train"], tables.get("val")
        unit = "pictures" if config.self_critical else "captions"
        say(
            f"{len(table.images):,} pictures, {len(checkpoint.vocabulary):,} words; "
            f"{config.epochs} epochs, batches of {config.batch_size} {unit}, "
            f"learning rate {config.learning_rate}",
            LEGEND["reward" if config.self_critical else "loss"],
            SCORES,
        )
        resume = "trainer" in checkpoint.training
        history = train(checkpoint, config, table, val, output, resume, process)
        if process.is_first:
            best = output / "best.pt"
            say(summary(history, best))
            if best.exists() or "test" in tables:
                found = load_checkpoint(best, lstm, process.device)
                before = found.model.neighbors  # of the run that is resumed
                found.model.neighbors = None
                if val and len(table.images) < SMALL_SET and not config.no_neighbors:
                    say(add_neighbors(found, table, val))
                if before or found.model.neighbors:
                    found.save(best)
            if "test" in tables:
                freeze(found.model)
                say(test(found, tables["test"]))
            say(f"next: python -m captioning caption {best} PICTURE --method beam")
    return history


def summary(history: list[dict[str, float]], best: Path) -> str:
    """Which epoch is the best, and where it is."""
    validated = [entry for entry in history if "CIDEr-D" in entry]
    if not validated:
        return f"{best} holds epoch {len(history)}, the last (no --val to choose by)"
    entry = max(validated, key=lambda entry: entry["CIDEr-D"])
    return (
        f"best of {len(history)} epochs: {entry['epoch']:.0f}, CIDEr-D {entry['CIDEr-D']:.3f}, "
        f"BLEU-4 {entry['BLEU-4']:.3f} on --val: {best}"
    )


def add_neighbors(checkpoint: Checkpoint, table: FeatureTable, val: FeatureTable) -> str:
    """Gives a captioner its training pictures, if their captions help its beam search on `val`.

    They weigh what is best for CIDEr-D there. Returns one line on what they are worth.
    """
    model, vocabulary = checkpoint.model, checkpoint.vocabulary
    neighbors = Neighbors.of(table, vocabulary)
    device = next(model.parameters()).device
    beams, agreed = [], []
    parts = torch.arange(len(val.images)).split(128)
    for rows in progress(parts, "compare with similar training pictures", unit="batch"):
        features = val.read(rows)
        found = decode_batch(model, features.to(device), DecodeConfig("beam", neighbors=0.0))
        beams += found
        agreed += agreement(neighbors, features, found)
    cider = {}
    for weight in NEIGHBOR_WEIGHTS:
        best = [vocabulary.decode(group[0].tokens) for group in rank(beams, agreed, weight)]
        scores = score_captions(dict(zip(val.ids, best, strict=True)), val.references)
        cider[weight] = scores.overall["CIDEr-D"]
    weight = max(cider, key=cider.__getitem__)
    line = f"beam search on --val: CIDEr-D {cider[0]:.3f}"
    if not weight:
        return f"{line}, not higher with the captions of similar training pictures"
    neighbors.weight, model.neighbors = weight, neighbors
    return f"{line}, {cider[weight]:.3f} with the captions of similar training pictures"


def test(checkpoint: Checkpoint, table: FeatureTable) -> str:
    """One line of scores on pictures that had no part in training or validation."""
    parts = []
    for config in (DecodeConfig("greedy"), DecodeConfig("beam")):
        model, words = checkpoint.model, checkpoint.vocabulary
        written = best_captions(model, words, table.read(), table.ids, config=config)
        scores = score_captions(written, table.references).overall
        name = f"beam of {config.beam_size}" if config.method == "beam" else config.method
        parts.append(f"{name} CIDEr-D {scores['CIDEr-D']:.3f}, BLEU-4 {scores['BLEU-4']:.3f}")
    return f"test, {len(table.images):,} pictures: {'; '.join(parts)}"
