"""One step of training on cross-entropy: Adam over the decoder, encoder.linear and encoder.bn.

Each step seeds its random numbers by (seed, step, process), so a run that was killed and resumed
computes exactly what an uninterrupted one would. Under torchrun each process takes its share of
every batch's captions and all of its pictures' features, so BatchNorm sees the whole batch and the
loss is that of a single process.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captioning.cnn import FeatureTable
from captioning.config import TrainConfig, autocast_dtype
from captioning.data import EncodedCaptions, Vocabulary
from captioning.errors import CaptioningError
from captioning.model import Checkpoint, CiderD
from captioning.training.processes import SINGLE, Process

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of a step: a linear start, then half a cosine down to 2 %."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return config.learning_rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


def consensus_weights(table: FeatureTable, vocabulary: Vocabulary, share: float) -> Tensor:
    """The factor of each caption's loss, an idea of Phan et al. (2017).

    A picture's captions have a mean factor of 1. The part `share` of a factor is proportional to
    the caption's CIDEr-D against the picture's other captions plus a constant, a fifth of the mean
    over all captions. Without it a word or two would decide where people agree on little.
    """
    cider = CiderD(table.tokens(vocabulary))
    agreement = [torch.tensor(cider.consensus(captions)) for captions in cider.references]
    floor = torch.cat(agreement).mean() / 5
    if floor == 0:
        return torch.ones(sum(map(len, agreement)))
    return torch.cat([1 - share + share * (a + floor) / (a + floor).mean() for a in agreement])


class Trainer:
    """The captioner of a checkpoint, its optimizer, and what a step of training on a table does."""

    metric = "loss"  # what `train_step` returns, without label smoothing and weights

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainConfig,
        table: FeatureTable,
        process: Process = SINGLE,
    ) -> None:
        self.config, self.table, self.process = config, table, process
        self.vocabulary = checkpoint.vocabulary
        self.model = checkpoint.model.to(process.device)
        captions = [image.captions for image in table.images]
        self.captions = EncodedCaptions(captions, self.vocabulary, config.max_words)
        self.caption_weights = torch.ones(len(self.captions))  # factors of their losses
        if config.consensus and not config.self_critical:
            self.caption_weights = consensus_weights(table, self.vocabulary, config.consensus)
        self.parameters = [*self.model.decoder.parameters(), *self.model.encoder.parameters()]
        self.average = [p.detach().clone() for p in self.parameters] if config.ema else []
        self.optimizer = torch.optim.Adam(self.parameters, config.learning_rate, fused=True)
        self.step = 0  # number of finished steps
        several = process.world_size > 1
        self.parallel = DistributedDataParallel(self.model) if several else self.model
        batches = self.batches(0)
        vectors = min(map(len, batches))  # that BatchNorm sees, at least
        if config.batches_of == "pictures" and not self.model.config.grid:
            vectors = len(table.images) // len(batches)
        if vectors < 2 or min(map(len, batches)) < process.world_size:
            raise CaptioningError(
                f"batches of {config.batch_size}, of {len(self.captions)} captions, are too small "
                f"for BatchNorm and {process.world_size} processes"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model's weights; read and load it inside `averaged`."""
        optimizer = self.optimizer.state_dict()
        return {"optimizer": optimizer, "weights": self.average, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave; a CaptioningError if it does not fit."""
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
            saved = list(zip(self.average, state["weights"], strict=True))
            moments = [(p, s[n]) for p, s in self.optimizer.state.items() for n in _MOMENTS]
            if any(mine.shape != its.shape for mine, its in saved + moments):
                raise ValueError("tensors of other shapes")
            for mine, its in saved:
                mine.copy_(its)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if isinstance(error, RuntimeError) else repr(error)
            raise CaptioningError(f"expected the state of this trainer, got: {reason}") from error

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives the model the averaged weights; meanwhile `average` holds those of training."""

        def swap() -> None:
            for parameter, average in zip(self.parameters, self.average, strict=False):
                parameter.data, average.data = average.data, parameter.data

        swap()
        try:
            yield
        finally:
            swap()

    def autocast(self) -> Any:
        """The context of the forward pass, by `config.autocast`."""
        device = self.process.device.split(":")[0]
        dtype = autocast_dtype(self.config.autocast, device)
        return torch.autocast(device, dtype, enabled=dtype is not None)

    def batches(self, epoch: int) -> list[Tensor]:
        """The caption indices of every batch of an epoch."""
        by_picture = self.config.batches_of == "pictures"
        return self.captions.epoch(self.config.batch_size, self.config.seed, epoch, by_picture)

    def train_step(self, indices: Tensor, steps: int) -> float:
        """One of `steps` steps, on the batch `indices`; returns its metric before the step."""
        process, config = self.process, self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, steps)
        loss, count, metric = self.objective(indices)
        self.optimizer.zero_grad()
        # DistributedDataParallel averages over the processes, and the mean is over all tokens.
        (loss * (process.world_size / count)).backward()
        self.update()
        if process.world_size > 1:
            dist.all_reduce(metric)
        return metric.item()

    def objective(self, indices: Tensor) -> tuple[Tensor, int, Tensor]:
        """What to minimize on one of `batches`, summed over this process's tokens.

        Then the number of tokens of all processes, and the metric, to be summed over them.
        """
        process, config = self.process, self.config
        batch = self.captions.batch(indices)
        tokens = int((batch.lengths - 1).sum())
        share = slice(process.rank, None, process.world_size)
        lengths = batch.lengths[share]
        torch.manual_seed(torch.initial_seed() * 1009 + process.rank)  # its own dropout
        self.model.train()
        with self.autocast():
            loss, nll = self.parallel(
                self.table.read(batch.images).to(process.device),
                batch.rows[share].to(process.device),
                batch.captions[share, : int(lengths[0])].to(process.device),
                lengths,
                self.caption_weights[batch.indices[share]].to(process.device),
                label_smoothing=config.label_smoothing,
            )
        # Reported without weights and label smoothing, as validation is, so that the two compare.
        return loss, tokens, nll / tokens

    def update(self) -> None:
        """The optimizer's step, with clipped gradients, and the average of the weights after it."""
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.step += 1
        if self.average:
            # Smaller at first: otherwise the initial weights would stay in the average for long.
            decay = min(self.config.ema, self.step / (self.step + 9))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list[Tensor](self.parameters), 1 - decay)
