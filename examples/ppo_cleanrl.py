"""PPO with an LSTM in one file, in the style of CleanRL's ppo_atari_lstm.

The task is CartPole without the velocities, so the policy needs a memory. CleanRL's agent calls
nn.LSTM once per step, because the state must be reset when an episode begins. With `reset=` one
call processes the whole rollout, and no loop over steps is needed::

    pip install "gymnasium[classic-control]>=1.1"
    python examples/ppo_cleanrl.py
    python examples/ppo_cleanrl.py --lstm reset --hidden 256
"""

from __future__ import annotations

import argparse
import time

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import fastlstm

LSTMS = {"nn.LSTM": nn.LSTM, "convert": fastlstm.LSTM, "reset": fastlstm.LSTM}
ENVIRONMENTS, STEPS, EPOCHS, MINIBATCHES = 8, 128, 4, 4
GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2
State = tuple[Tensor, ...]


def hidden_velocities() -> gym.Env:
    """Makes a CartPole whose observation is only the position and the angle, without velocities."""
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda x: x[::2], space)


class Agent(nn.Module):
    """The policy and the value function, with a common LSTM."""

    def __init__(self, lstm: str, hidden: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 64), nn.Tanh())
        self.lstm = LSTMS[lstm](64, hidden)
        self.actor, self.critic = nn.Linear(hidden, 2), nn.Linear(hidden, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)
        self.in_one_call = lstm == "reset"

    def run_lstm(self, x: Tensor, state: State, done: Tensor) -> tuple[Tensor, State]:
        """Runs the LSTM on x [T,B,64]; done [T,B] is 1 at the first step of an episode."""
        if self.in_one_call:
            return self.lstm(x, state, reset=done)
        outputs = []
        for x_t, done_t in zip(x, done, strict=True):
            state = tuple((1 - done_t).view(1, -1, 1) * s for s in state)
            output, state = self.lstm(x_t[None], state)
            outputs.append(output)
        return torch.cat(outputs), state

    def forward(self, x: Tensor, state: State, done: Tensor) -> tuple[Categorical, Tensor, State]:
        output, state = self.run_lstm(self.network(x), state, done)
        return Categorical(logits=self.actor(output)), self.critic(output).squeeze(-1), state


class Training:
    """Trains an agent in environments that run in this process."""

    def __init__(self, lstm: str, hidden: int) -> None:
        torch.manual_seed(0)
        self.environments = gym.wrappers.vector.RecordEpisodeStatistics(
            gym.vector.SyncVectorEnv(
                [hidden_velocities] * ENVIRONMENTS,
                autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
            )
        )
        self.agent = Agent(lstm, hidden)
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=1e-3, eps=1e-5)
        self.x = torch.as_tensor(self.environments.reset(seed=0)[0])
        self.done = torch.ones(ENVIRONMENTS)
        self.state: State = (torch.zeros(1, ENVIRONMENTS, hidden),) * 2

    @torch.no_grad()
    def play(self) -> tuple[Tensor, ...]:
        """Plays a rollout of `STEPS` steps.

        Returns:
            Tensors [T,B,...]: observations, done (1 if the observation is the first of an episode),
            actions, log probabilities of the actions, values, advantages.
        """
        steps = []
        for _ in range(STEPS):
            policy, value, self.state = self.agent(self.x[None], self.state, self.done[None])
            action = policy.sample()
            before = self.x, self.done, action[0], policy.log_prob(action)[0], value[0]
            x, reward, terminated, truncated, _ = self.environments.step(action[0].numpy())
            self.x = torch.as_tensor(x)
            self.done = torch.as_tensor(terminated | truncated).float()
            steps.append((*before, torch.as_tensor(reward, dtype=torch.float32)))
        *rollout, value, reward = map(torch.stack, zip(*steps, strict=True))
        after = self.agent(self.x[None], self.state, self.done[None])[1]
        goes_on = 1 - torch.cat([rollout[1][1:], self.done[None]])
        advantage = reward + GAMMA * goes_on * torch.cat([value[1:], after]) - value
        for t in reversed(range(STEPS - 1)):
            advantage[t] += GAMMA * LAMBDA * goes_on[t] * advantage[t + 1]
        return *rollout, value, advantage

    def update(self) -> None:
        """Plays a rollout and improves the agent on it."""
        state_before = self.state
        rollout = self.play()
        for _ in range(EPOCHS):
            for rows in torch.randperm(ENVIRONMENTS).chunk(MINIBATCHES):
                state = tuple(s[:, rows] for s in state_before)
                x, done, action, log_prob, value, advantage = (part[:, rows] for part in rollout)
                policy, new_value, _ = self.agent(x, state, done)
                ratio = (policy.log_prob(action) - log_prob).exp()
                scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                loss = -torch.min(scaled * ratio, scaled * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                loss = loss + 0.5 * (new_value - value - advantage).square().mean()
                loss = loss - 0.01 * policy.entropy().mean()
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), 0.5)
                self.optimizer.step()


def train(lstm: str, steps: int, hidden: int = 64) -> float:
    """Trains an agent and returns the mean return of the last hundred episodes."""
    training = Training(lstm, hidden)
    for _ in range(-(-steps // (STEPS * ENVIRONMENTS))):
        training.update()
    return float(np.mean(training.environments.return_queue))


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
