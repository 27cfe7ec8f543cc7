"""What a rule carries from one step to the next."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import compress
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from lightning_same.gradients.sharding import local, locals_of, spread_like, whole_of
from lightning_same.gradients.tensors import Formula, copy_all_, elementwise_, global_norm

_fit_of = attrgetter("shape", "dtype", "device")
"""What a buffer must have in common with the tensor that it is for."""


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
        self._copies: dict[str, dict[Tensor, Tensor]] = {}

    def view(self, params: Sequence[Tensor]) -> "Memory":
        """The same memory, for lists that are aligned with other parameters.

        Args:
            params: the other parameters.
        """
        if len(params) == len(self._params) and all(map(is_, params, self._params)):
            return self
        view = Memory(params)
        view.numbers, view._tensors = self.numbers, self._tensors
        view._scratch, view._copies = self._scratch, self._copies
        return view

    def scratch(self) -> list[Tensor]:
        """Reusable buffers, one per parameter, of the size of its elements on this process.

        They are the same at every call, so that no step allocates them anew. They are not part of the content.
        """
        likes = locals_of(self._params)
        buffers = [buffer for param in self._params if (buffer := self._scratch.get(param)) is not None]
        if list(map(_fit_of, buffers)) != list(map(_fit_of, likes)):
            buffers = [_buffer(self._scratch, param, like) for param, like in zip(self._params, likes, strict=True)]
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
        self.compute(name, _first, values, finite=global_norm(values).isfinite())

    def compute(self, name: str, formula: Formula, *lists: Sequence[Tensor], finite: Tensor) -> None:
        """Keep ``formula(*lists, former)``, where ``former`` is what was kept before, zeros at first.

        It is computed in pieces: nothing as large as the parameters is allocated beside what is kept.

        Args:
            name: under which it is kept.
            formula: acts on each element alone.
            *lists: one tensor per parameter each.
            finite: a boolean scalar tensor; where it is false, what was kept before stays.
        """
        kept = self._tensors.setdefault(name, {})
        for param, like in zip(self._params, lists[0], strict=True):
            if param not in kept:
                kept[param] = torch.zeros_like(like)

        def if_finite(*parts: Tensor) -> Tensor:
            return torch.where(finite.to(parts[0].device), formula(*parts), parts[-1])

        elementwise_(if_finite, *lists, [kept[param] for param in self._params])

    def average(self, name: str, values: Sequence[Tensor], keep: float) -> list[Tensor]:
        """Update an exponential moving average m = keep * m + (1 - keep) * value, which begins with the first value.

        Args:
            name: under which it is kept.
            values: one tensor per parameter.
            keep: weight of the past, from 0 to 1.

        Returns:
            The averages after the update, read only.
        """
        finite = global_norm(values).isfinite()
        new = [m is None for m in self.get(name)]
        for is_new, formula in ((True, _first), (False, partial(_average, keep))):
            chosen = [flag is is_new for flag in new]
            if any(chosen):
                view = self.view(list(compress(self._params, chosen)))
                view.compute(name, formula, list(compress(values, chosen)), finite=finite)
        return [m for m in self.get(name) if m is not None]

    def copy(self) -> Callable[[], None]:
        """Copy the content, into the same buffers at every call.

        Returns:
            A function that puts it back. It may be called until the next copy is made.
        """
        numbers = dict(self.numbers)
        params = {name: list(kept) for name, kept in self._tensors.items()}
        for name, kept in self._tensors.items():
            buffers = self._copies.setdefault(name, {})
            copy_all_([_buffer(buffers, param, local(value)) for param, value in kept.items()], list(kept.values()))

        def restore() -> None:
            # In place: views made by `view` share the content.
            self.numbers.clear()
            self.numbers.update(numbers)
            for name in [name for name in self._tensors if name not in params]:
                del self._tensors[name]
            for name, known in params.items():
                kept = self._tensors[name]
                for param in [param for param in kept if param not in set(known)]:
                    del kept[param]
                copy_all_([kept[param] for param in known], [self._copies[name][param] for param in known])

        return restore

    def state_dict(self, names: Mapping[Tensor, str]) -> dict[str, Any]:
        """The content for a checkpoint file, with parameters by name.

        Args:
            names: of the parameters. Tensors of other parameters are left out.

        Returns:
            Numbers and tensors. If tensors are sharded, every process has to call this; each of them is gathered and
            moved to the CPU of the first process before the next is, and the other processes get none.
        """
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, kept in self._tensors.items():
            wholes = {names[param]: whole_of(value) for param, value in kept.items() if param in names}
            tensors[name] = {key: whole for key, whole in wholes.items() if whole is not None}
        return {"numbers": dict(self.numbers), "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any], params: Mapping[str, Tensor]) -> None:
        """Replace the content.

        Args:
            state: what `state_dict` has returned.
            params: the parameters by name. Tensors of unknown names are dropped.

        Raises:
            ValueError: if it is nothing that `state_dict` returns, or a tensor is not of its parameter's shape.
        """
        wrong = _why_not_loaded(state, params)
        if wrong:
            raise ValueError(f"What the rule has kept cannot be restored: {wrong}. Was the checkpoint file changed?")
        self.numbers = dict(state["numbers"])
        self._tensors = {
            name: {params[key]: spread_like(value, params[key]) for key, value in kept.items() if key in params}
            for name, kept in state["tensors"].items()
        }

    def __bool__(self) -> bool:
        return bool(self.numbers or self._tensors)


def _why_not_loaded(state: Any, params: Mapping[str, Tensor]) -> str:
    """What is wrong with a state that is to be loaded; empty if nothing is."""
    if not isinstance(state, Mapping) or not {"numbers", "tensors"} <= state.keys():
        return f"its memory must hold `numbers` and `tensors`, got {_kind(state)}"
    numbers, tensors = state["numbers"], state["tensors"]
    if not isinstance(numbers, Mapping) or not all(type(value) in (int, float) for value in numbers.values()):
        return f"`numbers` must be numbers by name, got {_kind(numbers)}"
    if not isinstance(tensors, Mapping):
        return f"`tensors` must be tensors by name, got {_kind(tensors)}"
    for name, kept in tensors.items():
        if not isinstance(kept, Mapping):
            return f"`{name}` must hold a tensor for each parameter, got {_kind(kept)}"
        for key, value in kept.items():
            if key in params and not (isinstance(value, Tensor) and value.shape == params[key].shape):
                return f"`{name}` of {key} must be a tensor of shape {tuple(params[key].shape)}, got {_kind(value)}"
    return ""


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"one of shape {tuple(value.shape)}"
    return f"a mapping with {list(value)!r:.100}" if isinstance(value, Mapping) else f"{value!r:.100}"


def _buffer(buffers: dict[Tensor, Tensor], param: Tensor, like: Tensor) -> Tensor:
    """The buffer of a parameter, made anew if it does not fit."""
    buffer = buffers.get(param)
    if buffer is None or _fit_of(buffer) != _fit_of(like):
        buffer = buffers[param] = torch.empty_like(like, requires_grad=False)
    return buffer


def _first(value: Tensor, former: Tensor) -> Tensor:
    return value


def _average(keep: float, value: Tensor, former: Tensor) -> Tensor:
    return torch.lerp(value, former, keep)
