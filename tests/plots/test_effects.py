"""The figure of what steps along the checkpoints do."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from lightning_same.cli.plot import main
from lightning_same.plots import draw_effects
from lightning_same.plots.effects import TITLES

KEYS = [f"ckpt_effect/ckpt{k}/{loss}" for loss in ("clean", "noisy", "validation") for k in (1, 2, 3, 4)]
SHARES = [f"ckpt_share/ckpt{k}/noisy" for k in (1, 2, 3, 4)]


def table(seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(9, len(KEYS) + len(SHARES)))
    return pd.DataFrame(values, columns=[*KEYS, *SHARES], index=pd.Index(range(0, 90, 10), name="step"))


def test_a_run_has_a_panel_for_each_loss_and_one_for_the_share() -> None:
    logged = table()
    axes = draw_effects(logged).axes
    assert [one.get_title(loc="left") for one in axes] == [
        "effect on the clean samples' loss",
        "effect on the noisy samples' loss",
        "effect on the validation loss",
        "share of s from noisy samples",
    ]
    drawn = [list(line.get_ydata()) for line in axes[2].lines if len(line.get_ydata()) == len(logged)]
    assert drawn == [logged[f"ckpt_effect/ckpt{k}/validation"].tolist() for k in (1, 2, 3, 4)]
    assert len([line for line in axes[3].lines if len(line.get_ydata()) == len(logged)]) == 2
    low, high = axes[0].get_ylim()
    assert low < 0 < high


def test_several_runs_have_a_panel_for_each_checkpoint_and_loss() -> None:
    axes = draw_effects({"SGD": table(1), "SAM": table(2)}).axes
    assert len(axes) == len(KEYS) + 2
    assert axes[4].get_title(loc="left") == "effect, noisy: 1: r > 1"


def test_placebos_and_amplifications_have_panels_and_titles_that_fit() -> None:
    """Where they are compared too: no title is wider than its panel."""
    random = np.random.default_rng(0)
    monitored = pd.DataFrame(random.random((9, len(TITLES))), columns=[*TITLES], index=range(9)).rename_axis("step")
    shown = [list(line.get_ydata()) for axes in draw_effects(monitored).axes for line in axes.lines]
    assert all(monitored[key].tolist() in shown for key in TITLES)
    figure = draw_effects({"SGD": monitored, "SAM": monitored})
    figure.draw_without_rendering()
    boxes = [
        next(text for text in axes.get_children() if isinstance(text, Text) and text.get_text() in TITLES.values())
        for axes in figure.axes
    ]
    widths = [text.get_window_extent().width / axes.bbox.width for text, axes in zip(boxes, figure.axes, strict=True)]
    assert len(widths) == len(TITLES)
    assert max(widths) < 1.15


def test_what_was_not_logged_is_left_out_or_named() -> None:
    assert len(draw_effects(table()[KEYS[8:]]).axes) == 1
    with pytest.raises(KeyError, match="ckpt_effect/ckpt1/clean"):
        draw_effects(pd.DataFrame({"loss": [1.0]}))


def test_the_command_draws_effects_where_they_are_logged_and_asks_nobody_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table().to_csv(tmp_path / "metrics.csv")
    main([str(tmp_path)])
    assert (tmp_path / "effects.png").stat().st_size > 0
    table().rename(columns={KEYS[0]: "grad_cosine"})[["grad_cosine"]].to_csv(tmp_path / "metrics.csv")
    capsys.readouterr()
    main([str(tmp_path)])
    assert "CheckpointEffectMonitor" not in capsys.readouterr().err
