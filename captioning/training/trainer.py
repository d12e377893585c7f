"""One step of training on cross-entropy: Adam over the decoder, encoder.linear and encoder.bn.

Each step seeds its random numbers by (seed, step, process), so a run that was killed and resumed
computes exactly what an uninterrupted one would. Under torchrun each process takes its share of
every batch's captions and all of its pictures' features, so BatchNorm sees the whole batch and the
loss is that of a single process.
"""

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from captioning.cnn.features import FeatureTable
from captioning.data.batches import EncodedCaptions
from captioning.data.vocabulary import Vocabulary
from captioning.errors import CaptioningError
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint
from captioning.model.cider import CiderD
from captioning.settings import TrainConfig, autocast_dtype
from captioning.training.processes import SINGLE, Process


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
    references = table.tokens(vocabulary)
    cider = CiderD(references)
    agreement = [torch.tensor(cider.consensus(captions)) for captions in references]
    floor = torch.cat(agreement).mean() / 5
    if floor < 1e-9:
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
        self.average = AveragedModel(self.model, avg_fn=self._mean) if config.ema else None
        self.optimizer = torch.optim.Adam(self.parameters, config.learning_rate, fused=True)
        self.step = 0  # number of finished steps
        several = process.world_size > 1
        self.parallel = DistributedDataParallel(self.model) if several else self.model
        self._check_batches()

    def _check_batches(self) -> None:
        """Refuses batches that leave a process without a caption, or BatchNorm with one vector."""
        config, images, processes = self.config, self.captions.image, self.process.world_size
        smallest, small = min(map(len, self.batches(0))), False
        # A picture has one vector, but with a grid it has many. Self-critical training runs in eval
        # mode. A batch with more captions than any picture has is of two pictures.
        one_vector = not self.model.config.grid and not config.self_critical
        if one_vector and smallest <= images.bincount().max():
            every = (batch for epoch in range(config.epochs) for batch in self.batches(epoch))
            small = any(len(images[batch].unique()) < 2 for batch in every)
        if small or smallest < processes:
            raise CaptioningError(
                "batch_size: expected captions of two pictures in each batch, for BatchNorm, and "
                f"one for each process ({processes}); got {config.batch_size} of {len(images)}"
            )

    @property
    def averaged(self) -> Captioner:
        """The captioner with the averaged weights, which is validated and saved."""
        return cast(Captioner, self.average.module) if self.average else self.model

    def _mean(self, average: Tensor, weight: Tensor, count: Tensor | int) -> Tensor:
        """The average after one more step; shorter at first, or early weights would stay in it."""
        decay = min(self.config.ema, (int(count) + 1) / (int(count) + 10))
        return average.lerp(weight, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the averaged captioner's weights."""
        state = {"optimizer": self.optimizer.state_dict(), "step": self.step}
        return state | ({"weights": self.model.state_dict()} if self.average else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        if self.average:  # a copy of the model as it was read: of the averaged weights
            self.average.n_averaged.fill_(self.step)
            self.model.load_state_dict(state["weights"])

    def autocast(self) -> Any:
        """The context of the forward pass, by `config.autocast`."""
        device = self.process.device.split(":")[0]
        dtype = autocast_dtype(self.config.autocast, device)
        return torch.autocast(device, dtype, enabled=dtype is not None)

    def batches(self, epoch: int) -> list[Tensor]:
        """The caption indices of every batch of an epoch."""
        by_picture = self.config.batches_of == "pictures"
        return self.captions.epoch(self.config.batch_size, self.config.seed, epoch, by_picture)

    @property
    def seed(self) -> int:
        """The seed of the next step, the same in all processes."""
        return self.config.seed * 1_000_003 + self.step

    def train_step(self, indices: Tensor, steps: int) -> float:
        """One of `steps` steps, on the batch `indices`; returns its metric before the step."""
        process, config = self.process, self.config
        torch.manual_seed(self.seed)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, steps)
        loss, count, metric = self.objective(indices)
        self.optimizer.zero_grad()
        # DistributedDataParallel averages over the processes, and the mean is over all tokens.
        (loss * (process.world_size / count)).backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update_parameters(self.model)
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
        torch.manual_seed(self.seed * 1009 + process.rank)  # dropout differs by process
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
