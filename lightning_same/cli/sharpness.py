"""``lightning-same sharpness``: the curvature of a trained model, from its checkpoint file and its data."""

import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_same.callbacks.mean_loss import Mode, mean_loss
from lightning_same.cli.checkpoint_files import NAMED_BY_FIT, check_that_it_is_a_file, check_that_weights_fit
from lightning_same.cli.errors import UserError, one_line, told
from lightning_same.cli.fit import SAMCLI
from lightning_same.curvature.adaptive import AdaptiveHessian
from lightning_same.curvature.eigenvalues import TopEigenvalue, top_eigenvalue
from lightning_same.curvature.gradient import GradientCurvature, gradient_curvature
from lightning_same.curvature.hessian import Hessian
from lightning_same.curvature.neighborhood import average_case_sharpness, worst_case_sharpness
from lightning_same.curvature.spectrum import HessianTrace, SpectralDensity, hessian_trace, spectral_density

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SharpnessCLI(SAMCLI):
    """Takes a model and its data as ``fit`` does, and trains nothing. One process, no logger."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--ckpt_path", type=str | None, default=None, help="The checkpoint file.")
        add("--weights_only", type=bool | None, default=None, help="false unpickles any object: for files you trust.")
        add("--probe_batches", type=PositiveInt, default=4, help="On how many of the first training batches.")
        add("--mode", type=Mode, default="eval", help="Of BatchNorm and dropout.")
        add(
            "--dtype",
            type=Literal["float64", "auto"] | None,
            default="auto",
            help="auto: float64 if rounding is large.",
        )
        add("--confident", type=bool, default=False, help="Wait until 99%% sure that no eigenvalue is larger.")
        add("--adaptive", type=bool, default=False, help="The top eigenvalue in units of the weights too.")
        add("--rho", type=PositiveFloat | None, default=None, help="The rise of the loss within this radius too.")
        add("--trace_probes", type=PositiveInt, default=32, help="Products for the trace, 8 or more.")
        add("--density_probes", type=PositiveInt, default=4, help="Random starts for the spectrum.")
        add("--density_steps", type=PositiveInt, default=40, help="Products for one random start.")
        where = "The spectrum's picture, to which .png and .svg are added; by default `spectrum` beside the file."
        add("--output", type=str | None, default=None, help=where)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return super().instantiate_trainer(**kwargs, devices=1, num_nodes=1, strategy="auto", logger=False)

    def option(self, name: str) -> Any:
        """The value of one of the options above."""
        return self._get(self.config_init, name)


def main(args: Sequence[str]) -> None:
    """Print the table and write the picture.

    Args:
        args: of the command, such as ``["--config", "run/config.yaml", "--ckpt_path", "run/last.ckpt"]``.

    Raises:
        SystemExit: 2 for bad input, 70 for an error of the user's own code, whose traceback is shown.
    """
    with told("lightning-same sharpness", traceback_to_file=False):
        _measure(args)


def _measure(args: Sequence[str]) -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
        cli = SharpnessCLI(
            args=list(args),
            run=False,
            save_config_callback=None,
            parser_kwargs={"prog": "lightning-same sharpness"},
        )
    path = cli.option("ckpt_path")
    if path is None:
        raise UserError("--ckpt_path is missing.", NAMED_BY_FIT)
    if cli.option("trace_probes") < 8:
        raise UserError(f"--trace_probes must be >= 8, to know the interval, got {cli.option('trace_probes')}.")
    check_that_it_is_a_file(path)
    output = ready_for_the_picture(cli, path)
    prepare(cli)
    load(cli, path)
    batches = list(islice(training_batches(cli), cli.option("probe_batches")))
    with mean_loss(cli.trainer, cli.model, batches, mode=cli.option("mode")) as loss:
        hessian = Hessian(**loss, dtype=cli.option("dtype"))
        top = top_eigenvalue(hessian, both_ends=True, max_products=100, confident=cli.option("confident"))
        if hessian.finer is not None and top.vector.dtype == torch.float64:
            hessian = hessian.finer
        trace = hessian_trace(hessian, probes=cli.option("trace_probes"))
        along = gradient_curvature(hessian)
        density = spectral_density(hessian, probes=cli.option("density_probes"), steps=cli.option("density_steps"))
        rows = table(top, trace, along, density) + scale_invariant_table(cli, hessian)
    # The table first: a picture that cannot be written must not cost what was measured.
    sys.stdout.write(f"{path}: {len(batches)} training batches, {top.samples} samples, {cli.option('mode')} mode\n")
    sys.stdout.write(rows)
    sys.stdout.flush()
    files = [Path(f"{output}.{kind}") for kind in ("png", "svg")]
    figure = spectrum_figure(density, top)
    for file in files:
        figure.savefig(file, dpi=150)
    sys.stdout.write(f"Written: {', '.join(map(str, files))}\n")


def ready_for_the_picture(cli: SharpnessCLI, path: str) -> Path:
    """The picture's name without its ending, once it is known that it can be drawn and written."""
    output = Path(cli.option("output") or Path(path).with_name("spectrum"))
    try:
        import matplotlib  # noqa: F401

        output.parent.mkdir(parents=True, exist_ok=True)
    except ModuleNotFoundError as error:
        raise UserError("the picture needs matplotlib.", "pip install 'lightning-same[plots]'") from error
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}.", "Name another place.") from error
    return output


def prepare(cli: SharpnessCLI) -> None:
    """Set up the data and the model as a fit does."""
    device = cli.trainer.strategy.root_device
    cli.model.trainer = cli.trainer
    owners = [owner for owner in (cli.datamodule, cli.model) if owner is not None]
    for owner in owners:
        owner.trainer = cli.trainer
        owner.prepare_data()
    for owner in owners:
        owner.setup("fit")
    cli.model.configure_model()
    cli.model.to(device)


def load(cli: SharpnessCLI, path: str) -> None:
    """Load the weights of a checkpoint file."""
    weights_only = cli.option("weights_only")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only is None or weights_only)
    except pickle.UnpicklingError as error:
        more = f"--ckpt_path: {path} holds more than weights."
        raise UserError(more, "If you trust the file, add --weights_only false.") from error
    except Exception as error:  # Whatever a file that is none makes the unpickler do.
        raise UserError(
            f"--ckpt_path: {path} cannot be read: {type(error).__name__}: {one_line(error, 300)}", NAMED_BY_FIT
        ) from error
    weights = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    tensors = weights.values() if isinstance(weights, dict) else ()
    if weights is None or not tensors or not all(isinstance(value, torch.Tensor) for value in tensors):
        what = f"--ckpt_path: {path} holds no weights under `state_dict`, nor is it a state_dict itself."
        raise UserError(what, NAMED_BY_FIT)
    if weights is not checkpoint:
        cli.model.on_load_checkpoint(checkpoint)
        weights = checkpoint["state_dict"]  # The hook may have put others there.
    if cli.model.strict_loading:
        check_that_weights_fit(path, weights, cli.model)
    cli.model.load_state_dict(weights, strict=cli.model.strict_loading)


def training_batches(cli: SharpnessCLI) -> Iterator[Any]:
    """Batches on the device, by the hooks through which a fit's go."""
    device, data = cli.trainer.strategy.root_device, cli.datamodule

    def hook(name: str) -> Any:
        owner = data if data is not None and is_overridden(name, data) else cli.model
        return getattr(owner, name)

    source = data if data is not None and is_overridden("train_dataloader", data) else cli.model
    for batch, _, _ in CombinedLoader(source.train_dataloader(), "max_size_cycle"):
        batch = hook("on_before_batch_transfer")(batch, 0)
        batch = hook("transfer_batch_to_device")(batch, device, 0)
        yield hook("on_after_batch_transfer")(batch, 0)


def table(top: TopEigenvalue, trace: HessianTrace, along: GradientCurvature, density: SpectralDensity) -> str:
    """The measures as text, one line for one measure."""
    state = "" if top.converged else ", NOT CONVERGED"
    rows = [
        ("top eigenvalue", top.value, f"residual {top.residual:.2g}{state}, {top.hvps} products for both"),
        ("upper bound", top.upper, "of the top eigenvalue, with 99% probability"),
        ("bottom eigenvalue", top.bottom, f"residual {top.bottom_residual:.2g}"),
        ("trace", trace.value, f"95% interval {trace.low:.5g} to {trace.high:.5g}, {trace.hvps} products"),
        ("g'Hg / g'g", along.value, f"|g| {along.grad_norm:.4g}, rounding {along.rounding:.1g}, {along.hvps} product"),
    ]
    spectrum = f"{'spectrum':<18}  {'':>10}  {density.hvps} products\n"
    return "".join(f"{name:<18}  {value:>10.5g}  {remark}\n" for name, value, remark in rows) + spectrum


def scale_invariant_table(cli: SharpnessCLI, hessian: Hessian) -> str:
    """The measures in units of the weights that are asked for, one line for one measure."""
    rows = []
    if cli.option("adaptive"):
        adaptive = AdaptiveHessian(hessian)
        top = top_eigenvalue(adaptive, max_products=100, confident=cli.option("confident"))
        rows.append(("adaptive top", top.value, f"residual {top.residual:.2g}, {top.hvps} products"))
    if (rho := cli.option("rho")) is not None:
        worst = worst_case_sharpness(hessian, rho=rho)
        average = average_case_sharpness(hessian, rho=rho)
        interval = f"95% interval {average.low:.5g} to {average.high:.5g}"
        rows.append((f"worst case {rho:g}", worst.value, f"rise of the loss, {worst.passes} forward-backward passes"))
        rows.append((f"average case {rho:g}", average.value, f"{interval}, {average.forwards} forwards"))
    return "".join(f"{name:<18}  {value:>10.5g}  {remark}\n" for name, value, remark in rows)


def spectrum_figure(density: SpectralDensity, top: TopEigenvalue) -> "Figure":
    """The density of the Hessian's eigenvalues, with both ends marked."""
    from matplotlib.figure import Figure

    figure = Figure((6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(density.grid, density.density, color="0.8", linewidth=0)
    axes.plot(density.grid, density.density, color="0.15", linewidth=1)
    axes.set_yscale("log")
    # One eigenvalue among all peaks at 0.4 / (size * width). What lies far below is a Gaussian's tail.
    axes.set_ylim(0.04 / (top.vector.numel() * density.width), 2 * float(density.density.max()))
    for value, name, style in ((top.value, "top", "--"), (top.bottom, "bottom", ":")):
        axes.axvline(value, color="black", linestyle=style, label=f"{name} {value:.4g}")
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
