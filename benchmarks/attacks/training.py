"""Attacks on what trains: files of images and labels, checkpoint files, arguments, and logged metrics."""

import gzip
import inspect
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import lightning_same
from attacks.values import BYTES, FILES, VALUES, Silent, damage_file, damaged, edited, places
from lightning_same.cli.plot import main as plot
from lightning_same.cli.sharpness import main as sharpness
from lightning_same.experiments import CIFAR10Data, FashionMNISTData
from lightning_same.rules.base import Rule

IMAGES = np.zeros((40, 28, 28), np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None]


def idx(values: Any) -> bytes:
    array = np.asarray(values, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape) + array.tobytes()


def attack_images(case: Any, folder: Path) -> None:
    """Files of Fashion-MNIST; damage before and after they are packed."""
    which, packed, damage = case
    for part in "train", "t10k":
        for name, values in (("images-idx3", IMAGES), ("labels-idx1", np.arange(40) % 10)):
            content = idx(values)
            path = folder / f"{part}-{name}-ubyte.gz"
            chosen = (part, name) == which
            if chosen and not packed and damage[0] in ("cut", "flip", "add", "be"):
                content = damaged(content, damage)
            path.write_bytes(gzip.compress(content, 1))
            if chosen and (packed or damage[0] not in ("cut", "flip", "add", "be")):
                damage_file(path, damage)
    data = FashionMNISTData(data_dir=str(folder), val_fraction=0.5, noise_rate=0.4)
    data.setup("fit")
    data.setup("test")
    for batch in data.train_dataloader():
        if batch.image.shape[1:] != (1, 28, 28) or not ((batch.label >= 0) & (batch.label < 10)).all():
            raise Silent("a batch is out of shape or range")


TRUE = CIFAR10Data(fake=True)._random_images(train=True).label.numpy()


@st.composite
def label_files(draw: st.DrawFn) -> bytes:
    labels = TRUE.copy()
    for where, value in draw(st.lists(st.tuples(st.integers(0, 199), st.integers(-200, 200)), max_size=3)):
        labels[where] = value
    labels = labels[: draw(st.sampled_from([200, 200, 199, 0]))].astype(
        draw(st.sampled_from(["i8", "i4", "u1", "f4", "i1"]))
    )
    content: Any = {"clean_label": TRUE, "worse_label": labels}
    content = edited(
        content,
        draw(
            st.lists(
                st.tuples(
                    st.sampled_from([("worse_label",), ("clean_label",)]), st.sampled_from(["set", "drop"]), VALUES
                ),
                max_size=1,
            )
        ),
    )
    file = io.BytesIO()
    if draw(st.booleans()):
        torch.save(content, file)
    else:
        pickle.dump(content, file)
    return damaged(file.getvalue(), draw(BYTES)) if draw(st.booleans()) else file.getvalue()


def attack_labels(content: bytes, folder: Path) -> None:
    (folder / "labels.pt").write_bytes(content)
    data = CIFAR10Data(fake=True, noise="file", label_file=str(folder / "labels.pt"))
    data.setup("fit")
    for batch in data.train_dataloader():
        if not ((batch.label >= 0) & (batch.label < 10)).all():
            raise Silent("a label is out of range")


# Checkpoint files


class Net(pl.LightningModule):
    """Small enough to train in a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        data = torch.utils.data.TensorDataset(torch.randn(8, 3, generator=generator), torch.arange(8) % 2)
        return torch.utils.data.DataLoader(data, 4)


def write_checkpoint(path: Path) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, **quiet)
    trainer.fit(lightning_same.with_sam(Net(), lightning_same.LookSAM(0.1)))
    trainer.save_checkpoint(path)


@st.composite
def checkpoint_files(draw: st.DrawFn) -> tuple[Any, Any]:
    if draw(st.booleans()):
        return "bytes", draw(BYTES)
    spots = st.integers(0, 200)
    return "edit", draw(
        st.lists(st.tuples(spots, st.sampled_from(["set", "drop", "key"]), VALUES), min_size=1, max_size=2)
    )


def spoil(whole: Path, path: Path, case: tuple[Any, Any]) -> None:
    how, what = case
    if how == "bytes":
        path.write_bytes(damaged(whole.read_bytes(), what))
        return
    content = torch.load(whole, weights_only=False)
    spots = [place for place in places(content) if place]
    torch.save(edited(content, [(spots[n % len(spots)], kind, value) for n, kind, value in what]), path)


def attack_resume(whole: Path) -> Callable[[Any, Path], None]:
    from lightning_same.cli.fit import main as fit

    def target(case: Any, folder: Path) -> None:
        path = folder / "damaged.ckpt"
        spoil(whole, path, case)
        flags = ["--trainer.max_epochs=2", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
        flags += [
            "--trainer.enable_model_summary=false",
            "--trainer.enable_checkpointing=false",
            "--trainer.accelerator=cpu",
        ]
        fit(["fit", "--model=attacks.training.Net", "--sam=LookSAM", *flags, f"--ckpt_path={path}"])

    return target


def attack_sharpness(whole: Path) -> Callable[[Any, Path], None]:
    def target(case: Any, folder: Path) -> None:
        path = folder / "damaged.ckpt"
        spoil(whole, path, case)
        quick = ["--trace_probes=8", "--density_probes=1", "--density_steps=4", "--probe_batches=1"]
        sharpness(["--model=attacks.training.Net", "--trainer.accelerator=cpu", f"--ckpt_path={path}", *quick])

    return target


# Arguments

CLASSES = [
    getattr(lightning_same, name)
    for name in lightning_same.__all__
    if inspect.isclass(getattr(lightning_same, name))
    and getattr(lightning_same, name).__module__.startswith("lightning_same.")
]
RULES = [kind for kind in CLASSES if issubclass(kind, Rule) and kind is not Rule and not inspect.isabstract(kind)]
MONITORS = [kind for kind in CLASSES if issubclass(kind, pl.Callback)]
ARGUMENTS = st.one_of(
    st.one_of(st.floats(0, 1), st.integers(1, 4), st.booleans(), st.none()),  # such as are right somewhere
    VALUES,
    st.fractions(),
    st.complex_numbers(),
    st.sampled_from([np.float32(0.1), np.int64(1), torch.tensor(0.1), object, len, b"x", {1}, 1 + 1j]),
)


@st.composite
def arguments(draw: st.DrawFn, kinds: list[type]) -> tuple[type, dict[str, Any]]:
    kind = draw(st.sampled_from(kinds))
    names = [
        name
        for name, p in inspect.signature(kind).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)) if names else []
    return kind, {name: draw(ARGUMENTS) for name in chosen}


def attack_rule(case: tuple[type, dict[str, Any]], folder: Path) -> None:
    kind, given = case
    rule = kind(**given)
    if eval(repr(rule), vars(lightning_same) | {"inf": math.inf, "nan": math.nan} | PARTS) != rule:
        raise Silent(f"{rule!r} is not what its text says")
    trainer = pl.Trainer(
        max_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.fit(lightning_same.with_sam(Net(), rule))


PARTS: dict[str, Any] = {name: getattr(lightning_same, name) for name in lightning_same.__all__}


def attack_monitor(case: tuple[type, dict[str, Any]], folder: Path) -> None:
    kind, given = case
    monitor = kind(**given)
    trainer = pl.Trainer(
        max_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
        callbacks=[monitor],
    )
    trainer.fit(lightning_same.with_sam(Net(), lightning_same.SAM()))


# Plots

COLUMNS = [
    "ckpt_fraction/ckpt1",
    "ckpt_fraction/ckpt2",
    "ckpt_fraction/ckpt3",
    "ckpt_fraction/ckpt4",
    "ckpt_fraction/rest",
]
COLUMNS += ["grad_norm/base", "grad_norm/perturbed", "sharpness/top_eigenvalue", "val/loss", "epoch", "step"]
CELLS = st.one_of(
    st.floats(width=32).map(str), st.sampled_from(["", "nan", "inf", "-inf", "0", "1e400", "word", '"', ",", "0.2"])
)


@st.composite
def metrics(draw: st.DrawFn) -> tuple[bytes, Any]:
    columns = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=8))
    rows = draw(st.lists(st.lists(CELLS, min_size=len(columns), max_size=len(columns)), max_size=5))
    steps = draw(st.booleans())
    lines = [",".join([*columns, *(["step"] if steps else [])])]
    lines += [",".join([*row, *([str(n)] if steps else [])]) for n, row in enumerate(rows)]
    return "\n".join(lines).encode() + b"\n", draw(st.one_of(st.none(), st.none(), FILES))


def attack_plot(case: tuple[bytes, Any], folder: Path) -> None:
    content, damage = case
    (folder / "metrics.csv").write_bytes(content)
    if damage is not None:
        damage_file(folder / "metrics.csv", damage)
    plot([str(folder), "--out", str(folder / "out")])
