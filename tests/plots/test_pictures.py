"""What is read from a run's folder, and what the pictures show of it."""

import importlib
import io
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.text import Text
from support.fits import fit
from support.nets import Plain, build
from tensorboard.backend.event_processing import event_accumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_same import SAM, CheckpointFractionMonitor, GradientNormMonitor, with_sam
from lightning_same.cli.plot import main
from lightning_same.plots import draw_fractions, draw_norms, draw_sharpness, read_metrics
from lightning_same.plots.panels import MAX_POINTS

FRACTIONS = [f"ckpt_fraction/{name}" for name in ("ckpt1", "ckpt2", "ckpt3", "ckpt4", "rest")]


NORMS = [f"grad_norm/{name}" for name in ("base", "perturbed", "step", "ckpt1", "ckpt2", "ckpt3", "ckpt4")]


SHARPNESS = [f"sharpness/{name}" for name in ("top_eigenvalue", "bottom_eigenvalue", "residual", "bottom_residual")]


def made_up(steps: int) -> pd.DataFrame:
    rng = np.random.default_rng(steps)
    shares = rng.dirichlet([6, 3, 1, 1, 1], steps)
    table = pd.DataFrame(shares, columns=FRACTIONS, index=pd.RangeIndex(steps, name="step"))
    for key in [*NORMS, "weight_norm", *SHARPNESS]:
        table[key] = rng.lognormal(size=steps)
    table["grad_cosine"] = rng.uniform(-1, 1, steps)
    table["sharpness/converged"] = (np.arange(steps) != 1).astype(float)
    return table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same fit under both loggers."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in (CSVLogger, TensorBoardLogger):
        logger = kind(folder, name=kind.__name__)
        monitors = [CheckpointFractionMonitor(), GradientNormMonitor(every_n_steps=2)]
        fit(with_sam(build(Plain), SAM(0.3)), callbacks=monitors, logger=logger)
    return {"csv": folder / "CSVLogger", "tensorboard": folder / "TensorBoardLogger", "both": folder}


def test_the_name_of_an_area_is_at_its_middle() -> None:
    heights = [0.3, 0.1, 0.2, 0.15, 0.25]
    table = pd.DataFrame([heights] * 4, columns=FRACTIONS, index=pd.RangeIndex(4, name="step"))
    (axes,) = draw_fractions(table).axes
    names = [text for text in axes.texts if text.get_text()]
    places = axes.transAxes.inverted().transform([text.get_window_extent().get_points().mean(axis=0) for text in names])
    assert places[:, 1] == pytest.approx(np.cumsum(heights) - np.array(heights) / 2, abs=0.03)


def test_both_loggers_are_read_alike(runs: dict[str, Path]) -> None:
    tables = {name: read_metrics(runs[name] / "version_0") for name in ("csv", "tensorboard")}
    for table in tables.values():
        assert list(table.index) == list(range(12))
        assert table.index.name == "step"
        assert table[FRACTIONS].sum(axis="columns").to_numpy() == pytest.approx(1)
        assert table["grad_norm/base"].notna().tolist() == [True, False] * 6
    own = [*FRACTIONS, *NORMS, "grad_cosine", "weight_norm"]
    pd.testing.assert_frame_equal(tables["csv"][own], tables["tensorboard"][own], rtol=1e-6)


def test_a_folder_above_a_run_stands_for_it_if_there_is_one(runs: dict[str, Path]) -> None:
    pd.testing.assert_frame_equal(read_metrics(runs["csv"]), read_metrics(str(runs["csv"] / "version_0")))
    with pytest.raises(ValueError, match=r"holds 2 runs. Name one of them: .*CSVLogger/version_0, .*TensorBoardLogger"):
        read_metrics(runs["both"])


def test_a_run_that_goes_on_is_read_as_far_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("a,b,epoch,step\n1.5,,0,10\n,2.5,0,10\n9,,0,10\n3,nan,0,20\n,,1,\n4,inf,1,30\n12,13,1,4")
    table = read_metrics(tmp_path)
    assert list(table.index) == [10, 20, 30]
    assert table["a"].tolist() == [9, 3, 4]
    assert table["b"].tolist()[::2] == [2.5, np.inf]
    for text in ("", "a,step", "a,step\n", "a,step\n1"):
        file.write_text(text)
        with pytest.raises(ValueError, match="no metrics yet"):
            read_metrics(tmp_path)
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column `step`"):
        read_metrics(tmp_path)


def test_folders_without_metrics_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        read_metrics(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no metrics: neither a metrics.csv nor event files"):
        read_metrics(tmp_path)


def heights(area: Any) -> tuple[np.ndarray, np.ndarray]:
    """Steps of a stacked area, and its height at each."""
    corners = area.get_paths()[0].vertices
    steps = np.unique(corners[:, 0])
    return steps, np.array([np.ptp(corners[corners[:, 0] == step, 1]) for step in steps])


def test_the_fractions_are_stacked_as_they_were_logged() -> None:
    table = made_up(5)
    axes = draw_fractions(table).axes[0]
    assert len(axes.collections) == 5
    for key, area in zip(FRACTIONS, axes.collections, strict=True):
        steps, height = heights(area)
        assert steps.tolist() == table.index.tolist()
        assert height == pytest.approx(table[key].to_numpy())
    assert {text.get_text() for text in axes.texts} >= {"1: r > 1", "2: 0 < r < 1", "3: r < -1", "4: -1 < r < 0"}


@pytest.mark.parametrize("steps", [1, 2, MAX_POINTS, MAX_POINTS + 1, 5000])
def test_of_many_points_the_means_are_drawn(steps: int) -> None:
    table = made_up(steps)
    areas = [heights(area) for area in draw_fractions(table).axes[0].collections]
    assert all(len(places) <= max(2, MAX_POINTS) for places, _ in areas)
    assert sum(height for _, height in areas) == pytest.approx(1)
    for axes in draw_norms(table).axes:
        for line in (line for line in axes.lines if line.get_gid() != "zero"):
            assert len(line.get_xdata()) == min(steps, MAX_POINTS)
            assert line.get_xdata()[[0, -1]].tolist() == [0, steps - 1]
    base = draw_norms(table).axes[0].lines[0].get_ydata()
    if steps == 5000:
        assert base[:2] == pytest.approx([table["grad_norm/base"][:17].mean(), table["grad_norm/base"][17:34].mean()])


def test_the_band_of_means_spans_the_middle_half_of_their_points() -> None:
    table = made_up(5000)
    band = draw_norms(table).axes[0].collections[0]
    _, height = heights(band)
    points = table["grad_norm/base"].to_numpy()[:17]  # 5000 in 300 parts, of which the first has 17
    assert height[0] == pytest.approx(np.quantile(points, 0.75) - np.quantile(points, 0.25))
    corners = band.get_paths()[0].vertices
    assert corners[corners[:, 0] == 0, 1].min() == pytest.approx(np.quantile(points, 0.25))


def test_every_step_of_an_event_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's reader keeps 10,000 of them, here fewer, unless it is told otherwise."""
    monkeypatch.setitem(event_accumulator.DEFAULT_SIZE_GUIDANCE, "scalars", 500)
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1001):
            writer.add_scalar("loss", float(step), step)
        writer.add_scalar("loss", -1.0, 1000)  # of two values at a step the last one counts
    assert read_metrics(tmp_path)["loss"].tolist() == [*(float(step) for step in range(1000)), -1.0]


def test_clean_and_noisy_samples_stand_beside_all_of_them() -> None:
    table = made_up(4)
    for of in ("clean", "noisy"):
        table[[key.replace("/", f"_{of}/") for key in FRACTIONS]] = np.random.default_rng(1).dirichlet([1] * 5, 4)
    figure = draw_fractions(table)
    assert [axes.get_title("left") for axes in figure.axes] == ["all samples", "clean samples", "noisy samples"]
    assert heights(figure.axes[2].collections[0])[1] == pytest.approx(table["ckpt_fraction_noisy/ckpt1"].to_numpy())


def test_numbers_that_are_none_are_left_out() -> None:
    table = made_up(6)
    table.loc[1, "ckpt_fraction/ckpt1"] = np.nan
    table.loc[2, "grad_norm/base"] = np.inf
    table.loc[3:, NORMS[1:]] = np.nan
    table["grad_cosine"] = np.nan
    assert heights(draw_fractions(table).axes[0].collections[0])[0].tolist() == [0, 2, 3, 4, 5]
    lines = draw_norms(table).axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [[0, 1, 3, 4, 5], [0, 1, 2], [0, 1, 2]]


def test_the_band_is_the_residual_and_what_has_not_converged_is_crossed() -> None:
    table = made_up(5)
    axes = draw_sharpness(table).axes[0]
    top, bottom = axes.collections
    for key, residual, band in zip(SHARPNESS[:2], SHARPNESS[2:], (top, bottom), strict=True):
        steps, height = heights(band)
        assert steps.tolist() == table.index.tolist()
        assert height == pytest.approx(2 * table[residual].to_numpy())
        corners = band.get_paths()[0].vertices
        middle = [corners[corners[:, 0] == step, 1] for step in steps]
        assert [(each.max() + each.min()) / 2 for each in middle] == pytest.approx(table[key].to_list())
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [line.get_xydata().tolist() for line in crosses] == [[[1, table[key][1]]] for key in SHARPNESS[:2]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["not converged"]
    table["sharpness/converged"] = 1.0
    assert draw_sharpness(table).axes[0].get_legend() is None


def dashes_drawn(figure: Any, lines: list[Any]) -> list[str]:
    """By the picture of each line as SVG; "" for a solid one."""
    for line in lines:
        line.set_gid(f"line-{id(line)}")
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    drawn = [re.search(rf'id="line-{id(line)}">\s*<path [^>]*style="([^"]*)"', picture.getvalue()) for line in lines]
    return [found[1].partition("stroke-dasharray:")[2].partition(";")[0] for found in drawn if found is not None]


def test_pictures_do_without_colour() -> None:
    """In each panel the lines differ by their dashes, and neighbouring areas by hatch or by how light they are."""
    table = made_up(5)
    for figure in (draw_norms(table), draw_sharpness(table)):
        for axes in figure.axes:
            lines = [line for line in axes.lines if line.get_gid() != "zero" and line.get_marker() != "x"]
            dashes = dashes_drawn(figure, lines)
            assert len(set(dashes)) == len(dashes) == len(lines) > 0
    areas = draw_fractions(table).axes[0].collections
    grey = [float(np.dot(matplotlib.colors.to_rgb(area.get_facecolor()[0]), [0.3, 0.59, 0.11])) for area in areas]
    for (one, a), (two, b) in pairwise(zip(areas, grey, strict=True)):
        assert one.get_hatch() != two.get_hatch()
        assert abs(a - b) > 0.1


def test_labels_do_not_lie_on_each_other() -> None:
    table = made_up(5)
    table[[f"grad_norm/ckpt{k}" for k in (1, 2, 3, 4)]] = 1.0
    table[FRACTIONS] = [1e-4, 1e-4, 1e-4, 0.001, 0.9987]
    for axes in (draw_fractions(table).axes[0], draw_norms(table).axes[1]):
        axes.figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text).bounds for text in axes.texts]
        tops = sorted((bottom, bottom + height) for _, bottom, _, height in boxes)
        assert len(tops) >= 4
        assert all(low < high for (_, low), (high, _) in pairwise(tops))
        frame = axes.get_window_extent()
        assert frame.y0 - 10 < tops[0][0]
        assert tops[-1][1] < frame.y1 + 10


def test_missing_keys_are_named() -> None:
    with pytest.raises(KeyError, match=r"has not logged ckpt_fraction/ckpt3, ckpt_fraction/rest\."):
        draw_fractions(made_up(3).drop(columns=["ckpt_fraction/ckpt3", "ckpt_fraction/rest"]))
    with pytest.raises(KeyError, match=r"has not logged grad_norm/base, .*grad_cosine, weight_norm\."):
        draw_norms(made_up(3)[FRACTIONS])
    with pytest.raises(KeyError, match=r"has not logged sharpness/top_eigenvalue\."):
        draw_sharpness(made_up(3)[FRACTIONS])
    assert len(draw_norms(made_up(3)[["weight_norm"]]).axes) == 1


def test_the_command_draws_what_was_logged(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(runs["csv"]), "--out", str(tmp_path / "new" / "folder")])
    figures = ("fractions", "norms", "shares")
    files = [tmp_path / "new" / "folder" / f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    seen = capsys.readouterr()
    assert seen.out.split("\n") == [*map(str, files), ""]
    assert seen.err == "sharpness: add SharpnessMonitor\n"
    assert sorted(files[0].parent.iterdir()) == files
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files[::2])
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", files[1].read_text())
    assert {"step", "1: r &gt; 1"} <= set(texts)
    before = files[3].read_bytes()
    main([str(runs["csv"]), "--out", str(files[0].parent)])
    assert files[3].read_bytes() == before
    main([str(runs["tensorboard"])])
    assert (runs["tensorboard"] / "fractions.png").exists()


def test_of_several_runs_the_command_takes_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version, written in ((0, 300), (1, 200), (10, 400), (2, 100)):
        run = tmp_path / f"version_{version}"
        run.mkdir()
        made_up(3).to_csv(run / "metrics.csv")
        os.utime(run / "metrics.csv", (written, written))
    main([str(tmp_path)])
    newest = tmp_path / "version_10"
    seen = capsys.readouterr()
    assert seen.err == f"{tmp_path} holds 4 runs; this is the newest, {newest}.\n"
    assert {Path(line).parent for line in seen.out.split()} == {newest}
    assert [file.parent for file in tmp_path.rglob("fractions.png")] == [newest]


def test_ticks_are_whole_steps_and_one_point_stands_where_curves_end() -> None:
    table = made_up(10)
    assert all(tick == int(tick) for tick in draw_fractions(table).axes[0].get_xticks())
    table.loc[table.index != 4, [*NORMS, "grad_cosine", "weight_norm", *SHARPNESS]] = np.nan
    for axes in (*draw_norms(table).axes, *draw_sharpness(table).axes):
        assert axes.get_xticks().tolist() == [4]
        assert axes.get_xlim()[1] == 4
    table["grad_norm/base"] = made_up(10)["grad_norm/base"]  # The panels share their steps.
    for axes in draw_norms(table).axes:
        assert axes.get_xlim() == (0, 9)
        assert len(axes.get_xticks()) > 1


def test_areas_without_height_have_no_name() -> None:
    table = made_up(4)
    table["ckpt_fraction/rest"] = 0.0
    table.loc[3, "ckpt_fraction/ckpt4"] = 0.0
    labels = {text.get_text() for text in draw_fractions(table).axes[0].texts}
    assert "rest" not in labels
    assert "4: -1 < r < 0" in labels


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "There is no folder"),
        ("loss,step\n1,0\n", "has nothing to draw"),
        ("loss,step\n1,0\n", "norms: add GradientNormMonitor"),
        ("", "holds no metrics yet"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, text: str | None, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.csv").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "run")])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("library", ["matplotlib", "pandas"])
def test_without_the_libraries_the_extra_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for module in ("figures", "fractions", "norms", "sharpness", "comparison", "panels", "metrics"):
        monkeypatch.delitem(sys.modules, f"lightning_same.plots.{module}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"Pictures need {library}: pip install 'lightning-same\[plots\]'"):
        assert importlib.import_module("lightning_same.plots").draw_norms


def test_without_tensorboard_the_extra_is_named(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"Event files need tensorboard: pip install 'lightning-same\[plots\]'"
    ):
        read_metrics(runs["tensorboard"])
