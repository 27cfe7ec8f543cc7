"""Resuming equals never stopping, bit for bit: after a kill in the middle of pass two, of a window, of an epoch."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from support.fits import differences, go_on, trainer
from support.fresh import fresh_processes
from support.nets import Plain, build, collate, seed_all
from support.speed import ended
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_same import AESAM, SAM, SAME, FriendlySAM, LookSAM, Rule, VaSSO, with_sam

STATEFUL = [VaSSO(0.3), FriendlySAM(0.3), LookSAM(0.3, k=5), AESAM(0.3)]


EPOCHS = 4


class Numbers(Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(48, 6, generator=generator), torch.randint(0, 3, (48,), generator=generator)

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class StatefulLoader:
    """Shuffles by epoch, and goes on from the batch where it was; as torchdata's StatefulDataLoader does."""

    def __init__(self) -> None:
        self.epoch, self.given = 0, 0

    def __iter__(self) -> Iterator[Any]:
        if self.given == len(self):
            self.epoch, self.given = self.epoch + 1, 0
        order = torch.randperm(48, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        batches = DataLoader(Numbers(), batch_sampler=[order[i : i + 8] for i in range(0, 48, 8)], collate_fn=collate)
        start = self.given
        for index, batch in enumerate(batches):
            if index >= start:
                self.given = index + 1
                yield batch

    def __len__(self) -> int:
        return 6

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.given = state["epoch"], state["given"]


class Net(Plain):
    def train_dataloader(self) -> Any:
        return StatefulLoader()


class Killed(Plain):
    """As by ``kill -9``, in one of the passes given, of the batch given."""

    at: tuple[int, int, tuple[int, ...]]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        epoch, batch_at, passes = self.at
        if (self.current_epoch, batch_idx) == (epoch, batch_at) and self.sam_pass in passes:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class KilledNet(Killed, Net):
    pass


def run(
    folder: Path, rule: Rule, accumulate: int, kind: Any = Plain, every: int = 0, resume: bool = False
) -> list[Tensor]:
    """Train, with a checkpoint file after every epoch or every so many steps."""
    torch.set_num_threads(1)
    when = {"every_n_train_steps": every} if every else {"every_n_epochs": 1}
    keep = ModelCheckpoint(folder, "last", enable_version_counter=False, **when)
    module = with_sam(build(kind), rule)
    made = trainer(max_epochs=EPOCHS, callbacks=[keep], enable_checkpointing=True, accumulate_grad_batches=accumulate)
    seed_all(1)
    go_on(made, module, folder / "last.ckpt" if resume else None, weights_only=False)
    return [param.detach() for param in module.parameters()]


def be_killed(folder: Path, rule: Rule, accumulate: int, kind: Any, every: int, at: Any) -> None:
    kind.at = at
    run(folder, rule, accumulate, kind, every)


@pytest.fixture(scope="module")
def fresh() -> Any:
    """Processes that can be killed."""
    return fresh_processes()


def killed(fresh: Any, *args: Any) -> None:
    process = fresh.Process(target=be_killed, args=args)
    process.start()
    assert ended(process, 120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("rule", [SAM(0.3), *STATEFUL], ids=repr)
def test_killed_in_an_epoch_and_resumed_from_its_beginning(
    fresh: Any, rule: Rule, accumulate: int, tmp_path: Path
) -> None:
    straight = run(tmp_path / "straight", rule, accumulate)
    # With the weights at w + e, where it is known that the rule takes pass two there.
    passes = (0, 1) if isinstance(rule, LookSAM | AESAM) else (2,)
    killed(fresh, tmp_path / "killed", rule, accumulate, Killed, 0, (2, 5, passes))
    assert differences(run(tmp_path / "killed", rule, accumulate, resume=True), straight) == []


@pytest.mark.parametrize("rule", [SAME(1, 2.0, 0.3), *STATEFUL], ids=repr)
def test_killed_in_an_epoch_and_resumed_from_its_middle(fresh: Any, rule: Rule, tmp_path: Path) -> None:
    """With a data loader that says where it was."""
    straight = run(tmp_path / "straight", rule, 1, Net, 4)
    killed(fresh, tmp_path / "killed", rule, 1, KilledNet, 4, (2, 5, (0, 1)))
    saved = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 16  # of 17, and of 6 in each epoch
    assert differences(run(tmp_path / "killed", rule, 1, Net, 4, resume=True), straight) == []


def test_what_is_written_after_a_fit_goes_on_as_well(tmp_path: Path) -> None:
    rule = VaSSO(0.3)
    straight = run(tmp_path, rule, 1)
    module = with_sam(build(Plain), rule)
    made = trainer(max_epochs=2)
    seed_all(1)
    made.fit(module)
    made.save_checkpoint(tmp_path / "last.ckpt")
    assert differences(run(tmp_path, rule, 1, resume=True), straight) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (SAM(0.3), SAM(0.3), None),
        (None, None, None),
        (SAM(0.0), None, None),
        (SAM(0.3), SAM(0.1), "written by training with SAM(rho=0.3); training continues with SAM(rho=0.1)"),
        (SAM(0.3), None, "with SAM(rho=0.3); training continues without SAM"),
        (None, SAME(1, 2.0, 0.3), "without SAM; training continues with SAME(ckpt=1, condition=2.0, rho=0.3)"),
    ],
    ids=repr,
)
def test_another_rule_is_said_once(
    before: Rule | None, after: Rule | None, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(max_epochs=1)
    made.fit(with_sam(build(Plain), before))
    made.save_checkpoint(tmp_path / "one.ckpt")
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        go_on(trainer(max_epochs=2), with_sam(build(Plain), after), tmp_path / "one.ckpt")
    messages = [record.message for record in caplog.records if "checkpoint file was" in record.message]
    assert len(messages) == (said is not None)
    assert said is None or said in messages[0]


def test_state_dict_keys_are_the_plain_modules(tmp_path: Path) -> None:
    plain, sam = build(Plain), with_sam(build(Plain), VaSSO(0.3))
    for name, module in (("plain", plain), ("sam", sam)):
        made = trainer(max_epochs=1)
        made.fit(module)
        made.save_checkpoint(tmp_path / name)
    files = [torch.load(tmp_path / name, weights_only=True) for name in ("plain", "sam")]
    assert list(files[0]["state_dict"]) == list(files[1]["state_dict"]) == list(plain.state_dict())
    assert set(files[1]) - set(files[0]) == {"lightning_same"}
    Plain.load_from_checkpoint(tmp_path / "sam")
    with_sam(Plain, VaSSO(0.3)).load_from_checkpoint(tmp_path / "plain")


class SavesOnError(Callback):
    """As OnExceptionCheckpoint does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("rule", [SAM(0.3), *STATEFUL], ids=repr)
def test_a_file_that_is_written_on_an_error_goes_on_as_without_the_error(rule: Rule, tmp_path: Path) -> None:
    """Every batch is the same, so that the batch of the failed step is not missed."""

    class Same(Plain):
        fails = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.fails and self.trainer.global_step == 4 and self.sam_pass == last_pass:
                raise ValueError("in the last pass of a step")
            return super().training_step(batch, batch_idx)

        def train_dataloader(self) -> Any:
            return DataLoader(Numbers(), batch_sampler=[list(range(8))] * 6, collate_fn=collate)

    def train(fails: bool, steps: int, resume: bool = False) -> list[Tensor]:
        module = with_sam(build(Same), rule)
        module.fails = fails
        made = trainer(max_epochs=-1, max_steps=steps, callbacks=[SavesOnError(tmp_path / "error.ckpt")])
        go_on(made, module, tmp_path / "error.ckpt" if resume else None, weights_only=False)
        return [param.detach() for param in module.parameters()]

    # LookSAM takes one pass at that step; whether AE-SAM takes two is its own choice.
    last_pass = 0 if isinstance(rule, LookSAM) else 1 if isinstance(rule, AESAM) else 2
    straight = train(False, 9)
    with pytest.raises(ValueError, match="in the last pass"):
        train(True, 9)
    assert differences(train(False, 9, resume=True), straight) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, ValueError])
def test_a_file_that_is_written_on_an_error_holds_w(error: type[BaseException], tmp_path: Path) -> None:
    w: list[Tensor] = []

    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 3 and self.sam_pass == 1:
                w.extend(param.detach().clone() for param in self.parameters())
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 3 and self.sam_pass == 2:
                assert differences(w, [param.detach() for param in self.parameters()]) != []
                raise error("in pass two")
            return loss

    made = trainer(callbacks=[SavesOnError(tmp_path / "error.ckpt")])
    with pytest.raises((error, SystemExit)):
        made.fit(with_sam(build(Fails), VaSSO(0.3)))
    saved = torch.load(tmp_path / "error.ckpt", weights_only=True)
    assert differences(w, list(saved["state_dict"].values())) == []
    assert saved["lightning_same"]["memories"]
