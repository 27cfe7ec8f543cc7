"""What a rule carries from one step to the next."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_same.gradients.sharding import local, spread_like, whole_of
from lightning_same.gradients.tensors import global_norm


class Memory:
    """Tensors that belong to parameters, and numbers, by name.

    Rules hold settings; what a rule with a moving average or a stored gradient accumulates is kept here, one memory for
    each optimizer that it serves. The mixin keeps it in the checkpoint file. In a plain loop, make one before the loop
    and hand it to every call.

    Args:
        params: the parameters that the lists of tensors given and taken are aligned with.

    Attributes:
        numbers: by name; for whoever keeps one.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.numbers: dict[str, float] = {}
        self._params = list(params)
        self._tensors: dict[str, dict[Tensor, Tensor]] = {}
        self._scratch: dict[Tensor, Tensor] = {}

    def view(self, params: Sequence[Tensor]) -> "Memory":
        """The same memory, for lists that are aligned with other parameters."""
        view = Memory(params)
        view.numbers, view._tensors, view._scratch = self.numbers, self._tensors, self._scratch
        return view

    def scratch(self) -> list[Tensor]:
        """Room for a copy of each parameter's elements on this process.

        It is the same room each time, so that no step allocates it anew, and no part of the content.
        """
        room = []
        for param in self._params:
            like, known = local(param), self._scratch.get(param)
            if known is None or (known.shape, known.dtype, known.device) != (like.shape, like.dtype, like.device):
                known = self._scratch[param] = torch.empty_like(like, requires_grad=False)
            room.append(known)
        return room

    def get(self, name: str) -> list[Tensor | None]:
        """What is remembered under ``name`` for each parameter, read only; None where nothing is."""
        known = self._tensors.get(name, {})
        return [known.get(param) for param in self._params]

    def set(self, name: str, values: Sequence[Tensor]) -> None:
        """Keep a copy of one tensor for each parameter, or, if any is not finite, what was kept before.

        So a step with an overflow, which a loss scaler skips, leaves nothing behind. It is decided on the device; where
        nothing was kept before, zeros are.
        """
        finite = global_norm(values).isfinite()
        known = self._tensors.setdefault(name, {})
        for param, value in zip(self._params, values, strict=True):
            former = known.setdefault(param, torch.zeros_like(value))
            former.copy_(torch.where(finite, value, former))

    def average(self, name: str, values: Sequence[Tensor], keep: float) -> list[Tensor]:
        """Update an exponential moving average m = keep * m + (1 - keep) * value, which begins with the first value.

        Args:
            name: under which.
            values: one tensor for each parameter.
            keep: weight of the past, from 0 to 1.

        Returns:
            The averages after the update, read only.
        """
        pairs = zip(self.get(name), values, strict=True)
        self.set(name, [value if m is None else torch.lerp(value, m, keep) for m, value in pairs])
        return [m for m in self.get(name) if m is not None]

    def copy(self) -> Callable[[], None]:
        """Copy the content.

        Returns:
            To be called to put it back.
        """
        numbers = dict(self.numbers)
        tensors = {
            name: {param: value.clone() for param, value in known.items()} for name, known in self._tensors.items()
        }

        def restore() -> None:
            # In place: views made by `view` share the content.
            self.numbers.clear()
            self.numbers.update(numbers)
            self._tensors.clear()
            self._tensors.update(tensors)

        return restore

    def state_dict(self, names: Mapping[Tensor, str]) -> dict[str, Any]:
        """The content, with parameters by name.

        Args:
            names: of the parameters. Tensors of other parameters are left out.
        """
        tensors = {
            name: {names[param]: whole_of(value) for param, value in known.items() if param in names}
            for name, known in self._tensors.items()
        }
        return {"numbers": dict(self.numbers), "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any], params: Mapping[str, Tensor]) -> None:
        """Replace the content.

        Args:
            state: of `state_dict`.
            params: the parameters by name; tensors of names that are not there are dropped.
        """
        self.numbers = dict(state["numbers"])
        self._tensors = {
            name: {params[key]: spread_like(value, params[key]) for key, value in known.items() if key in params}
            for name, known in state["tensors"].items()
        }

    def __bool__(self) -> bool:
        return bool(self.numbers or self._tensors)
