"""Lightning's deep Q-network: an agent that acts in an environment of `gymnasium` in every training step."""

import random
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from support.fits import differences
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_same import SAM, CheckpointFractionMonitor, ReplayCheck, replaying, with_sam
from zoo.fits import built, observed
from zoo.member import Member, plain

gymnasium = pytest.importorskip("gymnasium", reason="needs gymnasium: pip install 'lightning-same[zoo]'")


class Memory:
    """What the agent has lived through."""

    def __init__(self) -> None:
        self.lived: deque[Any] = deque(maxlen=50)

    def sample(self, count: int) -> list[Any]:
        return [self.lived[index] for index in random.sample(range(len(self.lived)), count)]


class Agent:
    """Acts in the environment, at random or as the network says."""

    def __init__(self, memory: Memory) -> None:
        self.environment = gymnasium.make("CartPole-v1")
        self.memory = memory
        self.state, _ = self.environment.reset(seed=0)

    @torch.no_grad()
    def act(self, net: nn.Module, epsilon: float) -> tuple[float, bool]:
        values = torch.rand(2) if random.random() < epsilon else net(torch.from_numpy(self.state))
        action = int(values.argmax())
        state, reward, done, *_ = self.environment.step(action)
        self.memory.lived.append((self.state, action, np.float32(reward), done, state))
        self.state = self.environment.reset()[0] if done else state
        return float(reward), done


class Sampled(IterableDataset[Any]):
    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def __iter__(self) -> Iterator[Any]:
        yield from self.memory.sample(32)


class Dqn(pl.LightningModule):
    """Takes a step in the environment, and then one of the optimizer, on a batch of what was lived through before."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.target = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.memory = Memory()
        self.agent = Agent(self.memory)
        self.reward, self.last_reward = 0.0, 0.0
        for _ in range(40):
            self.agent.act(self.net, epsilon=1.0)

    def play(self) -> None:
        reward, done = self.agent.act(self.net, max(0.01, 1 - self.global_step / 8))
        self.reward += reward
        if done:
            self.reward, self.last_reward = 0.0, self.reward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.play()
        states, actions, rewards, dones, after = batch
        values = self.net(states).gather(1, actions.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            best = self.target(after).amax(1)
            best[dones] = 0.0
        if self.global_step % 3 == 0:
            self.target.load_state_dict(self.net.state_dict())
        self.log("reward", self.last_reward)
        return nn.functional.mse_loss(values, rewards + 0.99 * best)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=1e-2)

    def train_dataloader(self) -> Any:
        return DataLoader(Sampled(self.memory), batch_size=8, generator=torch.Generator())


class AsksFirst(Dqn):
    """Acts once in a step, however often the step is repeated."""

    def play(self) -> None:
        if not replaying():
            super().play()


class TestDqn(Member):
    make = AsksFirst
    double: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5
    resumes: ClassVar[bool] = False  # The environment is in no checkpoint file.

    @staticmethod
    def batches() -> None:
        return None


def test_one_that_does_not_ask_is_told() -> None:
    """It has stepped the environment twice, and the warning names what is not put back."""
    message = r"Dqn.training_step does not do the same when it is replayed.*Not put back: `agent\.environment"
    with pytest.warns(UserWarning, match=message):
        observed(with_sam(built(Dqn), SAM(0.0)), None)
    with pytest.warns(UserWarning, match=message):
        observed(built(Dqn), None, ReplayCheck())


def test_the_warning_is_right() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = observed(built(Dqn), None, CheckpointFractionMonitor(every_n_steps=1))
    assert differences(plain(TestDqn), watched | {"monitored": []}) != []
