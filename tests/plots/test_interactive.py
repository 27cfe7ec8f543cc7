"""Runs as a page for the browser."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_same.cli.plot import main
from lightning_same.plots.interactive import html_page

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
