"""One step of training by cross-entropy, with Adam on the decoder, encoder.linear and encoder.bn.

Each step seeds the random numbers with the run's seed and the step's number. So a run that was
killed and resumed computes the same bits as one without interruption. Under torchrun each process
computes the loss of its share of the captions of a batch. Every process reads the features of all
pictures of the batch, so BatchNorm sees the whole batch, and the sum of the losses is the loss that
a single process would compute.
"""

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from captioning.cnn.features import FeatureTable
from captioning.data.vocabulary import Vocabulary
from captioning.errors import CaptioningError
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint
from captioning.model.cider import CiderD
from captioning.settings import TrainConfig
from captioning.training.processes import SINGLE, Process


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Returns the learning rate of one of `steps` steps.

    It is `config.learning_rate`, times a factor that rises linearly to 1 over `config.warmup`
    steps, times a factor that falls from 1 to 0.02 over all steps as half a period of a cosine.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return config.learning_rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


def consensus_weights(table: FeatureTable, vocabulary: Vocabulary, share: float) -> Tensor:
    """Returns a factor for the loss of each caption, larger for captions that agree with others.

    This is an idea of Phan et al. (2017). The agreement of a caption is its CIDEr-D against the
    other captions of its picture, plus a constant: a fifth of the mean CIDEr-D of all captions. If
    the captions of a picture have few words in common, their CIDEr-D are near 0, and without the
    constant the factors would depend on a word or two. A factor is 1 - share + share * agreement /
    (mean agreement of the picture's captions), so the factors of a picture have the mean 1.
    """
    references = table.tokens(vocabulary)
    cider = CiderD(references)
    agreement = [torch.tensor(cider.consensus(captions)) for captions in references]
    shift = torch.cat(agreement).mean() / 5
    if shift < 1e-9:
        return torch.ones(sum(map(len, agreement)))
    return torch.cat([1 - share + share * (a + shift) / (a + shift).mean() for a in agreement])


class Trainer:
    """Trains the captioner of a checkpoint on a table, step by step."""

    metric = "loss"  # the name of the number that `train_step` returns

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
        self.captions = table.encode(self.vocabulary, config.max_words)
        self.caption_weights = torch.ones(len(self.captions))  # a factor for each caption's loss
        if config.consensus and not config.self_critical:
            self.caption_weights = consensus_weights(table, self.vocabulary, config.consensus)
        self.parameters = [*self.model.decoder.parameters(), *self.model.encoder.parameters()]
        self.averaged = AveragedModel(self.model, avg_fn=self._next_average) if config.ema else None
        self.optimizer = torch.optim.Adam(self.parameters, config.learning_rate, fused=True)
        self.step = 0  # number of finished steps
        is_distributed = process.world_size > 1
        self.model_or_ddp = DistributedDataParallel(self.model) if is_distributed else self.model
        self._check_batches()

    def _check_batches(self) -> None:
        """Refuses batches too small for BatchNorm, or for the number of processes."""
        config, processes, too_small = self.config, self.process.world_size, False
        picture_of, smallest = self.captions.picture_of, min(map(len, self.batches(0)))
        # In train mode BatchNorm needs at least two vectors. A picture has one vector, or many if
        # the CNN pools to a grid. Self-critical training stays in eval mode.
        needs_two_pictures = not self.model.config.grid and not config.self_critical
        # If a batch has more captions than any one picture has, it describes at least two pictures.
        if needs_two_pictures and smallest <= picture_of.bincount().max():
            batches = (batch for epoch in range(config.epochs) for batch in self.batches(epoch))
            too_small = any(len(picture_of[batch].unique()) < 2 for batch in batches)
        if too_small or smallest < processes:
            expected = "two pictures in each batch, for BatchNorm, and a caption for each process "
            expected += f"({processes}); got {config.batch_size} for {len(self.captions)} captions"
            raise CaptioningError(f"batch_size: expected {expected}")

    @property
    def model_to_save(self) -> Captioner:
        """The captioner that is validated and saved: with averaged weights if `config.ema` > 0."""
        return cast(Captioner, self.averaged.module) if self.averaged else self.model

    def _next_average(self, average: Tensor, weight: Tensor, count: Tensor | int) -> Tensor:
        """Returns the running average of a weight after `count` + 1 steps."""
        # The decay is smaller in the first steps, so that the average forgets the initial weights.
        decay = min(self.config.ema, (int(count) + 1) / (int(count) + 10))
        return average.lerp(weight, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Returns what training needs to resume, besides the weights of `model_to_save`."""
        state = {"optimizer": self.optimizer.state_dict(), "step": self.step}
        return state | ({"weights": self.model.state_dict()} if self.averaged else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        # The checkpoint holds the averaged weights, which both `averaged` and `model` have now.
        if self.averaged:
            self.averaged.n_averaged.fill_(self.step)
            self.model.load_state_dict(state["weights"])

    def autocast(self) -> Any:
        """Returns the autocast context; "auto" means bfloat16 if the device computes it faster."""
        device, setting = self.process.device.split(":")[0], self.config.autocast
        enabled = setting == "bfloat16"
        if setting == "auto" and device == "cuda":
            enabled = torch.cuda.is_bf16_supported(including_emulation=False)
        elif setting == "auto" and device == "cpu":
            capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
            enabled = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        return torch.autocast(device, torch.bfloat16, enabled=enabled)

    def batches(self, epoch: int) -> list[Tensor]:
        """Returns the batches of an epoch, each the indices of some captions."""
        by_picture = self.config.batches_of == "pictures"
        return self.captions.batches(self.config.batch_size, self.config.seed, epoch, by_picture)

    @property
    def step_seed(self) -> int:
        """The seed of the next step, the same in all processes."""
        return self.config.seed * 1_000_003 + self.step

    def train_step(self, indices: Tensor, steps: int) -> float:
        """Trains on one of `batches`, in a run of `steps` steps.

        Returns the batch's metric with the weights before the step: the mean cross-entropy per
        token in nats, without label smoothing and caption weights, like the loss on --val.
        """
        process, config = self.process, self.config
        torch.manual_seed(self.step_seed)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, steps)
        loss, count, metric = self.objective(indices)
        self.optimizer.zero_grad()
        # The mean is over the tokens of all processes. DistributedDataParallel divides the sum of
        # the gradients by `world_size`, so the loss is multiplied by it.
        (loss * (process.world_size / count)).backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()
        self.step += 1
        if self.averaged:
            self.averaged.update_parameters(self.model)
        if process.world_size > 1:
            dist.all_reduce(metric)
        return metric.item()

    def objective(self, indices: Tensor) -> tuple[Tensor, int, Tensor]:
        """Computes the loss of this process's share of one of `batches`.

        Returns the loss to minimize, summed over this process's tokens; the number of tokens of all
        processes; and this process's summand of the metric.
        """
        process, config = self.process, self.config
        batch = self.captions.make_batch(indices)
        tokens = int((batch.lengths - 1).sum())
        own_share = slice(process.rank, None, process.world_size)
        lengths = batch.lengths[own_share]
        torch.manual_seed(self.step_seed * 1009 + process.rank)  # dropout differs by process
        self.model.train()
        captions = batch.captions[own_share, : int(lengths[0])]
        tensors = self.table.read(batch.pictures), batch.rows[own_share], captions
        inputs = (tensor.to(process.device) for tensor in tensors)
        weights = self.caption_weights[batch.indices[own_share]].to(process.device)
        with self.autocast():
            loss, nll = self.model_or_ddp(*inputs, lengths, weights, config.label_smoothing)
        return loss, tokens, nll / tokens
