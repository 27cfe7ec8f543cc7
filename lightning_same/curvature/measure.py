"""One call for both: a measure takes an operator, or the arguments of the `Hessian` that it is to measure."""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from torch import Tensor, nn

from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.mean_loss import Precision
from lightning_same.curvature.protocol import Operator

OperatorT_contra = TypeVar("OperatorT_contra", bound=Operator, contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)
P = ParamSpec("P")

HESSIAN_ARGUMENTS = ("loss_fn", "params", "batches", "samples", "reduce", "dtype")


class Measure(Protocol[OperatorT_contra, P, ResultT_co]):
    """A function of an operator, or of a loss and its parameters."""

    __name__: str

    @overload
    def __call__(self, hessian: OperatorT_contra, *args: P.args, **options: P.kwargs) -> ResultT_co: ...

    @overload
    def __call__(
        self,
        loss_fn: Callable[..., Tensor],
        params: Iterable[Tensor] | nn.Module,
        batches: Sequence[Any] | None = None,
        *,
        samples: int | Sequence[int] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        dtype: Precision = None,
        **options: Any,
    ) -> ResultT_co: ...


def takes_loss(
    function: Callable[Concatenate[OperatorT_contra, P], ResultT_co],
) -> Measure[OperatorT_contra, P, ResultT_co]:
    """Let a function of an operator take the arguments of `Hessian` as well.

    ``measure(loss_fn, params, batches, samples=..., reduce=..., dtype=..., **options)`` is then
    ``measure(Hessian(loss_fn, params, batches, samples=..., reduce=..., dtype=...), **options)``.

    Args:
        function: takes an operator, then options by keyword.

    Returns:
        The function in both forms.

    Raises:
        TypeError: the function returned, if it gets neither an operator nor a loss with its parameters.
    """

    @wraps(function)
    def measure(*args: Any, **options: Any) -> ResultT_co:
        of_hessian = {name: options.pop(name) for name in HESSIAN_ARGUMENTS if name in options}
        if of_hessian or len(args) > 1:
            args = (Hessian(*args, **of_hessian),)
        elif args and not hasattr(args[0], "mean_over_processes"):
            raise TypeError(
                f"{function.__name__}: expected a Hessian or another operator, got {type(args[0]).__name__}. Of a loss,"
                f" give the parameters too: {function.__name__}(loss_fn, params)."
            )
        return function(*args, **options)

    return measure
