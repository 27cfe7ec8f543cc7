"""A test of a few seconds on each kind of device: each way in which two passes run, against a loop by hand."""

import contextlib
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_same.callbacks.checkpoint_fractions import CheckpointFractionMonitor
from lightning_same.cli.doctor.page import Result
from lightning_same.curvature.eigenvalues import top_eigenvalue
from lightning_same.rules.base import Rule
from lightning_same.rules.sam import SAM, VaSSO
from lightning_same.rules.same import SAME
from lightning_same.two_pass.mixin import SAMMixin
from lightning_same.two_pass.options import TwoPassOptions

RULE = SAME((1, 4), 2.0, 0.3)
BATCHES = 4
CLOSE = 1e-5
"""Largest difference of a weight between two ways of the same arithmetic in float32."""


class Failed(Exception):
    """A self-test has found something wrong."""


class Losses:
    """Those of all passes: a list of the module's own would be put back after pass two."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def last(self, count: int) -> list[float]:
        """The last ones."""
        return [loss.item() for loss in self.values[-count:]]


class Net(SAMMixin, pl.LightningModule):
    """A small classifier that notes the loss of every pass.

    Args:
        rule: the rule; None for plain training.
        changing: with BatchNorm and dropout, whose state and draws have to be the same in both passes.
        manual: whether it steps by itself.
    """

    def __init__(self, rule: Rule | None, changing: bool = False, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = [nn.BatchNorm1d(16), nn.Dropout(0.3)] if changing else []
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), *middle, nn.Linear(16, 3))
        self.sam = rule
        self.automatic_optimization = not manual
        self.two_pass = TwoPassOptions(check_replay=False)  # Or the first step would have passes of its own.
        self.seen = Losses()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of the batch; in manual optimization the step too."""

        def loss_fn() -> Tensor:
            loss = nn.functional.cross_entropy(self.layers(batch[0]).float(), batch[1])
            self.seen.values.append(loss.detach())
            return loss

        if self.automatic_optimization:
            return loss_fn()
        optimizer: Any = self.optimizers()
        return self.two_pass_step(loss_fn, optimizer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def batches() -> list[tuple[Tensor, Tensor]]:
    """The data."""
    draws = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 8, generator=draws), torch.randint(0, 3, (16,), generator=draws)) for _ in range(BATCHES)]


def fit(net: Net, device: torch.device, resume: Path | None = None, **options: Any) -> Net:
    """Train on one device of this kind, from one random state."""
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "max_epochs": 1, "devices": 1}
    quiet["accelerator"] = {"cuda": "gpu"}.get(device.type, device.type)
    torch.manual_seed(2)
    loader: Any = torch.utils.data.DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
    pl.Trainer(**{**quiet, **options}).fit(net, loader, ckpt_path=resume)
    return net


def weights(net: nn.Module) -> list[Tensor]:
    """Copies on the CPU."""
    return [param.detach().cpu().clone() for param in net.parameters()]


def by_hand(device: torch.device) -> list[Tensor]:
    """`RULE` in a plain loop."""
    net = Net(None).to(device)
    params, optimizer = list(net.parameters()), net.configure_optimizers()

    def gradient(x: Tensor, y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(nn.functional.cross_entropy(net.layers(x), y), params))

    for batch in batches():
        x, y = (part.to(device) for part in batch)
        g = gradient(x, y)
        with RULE.perturbed(params, g):
            s = gradient(x, y)
        for param, d in zip(params, RULE.combine(g, s), strict=True):
            param.grad = d
        optimizer.step()
    return weights(net)


def distance(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """The largest difference of two weights."""
    return max((a - b).abs().max().item() for a, b in zip(one, two, strict=True))


def automatic(device: torch.device) -> str:
    """Automatic optimization takes the steps of a loop by hand."""
    return _close(weights(fit(Net(RULE), device)), by_hand(device))


def manual(device: torch.device) -> str:
    """Manual optimization takes the steps of a loop by hand."""
    return _close(weights(fit(Net(RULE, manual=True), device)), by_hand(device))


def accumulation(device: torch.device) -> str:
    """Accumulated batches are perturbed together: both are replayed at w + e."""
    net = fit(Net(SAM(0.3)), device, accumulate_grad_batches=2)
    found = net.seen.last(4)
    if not sum(found[2:]) > sum(found[:2]):
        raise Failed(f"the losses of the last window at w and at w + e are {found}")
    return ""


def replayed(device: torch.device) -> str:
    """With dropout and BatchNorm, a second pass at rho = 0 leaves plain training, and sees the same loss."""
    two, plain = fit(Net(SAM(0.0), changing=True), device), fit(Net(None, changing=True), device)
    passes = two.seen.last(2 * BATCHES)
    firsts, seconds = passes[::2], passes[1::2]
    if firsts != seconds:
        raise Failed(f"the losses of pass one are {firsts}, of pass two {seconds}")
    return _close(weights(two), weights(plain))


def autocast(device: torch.device) -> str:
    """In bf16-mixed, pass two sees w + e."""
    net = fit(Net(SAM(2.0)), device, precision="bf16-mixed")
    passes = net.seen.last(2 * BATCHES)
    same = [index for index in range(0, len(passes), 2) if passes[index] == passes[index + 1]]
    if same:
        raise Failed(f"the losses at w and at w + e are the same in {len(same)} of {BATCHES} steps: {passes}")
    return ""


def monitored(device: torch.device) -> str:
    """A monitor beside plain training leaves no trace."""
    monitor = CheckpointFractionMonitor(every_n_steps=1)
    measured = fit(Net(None, changing=True), device, callbacks=[monitor])
    return _close(weights(measured), weights(fit(Net(None, changing=True), device)))


def resumed(device: torch.device) -> str:
    """A rule that carries an average goes on from a checkpoint file."""
    with tempfile.TemporaryDirectory() as folder:
        keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        straight = fit(Net(VaSSO(0.3)), device, max_epochs=2, callbacks=[keep], enable_checkpointing=True)
        again = fit(Net(VaSSO(0.3)), device, Path(folder) / "epoch=0.ckpt", max_epochs=2)
    return _close(weights(straight), weights(again))


def sharpness(device: torch.device) -> str:
    """The top eigenvalue of a known Hessian."""
    w = torch.ones(3, device=device, requires_grad=True)
    scale = torch.tensor([1.0, 5.0, 3.0], device=device)
    found = top_eigenvalue(lambda: 0.5 * (scale * w.square()).sum(), [w]).value
    if abs(found - 5.0) > 1e-3:
        raise Failed(f"it is 5, and {found:.6g} was found")
    return ""


TESTS: tuple[Callable[[torch.device], str], ...] = (
    automatic,
    manual,
    accumulation,
    replayed,
    autocast,
    monitored,
    resumed,
    sharpness,
)


def run(report: Callable[[Result], None]) -> list[Result]:
    """Run all of them on each kind of device.

    Args:
        report: called with each result as soon as it is there.
    """
    kinds = ["cpu"]
    if torch.cuda.is_available():
        kinds.append("cuda")
    if torch.backends.mps.is_available():
        kinds.append("mps")
    results = []
    with _quiet():
        for kind in kinds:
            for test in TESTS:
                results.append(_result(test, torch.device(kind)))
                report(results[-1])
    return results


def _result(test: Callable[[torch.device], str], device: torch.device) -> Result:
    name = f"{device.type}: {' '.join((test.__doc__ or test.__name__).split()).rstrip('.')}"
    began = time.monotonic()
    try:
        outcome, detail = "passed", test(device)
    except Exception as error:
        # Whatever goes wrong on a machine that nobody has seen is what this is for.
        outcome = "failed"
        detail = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
    return Result(name, outcome, time.monotonic() - began, detail)


def _close(one: Sequence[Tensor], two: Sequence[Tensor]) -> str:
    apart = distance(one, two)
    if not apart <= CLOSE:
        raise Failed(f"weights differ by {apart:.2g}, more than {CLOSE:.0e}")
    return "bit for bit" if apart == 0 else f"weights differ by {apart:.1g}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice for real trainings is left out, and the caller's random numbers stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
