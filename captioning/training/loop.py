"""Runs the epochs of a training: steps, validation, checkpoints, curves, resuming."""

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from captioning.cnn.features import FeatureTable
from captioning.console import progress, say
from captioning.errors import CaptioningError
from captioning.model.checkpoint import Checkpoint
from captioning.results.metrics import Scores, brief, score_captions
from captioning.search.generate import best_captions
from captioning.settings import DecodeConfig
from captioning.training.processes import SINGLE, Process
from captioning.training.self_critical import SelfCriticalTrainer
from captioning.training.setup import Setup
from captioning.training.trainer import Trainer, learning_rate


def train(setup: Setup, output: str | Path, process: Process = SINGLE) -> list[dict[str, float]]:
    """Trains a captioner and writes last.pt, best.pt and tensorboard/ into `output`.

    best.pt holds the first epoch that has the highest CIDEr-D on the validation pictures. Without
    validation pictures best.pt holds the last epoch. But if `setup` resumes a run whose epochs were
    validated, best.pt is not written again. Returns an entry for each epoch: its loss or reward,
    and the scores on validation pictures, if any.
    """
    run = _Run(setup, Path(output), process)
    trainer, history = run.trainer, run.history
    if cut := trainer.captions.cut_count:
        reason = f"they have more than {setup.config.max_words} words (max_words)"
        say(f"{cut:,} of {len(trainer.captions):,} captions were cut: {reason}")
    for epoch in range(trainer.step // run.steps_per_epoch, setup.config.epochs):
        history.append(run.train_epoch(epoch))
        run.validate_and_save(history[-1])
    if run.curve_writer:
        run.curve_writer.close()
    return history


@torch.no_grad()
def validate(checkpoint: Checkpoint, table: FeatureTable) -> tuple[float, Scores]:
    """Computes the loss and the scores of a captioner on a table.

    The loss is the mean cross-entropy per token with teacher forcing, in nats. The scores are those
    of the captions that greedy search writes.
    """
    scores = score_table(checkpoint, table, DecodeConfig("greedy"), "validate")
    model, captions = checkpoint.model.eval(), table.encode(checkpoint.vocabulary, max_words=200)
    device = next(model.parameters()).device
    total = 0.0
    for indices in torch.arange(len(captions)).split(256):
        batch = captions.make_batch(indices)
        inputs = (t.to(device) for t in (table.read(batch.pictures), batch.rows, batch.captions))
        total += float(model(*inputs, batch.lengths)[0])
    return total / int((captions.lengths - 1).sum()), scores


def score_table(
    checkpoint: Checkpoint, table: FeatureTable, config: DecodeConfig, title: str
) -> Scores:
    """Writes and scores captions of a table's pictures, with a progress bar of this title."""
    written = best_captions(checkpoint, table.read(), table.ids, config=config, progress=title)
    return score_captions(written, table.references)


class _Run:
    """The state of one call of `train`."""

    def __init__(self, setup: Setup, output: Path, process: Process) -> None:
        self.checkpoint, self.config, self.process = setup.checkpoint, setup.config, process
        self.val_table = setup.tables.get("val")
        self.last, self.best = output / "last.pt", output / "best.pt"
        trainer_class = SelfCriticalTrainer if self.config.self_critical else Trainer
        self.trainer = trainer_class(self.checkpoint, self.config, setup.tables["train"], process)
        self.history: list[dict[str, float]] = []  # an entry for each finished epoch
        if setup.resumes:
            self.trainer.load_state_dict(self.checkpoint.training["trainer"])
            self.history += self.checkpoint.training["history"]
        self.steps_per_epoch = len(self.trainer.batches(0))
        self.steps = self.steps_per_epoch * self.config.epochs
        self.curve_writer = new_curve_writer(output / "tensorboard") if process.is_first else None

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Runs the steps of an epoch (0 is the first); returns its entry for the history."""
        trainer, config, metric = self.trainer, self.config, self.trainer.metric
        start, total, batches = time.perf_counter(), 0.0, trainer.batches(epoch)
        bar = progress(batches, f"epoch {epoch + 1}/{config.epochs}")
        for done, indices in enumerate(bar, 1):
            value = trainer.train_step(indices, self.steps)
            if not math.isfinite(value):
                saved = f". {self.last} holds epoch {epoch}" if epoch else ""
                problem = f"{metric} became {value} in step {trainer.step}"
                raise CaptioningError(f"{problem}: lower --learning-rate{saved}")
            total += value
            if self.curve_writer:
                self.curve_writer.add_scalar(f"train/{metric}", value, trainer.step)
            bar.set_postfix_str(f"{metric} {total / done:.3f}", refresh=False)
        seconds = time.perf_counter() - start
        captions = max(1, config.self_critical) * sum(map(len, batches))
        rate = learning_rate(config, trainer.step - 1, self.steps)
        entry = {"epoch": epoch + 1, metric: total / len(batches), "learning_rate": rate}
        return entry | {"seconds": seconds, "captions_per_second": captions / seconds}

    def validate_and_save(self, entry: dict[str, float]) -> None:
        """Validates and saves the epoch of `entry`, which is the last of the history."""
        earlier = [e["CIDEr-D"] for e in self.history[:-1] if "CIDEr-D" in e]
        if self.val_table and self.process.is_first:
            checkpoint = replace(self.checkpoint, models=[self.trainer.model_to_save])
            loss, scores = validate(checkpoint, self.val_table)
            if len(self.history) == 1:
                say(*(f"note: {note}" for note in scores.notes))
            entry |= {"val_loss": loss, **scores.overall}
        if self.process.world_size > 1:
            box = [entry]
            dist.broadcast_object_list(box, 0)
            entry |= box[0]
        if self.curve_writer:
            for name, number in entry.items():
                self.curve_writer.add_scalar(f"epoch/{name}", number, int(entry["epoch"]))
            self.curve_writer.flush()
        say(describe(entry))
        # best.pt, which `train` describes, is written first: if the run is killed between the two
        # files, it resumes from the older last.pt and repeats this epoch.
        if entry["CIDEr-D"] > max(earlier, default=-1.0) if "CIDEr-D" in entry else not earlier:
            self.save(self.best)
        self.save(self.last)

    def save(self, path: Path) -> None:
        """Writes a checkpoint, if this is the first process."""
        if self.process.is_first:
            state = {"config": asdict(self.config), "trainer": self.trainer.state_dict()}
            self.checkpoint.training |= {**state, "history": self.history}
            replace(self.checkpoint, models=[self.trainer.model_to_save]).save(path)


def describe(entry: dict[str, float]) -> str:
    """Returns a line for the user about an epoch."""
    name = "loss" if "loss" in entry else "reward"
    line = f"epoch {entry['epoch']:.0f}: {name} {entry[name]:.3f}"
    if "val_loss" in entry:
        line += f", val loss {entry['val_loss']:.3f}, {brief(entry)}"
    return line + f", {entry['captions_per_second']:,.0f} captions/s"


def new_curve_writer(folder: Path) -> Any:
    """Returns a writer of TensorBoard's curves. Prints a message if TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("no curves in TensorBoard: pip install tensorboard")
        return None
    return SummaryWriter(str(folder))
