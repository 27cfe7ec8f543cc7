"""What a rule carries from one step to the next."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_same.gradients.sharding import local, spread_like, whole_of
from lightning_same.gradients.tensors import global_norm


class Memory:
    """Tensors that belong to parameters, and numbers, both by name.

    Rules hold settings; what a rule with a moving average or a stored gradient accumulates is kept here, in one memory
    per optimizer. `SAMMixin` saves it in the checkpoint file. In a plain loop, make one before the loop and pass it to
    every call of the rule.

    Args:
        params: the parameters. All lists of tensors are aligned with them.

    Attributes:
        numbers: floats by name, to be read and written.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> memory = Memory([w])
        >>> memory.average("gradient", [torch.ones(2)], keep=0.5)
        [tensor([1., 1.])]
        >>> memory.average("gradient", [torch.zeros(2)], keep=0.5)
        [tensor([0.5000, 0.5000])]
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.numbers: dict[str, float] = {}
        self._params = list(params)
        self._tensors: dict[str, dict[Tensor, Tensor]] = {}
        self._scratch: dict[Tensor, Tensor] = {}

    def view(self, params: Sequence[Tensor]) -> "Memory":
        """The same memory, for lists that are aligned with other parameters.

        Args:
            params: the other parameters.
        """
        view = Memory(params)
        view.numbers, view._tensors, view._scratch = self.numbers, self._tensors, self._scratch
        return view

    def scratch(self) -> list[Tensor]:
        """Reusable buffers, one per parameter, of the size of its elements on this process.

        They are the same at every call, so that no step allocates them anew. They are not part of the content.
        """
        buffers = []
        for param in self._params:
            like, buffer = local(param), self._scratch.get(param)
            if buffer is None or (buffer.shape, buffer.dtype, buffer.device) != (like.shape, like.dtype, like.device):
                buffer = self._scratch[param] = torch.empty_like(like, requires_grad=False)
            buffers.append(buffer)
        return buffers

    def get(self, name: str) -> list[Tensor | None]:
        """The tensors that are kept under ``name``, one per parameter, read only; None where there is none.

        Args:
            name: under which they were set.
        """
        kept = self._tensors.get(name, {})
        return [kept.get(param) for param in self._params]

    def set(self, name: str, values: Sequence[Tensor]) -> None:
        """Keep a copy of one tensor per parameter, unless an element is not finite: then keep what was there before.

        So a step with an overflow, which a loss scaler skips, leaves nothing behind. It is decided on the device; where
        nothing was kept before, zeros are.

        Args:
            name: under which they are kept.
            values: one tensor per parameter.
        """
        finite = global_norm(values).isfinite()
        kept = self._tensors.setdefault(name, {})
        for param, value in zip(self._params, values, strict=True):
            former = kept.setdefault(param, torch.zeros_like(value))
            former.copy_(torch.where(finite, value, former))

    def average(self, name: str, values: Sequence[Tensor], keep: float) -> list[Tensor]:
        """Update an exponential moving average m = keep * m + (1 - keep) * value, which begins with the first value.

        Args:
            name: under which it is kept.
            values: one tensor per parameter.
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
            A function that puts it back.
        """
        numbers = dict(self.numbers)
        tensors = {
            name: {param: value.clone() for param, value in kept.items()} for name, kept in self._tensors.items()
        }

        def restore() -> None:
            # In place: views made by `view` share the content.
            self.numbers.clear()
            self.numbers.update(numbers)
            self._tensors.clear()
            self._tensors.update(tensors)

        return restore

    def state_dict(self, names: Mapping[Tensor, str]) -> dict[str, Any]:
        """The content for a checkpoint file, with parameters by name. On shards, every process has to call it.

        Args:
            names: of the parameters. Tensors of other parameters are left out.
        """
        tensors = {
            name: {names[param]: whole_of(value) for param, value in kept.items() if param in names}
            for name, kept in self._tensors.items()
        }
        return {"numbers": dict(self.numbers), "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any], params: Mapping[str, Tensor]) -> None:
        """Replace the content.

        Args:
            state: what `state_dict` has returned.
            params: the parameters by name. Tensors of unknown names are dropped.
        """
        self.numbers = dict(state["numbers"])
        self._tensors = {
            name: {params[key]: spread_like(value, params[key]) for key, value in kept.items() if key in params}
            for name, kept in state["tensors"].items()
        }

    def __bool__(self) -> bool:
        return bool(self.numbers or self._tensors)
