"""What a study's pictures show of the numbers, looked at before they are written."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_same.experiments.study.figures import clean_against_memorised, curve_pictures, frontier_pictures
from lightning_same.experiments.study.mechanism_figures import mechanism_pictures

EPOCHS = range(1, 5)
CKPTS = (1, 2, 3, 4)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of each picture, in the order in which they are written."""
    found: list[Axes] = []

    def keep(self: Figure, file: object, **options: object) -> None:
        found.extend(self.axes)

    monkeypatch.setattr(Figure, "savefig", keep)
    return found


def logged(**metrics: float) -> pd.DataFrame:
    """Curves of two methods and three seeds: each metric grows by 0.01 from seed to seed, and by 0.1 an epoch."""
    rows = [
        {"run": f"{method} {seed}", "variant": method, "seed": seed, "epoch": epoch}
        | {name.replace("__", "/"): level + 0.01 * seed + 0.1 * epoch for name, level in metrics.items()}
        for method in ("SAM", "SGD")
        for seed in range(3)
        for epoch in EPOCHS
    ]
    return pd.DataFrame(rows)


def ends_of_band(axes: Axes, number: int = 0) -> list[tuple[float, float]]:
    corners = axes.collections[number].get_paths()[0].vertices
    heights = [corners[corners[:, 0] == epoch, 1] for epoch in EPOCHS]
    return [(float(each.min()), float(each.max())) for each in heights]


def test_a_band_goes_from_the_lowest_to_the_highest_seed_and_the_line_through_their_mean(drawn: list[Axes]) -> None:
    curve_pictures(logged(val__accuracy=0.2), ["SAM"])
    (axes,) = drawn
    assert axes.lines[0].get_ydata() == pytest.approx([0.21 + 0.1 * epoch for epoch in EPOCHS])
    assert np.array(ends_of_band(axes)) == pytest.approx(
        np.array([(0.2 + 0.1 * epoch, 0.22 + 0.1 * epoch) for epoch in EPOCHS])
    )


@pytest.mark.parametrize(("lowest", "scale"), [(0.1, "log"), (-0.3, "linear")])
def test_eigenvalues_have_a_logarithmic_axis_where_all_are_positive(
    lowest: float, scale: str, drawn: list[Axes]
) -> None:
    curve_pictures(logged(sharpness__top_eigenvalue=lowest), ["SAM"])
    assert drawn[0].get_yscale() == scale


def test_true_labels_are_drawn_over_wrong_ones_with_the_last_epoch_large(drawn: list[Axes]) -> None:
    clean_against_memorised(logged(train_eval__noisy_accuracy=0.1, train_eval__clean_accuracy=0.5), ["SAM"])
    (axes,) = drawn
    line = axes.lines[0]
    assert line.get_xdata() == pytest.approx([0.11 + 0.1 * epoch for epoch in EPOCHS])
    assert line.get_ydata() == pytest.approx([0.51 + 0.1 * epoch for epoch in EPOCHS])
    assert line.get_markevery() == [len(EPOCHS) - 1]


def test_a_line_over_the_radius_goes_from_the_smallest_to_the_largest(drawn: list[Axes]) -> None:
    points = pd.DataFrame({"method": "SAM", "rho": [0.4, 0.1, 0.2]})
    points["memorised"], points["validation"] = 1 - points["rho"], points["rho"]
    frontier_pictures(points, "SAM")
    (axes,) = drawn
    assert axes.lines[0].get_xdata() == pytest.approx([0.9, 0.8, 0.6])
    assert axes.lines[0].get_ydata() == pytest.approx([0.1, 0.2, 0.4])
    assert axes.lines[0].get_markevery() == [2]


@pytest.mark.parametrize(("noisy", "pictures"), [(0.2, 3), (-5.0, 3), (None, 1)])
def test_effects_on_noisy_samples_are_drawn_whether_they_help_or_harm(
    noisy: float | None, pictures: int, drawn: list[Axes]
) -> None:
    """Of a variant without noisy samples they are 0, and not drawn."""
    effects = {f"ckpt_effect__ckpt{k}__{loss}": 0.1 * k for k in CKPTS for loss in ("clean", "noisy", "validation")}
    curves = logged(**effects | {f"ckpt_share__ckpt{k}__noisy": 0.3 for k in CKPTS})
    of_noisy = [f"ckpt_effect/ckpt{k}/noisy" for k in CKPTS]
    curves[of_noisy] = 0.0 if noisy is None else curves[of_noisy] + noisy
    names = [picture.name for picture in mechanism_pictures(curves)]
    assert names[:pictures] == ["mechanism-validation-0", "mechanism-noisy-0", "mechanism-share-0"][:pictures]
    assert len(names) == 2 * pictures
    assert len(drawn[0].lines) == len(CKPTS) + 1  # and zero
    assert drawn[0].lines[1].get_ydata() == pytest.approx([0.21 + 0.1 * epoch for epoch in EPOCHS])
    assert np.array(ends_of_band(drawn[0], 1)) == pytest.approx(
        np.array([(0.2 + 0.1 * epoch, 0.22 + 0.1 * epoch) for epoch in EPOCHS])
    )
