"""What is wrong with a run's files or with --out is told in one line with exit code 2."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation

from lightning_same.cli.plot import main
from lightning_same.plots import draw_fractions, draw_norms, draw_sharpness, read_metrics

FRACTIONS = [f"ckpt_fraction/{name}" for name in ("ckpt1", "ckpt2", "ckpt3", "ckpt4", "rest")]
NORMS = [f"grad_norm/{name}" for name in ("base", "perturbed", "step", "ckpt1", "ckpt2", "ckpt3", "ckpt4")]
EIGENVALUES = ["sharpness/top_eigenvalue", "sharpness/bottom_eigenvalue"]


def write(folder: Path, columns: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).rename_axis("step").to_csv(folder / "metrics.csv")
    return folder


def refused(args: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command writes: a line that says what is wrong, and one that says what to do, if that is not in it."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    seen = capsys.readouterr()
    assert ended.value.code == 2
    assert seen.out == ""
    assert seen.err.startswith("lightning-same plot: error: ")
    assert all(line.startswith("       ") for line in seen.err.splitlines()[1:])
    assert seen.err.count("\n") <= 2
    return seen.err


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300, -1.0, 2.0])
def test_shares_that_are_none(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", dict.fromkeys(FRACTIONS, [value] * 3) | {"loss": [1.0] * 3})
    assert "fractions: " in refused([run], capsys)
    write(run, dict.fromkeys(FRACTIONS, [value] * 3) | {"weight_norm": [1.0, 2.0, 3.0]})
    main([str(run)])
    seen = capsys.readouterr()
    assert [Path(line).name for line in seen.out.split()] == ["norms.png", "norms.svg"]
    assert "fractions: " in seen.err


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e308])
@pytest.mark.parametrize("keys", [NORMS, EIGENVALUES], ids=["norms", "sharpness"])
def test_values_that_no_axis_holds(
    keys: list[str], value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", dict.fromkeys(keys, [value] * 3))
    assert f"no finite value of {keys[0]}, " in refused([run], capsys)


def test_norms_that_are_zero_are_drawn_as_zero(tmp_path: Path) -> None:
    table = pd.DataFrame(dict.fromkeys(NORMS, [0.0] * 4)).rename_axis("step")
    for axes in draw_norms(table).axes:
        assert axes.get_yscale() == "linear"
        assert all(line.get_ydata().tolist() == [0] * 4 for line in axes.lines)
    main([str(write(tmp_path / "run", dict.fromkeys(NORMS, [0.0] * 4)))])
    assert (tmp_path / "run" / "norms.png").stat().st_size > 1000


def test_a_norm_that_ends_at_zero_has_its_label_at_the_bottom() -> None:
    table = pd.DataFrame({key: [1.0, 2.0, 0.0] for key in NORMS}).rename_axis("step")
    for axes in draw_norms(table).axes:
        assert axes.get_yscale() == "log"
        labels = [text for text in axes.texts if isinstance(text, Annotation)]
        assert len(labels) in (3, 4)
        assert [label.xy for label in labels] == [pytest.approx((1, 0))] * len(labels)


def test_the_figures_say_what_has_no_value() -> None:
    table = pd.DataFrame(dict.fromkeys([*FRACTIONS, *NORMS, *EIGENVALUES], [np.inf] * 2)).rename_axis("step")
    for draw in (draw_fractions, draw_norms, draw_sharpness):
        with pytest.raises(ValueError, match="the run has logged no finite value of "):
            draw(table)


def test_a_word_among_numbers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", {"grad_norm/base": [1.0, 2.0, "abc"], "note": ["a", "b", "c"]})
    assert "column `grad_norm/base` must hold numbers, got 'abc' in line 4." in refused([run], capsys)
    (run / "metrics.csv").write_text("a,step\n1,x\n")
    assert "column `step` must hold numbers, got 'x' in line 2." in refused([run], capsys)
    (run / "metrics.csv").write_text("a,step\n1,inf\n")
    assert "column `step` holds an infinite number" in refused([run], capsys)


def test_a_column_of_words_is_no_metric(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"note": ["a", "b"], "flag": [True, False], "loss": [1.0, 2.0]})
    assert read_metrics(run).to_dict("list") == {"flag": [1.0, 0.0], "loss": [1.0, 2.0]}


@pytest.mark.parametrize("content", [b"a,step\n\xff\xfe,1\n", b'a,step\n"1,2\n3,4\n', b"a,step\n1,2\n1,2,3,4\n"])
def test_a_file_that_is_not_csv_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    assert f"{tmp_path / 'metrics.csv'} is not a CSVLogger's: " in refused([tmp_path], capsys)


@pytest.mark.parametrize("name", ["metrics.csv", "events.out.tfevents.1"])
@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / name)
    assert f"{tmp_path / name} is not a regular file" in refused([tmp_path], capsys)
    assert "is not a folder" in refused([tmp_path / name], capsys)


@pytest.mark.timeout(60)
def test_what_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", {"weight_norm": [1.0, 2.0]})
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "norms.png")
    for out in ("file", "pipe", "file/below", "out"):
        line = refused([run, "--out", tmp_path / out], capsys)
        assert re.search(rf"{tmp_path / out}/norms.png cannot be written: .+\. Name another folder with --out\.", line)
    assert (tmp_path / "file").read_text() == "kept"


def test_help_shows_the_usage_and_an_error_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "usage: lightning-same plot" in capsys.readouterr().out
    assert "RUN is missing" in refused([], capsys)
    assert "there is no option --nonsense" in refused(["run", "--nonsense"], capsys)
