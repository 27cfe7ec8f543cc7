"""Every value that a monitor logs has its picture, whatever the monitor's name."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from support.fits import fit
from support.nets import Plain, build

from lightning_same import SharpnessMonitor
from lightning_same.cli.plot import main
from lightning_same.plots import draw_norms, draw_shares, draw_sharpness
from lightning_same.plots.sharpness import TITLES

STEPS = 6
CKPTS = ("ckpt1", "ckpt2", "ckpt3", "ckpt4")
ALL = ("base", "perturbed", *CKPTS)


def table_of(**columns: Any) -> pd.DataFrame:
    table = pd.DataFrame({key.replace("__", "/"): value for key, value in columns.items()}, index=range(STEPS))
    return table.rename_axis("step")


def panels(figure: Figure) -> dict[str, Axes]:
    figure.draw_without_rendering()
    return {axes.get_title("left"): axes for axes in figure.axes}


def heights(axes: Axes) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axes.lines if line.get_gid() != "zero" and line.get_marker() != "x"]


def names(axes: Axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


def test_every_value_of_the_sharpness_monitor_has_a_panel() -> None:
    """But for what is known about the values themselves, such as residuals."""
    monitor = SharpnessMonitor(gradient_curvature=True, adaptive=True, worst_case=0.1, average_case=0.1)
    made = fit(build(Plain), callbacks=[monitor])
    logged = {key for key in made.callback_metrics if key.startswith("sharpness/")}
    about = {"residual", "bottom_residual", "rounding", "hvps", "converged"}
    assert logged - {f"sharpness/{name}" for name in about} == set(TITLES)
    row = {key: value.item() for key, value in made.callback_metrics.items()}
    table = pd.DataFrame([row], index=pd.Index([0], name="step"))
    shown = {height for axes in draw_sharpness(table).axes for line in heights(axes) for height in line}
    assert {row[key] for key in TITLES} <= shown


def test_curvatures_and_two_over_lr_are_on_one_axis() -> None:
    top = np.linspace(1.0, 30.0, STEPS)
    table = table_of(sharpness__top_eigenvalue=top, sharpness__two_over_lr=20.0, sharpness__gradient_curvature=top / 2)
    axes = panels(draw_sharpness(table))["edge of stability"]
    assert heights(axes) == [list(top), list(top / 2), [20.0] * STEPS]
    assert names(axes) == {"largest eigenvalue", "g'Hg / g'g, along g", "2 / lr"}
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0
    table["sharpness/two_over_lr"] = 2000.0
    assert panels(draw_sharpness(table))["edge of stability"].get_yscale() == "log"
    table[["sharpness/top_eigenvalue", "sharpness/gradient_curvature"]] = -1.0
    assert panels(draw_sharpness(table))["edge of stability"].get_yscale() == "linear"
    assert "edge of stability" not in panels(draw_sharpness(table[["sharpness/top_eigenvalue"]]))


def test_alignments_are_between_0_and_1() -> None:
    table = table_of(
        sharpness__top_eigenvalue=1.0, sharpness__ascent_alignment=0.9, sharpness__step_alignment=[np.nan, *[0.2] * 5]
    )
    axes = panels(draw_sharpness(table))["alignment with the top eigenvector"]
    assert axes.get_ylim() == (0, 1)
    assert names(axes) == {"of e", "of the step"}
    assert heights(axes) == [[0.9] * 6, [0.2] * 5]


def test_rises_of_the_loss_share_a_panel_from_zero() -> None:
    rises = {"sharpness__ascent_gap": 0.5, "sharpness__worst_case": 0.7, "sharpness__average_case": 0.6}
    figure = draw_sharpness(table_of(sharpness__top_eigenvalue=1.0, sharpness__adaptive_top_eigenvalue=9.0, **rises))
    axes = panels(figure)["rise of the loss"]
    assert heights(axes) == [[rise] * STEPS for rise in rises.values()]
    assert axes.get_ylim()[0] == 0
    assert heights(panels(figure)["largest eigenvalue of T H T, T = diag(|w|)"]) == [[9.0] * STEPS]


def test_runs_are_compared_in_all_values() -> None:
    table = table_of(**{key.replace("/", "__"): 1.0 for key in TITLES})
    assert [*panels(draw_sharpness({"A": table, "B": 2 * table}))] == [*TITLES.values()]


def test_norms_of_clean_and_noisy_samples_stand_beside_those_of_all() -> None:
    table = table_of(**{f"grad_norm__{name}": 1.0 for name in ALL}, grad_cosine=0.9)
    assert "norm of s, by kind of sample" not in panels(draw_norms(table))
    for height, kind in enumerate(("clean", "noisy"), 2):
        table[[f"grad_norm_{kind}/{name}" for name in ALL]] = float(height)
        table[f"grad_cosine_{kind}"] = 1 / height
    found = panels(draw_norms(table))
    assert heights(found["norm of s, by kind of sample"]) == [[height] * STEPS for height in (1.0, 2.0, 3.0)]
    assert heights(found["cosine of g and s"]) == [[height] * STEPS for height in (0.9, 1 / 2, 1 / 3)]
    for title in ("norm of s, by kind of sample", "cosine of g and s"):
        assert names(found[title]) == {"all samples", "clean samples", "noisy samples"}


def test_shares_of_the_squared_norm_are_stacked() -> None:
    shares = {"ckpt1": 0.5, "ckpt2": 0.25, "ckpt3": 0.125, "ckpt4": 0.125, "rest": 0.0}
    table = table_of(**{f"grad_share__{name}": share for name, share in shares.items()})
    figure = draw_shares(table)
    assert figure.axes[0].get_ylabel() == "share of norm(s)^2"
    for area, share in zip(figure.axes[0].collections, shares.values(), strict=True):
        corners = area.get_paths()[0].vertices
        assert np.ptp(corners[corners[:, 0] == 3, 1]) == pytest.approx(share)
    for name, share in shares.items():
        table[f"grad_share_noisy/{name}"] = share
    assert [axes.get_title("left") for axes in draw_shares(table).axes] == ["all samples", "noisy samples"]
    with pytest.raises(KeyError, match="has not logged grad_share/ckpt1"):
        draw_shares(table_of(val__loss=1.0))


def test_monitors_with_names_have_figures_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = {"ckpt1": 0.5, "ckpt2": 0.25, "ckpt3": 0.125, "ckpt4": 0.125, "rest": 0.0}
    table = table_of(
        **{f"ckpt_fraction__{key}": share for key, share in shares.items()},
        **{f"ckpt_fraction__rho.2__{key}": share for key, share in shares.items()},
        **{f"ckpt_fraction_layer__rho.2__net.0__{key}": share for key, share in shares.items()},
        sharpness__train__top_eigenvalue=3.0,
        weight_norm__all=2.0,
    )
    table.to_csv(tmp_path / "metrics.csv")
    main([str(tmp_path)])
    seen = capsys.readouterr()
    pictures = {Path(line).name for line in seen.out.split() if line.endswith(".png")}
    assert pictures == {
        "fractions.png",
        "fractions_rho.2.png",
        "layers_rho.2.png",
        "sharpness_train.png",
        "norms_all.png",
    }
    assert seen.err == ""
