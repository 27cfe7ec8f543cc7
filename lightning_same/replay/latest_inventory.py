"""The inventory that one snapshot of a module leaves to the next."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_same.replay.containers import Contents
from lightning_same.replay.inventory import Inventory
from lightning_same.replay.modules import modules_of
from lightning_same.trainer.distributed import reshard


class LatestInventory:
    """The inventory of a module, which is made anew only if it is not right any more.

    Until then, or until `forget`, it keeps alive what it has found.
    """

    def __init__(self) -> None:
        self._latest: tuple[nn.Module, frozenset[str], Inventory] | None = None

    def of(self, module: nn.Module, unheld: Sequence[Tensor], left_out: frozenset[str]) -> tuple[Inventory, Contents]:
        """The inventory as it is now, and the objects in it. Parameters that FSDP2 has gathered are sharded again.

        Args:
            module: the root of the tree.
            unheld: parameters that somebody else takes care of.
            left_out: names of attributes that are left out.
        """
        if self._latest is not None and self._latest[:2] == (module, left_out):
            inventory = self._latest[2]
            if inventory.sharded:
                reshard(inventory.sharded)
            contents = inventory.contents_if_same(unheld)
            if contents is not None:
                return inventory, contents
        reshard(modules_of(module))
        inventory = Inventory(module, unheld, left_out)
        # One that serves but once would keep alive what the module has let go of, such as results with their graphs.
        self._latest = None if inventory.serves_once else (module, left_out, inventory)
        return inventory, inventory.containers.contents()

    def forget(self) -> None:
        """Let go of what was found; the next inventory is made anew."""
        self._latest = None
