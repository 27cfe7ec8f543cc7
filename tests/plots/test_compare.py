"""Several runs beside each other, any metric, and runs that go on."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lightning_same.cli.plot import main
from lightning_same.plots import draw_fractions, draw_metric, draw_norms, draw_sharpness
from lightning_same.plots.metrics import run_names
from lightning_same.plots.palette import METHODS, REFERENCES

FRACTIONS = [f"ckpt_fraction/{name}" for name in ("ckpt1", "ckpt2", "ckpt3", "ckpt4", "rest")]
NORMS = [f"grad_norm/{name}" for name in ("base", "perturbed", "step", "ckpt1", "ckpt2", "ckpt3", "ckpt4")]
NAMES = ["SGD", "_SAM", r"SAME $\1$"]  # Neither underscores nor dollars mean anything.


def made_up(seed: int, steps: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([6, 3, 1, 1, 1], steps)
    table = pd.DataFrame(shares, columns=FRACTIONS, index=pd.RangeIndex(steps, name="step"))
    table[NORMS] = rng.lognormal(size=(steps, len(NORMS)))
    table["weight_norm"] = rng.uniform(5, 6, steps)
    table["grad_cosine"] = rng.uniform(0.5, 0.9, steps)
    table["sharpness/top_eigenvalue"] = rng.uniform(5, 6, steps)
    table["sharpness/bottom_eigenvalue"] = -rng.uniform(5, 6, steps)
    table["val/loss"] = rng.uniform(0.5, 2, steps)
    return table


RUNS = {name: made_up(seed, 12 - 3 * seed) for seed, name in enumerate(NAMES)}


def drawn(figure: Figure) -> None:
    """Everything that drawing may refuse."""
    figure.draw_without_rendering()


def test_every_norm_has_a_panel_with_a_line_for_each_run() -> None:
    figure = draw_norms(RUNS)
    keys = [*NORMS, "grad_cosine", "weight_norm"]
    assert len(figure.axes) == len(keys)
    for axes, key in zip(figure.axes, keys, strict=True):
        lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert [line.get_color() for line in lines] == [REFERENCES[0].color, METHODS[0].color, METHODS[1].color]
        assert len({line.get_marker() for line in lines}) == 3
        for line, table in zip(lines, RUNS.values(), strict=True):
            assert line.get_xdata().tolist() == table.index.tolist()
            assert line.get_ydata() == pytest.approx(table[key].to_numpy())
        assert axes.get_xlim() == (0, 11)
        assert axes.get_yscale() == ("log" if key.startswith("grad_norm/") else "linear")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == NAMES
    drawn(figure)


def test_fractions_have_a_panel_for_each_run() -> None:
    figure = draw_fractions(RUNS)
    assert [axes.get_title("left") for axes in figure.axes] == NAMES
    drawn(figure)
    noisy = made_up(3)
    noisy[[key.replace("/", "_noisy/") for key in FRACTIONS]] = np.random.default_rng(4).dirichlet([1] * 5, 12)
    figure = draw_fractions({"A": made_up(0), "B": noisy})
    assert [axes.get_title("left") for axes in figure.axes] == [
        "A, all samples",
        "B, all samples",
        "B, noisy samples",
    ]
    figure = draw_fractions({"A": made_up(0), "B": made_up(1)[NORMS]})
    assert len(figure.axes) == 1


def test_eigenvalues_have_a_panel_each_and_crosses_where_they_have_not_converged() -> None:
    runs = {name: table.copy() for name, table in RUNS.items()}
    runs["SGD"]["sharpness/converged"] = (np.arange(12) != 4).astype(float)
    figure = draw_sharpness(runs)
    assert [axes.get_title("left") for axes in figure.axes] == ["largest eigenvalue", "smallest eigenvalue"]
    top, bottom = figure.axes
    crosses = [line for line in top.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [line.get_xydata().tolist() for line in crosses] == [[[4, runs["SGD"]["sharpness/top_eigenvalue"][4]]]]
    assert top.get_ylim()[0] == 0
    assert bottom.get_ylim()[1] == 0
    drawn(figure)


def test_any_metric_is_drawn_with_names_beside_the_lines() -> None:
    figure = draw_metric(RUNS, "val/loss")
    (axes,) = figure.axes
    assert axes.get_title("left") == "val/loss"
    assert {text.get_text() for text in axes.texts} == set(NAMES)
    assert figure.legends == []
    drawn(figure)
    renamed = {name: table.rename(columns={"val/loss": r"_$\1$"}) for name, table in RUNS.items()}
    drawn(draw_metric(renamed, r"_$\1$"))
    with pytest.raises(KeyError, match="has not logged val/los"):
        draw_metric(RUNS, "val/los")
    with pytest.raises(ValueError, match="at least one run"):
        draw_metric({}, "val/loss")


def test_a_single_run_is_named_if_it_has_a_name() -> None:
    table = made_up(0)
    for draw in (draw_fractions, draw_norms, draw_sharpness, lambda runs: draw_metric(runs, "val/loss")):
        assert draw(table).get_suptitle() == ""
        figure = draw({r"_A $\1$": table})
        assert figure.get_suptitle() == r"_A $\1$"
        drawn(figure)


def test_axes_reach_zero_where_it_means_something() -> None:
    table = made_up(0)
    cosine, weights = draw_norms(table).axes[2:]
    assert cosine.get_ylim() == (0, 1)
    assert weights.get_ylim()[0] == 0
    (sharpness,) = draw_sharpness(table[["sharpness/top_eigenvalue"]]).axes
    assert sharpness.get_ylim()[0] == 0
    table["grad_cosine"] -= 0.7
    assert draw_norms(table).axes[2].get_ylim() == (-1, 1)
    for values, reaches in (([0.1, 1.0], True), ([0.9, 1.0], False), ([-1.0, 1.0], False)):
        axes = draw_metric(pd.DataFrame({"loss": values}).rename_axis("step"), "loss").axes[0]
        assert (axes.get_ylim()[0] == 0) == reaches


def test_compared_curves_have_few_points_and_markers() -> None:
    runs = {"A": made_up(0, 4000), "B": made_up(1, 4000)}
    for line in draw_metric(runs, "val/loss").axes[0].lines:
        assert len(line.get_xdata()) == 100
        assert line.get_marker() not in ("", "None")
        assert line.get_markevery() == 12


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/digits/version_0"], ["digits/version_0"]),
        (["/a/SAM/version_0", "/a/SAME/version_3"], ["SAM", "SAME"]),
        (["/a/logs/version_0", "/a/logs/version_1"], ["version_0", "version_1"]),
        (["/a/x/SAM/csv", "/a/y/SAM/csv"], ["x", "y"]),
        (["/a/x/1/z", "/a/x/2/z", "/a/y/1/z"], ["x/1", "x/2", "y/1"]),
        (["/a/b", "/a/b/c"], ["b", "b/c"]),
        (["/a/b/b", "/a/b"], ["b/b", "b"]),
    ],
)
def test_names_are_what_paths_do_not_have_in_common(paths: list[str], names: list[str]) -> None:
    assert run_names([Path(path) for path in paths]) == names


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, seed in (("SGD", 0), ("SAM", 1)):
        (tmp_path / name / "version_0").mkdir(parents=True)
        made_up(seed).to_csv(tmp_path / name / "version_0" / "metrics.csv")
    return tmp_path


def test_the_command_compares_runs(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    main(["SGD", "SAM"])
    assert capsys.readouterr().out.split() == [
        f"{name}.{kind}" for name in ("fractions", "norms", "sharpness") for kind in ("png", "svg")
    ]
    assert {"SGD", "SAM"} <= set((runs / "norms.svg").read_text().replace("<", ">").split(">"))
    main([str(runs / "SGD"), str(runs / "SAM"), "--labels", "plain", "_1 & 2", "--metric", "val/loss", "weight_norm"])
    assert "_1 &amp; 2" in (runs / "val-loss.svg").read_text()
    assert (runs / "weight_norm.png").exists()
    assert not list(runs.glob(".*"))


def test_the_command_says_what_one_of_the_runs_lacks(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up(1)[[*FRACTIONS, "sharpness/top_eigenvalue"]].to_csv(runs / "SAM" / "version_0" / "metrics.csv")
    main([str(runs / "SGD"), str(runs / "SAM")])
    assert capsys.readouterr().err == "norms: not of SAM, which has not logged them; add GradientNormMonitor\n"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--labels", "A"], "--labels must name every run: got 1 labels for 2 runs."),
        (["--labels", "A", "A"], "--labels must differ, got A, A."),
        (["--metric", "val/los"], "--metric: val/los is not logged.\n       Did you mean val/loss?"),
        (["--interval", "0"], "--interval must be seconds > 0, got 0."),
        (["--interval", "nan"], "--interval must be seconds > 0, got nan."),
        (["--interval", "soon"], "--interval must be seconds > 0, got soon."),
    ],
)
def test_wrong_options_are_told(
    options: list[str], complaint: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(runs / "SGD"), str(runs / "SAM"), *options])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"lightning-same plot: error: {complaint}\n"


def test_a_run_named_twice_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(runs / "SGD"), str(runs / "SGD")])
    assert "every run must be named once, got " in capsys.readouterr().err


def when_it_sleeps(monkeypatch: pytest.MonkeyPatch, *actions: Callable[[], object]) -> list[float]:
    """One action for each sleep, then Ctrl-C."""
    left, slept = list(actions), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr(time, "sleep", sleep)
    return slept


def test_watch_draws_again_when_more_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits for the folder, for the first metrics, does nothing when nothing changes, and ends at Ctrl-C."""
    folder, file = tmp_path / "version_0", tmp_path / "version_0" / "metrics.csv"
    seen: list[bytes] = []

    def look() -> None:
        seen.append((folder / "val-loss.png").read_bytes())

    slept = when_it_sleeps(
        monkeypatch,
        folder.mkdir,
        lambda: file.write_text("val/loss,step\n"),
        lambda: file.write_text("val/loss,step\n3,0\n2,1\n"),
        look,
        lambda: file.write_text("val/loss,step\n3,0\n2,1\n1,2\n0.5"),
        look,
    )
    main([str(folder), "--metric", "val/loss", "--watch", "--interval", "0.25"])
    out, err = capsys.readouterr()
    assert slept == [0.25] * 7
    assert out.split("\n")[:3] == [
        str(folder / "val-loss.png"),
        str(folder / "val-loss.svg"),
        "Drawn at step 1. Ctrl-C ends.",
    ]
    assert out.split("\n")[3:] == ["Drawn at step 2. Ctrl-C ends.", "", ""]
    assert [line.partition(":")[0] for line in err.splitlines()] == ["Waiting"] * 3
    assert seen[0] != seen[1]


def test_watch_tells_the_last_step_of_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, steps in ("short", 3), ("long", 7):
        (tmp_path / name).mkdir()
        rows = "".join(f"{1 / (step + 1)},{step}\n" for step in range(steps + 1))
        (tmp_path / name / "metrics.csv").write_text(f"val/loss,step\n{rows}")
    when_it_sleeps(monkeypatch)
    main([str(tmp_path / "short"), str(tmp_path / "long"), "--metric", "val/loss", "--watch"])
    assert "Drawn at step 7." in capsys.readouterr().out


def test_watch_ends_if_it_cannot_write(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept = when_it_sleeps(monkeypatch)
    (runs / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main([str(runs / "SGD"), "--watch", "--out", str(runs / "file")])
    assert ended.value.code == 2
    assert "cannot be written" in capsys.readouterr().err
    assert slept == []


def test_watch_tells_a_figure_that_comes_later_and_not_what_may_still_come(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs / "later" / "metrics.csv"
    file.parent.mkdir()
    table = made_up(1)
    table[FRACTIONS].to_csv(file)
    when_it_sleeps(monkeypatch, lambda: table.to_csv(file))
    main([str(file.parent), "--watch"])
    out, err = capsys.readouterr()
    first, later = out.split("Drawn at step ")[:2]
    assert [Path(line).name for line in first.split()] == ["fractions.png", "fractions.svg"]
    told = [Path(line).name for line in later.splitlines()[1:]]
    assert "sharpness.png" in told
    assert "fractions.png" not in told
    assert err == ""
