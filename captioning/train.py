"""Training on cached features: Adam over the decoder, encoder.linear and encoder.bn.

Every step draws its randomness from (seed, step, process), so a run that was killed and resumed
computes exactly what an unbroken one would. Under torchrun each process takes its share of every
batch's captions and all of its pictures' features, so BatchNorm sees the whole batch and the loss
is that of a single process.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from captioning.checkpoint import Checkpoint, load_checkpoint
from captioning.datasets import CaptionDataset, EncodedCaptions
from captioning.errors import CaptioningError
from captioning.features import FeatureCache
from captioning.generate import best_captions
from captioning.metrics import Scores, score_captions

AUTOCAST = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """Args:
    epochs: passes over all captions.
    batch_size: captions per step, of all processes together.
    learning_rate: the highest; it rises for `warmup` steps, then falls along a cosine to 2 %.
    warmup: steps.
    schedule: "cosine" or "constant".
    clip_norm: the largest norm of the gradient; 0 for no limit.
    label_smoothing: share of the target spread over the vocabulary.
    scheduled_sampling: probability, in the last epoch, of feeding the model's own words; it rises
        linearly from 0 in the first.
    patience: stop after so many epochs without a better CIDEr-D; 0 never.
    autocast: "none", "bfloat16" or "float16".
    compile: torch.compile the decoder; uses padded captions instead of packed ones.
    save_every: steps between saves within an epoch; 0 saves after each epoch only.
    max_words: longer captions are cut.
    seed: of initial weights, order, dropout.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 50
    schedule: str = "cosine"
    clip_norm: float = 5.0
    label_smoothing: float = 0.0
    scheduled_sampling: float = 0.0
    patience: int = 0
    autocast: str = "none"
    compile: bool = False
    save_every: int = 0
    max_words: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("max_words", 1), ("patience", 0)):
            if getattr(self, name) < low:
                raise CaptioningError(f"{name}: expected >= {low}, got {getattr(self, name)}")
        for name in ("label_smoothing", "scheduled_sampling"):
            if not 0 <= getattr(self, name) < 1:
                raise CaptioningError(
                    f"{name}: expected 0 <= {name} < 1, got {getattr(self, name)}"
                )
        if self.autocast not in AUTOCAST:
            raise CaptioningError(f"autocast: expected one of {tuple(AUTOCAST)}")
        if self.schedule not in ("cosine", "constant"):
            raise CaptioningError(f"schedule: expected 'cosine' or 'constant', got {self.schedule}")


class FeatureTable:
    """Captioned pictures with features, those without (broken pictures) left out."""

    def __init__(self, dataset: CaptionDataset, cache: FeatureCache) -> None:
        rows = cache.rows([image.id for image in dataset.images])
        self.images = [image for image, r in zip(dataset.images, rows, strict=True) if r >= 0]
        if not self.images:
            raise CaptioningError(f"{cache.path} holds no features of this data set")
        self.rows = rows[rows >= 0]
        self.ids = [image.id for image in self.images]
        self.references = {image.id: image.captions for image in self.images}
        self.cache = cache

    def read(self, images: Tensor | None = None) -> Tensor:
        """float32 features of pictures by position; of all if None."""
        return self.cache.read(self.rows if images is None else self.rows[images])


# Several processes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextlib.contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; alone if there are none."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes(device=device)
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
        dist.barrier()  # leaving while others still talk makes gloo abort
    finally:
        dist.destroy_process_group()


# Steps ------------------------------------------------------------------------------------------


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    if config.schedule == "constant":
        return config.learning_rate * warm
    return config.learning_rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


class Trainer:
    """A model, its optimizer, and one step of training.

    Attributes:
        step: number of steps made.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: TrainConfig, here: Processes = Processes()
    ) -> None:
        self.config, self.here = config, here
        self.model = checkpoint.model.to(here.device)
        self.parameters = [
            *self.model.decoder.parameters(),
            *self.model.encoder.linear.parameters(),
            *self.model.encoder.bn.parameters(),
        ]
        self.optimizer = torch.optim.Adam(self.parameters, config.learning_rate, fused=True)
        self.scaler = torch.amp.GradScaler(
            here.device.split(":")[0], enabled=config.autocast == "float16"
        )
        self.step = 0
        if config.compile:
            decoder = self.model.decoder
            decoder.unroll_padded = torch.compile(decoder.unroll_padded, dynamic=True)
        self.parallel: nn.Module = self.model
        if here.world > 1:
            self.parallel = DistributedDataParallel(self.model)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

    def autocast(self) -> Any:
        dtype = AUTOCAST[self.config.autocast]
        return torch.autocast(self.here.device.split(":")[0], dtype, enabled=dtype is not None)

    def train_step(
        self, features: Tensor, captions: EncodedCaptions, indices: Tensor, steps: int
    ) -> float:
        """One step on the captions at `indices`; returns the mean loss per token before it."""
        here, config = self.here, self.config
        torch.manual_seed((config.seed * 1_000_003 + self.step) * 1009 + here.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, steps)
        batch = captions.batch(indices)
        tokens = int((batch.lengths - 1).sum())
        share = slice(here.rank, None, here.world)
        lengths = batch.lengths[share]
        self.model.train()
        with self.autocast():
            loss = self.parallel(
                features.to(here.device),
                batch.rows[share].to(here.device),
                batch.captions[share, : int(lengths[0])].to(here.device),
                lengths,
                label_smoothing=config.label_smoothing,
                scheduled_sampling=config.scheduled_sampling * self.step / steps,
                packed=not config.compile,
            )
        self.optimizer.zero_grad()
        # DistributedDataParallel averages over the processes, and the mean is over all tokens.
        self.scaler.scale(loss * (here.world / tokens)).backward()
        self.update()
        if here.world > 1:
            loss = loss.detach()
            dist.all_reduce(loss)
        return loss.item() / tokens

    def update(self) -> None:
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1


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
        total += float(
            model(features, batch.rows.to(device), batch.captions.to(device), batch.lengths)
        )
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


# The run ----------------------------------------------------------------------------------------


def train(
    checkpoint: Checkpoint,
    config: TrainConfig,
    train_table: FeatureTable,
    val_table: FeatureTable | None,
    output: str | Path,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a captioner; writes `output`/last.pt, best.pt (by CIDEr-D) and tensorboard/.

    Args:
        checkpoint: the captioner to train; its weights change.
        config: how.
        train_table: pictures and captions to train on.
        val_table: pictures to validate on after each epoch; None skips it, and best.pt is last.pt.
        output: folder.
        resume: go on from `output`/last.pt if it is there.
        device: "cpu" or "cuda".
        progress: show progress bars.

    Returns:
        What happened in each epoch.
    """
    output = Path(output)
    last, best = output / "last.pt", output / "best.pt"
    captions = EncodedCaptions(
        [image.captions for image in train_table.images], checkpoint.vocabulary, config.max_words
    )
    steps_per_epoch = len(captions.epoch(config.batch_size, config.seed, 0))
    with processes(device) as here:
        progress = progress and here.is_first
        if len(captions) // steps_per_epoch < max(2, here.world):
            raise CaptioningError(
                f"{len(captions)} captions in batches of {config.batch_size} are too few for "
                f"BatchNorm and {here.world} processes"
            )
        history: list[dict[str, float]] = []
        trainer = Trainer(checkpoint, config, here)
        if resume and last.exists():
            history = _resume(trainer, checkpoint, config, last)
        log = _tensorboard(output) if here.is_first else None
        val_captions = None
        if val_table is not None:
            val_captions = EncodedCaptions(
                [image.captions for image in val_table.images], checkpoint.vocabulary, 200
            )
        steps = steps_per_epoch * config.epochs
        running, begun = checkpoint.training.get("running", 0.0), trainer.step % steps_per_epoch

        def save(path: Path) -> None:
            checkpoint.training = {
                "config": asdict(config),
                "trainer": trainer.state_dict(),
                "history": history,
                "running": running,
            }
            if here.is_first:
                checkpoint.save(path)

        for epoch in range(trainer.step // steps_per_epoch, config.epochs):
            if _should_stop(history, config.patience):
                break
            start, seen = time.perf_counter(), 0
            order = captions.epoch(config.batch_size, config.seed, epoch)[begun:]
            bar = tqdm(order, f"epoch {epoch + 1}/{config.epochs}", disable=not progress)
            for indices in bar:
                features = train_table.read(captions.image[indices].unique())
                loss = trainer.train_step(features, captions, indices, steps)
                if not math.isfinite(loss):
                    raise CaptioningError(
                        f"the loss became {loss} in step {trainer.step}: lower the learning rate. "
                        f"The last good checkpoint is {last}"
                    )
                running, begun, seen = running + loss, begun + 1, seen + len(indices)
                if log:
                    log.add_scalar("train/loss", loss, trainer.step)
                    log.add_scalar("train/perplexity", math.exp(min(loss, 50)), trainer.step)
                bar.set_postfix(loss=f"{running / begun:.3f}")
                inside = begun < steps_per_epoch
                if config.save_every and inside and trainer.step % config.save_every == 0:
                    save(last)
            seconds = time.perf_counter() - start
            entry = {
                "epoch": epoch + 1,
                "loss": running / begun,
                "perplexity": math.exp(min(running / begun, 50)),
                "learning_rate": learning_rate(config, trainer.step - 1, steps),
                "seconds": seconds,
                "captions_per_second": seen / seconds,
            }
            running, begun = 0.0, 0
            if val_table is not None and val_captions is not None and here.is_first:
                loss, scores, _ = validate(checkpoint, val_table, val_captions, progress)
                entry |= {"val_loss": loss, "val_perplexity": math.exp(min(loss, 50))}
                entry |= scores.overall
            entry = _from_first(entry, here)
            history.append(entry)
            if log:
                for name, value in entry.items():
                    log.add_scalar(f"epoch/{name}", value, epoch + 1)
                log.flush()
            if progress:
                tqdm.write(describe(entry))
            save(last)
            if val_table is None or entry["CIDEr-D"] >= max(h["CIDEr-D"] for h in history):
                save(best)
        if log:
            log.close()
    return history


def describe(entry: dict[str, float]) -> str:
    """One line about an epoch."""
    line = f"epoch {entry['epoch']:.0f}: loss {entry['loss']:.3f}"
    if "val_loss" in entry:
        line += f", val loss {entry['val_loss']:.3f} (perplexity {entry['val_perplexity']:.2f})"
        line += f", CIDEr-D {entry['CIDEr-D']:.3f}, BLEU-4 {entry['BLEU-4']:.3f}"
    return line + f", {entry['captions_per_second']:,.0f} captions/s"


def _should_stop(history: list[dict[str, float]], patience: int) -> bool:
    values = [entry.get("CIDEr-D", 0.0) for entry in history]
    return bool(patience and values and len(values) - 1 - values.index(max(values)) >= patience)


def _resume(
    trainer: Trainer, checkpoint: Checkpoint, config: TrainConfig, path: Path
) -> list[dict[str, float]]:
    """Load everything from `path`; refuse to go on with other words, sizes or settings."""
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
    free = {"epochs", "patience", "save_every", "compile"}
    for name, value in asdict(config).items():
        if name not in free and old.training["config"][name] != value:
            raise CaptioningError(
                f"{path} was trained with {name} = {old.training['config'][name]}, got {value}"
            )
    checkpoint.model.load_state_dict(old.model.state_dict())
    checkpoint.training = old.training
    trainer.load_state_dict(old.training["trainer"])
    return list(old.training["history"])


def _from_first(entry: dict[str, float], here: Processes) -> dict[str, float]:
    if here.world > 1:
        box = [entry]
        dist.broadcast_object_list(box, 0)
        return box[0]
    return entry


def _tensorboard(output: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(output / "tensorboard"))
