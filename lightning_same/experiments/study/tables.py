"""The numbers of a report, as tables."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from lightning_same.experiments.study.results import Results
from lightning_same.experiments.study.statistics import COMPARED

END = {
    "last/test/accuracy": "test, last",
    "best/test/accuracy": "test, best",
    "val/accuracy": "validation",
    "train_eval/accuracy": "training",
    "train_eval/clean_accuracy": "true labels",
    "train_eval/noisy_accuracy": "memorised",
    "gap": "gap",
    "val/loss": "validation loss",
    "train_eval/loss": "training loss",
}
"""What the table of final values shows, where the runs have it, and its heading."""


def final_values(results: Results) -> pd.DataFrame:
    """Each run at its end: the tests, and the metrics of the last epoch.

    Returns:
        One row per run: ``variant``, ``seed``, and the columns of `END` that the runs have.
    """
    last = results.curves.sort_values("epoch").groupby("run").tail(1).drop(columns=["method", "variant", "seed"])
    rows = results.runs.merge(last, on="run", how="left")
    if {"train_eval/accuracy", "val/accuracy"} <= set(rows):
        rows["gap"] = rows["train_eval/accuracy"] - rows["val/accuracy"]
    return rows[["variant", "seed", *(name for name in END if name in rows)]]


def summary(finals: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over the seeds, a row per variant in the order of the study."""
    order = finals["variant"].unique()
    grouped = finals.groupby("variant")
    parts: dict[str, pd.Series] = {"seeds": grouped["seed"].count()}
    for name in finals.columns.drop(["variant", "seed"]):
        parts |= {f"{name}/mean": grouped[name].mean(), f"{name}/std": grouped[name].std(ddof=1)}
    return pd.DataFrame(parts).loc[order].reset_index()


def grid(results: Results, finals: pd.DataFrame) -> pd.DataFrame | None:
    """Accuracy and loss of the last weights over what was swept, means over the seeds.

    Returns:
        One row for each cell: the radius, or the last swept option where it was not swept; ``column``, which is the
        method with its other settings; the accuracy; and the loss. None where nothing was swept.
    """
    settings = results.settings
    if settings.columns.empty:
        return None
    down = "rho" if "rho" in settings else str(settings.columns[-1])
    tested = "last/test/accuracy" in results.runs
    others = settings.drop(columns=down).to_dict("records")
    cells = pd.DataFrame(
        {
            down: settings[down].astype(object).where(settings[down].notna(), "none"),
            "column": [
                ", ".join([method, *(f"{name} {value}" for name, value in other.items() if pd.notna(value))])
                for method, other in zip(results.runs["method"], others, strict=True)
            ],
        }
    )
    for name in ("last/test/accuracy", "last/test/loss") if tested else ("val/accuracy", "val/loss"):
        values = results.runs if tested else finals
        if name in values:
            cells[name] = values[name]
    return cells.groupby([down, "column"], sort=False).mean().reset_index()


def markdown(rows: pd.DataFrame, formats: dict[str, Callable[[object], str]] | None = None) -> str:
    """A table in Markdown; numbers stand on the right."""
    formats = formats or {}
    cells = [[formats.get(str(name), str)(value) for name, value in row.items()] for _, row in rows.iterrows()]
    marks = ["---" if rows[name].dtype == object or rows[name].dtype == "str" else "---:" for name in rows]
    lines = [list(map(str, rows.columns)), marks, *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def spread(mean: float, std: float, share: bool) -> str:
    """Mean and standard deviation, shares in percent."""
    scale, digits = (100, 1) if share else (1, 3)
    if pd.isna(mean):
        return ""
    return f"{scale * mean:.{digits}f}" + ("" if pd.isna(std) else f" ± {scale * std:.{digits}f}")


def difference(row: pd.Series, name: str) -> str:
    """A difference in percentage points with its interval."""
    mean, low, high = (100 * row.get(key, math.nan) for key in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(mean):
        return ""
    return f"{mean:+.1f}" + ("" if pd.isna(low) else f" [{low:+.1f}, {high:+.1f}]")


def verdicts(compared: pd.DataFrame, several: bool) -> pd.DataFrame:
    """The verdict table as it is shown; without the notes where they say nothing."""
    noted = {"the notes say": compared["notes_say"], "agrees": compared["agrees"]} if any(compared["notes_say"]) else {}
    return pd.DataFrame(
        {
            "method": compared["variant"] + (" / " + compared["reference"] if several else ""),
            "phase": compared["phase"],
            "verdict": [f"**{word}**" if word != "undecided" else word for word in compared["verdict"]],
            "training": [difference(row, "train") for _, row in compared.iterrows()],
            "validation": [difference(row, "validation") for _, row in compared.iterrows()],
            **noted,
        }
    )


def parts(compared: pd.DataFrame, several: bool) -> pd.DataFrame:
    """The differences on true and on wrong labels as they are shown."""
    shown: Sequence[str] = [name for name in COMPARED if name in compared and name not in ("train", "validation")]
    return pd.DataFrame(
        {
            "method": compared["variant"] + (" / " + compared["reference"] if several else ""),
            "phase": compared["phase"],
            **{name: [difference(row, name) for _, row in compared.iterrows()] for name in shown},
        }
    )
