"""``lightning-same sharpness`` on checkpoint files of modules that never heard of this package."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from support.fits import fit
from support.nets import Plain, build, loader
from torch import Tensor, nn

from lightning_same import (
    AdaptiveHessian,
    Hessian,
    average_case_sharpness,
    top_eigenvalue,
    worst_case_sharpness,
)
from lightning_same.cli.fit import SAMCLI
from lightning_same.cli.sharpness import SharpnessCLI, main, spectrum_figure, table
from lightning_same.curvature.eigenvalues import TopEigenvalue
from lightning_same.curvature.gradient import GradientCurvature
from lightning_same.curvature.spectrum import HessianTrace, SpectralDensity

QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--seed_everything=0",
]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


class Doubled(LightningDataModule):
    """Doubles each batch on its way to the device."""

    def train_dataloader(self) -> Any:
        return loader(48, 8)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [2 * batch[0], batch[1]]


def numbers(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[dict[str, float], str]:
    """The table's column of numbers, and all that was printed."""
    main([*args, *QUICK])
    out = capsys.readouterr().out
    rows = re.findall(r"^(top eigenvalue|bottom eigenvalue|trace|g'Hg / g'g) +(\S+)  ", out, re.MULTILINE)
    return {name: float(number) for name, number in rows}, out


def exact(module: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    params = list(module.parameters())
    grads = torch.autograd.grad(nn.functional.cross_entropy(module(x), y), params, create_graph=True)
    g = torch.cat([grad.reshape(-1) for grad in grads])
    rows = torch.autograd.grad(g, params, torch.eye(len(g)), is_grads_batched=True)
    h = torch.cat([row.reshape(len(g), -1) for row in rows], 1)
    eigenvalues = torch.linalg.eigvalsh(h)
    return {
        "top eigenvalue": eigenvalues[-1].item(),
        "bottom eigenvalue": eigenvalues[0].item(),
        "trace": h.trace().item(),
        "g'Hg / g'g": (g @ h @ g / (g @ g)).item(),
    }


@pytest.mark.parametrize("doubled", [False, True])
def test_the_table_and_the_picture(capsys: pytest.CaptureFixture[str], doubled: bool) -> None:
    made = fit(build(Plain))
    made.save_checkpoint("end.ckpt")
    x, y = (torch.cat(parts) for parts in zip(*list(loader(48, 8))[:3], strict=True))
    expected = exact(made.lightning_module, 2 * x if doubled else x, y)
    data = [f"--data={Doubled.__module__}.Doubled"] if doubled else []
    found, out = numbers(
        capsys,
        "--model=support.nets.Plain",
        *data,
        "--ckpt_path=end.ckpt",
        "--probe_batches=3",
        "--trace_probes=64",
        "--output=made/spectrum",
    )
    assert out.startswith("end.ckpt: 3 training batches, 24 samples, eval mode\n")
    low, high = map(float, re.findall(r"95% interval (\S+) to (\S+),", out)[0])
    assert low <= expected["trace"] <= high
    del found["trace"], expected["trace"]
    assert found == pytest.approx(expected, rel=2e-3)
    assert out.endswith("Written: made/spectrum.png, made/spectrum.svg\n")
    assert Path("made/spectrum.png").read_bytes().startswith(b"\x89PNG")
    svg = Path("made/spectrum.svg").read_text()
    assert "</svg>" in svg
    assert "NOT CONVERGED" not in out


def test_the_config_that_a_fit_has_saved(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-same"])
    first = SAMCLI(
        args=[
            "fit",
            "--model=lightning_same.experiments.ImageClassifier",
            "--model.num_classes=10",
            "--model.model=lightning_same.experiments.SmallCNN",
            "--model.model.num_classes=10",
            "--model.model.width=4",
            "--data=lightning_same.experiments.DigitsData",
            "--sam=SAM",
            "--optimizer=SGD",
            "--optimizer.lr=0.1",
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=4",
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            "--trainer.logger.save_dir=.",
            *QUICK,
        ]
    )
    capsys.readouterr()  # what the fit has said
    config, file = Path(first.trainer.log_dir) / "config.yaml", first.trainer.checkpoint_callback.best_model_path
    before = sorted(Path(first.trainer.log_dir).rglob("*"))
    found, out = numbers(
        capsys,
        f"--config={config}",
        f"--ckpt_path={file}",
        "--density_probes=1",
        "--density_steps=5",
        "--probe_batches=1",
    )
    assert set(found) == {"top eigenvalue", "bottom eigenvalue", "trace", "g'Hg / g'g"}
    assert ": 1 training batches, 128 samples" in out.splitlines()[0]
    # The picture stands beside the file, and nothing else is written.
    pictures = [Path(file).with_name(f"spectrum.{kind}") for kind in ("png", "svg")]
    assert sorted(Path(first.trainer.log_dir).rglob("*")) == sorted([*before, *pictures])


class Unsafe:
    pass


def test_errors_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.ckpt").write_bytes(pickle.dumps({"state_dict": Unsafe()}))
    for args, message in (
        ([], "--ckpt_path is missing."),
        (["--ckpt_path=none.ckpt", "--trace_probes=7"], "--trace_probes must be >= 8"),
        (["--ckpt_path=none.ckpt"], "there is no file none.ckpt"),
        (["--ckpt_path=other.ckpt"], "--weights_only false"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["--model=support.nets.Plain", *args, *QUICK])
        assert stop.value.code == 2
        assert any(message in line for line in capsys.readouterr().err.splitlines()[-2:])


SHORT = ("--density_probes=1", "--density_steps=5", "--trace_probes=8", "--probe_batches=1")


def test_a_bare_state_dict_is_a_file_of_weights_too(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build(Plain).state_dict(), "bare.pt")
    found, _ = numbers(capsys, "--model=support.nets.Plain", "--ckpt_path=bare.pt", *SHORT)
    assert found["top eigenvalue"] > 0


def test_it_takes_one_process_and_no_logger_whatever_the_configuration_of_the_fit_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(build(Plain).state_dict(), "bare.pt")
    made, own = [], SharpnessCLI.instantiate_trainer

    def keep(self: SharpnessCLI, **options: Any) -> Any:
        made.append(own(self, **options))
        return made[-1]

    monkeypatch.setattr(SharpnessCLI, "instantiate_trainer", keep)
    of_the_fit = ["devices=2", "num_nodes=2", "strategy=ddp", "logger=CSVLogger", "logger.save_dir=."]
    words = [f"--trainer.{word}" for word in of_the_fit]
    numbers(capsys, "--model=support.nets.Plain", "--ckpt_path=bare.pt", *words, *SHORT)
    (trainer,) = made
    assert (trainer.num_devices, trainer.num_nodes, trainer.loggers) == (1, 1, [])
    assert type(trainer.strategy).__name__ == "SingleDeviceStrategy"


def rows_of(out: str) -> dict[str, str]:
    """What the table says of each measure."""
    return {line[:18].strip(): line[20:] for line in out.splitlines()[1:]}


def test_measures_in_units_of_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    module = build(Plain)
    torch.save(module.state_dict(), "plain.pt")
    file = ("--model=support.nets.Plain", "--ckpt_path=plain.pt")
    _, out = numbers(capsys, *file, "--adaptive=true", "--rho=0.2", "--confident=true", *SHORT)
    rows = rows_of(out)
    batch = next(iter(loader(48, 8)))
    hessian = Hessian(lambda: nn.functional.cross_entropy(module(batch[0]), batch[1]), module)
    expected = {
        "adaptive top": top_eigenvalue(AdaptiveHessian(hessian)).value,
        "worst case 0.2": worst_case_sharpness(hessian, rho=0.2).value,
        "average case 0.2": average_case_sharpness(hessian, rho=0.2).value,
    }
    assert {name: float(rows[name].split()[0]) for name in expected} == pytest.approx(expected, rel=1e-3)
    top, upper = (float(rows[name].split()[0]) for name in ("top eigenvalue", "upper bound"))
    assert top <= upper <= 1.0021 * top
    assert "22 forward-backward passes" in rows["worst case 0.2"]
    assert "33 forwards" in rows["average case 0.2"]


def test_how_much_is_measured_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build(Plain).state_dict(), "plain.pt")
    _, out = numbers(capsys, "--model=support.nets.Plain", "--ckpt_path=plain.pt")
    assert out.startswith("plain.pt: 4 training batches, 32 samples, eval mode\n")
    rows = rows_of(out)
    assert rows["trace"].endswith(" 32 products")
    assert rows["spectrum"].split() == ["160", "products"]
    assert not {"adaptive top", "worst case 0.05"} & rows.keys()
    assert Path("spectrum.svg").is_file()


class Renamed(Plain):
    """Reads files from when its layers had another name."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        former = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name.replace("old", "layers"): value for name, value in former.items()}


def test_the_model_may_change_what_is_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    module = build(Plain)
    torch.save(module.state_dict(), "new.pt")
    former = {name.replace("layers", "old"): value for name, value in module.state_dict().items()}
    torch.save({"state_dict": former}, "old.ckpt")
    model = f"--model={Renamed.__module__}.Renamed"
    found = [numbers(capsys, model, f"--ckpt_path={file}", *SHORT)[0] for file in ("new.pt", "old.ckpt")]
    assert found[0] == found[1]


class Normed(Plain):
    def __init__(self, lr: float = 0.1, samples: int = 48, batch_size: int = 8) -> None:
        super().__init__(lr, samples, batch_size)
        self.layers.insert(1, nn.BatchNorm1d(10))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_it_measures_in_the_mode_that_is_asked_for(capsys: pytest.CaptureFixture[str], mode: str) -> None:
    module = build(Normed).train(mode == "train")
    torch.save(module.state_dict(), "normed.pt")
    expected = exact(module, *next(iter(loader(48, 8))))
    model = f"--model={Normed.__module__}.Normed"
    found, out = numbers(capsys, model, "--ckpt_path=normed.pt", f"--mode={mode}", *SHORT)
    assert found["top eigenvalue"] == pytest.approx(expected["top eigenvalue"], rel=1e-3)
    assert f"{mode} mode" in out


class Sure(Plain):
    """Of its classes, so that rounding decides in float32."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])
        return nn.functional.cross_entropy(logits + 15 * nn.functional.one_hot(batch[1], logits.shape[1]), batch[1])


def test_where_rounding_decides_all_is_measured_in_float64(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build(Sure).state_dict(), "sure.pt")
    _, out = numbers(capsys, f"--model={Sure.__module__}.Sure", "--ckpt_path=sure.pt", *SHORT)
    (rounding,) = re.findall(r"rounding (\S+), ", out)
    assert float(rounding) < 1e-12


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"", [], "text.ckpt is empty."),
        ({"weights": 1}, [], "text.ckpt holds no weights under `state_dict`"),
        ({"state_dict": "text"}, [], "text.ckpt holds no weights under `state_dict`"),
        ({}, ["--output=/proc/no/where"], "--output: /proc/no/where cannot be written"),
    ],
)
def test_what_cannot_be_read_or_written_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], content: Any, more: list[str], message: str
) -> None:
    Path("text.ckpt").write_bytes(content) if isinstance(content, bytes) else torch.save(content, "text.ckpt")
    with pytest.raises(SystemExit):
        main(["--model=support.nets.Plain", "--ckpt_path=text.ckpt", *more])
    assert message in capsys.readouterr().err.strip().splitlines()[-2]


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("--rho=-1", "--rho must be a number > 0 or null, got '-1'."),
        ("--probe_batches=0", "--probe_batches must be a whole number > 0, got '0'."),
        ("--probe_batches=many", "--probe_batches must be a whole number > 0, got 'many'."),
        ("--mode=evl", "--mode must be one of 'eval', 'train', got 'evl'."),
    ],
)
def test_a_value_out_of_range(capsys: pytest.CaptureFixture[str], option: str, what: str) -> None:
    with pytest.raises(SystemExit):
        main(["--model=support.nets.Plain", "--ckpt_path=none.ckpt", option])
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"error: {what}"


def test_the_table_says_how_sure_each_measure_is() -> None:
    vector = torch.ones(4)
    top = TopEigenvalue(8.0, -0.5, 0.016, 12, True, 9, 0.25, vector, 0.001, 8.125, -1.0)
    trace, along = HessianTrace(10.0, 9.5, 10.5, 0.2, 32, 9), GradientCurvature(3.0, 0.5, 1, 9, 0.002)
    density = SpectralDensity(vector, vector, vector, vector, 0.1, 160, 9)
    assert table(top, trace, along, density).splitlines() == [
        "top eigenvalue               8  residual 0.016, 12 products for both",
        "upper bound              8.125  of the top eigenvalue, with 99% probability",
        "bottom eigenvalue         -0.5  residual 0.25",
        "trace                       10  95% interval 9.5 to 10.5, 32 products",
        "g'Hg / g'g                   3  |g| 0.5, rounding 0.002, 1 product",
        "spectrum                        160 products",
    ]
    told = table(top._replace(converged=False), trace, along, density).splitlines()[0]
    assert told.endswith("residual 0.016, NOT CONVERGED, 12 products for both")


def test_the_picture_marks_both_ends_of_the_spectrum() -> None:
    grid = torch.linspace(-1, 9, 50)
    density = SpectralDensity(grid, grid.abs() + 0.5, grid[:2], grid[:2], 0.1, 160, 9)
    top = TopEigenvalue(8.0, -0.5, 0.016, 12, True, 9, 0.25, torch.ones(4), 0.001, 8.125, -1.0)
    (axes,) = spectrum_figure(density, top).axes
    ends = {line.get_label(): line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2}
    assert ends == {"top 8": 8.0, "bottom -0.5": -0.5}
    assert axes.get_yscale() == "log"
    assert axes.get_ylim() == pytest.approx((0.04 / (4 * 0.1), 2 * 9.5))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("eigenvalue of the Hessian", "density")
