"""Gradients that are sums over processes, added up."""

from typing import Any

import torch
from support.ranks import Ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from lightning_same.gradients.grads import add_partial_grads


def add_summands() -> list[Any]:
    mesh = init_device_mesh("cpu", (2,))
    param = torch.nn.Parameter(DTensor.from_local(torch.zeros(2), mesh, [Replicate()]))
    here = torch.full((2,), float(torch.distributed.get_rank() + 1))
    param.grad = DTensor.from_local(here, mesh, [Partial()])
    add_partial_grads([param])
    return [param.grad.placements == param.placements, param.grad.to_local().tolist()]


def test_summands_are_added_up_before_anything_is_measured(ranks: dict[int, Ranks]) -> None:
    """Tensor parallelism leaves the gradient of what it replicates so."""
    assert ranks[2].run(add_summands) == [[True, [3.0, 3.0]]] * 2
