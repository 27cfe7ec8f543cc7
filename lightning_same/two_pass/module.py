"""What the two passes ask of a module; `SAMMixin` gives it."""

from typing import Any, Protocol, runtime_checkable

from lightning_same.rules.base import Rule
from lightning_same.two_pass.options import TwoPassOptions


@runtime_checkable
class TwoPassModule(Protocol):
    """A LightningModule with `SAMMixin` among its bases.

    A protocol, since the mixin imports what runs its passes, and that has to know the mixin's modules by sight.
    """

    sam: Rule | None
    two_pass: TwoPassOptions

    def two_pass_step(self, loss_fn: Any, optimizer: Any) -> Any:
        """One step of manual optimization."""
