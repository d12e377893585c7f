"""Self-critical training (Rennie et al., 2017): the captioner is rewarded by CIDEr-D.

For each picture several captions are drawn from the model. Those better than the mean of the
others become more probable, the worse ones less (Luo, 2020, "A Better Variant of Self-Critical
Sequence Training"). A second stage: it starts from a captioner that cross-entropy has trained.
"""

from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from captioning.data.batches import shuffled
from captioning.data.vocabulary import PAD, START
from captioning.model.cider import CiderD
from captioning.search.decoding import random_words, write_tokens
from captioning.training.trainer import Trainer


class SelfCriticalTrainer(Trainer):
    """Batches are pictures, each with `config.self_critical` sampled captions.

    The model stays in eval mode, so the rewarded captions are those that it would write.
    """

    metric = "reward"

    @cached_property
    def cider(self) -> CiderD:
        """The reward; <end> counts as a word, or captions would learn to stop anywhere."""
        return CiderD(self.table.tokens(self.vocabulary))

    def batches(self, epoch: int) -> list[Tensor]:
        """The pictures of every batch of an epoch."""
        config = self.config
        return shuffled(len(self.table.images), config.batch_size, config.seed, epoch)

    def objective(self, indices: Tensor) -> tuple[Tensor, int, Tensor]:
        """Samples captions and weighs their likelihood by their reward; see `Trainer.objective`."""
        process, samples, decoder = self.process, self.config.self_critical, self.model.decoder
        # For the whole batch, so that the captions do not depend on the number of processes.
        noise = torch.rand(len(indices), samples, decoder.max_seq_length)
        share = slice(process.rank, None, process.world_size)
        pictures = indices[share]
        features = self.table.read(pictures).to(process.device)
        self.model.eval()
        with torch.no_grad(), self.autocast():
            image = self.model.encoder.embed(features).repeat_interleave(samples, 0)
            uniform = noise[share].flatten(0, 1).to(process.device)
            tokens = write_tokens([decoder], [image], random_words(uniform))[0].cpu()
        lengths = (tokens != PAD).sum(1)
        reward = self.reward(pictures, tokens, lengths)
        order = lengths.argsort(descending=True, stable=True)
        captions = torch.cat([torch.full_like(tokens[:, :1], START), tokens], 1)[order]
        with self.autocast():
            loss, _ = self.parallel(
                features,
                torch.arange(len(pictures)).repeat_interleave(samples)[order].to(process.device),
                captions.to(process.device),
                lengths[order] + 1,
                caption_weights=advantage(reward).flatten()[order].to(process.device),
            )
        count = lengths.sum()
        if process.world_size > 1:
            count = count.to(process.device)
            dist.all_reduce(count)
        return loss, int(count), (reward.sum() / (len(indices) * samples)).to(process.device)

    def reward(self, pictures: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """CIDEr-D [pictures, samples] of the sampled captions, <end> included."""
        written = (row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True))
        samples = range(self.config.self_critical)
        groups = ((picture, [next(written) for _ in samples]) for picture in pictures.tolist())
        return torch.tensor([self.cider.scores(*group) for group in groups])


def advantage(reward: Tensor) -> Tensor:
    """How much better each caption [pictures, samples] is than the mean of the others."""
    samples = reward.size(1)
    return (reward - reward.mean(1, keepdim=True)) * (samples / (samples - 1))
