"""A walk through the autograd graph behind a loss."""

from collections.abc import Iterator

from torch import Tensor
from torch.autograd.graph import Node


def nodes(loss: Tensor) -> Iterator[Node]:
    """Every node of the graph behind a tensor, once, from the tensor towards the leaves.

    Args:
        loss: any tensor; without a history it has no nodes.

    Yields:
        The operations, and an ``AccumulateGrad`` for each leaf.

    Examples:
        >>> import torch
        >>> w = torch.ones(2, requires_grad=True)
        >>> [node.name() for node in nodes((w * w).sum())]
        ['SumBackward0', 'MulBackward0', 'torch::autograd::AccumulateGrad']
    """
    waiting, seen = [loss.grad_fn], set[Node]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]
