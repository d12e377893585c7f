"""A run: epochs of training and validation, checkpoints, curves, resuming."""

import math
import threading
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from captioning.cnn import FeatureTable
from captioning.config import TrainConfig
from captioning.console import progress, say
from captioning.data import EncodedCaptions
from captioning.errors import CaptioningError, naming
from captioning.files import lock_folder, writing
from captioning.model import Checkpoint
from captioning.results import Scores, score_captions
from captioning.search import best_captions
from captioning.training.processes import SINGLE, Process
from captioning.training.self_critical import SelfCriticalTrainer
from captioning.training.trainer import Trainer, learning_rate


@torch.no_grad()
def validate(checkpoint: Checkpoint, table: FeatureTable) -> tuple[float, Scores, dict[int, str]]:
    """Mean cross-entropy per token, teacher-forced; and what greedy search writes, with scores."""
    model, words = checkpoint.model, checkpoint.vocabulary
    written = best_captions(model, words, table.read(), table.ids, progress="validate")
    captions = EncodedCaptions([image.captions for image in table.images], words, 200)
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for indices in torch.arange(len(captions)).split(256):
        batch = captions.batch(indices)
        features = table.read(batch.images).to(device)
        rows, inputs = batch.rows.to(device), batch.captions.to(device)
        total += float(model(features, rows, inputs, batch.lengths)[0])
        tokens += int((batch.lengths - 1).sum())
    return total / tokens, score_captions(written, table.references), written


def train(
    checkpoint: Checkpoint,
    config: TrainConfig,
    train_table: FeatureTable,
    val_table: FeatureTable | None,
    output: str | Path,
    resume: bool = False,
    process: Process = SINGLE,
) -> list[dict[str, float]]:
    """Train a captioner; writes `output`/last.pt, best.pt (by CIDEr-D) and tensorboard/.

    The weights of `checkpoint` change. Without `val_table` nothing is validated, and best.pt is
    last.pt unless an epoch before `resume` was validated. With `resume` it goes on with the run
    that saved `checkpoint`, last.pt in `output`. Returns what happened in each epoch.
    """
    lock = lock_folder(output) if process.is_first else nullcontext()
    with lock:
        trainer = new_trainer(checkpoint, config, train_table, process)
        run = _Run(checkpoint, trainer, val_table, Path(output))
        if resume:
            with trainer.averaged(), naming(run.last):
                trainer.load_state_dict(checkpoint.training["trainer"])
            run.history += checkpoint.training["history"]
        return run.train()


def new_trainer(
    checkpoint: Checkpoint, config: TrainConfig, table: FeatureTable, process: Process
) -> Trainer:
    """The trainer of a stage."""
    kind = SelfCriticalTrainer if config.self_critical else Trainer
    return kind(checkpoint, config, table, process)


class _Run:
    """The epochs of one call of `train`."""

    def __init__(
        self, checkpoint: Checkpoint, trainer: Trainer, val_table: FeatureTable | None, output: Path
    ) -> None:
        self.checkpoint, self.trainer, self.val_table = checkpoint, trainer, val_table
        self.config, self.process = trainer.config, trainer.process
        self.last, self.best = output / "last.pt", output / "best.pt"
        self.steps_per_epoch = len(trainer.batches(0))
        self.steps = self.steps_per_epoch * self.config.epochs
        self.history: list[dict[str, float]] = []  # the finished epochs
        self.points: list[tuple[str, float, int]] = []  # of the curves, not yet written
        self.curves = output / "tensorboard" if self.process.is_first else None

    def train(self) -> list[dict[str, float]]:
        trainer, history = self.trainer, self.history
        if self.curves and (reason := why_no_curves(self.curves)):
            say(f"no curves in TensorBoard: {reason}")
            self.curves = None
        if trainer.captions.cut:
            say(
                f"{trainer.captions.cut:,} of {len(trainer.captions):,} captions were cut: they "
                f"have more than {self.config.max_words} words (--max-words)"
            )
        if history and self.val_table and "CIDEr-D" not in history[-1]:
            self.finish(history[-1])  # it was killed, or failed, during validation
        for epoch in range(trainer.step // self.steps_per_epoch, self.config.epochs):
            history.append(self.train_epoch(epoch))
            if self.val_table:
                self.save(self.last)  # so that an error in validation does not cost the epoch
            self.finish(history[-1])
        return history

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Runs the steps of an epoch; returns its entry in the history."""
        trainer, config, metric = self.trainer, self.config, self.trainer.metric
        start, seen, total = time.perf_counter(), 0, 0.0
        order = trainer.batches(epoch)
        bar = progress(order, f"epoch {epoch + 1}/{config.epochs}")
        for done, indices in enumerate(bar, 1):
            value = trainer.train_step(indices, self.steps)
            if not math.isfinite(value):
                raise CaptioningError(
                    f"the {metric} became {value} in step {trainer.step}: lower the learning rate. "
                    f"The last good checkpoint is {self.last}"
                )
            total, seen = total + value, seen + len(indices)
            self.points.append((f"train/{metric}", value, trainer.step))
            bar.set_postfix_str(f"{metric} {total / done:.3f}", refresh=False)
        seconds, mean = time.perf_counter() - start, total / len(order)
        return {
            "epoch": epoch + 1,
            metric: mean,
            "learning_rate": learning_rate(config, trainer.step - 1, self.steps),
            "seconds": seconds,
            "captions_per_second": max(1, config.self_critical) * seen / seconds,
            **({"perplexity": math.exp(min(mean, 50))} if metric == "loss" else {}),
        }

    def finish(self, entry: dict[str, float]) -> None:
        """Validate a finished epoch, the last of the history, and save."""
        if self.val_table and self.process.is_first:
            with self.trainer.averaged():
                loss, scores, _ = validate(self.checkpoint, self.val_table)
            if len(self.history) == 1:
                say(*(f"note: {note}" for note in scores.notes))
            entry |= {"val_loss": loss, "val_perplexity": math.exp(min(loss, 50))}
            entry |= scores.overall
        if self.process.world_size > 1:
            box = [entry]
            dist.broadcast_object_list(box, 0)
            entry |= box[0]
        if self.curves:
            epoch = int(entry["epoch"])
            self.points += [(f"epoch/{name}", number, epoch) for name, number in entry.items()]
            add_curves(self.curves, self.points)
        self.points.clear()
        say(describe(entry))
        # best.pt first: a run that is killed between the two validates this epoch again.
        if entry.get("CIDEr-D", 0.0) >= max(e.get("CIDEr-D", 0.0) for e in self.history):
            self.save(self.best)
        self.save(self.last)

    def save(self, path: Path) -> None:
        if self.process.is_first:
            with self.trainer.averaged():
                self.checkpoint.training |= {
                    "config": asdict(self.config),
                    "trainer": self.trainer.state_dict(),
                    "history": self.history,
                }
                self.checkpoint.save(path)


def describe(entry: dict[str, float]) -> str:
    """One line about an epoch."""
    name = "loss" if "loss" in entry else "reward"
    line = f"epoch {entry['epoch']:.0f}: {name} {entry[name]:.3f}"
    if "val_loss" in entry:
        line += f", val loss {entry['val_loss']:.3f} (perplexity {entry['val_perplexity']:.2f})"
        line += f", CIDEr-D {entry['CIDEr-D']:.3f}, BLEU-4 {entry['BLEU-4']:.3f}"
    return line + f", {entry['captions_per_second']:,.0f} captions/s"


def why_no_curves(folder: Path) -> str | None:
    """What hinders writing curves to `folder`; None if nothing does."""
    try:
        import torch.utils.tensorboard  # noqa: F401

        str(folder).encode()
    except ImportError:
        return "pip install tensorboard"
    except UnicodeEncodeError:
        return "its folders need names in UTF-8"
    return None


def add_curves(folder: Path, points: Iterable[tuple[str, float, int]]) -> None:
    """Add points to the curves in `folder`: the curve's name, the value and the step."""
    from torch.utils.tensorboard import SummaryWriter

    # Its thread would print a traceback of an error that is raised here anyway.
    silent = mock.patch.object(threading, "excepthook")
    with writing(folder), silent, SummaryWriter(str(folder)) as log:
        for point in points:
            log.add_scalar(*point)
