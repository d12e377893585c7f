"""A run: epochs of training and validation, checkpoints, curves, resuming."""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from captioning.cnn import FeatureTable
from captioning.config import TrainConfig, from_dict
from captioning.console import progress, say
from captioning.data import EncodedCaptions
from captioning.errors import CaptioningError, naming
from captioning.files import lock_folder
from captioning.model import Checkpoint, load_checkpoint
from captioning.results import Scores, score_captions
from captioning.search import best_captions
from captioning.training.curves import Curves, open_curves
from captioning.training.processes import SINGLE, Process
from captioning.training.self_critical import SelfCriticalTrainer
from captioning.training.trainer import Trainer, learning_rate

# Settings that may differ from those of the run that is resumed.
MAY_CHANGE = {"epochs", "patience", "save_every", "no_neighbors"}


@torch.no_grad()
def mean_loss(
    model: nn.Module, table: FeatureTable, captions: EncodedCaptions, batch_size: int = 256
) -> float:
    """Mean teacher-forced cross-entropy per token: a loss, not a score of captions."""
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for indices in captions.in_order(batch_size):
        batch = captions.batch(indices)
        features = table.read(batch.images).to(device)
        rows, words = batch.rows.to(device), batch.captions.to(device)
        total += float(model(features, rows, words, batch.lengths)[0])
        tokens += int((batch.lengths - 1).sum())
    return total / tokens


def validate(
    checkpoint: Checkpoint, table: FeatureTable, captions: EncodedCaptions, progress: bool = True
) -> tuple[float, Scores, dict[int, str]]:
    """Loss, and scores of the captions that greedy search writes on its own."""
    written = best_captions(
        checkpoint.model,
        checkpoint.vocabulary,
        table.read(),
        table.ids,
        progress="validate" if progress else None,
    )
    loss = mean_loss(checkpoint.model, table, captions)
    return loss, score_captions(written, table.references), written


def train(
    checkpoint: Checkpoint,
    config: TrainConfig,
    train_table: FeatureTable,
    val_table: FeatureTable | None,
    output: str | Path,
    resume: bool = False,
    process: Process = SINGLE,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a captioner; writes `output`/last.pt, best.pt (by CIDEr-D) and tensorboard/.

    Args:
        checkpoint: the captioner to train; its weights change.
        config: how to train.
        train_table: pictures and captions to train on.
        val_table: pictures to validate on after each epoch; None skips it, and best.pt is last.pt
            unless an epoch before `resume` was validated.
        output: folder.
        resume: from `output`/last.pt if it exists.
        process: this process and its device, from `captioning.processes.distributed`.
        progress: show progress bars.

    Returns:
        What happened in each epoch.
    """
    if config.patience and val_table is None:
        raise CaptioningError(
            f"patience: expected 0 without pictures to validate on (--val), got {config.patience}"
        )
    lock = lock_folder(output, "last.pt", "best.pt") if process.is_first else nullcontext()
    with lock:
        kind = SelfCriticalTrainer if config.self_critical else Trainer
        trainer = kind(checkpoint, config, train_table, process)
        run = _Run(checkpoint, trainer, val_table, Path(output), progress and process.is_first)
        return run.train(resume)


class _Run:
    """The epochs of one call of `train`.

    Attributes:
        history: the finished epochs.
        done: number of finished steps of the current epoch.
        total: sum of their losses or rewards.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        trainer: Trainer,
        val_table: FeatureTable | None,
        output: Path,
        progress: bool,
    ) -> None:
        self.checkpoint, self.trainer, self.val_table = checkpoint, trainer, val_table
        self.config, self.process, self.progress = trainer.config, trainer.process, progress
        self.last, self.best = output / "last.pt", output / "best.pt"
        self.steps_per_epoch = len(trainer.batches(0))
        self.steps = self.steps_per_epoch * self.config.epochs
        self.history: list[dict[str, float]] = []
        self.done, self.total = 0, 0.0
        self.log: Curves | None = None
        self.val_captions = None
        if val_table is not None:
            captions = [image.captions for image in val_table.images]
            self.val_captions = EncodedCaptions(captions, checkpoint.vocabulary, 200)

    def train(self, resume: bool) -> list[dict[str, float]]:
        trainer, history = self.trainer, self.history
        if resume and self.last.exists():
            history += _resume(trainer, self.checkpoint, self.config, self.last)
            self.total = self.checkpoint.training["running"]
            self.done = trainer.step % self.steps_per_epoch
        if self.process.is_first:
            self.log = open_curves(self.last.parent / "tensorboard", self.progress)
        if self.progress and trainer.captions.cut:
            say(
                f"{trainer.captions.cut:,} of {len(trainer.captions):,} captions were cut: they "
                f"have more than {self.config.max_words} words (--max-words)"
            )
        validates = self.val_table is not None
        if history and validates and "CIDEr-D" not in history[-1] and not self.done:
            self.finish(history[-1])  # it was killed, or failed, during validation
        for epoch in range(trainer.step // self.steps_per_epoch, self.config.epochs):
            if _should_stop(history, self.config.patience):
                break
            history.append(self.train_epoch(epoch))
            if validates:
                self.save(self.last)  # so that an error in validation does not cost the epoch
            self.finish(history[-1])
        if self.log:
            self.log.close()
        return history

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Runs the remaining steps of an epoch; returns its entry in the history."""
        trainer, config, metric = self.trainer, self.config, self.trainer.metric
        start, seen = time.perf_counter(), 0
        order = trainer.batches(epoch)[self.done :]
        bar = progress(order, f"epoch {epoch + 1}/{config.epochs}", self.progress)
        for indices in bar:
            value = trainer.train_step(indices, self.steps)
            if not math.isfinite(value):
                raise CaptioningError(
                    f"the {metric} became {value} in step {trainer.step}: lower the learning rate. "
                    f"The last good checkpoint is {self.last}"
                )
            self.total, self.done, seen = self.total + value, self.done + 1, seen + len(indices)
            if self.log:
                self.log.add_scalar(f"train/{metric}", value, trainer.step)
            bar.set_postfix_str(f"{metric} {self.total / self.done:.3f}", refresh=False)
            inside = self.done < self.steps_per_epoch
            if config.save_every and inside and trainer.step % config.save_every == 0:
                self.save(self.last)
        seconds = time.perf_counter() - start
        mean = self.total / self.done
        entry = {
            "epoch": epoch + 1,
            metric: mean,
            "learning_rate": learning_rate(config, trainer.step - 1, self.steps),
            "seconds": seconds,
            "captions_per_second": trainer.captions_per_index * seen / seconds,
        }
        self.total, self.done = 0.0, 0
        return entry | ({"perplexity": math.exp(min(mean, 50))} if metric == "loss" else {})

    def finish(self, entry: dict[str, float]) -> None:
        """Validate a finished epoch, the last of the history, and save."""
        if self.val_table is not None and self.val_captions and self.process.is_first:
            with self.trainer.averaged():
                loss, scores, _ = validate(
                    self.checkpoint, self.val_table, self.val_captions, self.progress
                )
            entry |= {"val_loss": loss, "val_perplexity": math.exp(min(loss, 50))}
            entry |= scores.overall
        entry |= _broadcast(entry, self.process)
        if self.log:
            for name, number in entry.items():
                self.log.add_scalar(f"epoch/{name}", number, int(entry["epoch"]))
            self.log.flush()
        if self.progress:
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
                    "running": self.total,
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


def saved_config(checkpoint: Checkpoint, path: Path) -> TrainConfig:
    """The settings of the run that wrote a checkpoint, without those that were dropped since."""
    settings = checkpoint.training.get("config")
    if isinstance(settings, dict):
        settings = {name: v for name, v in settings.items() if name != "compile"}
        if not settings.get("scheduled_sampling"):
            settings.pop("scheduled_sampling", None)
    return from_dict(TrainConfig, settings, f"{path}: settings")


def _should_stop(history: list[dict[str, float]], patience: int) -> bool:
    values = [entry["CIDEr-D"] for entry in history if "CIDEr-D" in entry]
    return bool(patience and values and len(values) - 1 - values.index(max(values)) >= patience)


def _resume(
    trainer: Trainer, checkpoint: Checkpoint, config: TrainConfig, path: Path
) -> list[dict[str, float]]:
    """Load everything from `path`; refuse to resume with other words, sizes or settings."""
    old = load_checkpoint(path)
    if old.vocabulary.words != checkpoint.vocabulary.words:
        raise CaptioningError(
            f"{path} was trained with another vocabulary ({len(old.vocabulary)} words, here "
            f"{len(checkpoint.vocabulary)}); give that one, or another output folder"
        )
    if old.cnn != checkpoint.cnn:
        raise CaptioningError(f"{path} was trained on features of another CNN: {old.cnn.config}")
    if old.model.config != checkpoint.model.config:
        raise CaptioningError(f"{path} holds another model: {old.model.config}")
    before = saved_config(old, path)
    for name, value in asdict(config).items():
        if name not in MAY_CHANGE and getattr(before, name) != value:
            raise CaptioningError(
                f"{path} was trained with {name} = {getattr(before, name)}, got {value}"
            )
    if lacking := {"trainer", "history", "running"} - old.training.keys():
        raise CaptioningError(f"{path}: expected a run to resume, got none: no {lacking.pop()}")
    checkpoint.training = old.training
    with trainer.averaged(), naming(path):
        checkpoint.model.load_state_dict(old.model.state_dict())
        trainer.load_state_dict(old.training["trainer"])
    return list(old.training["history"])


def _broadcast(entry: dict[str, float], process: Process) -> dict[str, float]:
    if process.world_size > 1:
        box = [entry]
        dist.broadcast_object_list(box, 0)
        return box[0]
    return entry
