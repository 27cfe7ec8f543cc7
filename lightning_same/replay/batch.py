"""A copy of a batch that a forward may change."""

import copy
import pickle
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device})


def copy_of(batch: Any) -> Any:
    """A copy of a batch that a forward may change without changing the batch, whatever the batch is made of.

    Tensors that carry a history are detached. A batch that cannot be copied is returned as it is, and said so once.
    """
    try:
        return _copied(batch, set())
    except _UnusualError:
        pass
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    memo = {id(leaf): leaf.detach().clone() for leaf in leaves if leaf.grad_fn is not None}
    try:
        return copy.deepcopy(batch, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError, pickle.PicklingError) as error:
        rank_zero_warn(
            f"The batch, a {type(batch).__name__}, cannot be copied ({error}). A repeated forward gets the same object:"
            " do not change it in training_step."
        )
        return batch


class _UnusualError(Exception):
    """A batch that only `copy.deepcopy` copies right."""


def _copied(value: Any, seen: set[int]) -> Any:
    """A copy of what most batches are: lists, tuples and dicts of tensors, none of which share anything.

    Of a tensor that is a part of a larger one, only that part.
    """
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is tuple:
        return tuple([_copied(item, seen) for item in value])
    if kind is Tensor:
        plain = value.layout == torch.strided and not (value.requires_grad or value.is_inference() or vars(value))
        if not plain or value.is_nested or overlaps(value):
            raise _UnusualError
    elif kind is not list and kind is not dict:
        raise _UnusualError
    identity = storage_of(value) if kind is Tensor else id(value)
    if identity in seen:
        raise _UnusualError
    seen.add(identity)
    if kind is Tensor:
        return value.clone()
    if kind is list:
        return [_copied(item, seen) for item in value]
    return {key: _copied(item, seen) for key, item in value.items()}


def storage_of(tensor: Tensor) -> int:
    """Identifies the memory that a tensor looks at; itself where there is no one block of it."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError, ValueError):  # sparse, nested, lazy or wrapped
        return id(tensor)


def overlaps(tensor: Tensor) -> bool:
    """Whether an element stands at several places."""
    if tensor.is_contiguous():
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
