"""Heat maps of layers and parameter groups over training."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from support.fits import fit
from support.nets import Plain, build

from lightning_same import CheckpointFractionMonitor, GradientNormMonitor
from lightning_same.plots import draw_groups, draw_layers
from lightning_same.plots.heat_maps import MOST_LABELS
from lightning_same.plots.panels import MAX_POINTS

NAMES = ["net.0.weight", "net.2.weight", "net.10.weight"]
CKPTS = ("ckpt1", "ckpt2", "ckpt3", "ckpt4")


def table_of(keys: list[str], steps: int = 6, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).uniform(size=(steps, len(keys)))
    return pd.DataFrame(values, columns=keys, index=pd.RangeIndex(0, 10 * steps, 10, name="step"))


def maps(figure: Figure) -> dict[str, Axes]:
    """The heat maps by their titles, without the bars of their colors."""
    return {axes.get_title("left"): axes for axes in figure.axes if axes.get_title("left")}


def drawn(axes: Axes) -> np.ndarray:
    return np.asarray(axes.collections[0].get_array())


@pytest.mark.parametrize("draw", [draw_layers, draw_groups])
def test_a_row_for_each_layer_and_a_column_for_each_step(draw: object) -> None:
    part = "layer" if draw is draw_layers else "group"
    table = table_of([f"ckpt_fraction_{part}/{name}/{ckpt}" for name in NAMES[::-1] for ckpt in CKPTS])
    panels = maps(draw(table))  # type: ignore[operator]
    assert [title.partition(",")[0] for title in panels] == ["share of elements"] * 4
    for ckpt, axes in zip(CKPTS, panels.values(), strict=True):
        expected = np.stack([table[f"ckpt_fraction_{part}/{name}/{ckpt}"] for name in NAMES])
        np.testing.assert_allclose(drawn(axes), expected)
        assert axes.get_xlim() == (0, 50)
        assert axes.yaxis_inverted()
    assert [text.get_text() for text in next(iter(panels.values())).get_yticklabels()] == NAMES


def test_of_norms_the_squared_share_and_the_cosine_are_drawn() -> None:
    table = table_of([f"grad_norm_layer/{name}/perturbed" for name in NAMES])
    table[[f"grad_cosine_layer/{name}" for name in NAMES]] = -0.5
    table.iloc[3, :3] = 0.0
    panels = maps(draw_layers(table))
    assert [*panels] == ["share of the whole norm(s)^2", "cosine of g and s"]
    squares = table.iloc[[0, 1, 2, 4, 5], :3].to_numpy().T ** 2  # Where all is 0 there is no share.
    np.testing.assert_allclose(drawn(panels["share of the whole norm(s)^2"]), squares / squares.sum(0))
    assert (drawn(panels["cosine of g and s"]) == -0.5).all()


def test_names_of_groups_may_have_slashes_and_dollars() -> None:
    names = ["a/b", r"$\1$", "pg2"]
    figure = draw_groups(table_of([f"ckpt_fraction_group/{name}/ckpt1" for name in names]))
    (axes,) = maps(figure).values()
    assert {text.get_text() for text in axes.get_yticklabels()} == set(names)
    figure.draw_without_rendering()


def test_runs_stand_below_each_other_with_layers_of_their_own() -> None:
    first = table_of([f"ckpt_fraction_layer/{name}/ckpt1" for name in NAMES])
    second = table_of([f"ckpt_fraction_layer/other.{name}/ckpt1" for name in NAMES[:2]], seed=1)
    nothing = table_of(["val/loss"])
    panels = maps(draw_layers({"A": first, "B": second, "C": nothing}))
    assert [title.partition(",")[0] for title in panels] == ["A", "B"]
    assert [len(drawn(axes)) for axes in panels.values()] == [3, 2]
    assert maps(draw_layers({"A": first, "C": nothing})).keys() == maps(draw_layers(first)).keys()


def test_a_map_of_other_layers_than_the_first_of_its_row_has_their_names() -> None:
    """A layer whose gradient is zero throughout has a norm and no cosine."""
    table = table_of([f"grad_norm_layer/{name}/perturbed" for name in NAMES])
    table[[f"grad_cosine_layer/{name}" for name in NAMES]] = 0.5
    names = [[text.get_text() for text in axes.get_yticklabels()] for axes in maps(draw_layers(table)).values()]
    assert names == [NAMES, []]
    table[f"grad_cosine_layer/{NAMES[0]}"] = np.nan
    names = [[text.get_text() for text in axes.get_yticklabels()] for axes in maps(draw_layers(table)).values()]
    assert names == [NAMES, NAMES[1:]]


def test_many_steps_are_averaged_and_of_many_layers_some_are_named() -> None:
    table = table_of([f"ckpt_fraction_layer/{index}/ckpt1" for index in range(3 * MOST_LABELS - 1)], 5000)
    (axes,) = maps(draw_layers(table)).values()
    assert drawn(axes).shape == (3 * MOST_LABELS - 1, MAX_POINTS)
    assert [text.get_text() for text in axes.get_yticklabels()] == [str(3 * i) for i in range(MOST_LABELS)]
    assert drawn(axes)[7, 0] == pytest.approx(table["ckpt_fraction_layer/7/ckpt1"][:170].iloc[:17].mean())


def test_one_step_and_values_that_are_none() -> None:
    table = table_of([f"ckpt_fraction_layer/{name}/ckpt1" for name in NAMES], 1)
    (axes,) = maps(draw_layers(table)).values()
    assert drawn(axes).shape == (3, 1)
    table.iloc[0, 0] = np.inf
    (axes,) = maps(draw_layers(table)).values()
    assert [text.get_text() for text in axes.get_yticklabels()] == NAMES[1:]
    table.iloc[:] = np.nan
    with pytest.raises(KeyError, match=r"has not logged ckpt_fraction_layer/\.\.\. or grad_norm_layer/\.\.\."):
        draw_layers(table)


def test_what_the_monitors_log_is_drawn() -> None:
    options = {"per_layer": True, "per_group": True}
    made = fit(build(Plain), callbacks=[CheckpointFractionMonitor(**options), GradientNormMonitor(**options)])
    row = {key: value.item() for key, value in made.callback_metrics.items()}
    table = pd.DataFrame([row], index=pd.Index([0], name="step"))
    layers = [name for name, _ in made.lightning_module.named_parameters()]
    for figure, rows in ((draw_layers(table), sorted(layers)), (draw_groups(table), ["pg1"])):
        panels = maps(figure)
        assert len(panels) == 10
        assert [text.get_text() for text in next(iter(panels.values())).get_yticklabels()] == rows
