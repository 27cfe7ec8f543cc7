"""What holds for every measure of curvature: samples, processes, modes, no trace, refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.hessians import MEASURES, assert_same, mlp
from support.ranks import Ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_same.curvature.eigenvalues import top_eigenvalue
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.spectrum import hessian_trace, spectral_density


@pytest.mark.parametrize("measure", MEASURES)
def test_ragged_batches_weigh_by_their_samples(measure: Callable[..., Any]) -> None:
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    batches = [(x[:60], y[:60]), (x[60:95], y[60:95]), (x[95:], y[95:])]
    one, many = measure(loss_fn, params, [(x, y)]), measure(loss_fn, params, batches)
    assert_same(one, many)
    assert many.samples == 96


@pytest.mark.parametrize("measure", MEASURES)
def test_a_module_is_measured_in_eval_mode_and_gets_its_modes_back(measure: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    parts = [
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.Tanh(),
        nn.Sequential(nn.Dropout(0.5)),
        nn.Linear(6, 3),
    ]
    net = nn.Sequential(*parts).double()
    x, y = 1 + 2 * torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    net(x)
    net.eval()
    expected = measure(lambda: cross_entropy(net(x), y), net.parameters())
    net.train()
    parts[1].eval()  # such as a frozen BatchNorm
    modes = [module.training for module in net.modules()]
    buffers = [buffer.clone() for buffer in net.buffers()]
    assert_same(
        expected,
        measure(lambda batch: cross_entropy(net(batch[0]), batch[1]), net, [(x[:9], y[:9]), (x[9:], y[9:])])._replace(
            samples=1
        ),
    )
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))

    def fails() -> Tensor:
        raise OSError("no such sample")

    with pytest.raises(OSError, match="no such sample"):
        measure(fails, net)
    assert [module.training for module in net.modules()] == modes


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_is_disturbed_and_nothing_disturbs(measure: Callable[..., Any]) -> None:
    loss_fn, params, x, y = mlp(steps=20)
    batches = [(x[:50], y[:50]), (x[50:], y[50:])]
    params[0].grad = torch.ones_like(params[0])
    weights = [param.detach().clone() for param in params]
    state = torch.get_rng_state()
    expected = measure(loss_fn, params, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, params, strict=True))
    assert params[0].grad.eq(1).all()
    assert all(param.grad is None for param in params[1:])
    torch.rand(3)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        again = measure(loss_fn, params, batches)
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(expected, again, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def ragged(rank: int, share: list[list[int]]) -> tuple[Any, ...]:
    """What one process measures on its batches, and the sizes of what it reduces for the top eigenvalue."""
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    cuts = torch.tensor(share[rank])
    batches = [(x[a:b], y[a:b]) for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)]
    sizes = []

    def reduce(flat: Tensor) -> Tensor:
        assert flat.ndim == 1
        sizes.append(flat.numel())
        torch.distributed.all_reduce(flat)
        return flat

    top = top_eigenvalue(loss_fn, params, batches, reduce=reduce)
    large = sum(size == sum(param.numel() for param in params) for size in sizes)
    return top, large, *(measure(loss_fn, params, batches, reduce=reduce) for measure in MEASURES[1:])


def by_rank(share: list[list[int]]) -> tuple[Any, ...]:
    return ragged(torch.distributed.get_rank(), share)


@pytest.mark.parametrize("share", [[[0, 50], [50, 96]], [[0, 10, 40, 95], [95, 96]], [[0, 60, 96], []]], ids=str)
def test_processes_with_ragged_shares_measure_the_union(ranks: dict[int, Ranks], share: list[list[int]]) -> None:
    loss_fn, params, x, y = mlp(steps=20, dtype=torch.float64)
    first, second = ranks[2].run(by_rank, share)
    for one, other in zip(first[0], second[0], strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert first[1] == first[0].hvps
    for measure, found in zip(MEASURES, (first[0], *first[2:]), strict=True):
        assert_same(measure(loss_fn, params, [(x, y)]), found)


W = torch.ones(2, requires_grad=True)


TWO = [torch.ones(2), torch.ones(3)]


def never(*args: Any) -> Tensor:
    raise AssertionError("refused before the loss is asked for")


@pytest.mark.parametrize(
    ("measure", "args", "options", "message"),
    [
        (Hessian, ([torch.ones(2)],), {}, "no tensor that requires a gradient"),
        (Hessian, ([],), {}, "no tensor that requires a gradient"),
        (Hessian, ([torch.ones(2, dtype=torch.cfloat, requires_grad=True)],), {}, "complex"),
        (Hessian, ([W], [(torch.ones(2), torch.ones(3))]), {}, r"unclear.*\[2, 3\]"),
        (Hessian, ([W], ["text"]), {}, "unclear"),
        (Hessian, ([W], TWO), {"samples": [1]}, "2 numbers"),
        (Hessian, ([W], TWO), {"samples": [1, -1]}, "2 numbers"),
        (Hessian, ([W],), {"reduce": never}, "by `samples` how many"),
        (Hessian, ([W], []), {}, "not one sample"),
        (Hessian, ([W],), {"samples": 0}, "not one sample"),
        (top_eigenvalue, ([W],), {"tolerance": 0.0}, "`tolerance` must be > 0"),
        (top_eigenvalue, ([W],), {"max_products": 0}, "`max_products` must be >= 1"),
        (top_eigenvalue, ([W],), {"start": torch.ones(3)}, r"`start` must have shape \(2,\), got \(3,\)"),
        (hessian_trace, ([W],), {"probes": 7}, "`probes` must be >= 8"),
        (hessian_trace, ([W],), {"confidence": 1.0}, "`confidence` must be between 0 and 1"),
        (spectral_density, ([W],), {"probes": 0}, "`probes` must be >= 1"),
        (spectral_density, ([W],), {"steps": 0}, "`steps` must be >= 1"),
        (spectral_density, ([W],), {"points": 1}, "`points` must be >= 2"),
        (spectral_density, ([W],), {"width": 0.0}, "`width` must be > 0"),
    ],
)
def test_refusals(measure: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(never, *args, **options)


def test_a_loader_is_no_sequence_and_a_vector_has_a_shape() -> None:
    with pytest.raises(TypeError, match="must be a sequence, got generator"):
        top_eigenvalue(never, [W], (batch for batch in TWO))
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        Hessian(never, [W]) @ torch.ones(3)
