"""A device that computes nothing, to count what a fit launches on an accelerator, and what its host does meanwhile.

Tensors on torch's ``meta`` device have a shape and no values. Whatever asks a tensor whether it is on a CPU takes the
way of accelerators, and what would wait for a value raises.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops import fit_loop
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lightning_same import Rule, TwoPassOptions, with_sam
from lightning_same.two_pass.fit import Fit
from support.accelerator import tensors_in
from support.fits import trainer

KINDS: dict[str, tuple[Any, torch.memory_format]] = {
    "float32": ("32-true", torch.contiguous_format),
    "bfloat16": ("bf16-true", torch.contiguous_format),
    "channels_last": ("32-true", torch.channels_last),
    "bfloat16, channels_last": ("bf16-true", torch.channels_last),
}
"""Precision of the Trainer, and memory format of the weights."""

NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
"""What makes a tensor and fills it with nothing; views stand apart."""


class MetaAccelerator(Accelerator):
    """One meta device, for a Trainer."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device("meta")]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "meta"

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


class MetaStrategy(SingleDeviceStrategy):
    """Leaves the module where it is after the fit: nothing can be copied from the meta device."""

    def teardown(self) -> None:
        pass


class Launches(TorchDispatchMode):
    """Counts, by name, the operations that an accelerator launches.

    An operation on lists of tensors is one where the accelerator's kernel takes all of them, which is for one dtype in
    each list, and for tensors that are dense and lie alike; else it is one for each tensor.

    Args:
        values: what the host reads, if it reads a value; None if that is an error.
    """

    def __init__(self, values: float | None = None) -> None:
        super().__init__()
        self.values = values
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "equal") and _on_device(args):
            if self.values is None:
                raise AssertionError("the host reads a value, for which it waits for the device")
            return self.values if name == "_local_scalar_dense" else True
        result = _batch_norm(func, args) if "batch_norm" in name and _on_device(args) else func(*args, **(kwargs or {}))
        if not func.is_view and name not in NO_LAUNCH and _on_device((args, kwargs, result)):
            self.names[name] += _kernels(name, args)
        return result


def _batch_norm(func: Any, args: Any) -> tuple[Tensor | None, ...]:
    """What it gives. Torch works its shapes out in Python, ten times the time of all else: here once for each."""
    key = func, *map(_described, args)
    if key not in _BATCH_NORMS:
        _BATCH_NORMS[key] = [_described(result) for result in func(*args)]
    made = _BATCH_NORMS[key]
    return tuple(each and torch.empty_strided(*each[:2], dtype=each[2], device=each[3]) for each in made)


_BATCH_NORMS: dict[Any, list[Any]] = {}


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(value) if isinstance(value, list) else value


def _on_device(value: Any) -> bool:
    return any(tensor.device.type == "meta" for tensor in tensors_in(value))


def _kernels(name: str, args: Any) -> int:
    if not name.startswith("_foreach"):
        return 1
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    one_dtype = all(len({tensor.dtype for tensor in tensors}) == 1 for tensors in lists)
    # A copy may change the dtype; arithmetic of two dtypes is done one by one, a factor on the device included.
    factors = [arg for arg in args if isinstance(arg, Tensor)]
    one_dtype &= (
        name == "_foreach_copy_" or len({each[0].dtype for each in lists} | {one.dtype for one in factors}) == 1
    )
    alike = all(len({(row[0].shape, tensor.stride()) for tensor in row}) == 1 for row in zip(*lists, strict=True))
    dense = all(_is_dense(tensor) for tensors in lists for tensor in tensors)
    return 1 if one_dtype and alike and dense else len(lists[0])


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


class Images(pl.LightningModule):
    """Classifies images of one size, given as constants, with a network on the meta device.

    Args:
        make: makes the network.
        memory_format: that of the network's weights.
        passes: how many forwards and backwards the module takes in a step by itself.
        size: width and height of an image.
        steps: of an epoch.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        memory_format: torch.memory_format = torch.contiguous_format,
        passes: int = 1,
        size: int = 8,
        steps: int = 6,
    ) -> None:
        super().__init__()
        with torch.device("meta"):
            self.net = make().to(memory_format=memory_format)
        self.passes, self.size, self.steps = passes, size, steps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for _ in range(self.passes - 1):
            self.zero_grad()  # Or this pass would add to the gradients of the last step.
            self._loss(batch).backward()
            self.zero_grad()
        return self._loss(batch)

    def _loss(self, batch: Any) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images.to(next(self.parameters()).dtype)), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, foreach=True)

    def train_dataloader(self) -> DataLoader:
        batch = [torch.zeros(2, 3, self.size, self.size), torch.zeros(2, dtype=torch.long)]
        return DataLoader([batch] * self.steps, batch_size=None)


class EachStep(Callback):
    """Keeps what each step launches.

    Args:
        values: what the host reads, if it reads a value; None if that is an error.
        settling: the first batches, in which the host may read values: it looks whether weights are written to.
    """

    def __init__(self, values: float | None, settling: int) -> None:
        self.values, self.settling = values, settling
        self.steps: list[Counter[str]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self._counted = Launches(1.0 if len(self.steps) < self.settling else self.values)
        self._counted.__enter__()

    def on_train_batch_end(self, *args: Any) -> None:
        self._counted.__exit__(None, None, None)
        self.steps.append(self._counted.names)


def launched(
    module: pl.LightningModule,
    rule: Rule | None,
    precision: Any = "32-true",
    values: float | None = None,
    callbacks: Sequence[Callback] = (),
    settling: int = 2,
) -> list[Counter[str]]:
    """What the steps of a fit launch in the steady state, by batches.

    Args:
        module: whose parameters are on the meta device.
        rule: None for plain training.
        precision: the Trainer's.
        values: what the host reads, if it reads a value; None if that is an error.
        callbacks: the Trainer's.
        settling: batches before the steady state, in which the host may read values.
    """
    watched = EachStep(values, settling)
    fit(module, rule, precision, [watched, *callbacks])
    return watched.steps[settling:]


def fit(module: pl.LightningModule, rule: Rule | None, precision: Any, callbacks: Sequence[Callback]) -> None:
    """A fit on the meta device, without the check of the replay, which reads values; nothing is brought to the CPU."""
    if rule is not None:
        module = with_sam(module, rule)
        module.two_pass = TwoPassOptions(check_replay=False)
    with (
        patch.object(Fit, "state_dict", lambda self: {}),
        patch.object(_ResultCollection, "cpu", lambda self: self),
        patch.object(_LoggerConnector, "teardown", lambda self: None),
        patch.object(fit_loop, "has_len_all_ranks", lambda *args: True),
    ):
        trainer(
            accelerator=MetaAccelerator(),
            strategy=MetaStrategy(torch.device("meta")),
            max_epochs=1,
            precision=precision,
            callbacks=list(callbacks),
        ).fit(module)


def beyond_passes(steps: list[Counter[str]], plain: dict[int, Counter[str]]) -> Iterator[tuple[int, Counter[str]]]:
    """How many passes each step has taken, and what it has launched beyond them.

    Args:
        steps: what each step launches.
        plain: what a step of as many passes launches without a rule, by their number.
    """
    for step in steps:
        passes = step["convolution"] // plain[1]["convolution"]
        names = step.keys() | plain[passes].keys()
        yield passes, Counter({name: step[name] - plain[passes][name] for name in names})
