"""PPO of rl_games with nn.LSTM, with the LSTM converted, and with `reset=`.

The task is CartPole without the velocities, so the policy needs a memory. If an episode begins in
any row of a batch, rl_games cuts the whole batch at that step and calls the LSTM for each part.
`LSTMWithResets` calls the LSTM once for the whole batch::

    pip install "rl-games>=1.6" "gymnasium[classic-control]>=1.1"
    python examples/ppo_rl_games.py
    python examples/ppo_rl_games.py --lstm reset --hidden 256
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rl_games.algos_torch import model_builder
from rl_games.algos_torch.network_builder import A2CBuilder
from rl_games.common import env_configurations, vecenv
from rl_games.common.ivecenv import IVecEnv
from rl_games.torch_runner import Runner
from torch import Tensor, nn

import fastlstm


class Converted(A2CBuilder):
    """A builder of rl_games' network whose LSTM is converted to fastlstm.LSTM."""

    class Network(A2CBuilder.Network):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            fastlstm.convert(self)

    def build(self, name: str, **kwargs: Any) -> nn.Module:
        return self.Network(self.params, **kwargs)


class LSTMWithResets(nn.Module):
    """Replaces rl_games' LSTMWithDones: the same parameter names, but one call of the LSTM."""

    def __init__(self, input_size: int, hidden_size: int, layers: int) -> None:
        super().__init__()
        self.rnn = fastlstm.LSTM(input_size, hidden_size, layers)

    def forward(
        self, input: Tensor, states: Any, done_masks: Tensor | None = None, bptt_len: int = 0
    ) -> tuple[Tensor, Any]:
        """Takes input [T,B,input_size] and done_masks [T,B,1]; returns the output and the state."""
        reset = None if done_masks is None else done_masks.squeeze(-1)
        return self.rnn(input, tuple(states), reset=reset)


class WithResets(Converted):
    """A builder of rl_games' network with an `LSTMWithResets`."""

    class Network(A2CBuilder.Network):
        def _build_rnn(self, name: str, input: int, units: int, layers: int) -> nn.Module:
            return LSTMWithResets(input, units, layers)


model_builder.register_network("converted", Converted)
model_builder.register_network("with_resets", WithResets)
LSTMS = {"nn.LSTM": "actor_critic", "convert": "converted", "reset": "with_resets"}


def hidden_velocities() -> gym.Env:
    """Makes a CartPole whose observation is only the position and the angle, without velocities."""
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda x: x[::2], space)


class Environments(IVecEnv):
    """Environments in this process. By default rl_games runs environments in processes of Ray."""

    def __init__(self, name: str, count: int, **options: Any) -> None:
        mode = gym.vector.AutoresetMode.SAME_STEP
        self.vector = gym.vector.SyncVectorEnv([hidden_velocities] * count, autoreset_mode=mode)

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        x, reward, terminated, truncated, _ = self.vector.step(actions)
        return x, reward, terminated | truncated, {}

    def reset(self) -> np.ndarray:
        return self.vector.reset(seed=0)[0]

    def get_env_info(self) -> dict[str, Any]:
        return {
            "action_space": self.vector.single_action_space,
            "observation_space": self.vector.single_observation_space,
        }


vecenv.register("in this process", Environments)
env_configurations.register("hidden velocities", {"vecenv_type": "in this process"})


def configuration(lstm: str, steps: int, hidden: int, folder: str) -> dict[str, Any]:
    """Returns the configuration of rl_games."""
    return {
        "params": {
            "seed": 1,
            "torch_threads": torch.get_num_threads(),
            "algo": {"name": "a2c_discrete"},
            "model": {"name": "discrete_a2c"},
            "network": {
                "name": LSTMS[lstm],
                "separate": False,
                "space": {"discrete": None},
                "mlp": {"units": [64], "activation": "tanh", "initializer": {"name": "default"}},
                "rnn": {"name": "lstm", "units": hidden, "layers": 1},
            },
            "config": {
                "name": "cartpole",
                "env_name": "hidden velocities",
                "train_dir": folder,
                "device": "cpu",
                "torch_compile": False,
                "reward_shaper": {"scale_value": 0.1},
                "num_actors": 8,
                "horizon_length": 128,
                "seq_length": 32,
                "minibatch_size": 256,
                "mini_epochs": 4,
                "max_epochs": -(-steps // (8 * 128)),
                "learning_rate": 1e-3,
                "lr_schedule": None,
                "gamma": 0.99,
                "tau": 0.95,
                "e_clip": 0.2,
                "clip_value": False,
                "critic_coef": 1,
                "entropy_coef": 0.01,
                "grad_norm": 0.5,
                "truncate_grads": True,
                "normalize_advantage": True,
                "normalize_input": False,
            },
        }
    }


def train(lstm: str, steps: int, hidden: int = 64) -> float:
    """Trains an agent and returns the mean return of the last hundred episodes."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        runner = Runner()
        runner.load(configuration(lstm, steps, hidden, folder))
        agent = runner.algo_factory.create(runner.algo_name, base_name="run", params=runner.params)
        agent.train()
    return agent.game_rewards.get_mean().item()


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
