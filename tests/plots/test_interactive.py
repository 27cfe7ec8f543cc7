"""Runs as a page for the browser."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_same.cli.plot import main
from lightning_same.plots.interactive import html_page
from lightning_same.plots.web import numbers

SHARES = [f"ckpt_fraction/{name}" for name in ("ckpt1", "ckpt2", "ckpt3", "ckpt4", "rest")]


def made_up(steps: int) -> pd.DataFrame:
    at = np.arange(steps)
    table = pd.DataFrame(dict.fromkeys(SHARES, 0.2) | {"step": at}).set_index("step")
    return table.assign(**{"grad_norm/base": 1.0 + at, "val/loss": 2.0 - 0.0005 * at, "weight_norm": 5.0})


def data_of(text: str) -> dict[str, dict[str, object]]:
    content = json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', text)[1])
    return {chart["file"]: chart for chart in content["charts"]}


def test_what_the_monitors_logged_is_in_the_page() -> None:
    text = html_page({"</script>": made_up(4), "SAM": made_up(3)})
    charts = data_of(text)
    assert set(charts) == {"fractions", "grad_norm-base", "weight_norm"}
    assert charts["grad_norm-base"]["y"] == {"title": "norm of g, at w", "log": True, "zero": False}
    assert charts["weight_norm"]["y"]["zero"]
    assert charts["grad_norm-base"]["series"] == [
        {"name": "</script>", "x": [0, 1, 2, 3], "y": [1, 2, 3, 4]},
        {"name": "SAM", "x": [0, 1, 2], "y": [1, 2, 3]},
    ]
    assert text.count("</script>") == 3


def test_many_steps_are_drawn_as_means_with_their_range() -> None:
    (one,) = data_of(html_page({"SAM": made_up(3000)}, ["val/loss"]))["val-loss"]["series"]
    assert len(one["x"]) == 300
    assert one["y"][0] == pytest.approx(2 - 0.00225, abs=1e-3)
    assert one["low"][-1] < one["y"][-1] < one["high"][-1]


def test_the_command_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "SGD", "SAM":
        (tmp_path / name).mkdir()
        made_up(4).reset_index().to_csv(tmp_path / name / "metrics.csv", index=False)
    main([str(tmp_path / "SGD"), str(tmp_path / "SAM"), "--html", "--metric", "val/loss"])
    page = tmp_path / "runs.html"
    assert capsys.readouterr().out.split() == [str(page)]
    assert {path.name for path in tmp_path.iterdir()} == {"SGD", "SAM", "runs.html"}
    assert set(data_of(page.read_text())) == {"val-loss"}
    with pytest.raises(SystemExit):
        main([str(tmp_path / "SGD"), "--html", "--metric", "val/los"])
    assert "Did you mean val/loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "values", "zero"),
    [
        ("grad_cosine", [0.9, 0.95], True),
        ("weight_norm", [5.0, 6.0], True),
        ("sharpness/top_eigenvalue", [5.0, 6.0], True),
        ("sharpness/bottom_eigenvalue", [-6.0, -5.0], True),
        ("grad_norm/base", [0.0, 2.0], True),  # a logarithmic axis would not show the first
        ("val/loss", [0.9, 1.0], False),
        ("val/loss", [0.1, 1.0], True),
        ("val/loss", [-1.0, 1.0], False),
    ],
)
def test_charts_reach_zero_where_it_means_something(key: str, values: list[float], zero: bool) -> None:
    table = pd.DataFrame({key: values}).rename_axis("step")
    (chart,) = data_of(html_page({"SAM": table}, [key])).values()
    assert chart["y"] == {"title": key, "log": False, "zero": zero}


def test_the_two_ends_of_a_band_are_told_apart() -> None:
    (chart,) = data_of(html_page({"SAM": made_up(3000)}, ["val/loss"])).values()
    assert dict(zip(("low", "high"), chart["band"], strict=True)) == {"low": "lowest", "high": "highest"}


def test_a_single_run_has_no_box_to_switch_it_off_and_one_step_makes_no_area() -> None:
    one, several = html_page({"SAM": made_up(1)}), html_page({"SAM": made_up(2), "SGD": made_up(2)})
    assert '<input type="checkbox"' not in one
    assert several.count('<input type="checkbox"') == 2
    assert set(data_of(one)) == {"grad_norm-base", "weight_norm"}
    assert "fractions" in data_of(several)
    assert "<h1>Run</h1>" in one
    assert "<h1>Runs</h1>" in several


def test_numbers_that_no_json_holds_are_null() -> None:
    assert numbers([1 / 3, np.nan, np.inf, -np.inf, 123456.0]) == [0.3333, None, None, None, 123500.0]


def test_on_a_dark_page_no_line_is_black() -> None:
    text = html_page({"SGD": made_up(4), "SAM": made_up(4)})
    content = json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', text)[1])
    first, second = content["legends"]["methods"]
    assert (first["color"], first["dark"]) == ("#000000", "#FFFFFF")
    assert second["color"] == second["dark"]
    assert "--swatch:#000000;--swatch-dark:#FFFFFF" in text
