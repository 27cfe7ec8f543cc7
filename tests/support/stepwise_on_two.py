"""The training of `stepwise` under DDP: each process has a session, and all are told the same."""

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from lightning_same import with_sam
from support.fits import differences
from support.formulas import Arrays
from support.ranks import Ranks
from support.stepwise import RULES, Net, Session

_here: list[Session] = []
"""The session of this process, if there is one."""


def begin(frozen: bool, group_rho: float | str | None, rule: str, file: Path | None) -> Any:
    # DDP asks once which weights take a gradient. Those that are frozen later are unused ones to it; what was frozen
    # then it would never average.
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    module = with_sam(Net(False, group_rho), RULES[rule], check_replay=False, nonfinite="skip")
    options = {"devices": distributed.get_world_size(), "strategy": strategy}
    _here[:] = [Session(module, file, distributed.get_rank(), **options)]
    _here[0].freeze(frozen)
    return state()


def call(name: str, *args: Any) -> Any:
    getattr(_here[0], name)(*args)
    return state()


def state() -> tuple[BaseException | None, Arrays]:
    return _here[0].error, _here[0].weights


class SessionOnTwo:
    """What `Session` is, on two processes.

    Args:
        group: the processes.
        frozen: as of `session_of`, like the others.
        group_rho: likewise.
        rule: likewise.
        file: to resume from.
    """

    def __init__(
        self, group: Ranks, frozen: bool, group_rho: float | str | None, rule: str, file: Path | None = None
    ) -> None:
        self.group = group
        self._run(begin, frozen, group_rho, rule, file)

    def send(self, number: int | None, spoiled_on: int | None = None) -> None:
        self._run(call, "send", number, spoiled_on)

    def fail_in(self, now: int | None) -> None:
        self._run(call, "fail_in", now)

    def swap(self, rule: str) -> None:
        self._run(call, "swap", rule)

    def freeze(self, frozen: bool) -> None:
        self._run(call, "freeze", frozen)

    def add_group(self, rho: float | str) -> None:
        self._run(call, "add_group", rho)

    def save(self, file: Path) -> None:
        self._run(call, "save", file)

    def stop(self) -> None:
        self._run(call, "stop")

    def _run(self, function: Any, *args: Any) -> None:
        (self.error, self.weights), (other_error, other_weights) = self.group.run(function, *args)
        assert repr(self.error) == repr(other_error)
        assert differences(self.weights, other_weights) == []
