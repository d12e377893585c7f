"""Self-critical training (Rennie et al., 2017): the reward of a caption is its CIDEr-D.

For each picture the model draws several captions. A caption with a higher reward than the mean of
the other captions becomes more probable, and one with a lower reward less probable (Luo, 2020, "A
Better Variant of Self-Critical Sequence Training"). This is the second stage of training: it starts
from a captioner that was trained by cross-entropy.
"""

from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from captioning.data.batches import random_batches
from captioning.data.vocabulary import PAD, START
from captioning.model.cider import CiderD
from captioning.search.decoding import random_words, write_tokens
from captioning.training.trainer import Trainer


class SelfCriticalTrainer(Trainer):
    """A trainer whose batches are pictures, with `config.self_critical` drawn captions of each.

    The model stays in eval mode, so that it draws captions as it will write them, without dropout.
    """

    metric = "reward"

    @cached_property
    def cider(self) -> CiderD:
        """Computes the reward. <end> counts as a word, so that captions learn where to stop."""
        return CiderD(self.table.tokens(self.vocabulary))

    def batches(self, epoch: int) -> list[Tensor]:
        """Returns the batches of an epoch, each the indices of some pictures."""
        config = self.config
        return random_batches(len(self.table.images), config.batch_size, config.seed, epoch)

    def objective(self, indices: Tensor) -> tuple[Tensor, int, Tensor]:
        """Draws captions and weights their losses by their rewards; see `Trainer.objective`."""
        process, samples, decoder = self.process, self.config.self_critical, self.model.decoder
        # Every process draws the random numbers of the whole batch, so that the captions do not
        # depend on how many processes there are.
        noise = torch.rand(len(indices), samples, decoder.max_seq_length)
        own_share = slice(process.rank, None, process.world_size)
        pictures = indices[own_share]
        features = self.table.read(pictures).to(process.device)
        self.model.eval()
        with torch.no_grad(), self.autocast():
            image = self.model.encoder.embed(features).repeat_interleave(samples, 0)
            uniform = noise[own_share].flatten(0, 1).to(process.device)
            tokens = write_tokens([decoder], [image], random_words(uniform))[0].cpu()
        lengths = (tokens != PAD).sum(1)
        reward = self.reward(pictures, tokens, lengths)
        order = lengths.argsort(descending=True, stable=True)
        captions = torch.cat([torch.full_like(tokens[:, :1], START), tokens], 1)[order]
        rows = torch.arange(len(pictures)).repeat_interleave(samples)[order]
        weights = advantage(reward).flatten()[order].to(process.device)
        inputs = features, rows.to(process.device), captions.to(process.device), lengths[order] + 1
        with self.autocast():
            loss, _ = self.model_or_ddp(*inputs, weights)
        count = lengths.sum()
        if process.world_size > 1:
            count = count.to(process.device)
            dist.all_reduce(count)
        return loss, int(count), (reward.sum() / (len(indices) * samples)).to(process.device)

    def reward(self, pictures: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Computes the CIDEr-D [pictures,samples] of the captions drawn for pictures.

        `tokens` [pictures * samples,T] has the captions of each picture one after the other, and
        `lengths` their numbers of tokens, including <end>.
        """
        written = (row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True))
        draws = range(self.config.self_critical)
        groups = ((picture, [next(written) for _ in draws]) for picture in pictures.tolist())
        return torch.tensor([self.cider.scores(*group) for group in groups])


def advantage(reward: Tensor) -> Tensor:
    """Returns reward [pictures,samples] minus the mean reward of the picture's other captions."""
    samples = reward.size(1)
    return (reward - reward.mean(1, keepdim=True)) * (samples / (samples - 1))
