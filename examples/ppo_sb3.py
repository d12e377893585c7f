"""RecurrentPPO of sb3-contrib: nn.LSTM, converted, and one call for sequences with resets.

CartPole shows its positions and hides its velocities, so the policy needs a memory. sb3-contrib
walks a sequence step by step where an episode begins in it; `WithResets` calls the LSTM once::

    pip install "sb3-contrib>=2.9"
    python examples/ppo_sb3.py
    python examples/ppo_sb3.py --lstm reset --hidden 256
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.ppo_recurrent import MlpLstmPolicy
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor

import fastlstm

State = tuple[Tensor, Tensor]
PADDING = 2  # in episode_starts, behind the end of a sequence


class Converted(MlpLstmPolicy):
    """It converts its LSTMs itself, so those of `RecurrentPPO.load` are converted too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fastlstm.convert(self)


class WithResets(Converted):
    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: State, episode_starts: Tensor, lstm: fastlstm.LSTM
    ) -> tuple[Tensor, State]:
        """features [sequences * steps, features], episode_starts [sequences * steps]."""
        sequences = lstm_states[0].shape[1]
        x = features.reshape(sequences, -1, lstm.input_size).transpose(0, 1)
        starts = episode_starts.reshape(sequences, -1).transpose(0, 1)
        lengths = (starts < PADDING).sum(0) if len(starts) > 1 else None
        output, state = lstm(x, tuple(lstm_states), lengths=lengths, reset=starts)
        return output.transpose(0, 1).flatten(0, 1), state


def mark_padding(buffer: RecurrentRolloutBuffer) -> None:
    """Puts PADDING into the episode_starts of its batches, so that the LSTM leaves it out."""
    samples = buffer._get_samples

    def marked(*args: Any) -> Any:
        batch = samples(*args)
        return batch._replace(episode_starts=batch.episode_starts + PADDING * (1 - batch.mask))

    buffer._get_samples = marked


LSTMS = {"nn.LSTM": MlpLstmPolicy, "convert": Converted, "reset": WithResets}


def hidden_velocities() -> gym.Env:
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda x: x[::2], space)


def train(lstm: str, steps: int, hidden: int = 64) -> float:
    """The mean return of the last hundred episodes."""
    model = RecurrentPPO(
        LSTMS[lstm],
        make_vec_env(hidden_velocities, n_envs=8, seed=0),
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        learning_rate=1e-3,
        policy_kwargs={"lstm_hidden_size": hidden, "net_arch": []},
        seed=0,
        device="cpu",
    )
    if lstm == "reset":
        mark_padding(model.rollout_buffer)
    model.learn(steps)
    return float(np.mean([episode["r"] for episode in model.ep_info_buffer]))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lstm", nargs="+", choices=LSTMS, default=list(LSTMS))
    parser.add_argument("--steps", type=int, default=100_000, help="of all environments together")
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
