"""The state that a forward may change: held at one moment, and put back."""

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn

from lightning_same.replay.frozen import FrozenCopies
from lightning_same.replay.inventory import UNHELD
from lightning_same.replay.latest_inventory import LatestInventory
from lightning_same.replay.random_state import random_state
from lightning_same.replay.tensor_copies import TensorCopies
from lightning_same.trainer.distributed import reshard

WITHOUT_MODES = UNHELD | {"training"}

_requires_grad = attrgetter("requires_grad")


class Snapshot:
    """The state of a module and of the random number generators at one moment.

    Held by value: buffers, persistent or not; tensors and numpy arrays in attributes of the module and its submodules;
    lists, dicts, sets and deques there, nested ones too; torchmetrics states; parameters that are not trained, such as
    those of a momentum encoder; generators held as attributes; which submodules, parameters and buffers there are, and
    which parameters require a gradient; the global random state of torch (CPU, and the device given), Python and numpy.
    Other attributes (numbers, strings, the user's own objects) are held by reference: a counter on the module is put
    back, one inside an object of the user's is not. For the batch, see `copy_of`.

    Parameters that are not trained are left out where they take more than four times the memory of ``unheld``, a frozen
    backbone or the teacher of a small adapter. A training step that writes to them does so once more at each replay;
    `fingerprint` sees it. Buffers have no such limit.

    Parameters that FSDP2 has gathered are sharded again, when the state is taken and when it is put back.

    Recurrent layers with dropout draw their masks on CUDA from a buffer of cuDNN's own. It is filled anew from the
    generator, for the masks to be the same in each replay; so they are others than without a snapshot.

    Args:
        module: whose state to take.
        unheld: parameters that somebody else takes care of; they and what shares their memory are left alone.
        device: the accelerator whose random state belongs to it, if any, as those of ``unheld``'s devices do.
        modes: whether the modes of the submodules, "train" or "eval", are part of it.
        frozen: copies of parameters that are not trained, which are taken from there if they are still right.
        latest: what a former snapshot has found in the module, which is taken from there if it is still right.
    """

    def __init__(
        self,
        module: nn.Module,
        unheld: Sequence[Tensor] = (),
        device: torch.device | None = None,
        *,
        modes: bool = True,
        frozen: FrozenCopies | None = None,
        latest: LatestInventory | None = None,
    ) -> None:
        self._inventory, self._contents = (latest or LatestInventory()).of(
            module, unheld, UNHELD if modes else WITHOUT_MODES
        )
        inventory = self._inventory
        devices = inventory.devices | {device}
        undos = random_state(*devices)
        if any(map(_is_cuda, devices)) and any(map(_draws_from_a_buffer, inventory.modules)):
            # cuDNN fills its buffer from the generator when that is set, as each replay does: pass one has to, too.
            for undo in undos:
                undo()
        self._undos = undos + inventory.undos()
        self._requires_grad = list(map(_requires_grad, inventory.params))
        self._states = TensorCopies(inventory.states)
        self._frozen = (frozen or FrozenCopies()).of(inventory.frozen) if inventory.frozen else None

    @property
    def params(self) -> list[Tensor]:
        """All registered parameters; one that several modules share comes once for each."""
        return self._inventory.params

    @property
    def unheld_addresses(self) -> list[int]:
        """Where the unheld parameters were, each once: the same list as that of another snapshot if none has moved."""
        return self._inventory.unheld_addresses

    def restore(self, now: "Snapshot | None" = None) -> None:
        """Put everything back. May be called many times.

        Args:
            now: the state of the same module that was just taken, if one was. Since then nobody may have changed which
                objects the module holds, which parameters require a gradient, and where tensors are; values of tensors
                and random numbers may have changed.
        """
        inventory = self._inventory
        if now is not None and now._inventory is not inventory:
            now = None
        for undo in self._undos:
            undo()
        if inventory.sharded:
            reshard(inventory.sharded)
        inventory.containers.put_back(self._contents, None if now is None else now._contents)
        requires_grad = list(map(_requires_grad, inventory.params)) if now is None else now._requires_grad
        if requires_grad != self._requires_grad:
            for param, before in zip(inventory.params, self._requires_grad, strict=True):
                param.requires_grad_(before)
        self._states.restore(in_place=now is not None)
        if self._frozen is not None:
            self._frozen.restore()

    def release(self, params: Sequence[Tensor]) -> None:
        """Put the values of these parameters back for the last time: from now on somebody else takes care of them."""
        self._states.release(params)
        if self._frozen is not None:
            self._frozen.release(params)


def _draws_from_a_buffer(module: nn.Module) -> bool:
    """Whether cuDNN draws the module's dropout."""
    return isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1


def _is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"
