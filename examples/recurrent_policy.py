"""A recurrent policy that must remember: actor-critic in T-mazes, with resets inside a sequence.

A sign at the entrance of a maze says left or right. At the end of a corridor of unknown length the
agent must turn in that direction (Bakker, 2002). Without a memory half of its turns are correct.
Many mazes run in parallel and end at different steps, so a row of a batch [T,B] has pieces of
several episodes. `reset=` keeps the state and the gradient of an episode out of the next and the
previous one. torch.nn.LSTM has no such option and is called once per step::

    python examples/recurrent_policy.py
    python examples/recurrent_policy.py --lstm fastlstm
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlstm

LSTMS = {"fastlstm": fastlstm.LSTM, "torch": nn.LSTM}
State = tuple[Tensor, Tensor]


class TMazes:
    """B mazes that run in parallel.

    An observation [B,4] has the features sign left, sign right, corridor and junction. The actions
    are 0 (forward), 1 (left) and 2 (right). A turn at the junction ends the episode with the reward
    1 or -1, and the next episode starts at once. Bumping into a wall has the reward -0.1.

    Args:
        batch: the number of mazes, B.
        corridor: the longest corridor, in steps; the shortest is half as long.
        generator: draws the lengths and the signs.
    """

    def __init__(self, batch: int, corridor: int, generator: torch.Generator) -> None:
        self.corridor, self.generator = corridor, generator
        self.position = self.length = self.sign = torch.zeros(batch, dtype=torch.long)
        self.begin(torch.ones(batch, dtype=torch.bool))

    def begin(self, rows: Tensor) -> None:
        """Starts a new episode in the mazes that `rows` [B] marks."""

        def draw(low: int, high: int) -> Tensor:
            return torch.randint(low, high, rows.shape, generator=self.generator)

        self.position = torch.where(rows, 0, self.position)
        self.length = torch.where(rows, draw(self.corridor // 2, self.corridor + 1), self.length)
        self.sign = torch.where(rows, draw(0, 2), self.sign)

    def observe(self) -> Tensor:
        """Returns the observation [B,4]."""
        entrance, junction = self.position == 0, self.position == self.length
        return torch.stack(
            [entrance & (self.sign == 0), entrance & (self.sign == 1), ~junction, junction], -1
        ).float()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the actions [B]; returns the rewards [B] and done [B]."""
        junction, forward = self.position == self.length, action == 0
        done = junction & ~forward
        turned = torch.where(action - 1 == self.sign, 1.0, -1.0)
        reward = torch.where(done, turned, torch.where(junction == forward, -0.1, 0.0))
        self.position = torch.where(forward & ~junction, self.position + 1, self.position)
        self.begin(done)
        return reward, done


class Policy(nn.Module):
    """An LSTM, with a linear layer for the actions and the value."""

    def __init__(self, hidden: int, lstm: str) -> None:
        super().__init__()
        self.lstm = LSTMS[lstm](4, hidden)
        self.heads = nn.Linear(hidden, 4)  # logits of three actions, and the value
        fastlstm.init.forget_bias_(self.lstm, 2.0)

    def forward(self, x: Tensor, state: State, reset: Tensor) -> tuple[Tensor, Tensor, State]:
        """Takes observations x [T,B,4], a state and reset [T,B].

        Returns:
            The logits [T,B,3], the values [T,B] and the last state.
        """
        if isinstance(self.lstm, fastlstm.LSTM):
            output, state = self.lstm(x, state, reset=reset)
        else:
            outputs = []
            for x_t, reset_t in zip(x, reset, strict=True):
                state = tuple(torch.where(reset_t.unsqueeze(-1), 0.0, s) for s in state)
                y, state = self.lstm(x_t.unsqueeze(0), state)
                outputs.append(y)
            output = torch.cat(outputs)
        heads = self.heads(output)
        return heads[..., :3], heads[..., 3], state


def train(lstm: str, args: argparse.Namespace) -> tuple[float, float]:
    """Trains a policy; returns the share of correct turns in the last tenth, and the seconds."""
    torch.manual_seed(args.seed)
    mazes = TMazes(args.batch, args.corridor, torch.Generator().manual_seed(args.seed))
    policy = Policy(args.hidden, lstm)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.lr)
    state = (torch.zeros(1, args.batch, args.hidden),) * 2
    reset = torch.ones(args.batch, dtype=torch.bool)
    correct = turns = 0
    start = time.perf_counter()
    for update in range(args.updates):
        first, steps = state, []
        with torch.no_grad():  # play `steps` steps, by one call per step
            for _ in range(args.steps):
                x = mazes.observe()
                logits, value, state = policy(x.unsqueeze(0), state, reset.unsqueeze(0))
                action = torch.distributions.Categorical(logits=logits[0]).sample()
                reward, done = mazes.step(action)
                steps.append((x, reset, action, reward, done, value[0]))
                reset = done
            x, resets, action, reward, done, value = map(torch.stack, zip(*steps, strict=True))
            after = policy(mazes.observe().unsqueeze(0), state, reset.unsqueeze(0))[1]
            goes_on = (~done).float()
            target = reward + args.discount * goes_on * torch.cat([value[1:], after])
            advantage = target - value  # generalized advantage estimation (Schulman et al., 2016)
            for t in reversed(range(args.steps - 1)):
                advantage[t] += args.discount * args.trace * goes_on[t] * advantage[t + 1]
        logits, value_now, _ = policy(x, first, resets)  # learn from the whole sequence at once
        distribution = torch.distributions.Categorical(logits=logits)
        loss = F.mse_loss(value_now, value + advantage) - 0.01 * distribution.entropy().mean()
        loss = loss - (distribution.log_prob(action) * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
        if update >= args.updates * 9 // 10:
            correct, turns = correct + int((reward == 1).sum()), turns + int(done.sum())
        if update % 50 == 0:
            share = (reward == 1).sum() / done.sum().clamp(min=1)
            print(f"{lstm}: update {update}, {share:.0%} of the turns are correct", flush=True)
    return correct / max(turns, 1), time.perf_counter() - start


def main(argv: list[str] | None = None) -> dict[str, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lstm", nargs="+", choices=LSTMS, default=list(LSTMS))
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--corridor", type=int, default=10, help="the longest corridor, in steps")
    parser.add_argument("--batch", type=int, default=64, help="number of mazes in parallel")
    parser.add_argument("--steps", type=int, default=32, help="number of steps in an update")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--discount", type=float, default=0.98)
    parser.add_argument(
        "--trace", type=float, default=0.95, help="lambda of generalized advantage estimation"
    )
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    results = {lstm: train(lstm, args) for lstm in args.lstm}
    for lstm, (share, seconds) in results.items():
        print(f"{lstm:>8}: {share:.1%} of the last turns are correct, {seconds:.1f} s")
    return results


if __name__ == "__main__":
    main()
