"""RecurrentPPO of sb3-contrib with nn.LSTM, with the LSTM converted, and with `reset=`.

The task is CartPole without the velocities, so the policy needs a memory. If an episode begins
inside a sequence, sb3-contrib calls the LSTM once per step. `WithResets` calls the LSTM only once
for all sequences::

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
PADDING = 2  # the value of episode_starts at a padded step, after the end of a sequence


class Converted(MlpLstmPolicy):
    """A policy that converts its LSTMs in its constructor, so also in `RecurrentPPO.load`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fastlstm.convert(self)


class WithResets(Converted):
    """A policy that processes sequences by one call of the LSTM with `reset=`."""

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: State, episode_starts: Tensor, lstm: fastlstm.LSTM
    ) -> tuple[Tensor, State]:
        """Runs the LSTM on a batch of sequences.

        Args:
            features: [sequences * steps, features].
            lstm_states: h and c, each [layers, sequences, hidden_size].
            episode_starts: [sequences * steps], 1 at the first step of an episode, or `PADDING`.
            lstm: the LSTM.
        """
        sequences = lstm_states[0].shape[1]
        x = features.reshape(sequences, -1, lstm.input_size).transpose(0, 1)
        starts = episode_starts.reshape(sequences, -1).transpose(0, 1)
        lengths = (starts < PADDING).sum(0) if len(starts) > 1 else None
        output, state = lstm(x, tuple(lstm_states), lengths=lengths, reset=starts)
        return output.transpose(0, 1).flatten(0, 1), state


def mark_padding(buffer: RecurrentRolloutBuffer) -> None:
    """Lets a buffer write `PADDING` into the episode_starts of its batches at padded steps."""
    get_samples = buffer._get_samples

    def marked(*args: Any) -> Any:
        batch = get_samples(*args)
        return batch._replace(episode_starts=batch.episode_starts + PADDING * (1 - batch.mask))

    buffer._get_samples = marked


LSTMS = {"nn.LSTM": MlpLstmPolicy, "convert": Converted, "reset": WithResets}


def hidden_velocities() -> gym.Env:
    """Makes a CartPole whose observation is only the position and the angle, without velocities."""
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda x: x[::2], space)


def train(lstm: str, steps: int, hidden: int = 64) -> float:
    """Trains a policy and returns the mean return of the last hundred episodes."""
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
