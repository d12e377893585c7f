"""PPO of TorchRL with an LSTMModule of nn.LSTM, and with the LSTM converted.

The task is CartPole without the velocities, so the policy needs a memory. If an episode begins
inside a row of a batch, TorchRL splits the row and packs the parts into a PackedSequence. fastlstm
speeds up a PackedSequence as it is, so `convert` is enough::

    pip install "torchrl>=0.14" "gymnasium[classic-control]>=1.1"
    python examples/ppo_torchrl.py
    python examples/ppo_torchrl.py --lstm convert --hidden 256
"""

from __future__ import annotations

import argparse
import time

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import Compose, GymWrapper, InitTracker, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import LSTMModule, ProbabilisticActor, ValueOperator, set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import fastlstm

ENVIRONMENTS, STEPS, EPOCHS, MINIBATCHES = 8, 128, 4, 4


LSTMS = ("nn.LSTM", "convert")


def hidden_velocities() -> gym.Env:
    """Makes a CartPole whose observation is only the position and the angle, without velocities."""
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda x: x[::2], space)


class Training:
    """A policy with a common LSTM for actor and critic, its environments and its optimizer."""

    def __init__(self, lstm: str, steps: int, hidden: int) -> None:
        torch.manual_seed(0)
        memory = LSTMModule(2, hidden, in_key="observation", out_key="memory")
        if lstm == "convert":
            fastlstm.convert(memory)
        logits = TensorDictModule(nn.Linear(hidden, 2), ["memory"], ["logits"])
        actor = ProbabilisticActor(
            TensorDictSequential(memory, logits),
            in_keys=["logits"],
            distribution_class=Categorical,
            return_log_prob=True,
        )
        value = ValueOperator(nn.Linear(hidden, 1), in_keys=["memory"])
        critic = TensorDictSequential(memory, value)
        self.advantage = GAE(
            gamma=0.99, lmbda=0.95, value_network=critic, average_gae=True, deactivate_vmap=True
        )
        self.loss = ClipPPOLoss(
            actor, critic, clip_epsilon=0.2, entropy_coeff=0.01, critic_coeff=0.5
        )
        self.optimizer = torch.optim.Adam(self.loss.parameters(), 1e-3)
        make = lambda: GymWrapper(hidden_velocities(), categorical_action_encoding=True)
        transforms = Compose(InitTracker(), RewardSum(), memory.make_tensordict_primer())
        environments = TransformedEnv(SerialEnv(ENVIRONMENTS, make), transforms)
        environments.set_seed(0)
        self.collector = Collector(
            environments, actor, frames_per_batch=ENVIRONMENTS * STEPS, total_frames=steps
        )

    def update(self, rollout: TensorDictBase) -> None:
        """Improves the policy on a rollout [B,T]."""
        with torch.no_grad():
            rollout = self.advantage(rollout)
        for _ in range(EPOCHS):
            for rows in torch.randperm(ENVIRONMENTS).chunk(MINIBATCHES):
                losses = self.loss(rollout[rows])
                total = sum(value for key, value in losses.items() if key.startswith("loss_"))
                self.optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(self.loss.parameters(), 0.5)
                self.optimizer.step()


def train(lstm: str, steps: int, hidden: int = 64) -> float:
    """Trains a policy and returns the mean return of the last hundred episodes."""
    training = Training(lstm, steps, hidden)
    returns: list[float] = []
    for rollout in training.collector:
        returns += rollout["next", "episode_reward"][rollout["next", "done"]].tolist()
        with set_recurrent_mode(True):
            training.update(rollout)
    training.collector.shutdown()
    return float(np.mean(returns[-100:]))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lstm", nargs="+", choices=LSTMS, default=LSTMS)
    parser.add_argument(
        "--steps", type=int, default=100_000, help="number of steps of all environments together"
    )
    parser.add_argument("--hidden", type=int, default=64)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    returns = {}
    for lstm in args.lstm:
        start = time.perf_counter()
        returns[lstm] = train(lstm, args.steps, args.hidden)
        speed = args.steps / (time.perf_counter() - start)
        print(f"{lstm:>8}: return {returns[lstm]:.0f}, {speed:,.0f} frames a second", flush=True)
    return returns


if __name__ == "__main__":
    main()
