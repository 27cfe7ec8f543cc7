"""What is read of optimizers and of a Trainer's length, on stand-ins."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_same.trainer.optimizers import largest_lr, lr_ratio, radii_of, total_batches


def sgd(*groups: dict[str, Any], **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.ones(1, requires_grad=True)], **group} for group in groups], **options)


def test_the_share_of_the_learning_rate_is_of_its_peak() -> None:
    assert lr_ratio(sgd({}, lr=0.4)) == 1
    assert lr_ratio(sgd({"initial_lr": 0.8}, {"initial_lr": 0.4}, lr=0.4)) == 0.5
    assert lr_ratio(sgd({"initial_lr": 0.1, "max_lr": 1.6}, lr=0.4)) == 0.25
    assert lr_ratio(sgd({"initial_lr": 0.0}, lr=0.0)) == 0


def test_a_learning_rate_that_is_a_tensor_is_read_again_once_it_was_written_to() -> None:
    optimizer = sgd({"initial_lr": 0.5}, lr=torch.tensor(0.5))
    (group,) = optimizer.param_groups
    assert lr_ratio(optimizer) == lr_ratio(optimizer) == 1
    group["lr"].mul_(0.5)
    assert lr_ratio(optimizer) == 0.5
    group["lr"] = torch.tensor(0.125)
    assert lr_ratio(optimizer) == 0.25


def test_the_largest_learning_rate_is_of_all_groups() -> None:
    several = [sgd({"lr": 0.1}, {"lr": 0.3}), sgd({"lr": 0.2})]
    assert largest_lr(SimpleNamespace(optimizers=several)) == 0.3  # type: ignore[arg-type]
    assert largest_lr(SimpleNamespace(optimizers=[])) == 0  # type: ignore[arg-type]


def test_a_group_has_its_own_radius_unless_the_optimizer_has_an_option_of_that_name() -> None:
    frozen = torch.ones(1)
    optimizer = sgd({"rho": 0.5}, {}, {"rho": 0.0}, lr=0.1)
    optimizer.param_groups[1]["params"].append(frozen)
    assert list(radii_of(optimizer, 0.2).values()) == [0.5, 0.2, 0.0]
    adadelta = torch.optim.Adadelta([torch.ones(1, requires_grad=True)], rho=0.9)
    assert list(radii_of(adadelta, 0.2).values()) == [0.2]


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "batches", "steps", "total"),
    [
        (100, -1, 0, 0, 50),  # before the first step each optimizer is taken to step once
        (100, -1, 10, 10, 100),
        (100, -1, 10, 40, 25),
        (100, 3, 10, 10, 60),  # what ends first
        (100, 9, 10, 40, 25),
        (-1, 3, 10, 40, 60),
        (1, None, 10, 40, 1),  # never 0
        (-1, -1, 10, 40, None),
        (-1, None, 10, 40, None),
    ],
)
def test_the_batches_of_a_manual_training(
    max_steps: int, max_epochs: int | None, batches: int, steps: int, total: int | None
) -> None:
    trainer = SimpleNamespace(max_steps=max_steps, max_epochs=max_epochs, num_training_batches=20, optimizers=[0, 1])
    assert total_batches(trainer, batches, steps) == total  # type: ignore[arg-type]
