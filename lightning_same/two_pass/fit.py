"""What the two passes keep for as long as a fit runs."""

from itertools import zip_longest
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_same.gradients.sharding import any_sharded
from lightning_same.replay.latest_inventory import LatestInventory
from lightning_same.replay.modules import modules_of
from lightning_same.rules.base import Rule
from lightning_same.rules.state import Memory
from lightning_same.trainer.distributed import reshard
from lightning_same.trainer.optimizers import trained
from lightning_same.two_pass.options import TwoPassOptions


class Fit:
    """One fit of a module by a rule.

    Args:
        module: the module with the mixin, whose attribute ``sam`` is the rule.
        trainer: its Trainer.

    Attributes:
        memories: what the rule carries from step to step, one for each optimizer.
        skipped_steps: how many steps were dropped because they were not finite.
        writes_weights: whether training steps write to trained weights; None before the first step that perturbs.
        is_radius_checked: whether it was seen that the gradient is finite at the first w + e.
        is_replay_checked: whether a replay of pass one has been compared with it.
        inventory: what is in the module, for the snapshots of its state.
        checked: the last rule for which the module and the Trainer were checked.
        checked_options: the last options that were checked with it.
    """

    def __init__(self, module: Any, trainer: pl.Trainer) -> None:
        self.module = module
        self.trainer = trainer
        self.memories = [Memory(trained(optimizer)) for optimizer in trainer.optimizers]
        self.inventory = LatestInventory()
        self.skipped_steps = 0
        self.checked: Rule | None = module.sam
        self.checked_options: TwoPassOptions | None = module.two_pass
        self.writes_weights: bool | None = None
        self.is_replay_checked = False
        self.is_radius_checked = False

    @property
    def is_sharded(self) -> bool:
        """Whether parameters, and what the rule keeps of them, are spread over processes."""
        return any_sharded(self.stepped_parameters())

    def stepped_parameters(self) -> list[Tensor]:
        """Of all optimizers. Asked anew each time: a callback may unfreeze parameters, or add a group."""
        return [param for optimizer in self.trainer.optimizers for param in trained(optimizer)]

    def state_dict(self) -> dict[str, Any]:
        """What the next step needs to know of the former ones, with parameters by their names.

        Empty for plain training, of which a rule with a radius of 0 is a kind.
        """
        rule = self.module.sam
        state: dict[str, Any] = {"rule": repr(rule)} if isinstance(rule, Rule) and rule.rho != 0 else {}
        if any(self.memories):
            reshard(modules_of(self.module))  # Or the names would be those of whole parameters.
            names = {param: name for name, param in self.module.named_parameters()}
            state["memories"] = [memory.state_dict(names) for memory in self.memories]
        if self.skipped_steps:
            state["skipped_steps"] = self.skipped_steps
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, and from nothing else: a search for a learning rate has stepped.

        Raises:
            ValueError: if that is something else.
        """
        memories, skipped = state.get("memories", []), state.get("skipped_steps", 0)
        if not isinstance(memories, list) or type(skipped) is not int:
            raise ValueError(
                "The entry `lightning_same` of the checkpoint file must hold a list `memories` and a whole number"
                f" `skipped_steps`, got {memories!r:.100} and {skipped!r:.100}."
            )
        reshard(modules_of(self.module))
        params = dict(self.module.named_parameters())
        empty: dict[str, Any] = {"numbers": {}, "tensors": {}}
        for memory, saved in zip_longest(self.memories, memories[: len(self.memories)]):
            memory.load_state_dict(empty if saved is None else saved, params)
        self.skipped_steps = skipped
