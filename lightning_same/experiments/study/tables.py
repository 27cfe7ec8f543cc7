"""The numbers of a report, as tables."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from lightning_same.experiments.study.claims import differences
from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.results import Results
from lightning_same.experiments.study.statistics import MOST_SEEDS, PHASES, by_seed
from lightning_same.experiments.study.variants import arguments_of, first_runs, gains_of, pairs, rule_of

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


def final_values(results: Results, collapsed: Mapping[str, str]) -> pd.DataFrame:
    """Each run at its end: the tests, and the metrics of the last epoch.

    Args:
        results: what the runs have measured.
        collapsed: the runs that have collapsed, by name, and why.

    Returns:
        One row per run: ``variant``, ``seed``, ``collapsed`` (why, or empty), and the columns of `END` that the runs
        have.
    """
    last = results.curves.sort_values("epoch").groupby("run").tail(1).drop(columns=["method", "variant", "seed"])
    rows = results.runs.merge(last, on="run", how="left")
    if {"train_eval/accuracy", "val/accuracy"} <= set(rows):
        rows["gap"] = rows["train_eval/accuracy"] - rows["val/accuracy"]
    rows["collapsed"] = [collapsed.get(name, "") for name in rows["run"]]
    return rows[["variant", "seed", "collapsed", *(name for name in END if name in rows)]]


def summary(finals: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over the seeds that have not collapsed, a row per variant in the study's order."""
    order = finals["variant"].unique()
    whole = finals["collapsed"] == ""
    grouped = finals[whole].groupby("variant")
    parts: dict[str, pd.Series] = {"seeds": grouped["seed"].count()}
    parts["collapsed"] = finals[~whole].groupby("variant")["seed"].count()
    for name in finals.columns.drop(["variant", "seed", "collapsed"]):
        parts |= {f"{name}/mean": grouped[name].mean(), f"{name}/std": grouped[name].std(ddof=1)}
    rows = pd.DataFrame(parts).reindex(order).reset_index(names="variant")
    return rows.assign(**{name: rows[name].fillna(0).astype(int) for name in ("seeds", "collapsed")})


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
    others = settings.drop(columns=down)
    cells = pd.DataFrame(
        {
            down: settings[down].astype(object).where(settings[down].notna(), "none"),
            "column": [
                ", ".join(
                    [method, *(f"{name} {value}" for name, value in zip(others, row, strict=True) if pd.notna(value))]
                )
                # With the index, or pandas would give no rows where there is no other setting.
                for method, (_, *row) in zip(results.runs["method"], others.itertuples(name=None), strict=True)
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


def difference(row: pd.Series, name: str, digits: int = 1) -> str:
    """A difference in percentage points with its interval."""
    mean, low, high = (100 * row.get(key, math.nan) for key in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(mean):
        return ""
    return f"{mean:+z.{digits}f}" + ("" if pd.isna(low) else f" [{low:+z.{digits}f}, {high:+z.{digits}f}]")


def claims_shown(claims: pd.DataFrame, several: bool, said: str) -> pd.DataFrame:
    """The table of claims as it is shown: both observations beside those that were claimed.

    Args:
        claims: of `claims.claims`.
        several: whether there is more than one reference.
        said: the heading of what was claimed.
    """
    rows = {
        "method": _names(claims, several),
        "phase": claims["phase"],
        "seeds": claims["seeds"],
        "training": [observation(row, "training") for _, row in claims.iterrows()],
        "validation": [observation(row, "validation") for _, row in claims.iterrows()],
        "verdict": [word if word == "open" else f"**{word}**" for word in claims["verdict"]],
    }
    if any(claims["claim"]):
        pairs = zip(claims["notes_training"], claims["notes_validation"], strict=True)
        rows |= {said: [f"{a}, {b}" if a else "" for a, b in pairs], "claim": claims["claim"]}
    rows["seeds needed"] = [_count(number) for number in claims["seeds_needed"]]
    return pd.DataFrame(rows)


def parts(compared: pd.DataFrame, several: bool) -> pd.DataFrame:
    """The differences on true and on wrong labels as they are shown."""
    shown = [name for name in PARTS if name in compared]
    return pd.DataFrame(
        {
            "method": _names(compared, several),
            "phase": compared["phase"],
            **{name: [difference(row, name) for _, row in compared.iterrows()] for name in shown},
        }
    )


def sensitivity_shown(rows: pd.DataFrame, several: bool) -> pd.DataFrame:
    """The early phase in other ways, as it is shown; slopes in points per epoch."""
    return pd.DataFrame(
        {
            "method": _names(rows, several),
            "measure": rows["measure"],
            "training": [observation(row, "training", 2) for _, row in rows.iterrows()],
            "validation": [observation(row, "validation", 2) for _, row in rows.iterrows()],
            "verdict, uncorrected": rows["verdict"],
        }
    )


def points(rows: pd.DataFrame, names: Collection[str], digits: Mapping[str, int]) -> pd.DataFrame:
    """A table with accuracies in percentage points, and their intervals beside them.

    Args:
        rows: the table.
        names: of the columns in points; with the columns ``NAME_low``, ``NAME_high`` and ``NAME_is`` they make one.
        digits: of other columns.
    """
    shown: dict[str, Any] = {}
    for name in map(str, rows.columns):
        if any(name in (f"{other}_low", f"{other}_high", f"{other}_is") for other in names):
            continue
        if name in names and f"{name}_is" in rows:
            shown[name] = [observation(row.fillna({f"{name}_is": ""}), name) for _, row in rows.iterrows()]
        elif name in names:
            shown[name] = [f"{100 * value:.1f}" for value in rows[name]]
        elif rows[name].dtype == float:
            form = f".{digits[name]}f" if name in digits else ".2g"
            shown[name] = ["" if pd.isna(value) else f"{value:{form}}" for value in rows[name]]
        else:
            shown[name] = rows[name]
    return pd.DataFrame(shown)


def observation(row: pd.Series, name: str, digits: int = 1) -> str:
    """A difference in percentage points with its interval, and the word for it."""
    return f"{difference(row, name, digits)} {row[f'{name}_is']}".strip()


def _names(rows: pd.DataFrame, several: bool) -> pd.Series:
    return rows["variant"] + (" / " + rows["reference"] if several else "")


def _count(number: float) -> str:
    return "" if pd.isna(number) else f"{number:.0f}" + ("+" if number >= MOST_SEEDS else "")


PARTS = {"clean": "train_eval/clean_accuracy", "memorised": "train_eval/noisy_accuracy"}
"""What is compared beside training and validation accuracy, under its name in ``tables/comparisons.csv``."""


def comparisons(study: Study, done: Sequence[Run], means: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The differences to the reference on samples of true and of wrong label, with their 95% intervals."""
    rows = []
    for run, reference in pairs(study.reference, done):
        for phase in PHASES:
            row: dict[str, Any] = {"variant": run.variant, "reference": reference.variant, "phase": phase}
            for name, metric in PARTS.items():
                if metric in means[phase]:
                    found = differences(means[phase], run, reference, metric, study.delta)
                    mean, low, high = found.interval()
                    row["seeds"] = found.seeds
                    row |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_is": found.word}
            rows.append(row)
    return pd.DataFrame(rows)


def doses(done: Sequence[Run], means: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How much of the step each variant changes, from the norms that were logged.

    Returns:
        One row per variant and phase: ``ckpt1`` to ``ckpt4``, the share of the squared norm of s on each checkpoint,
        and ``dose``, the length of d - s over that of s, where the rule multiplies s by fixed gains or is a
        `CheckpointDose`.
    """
    norms = [f"grad_norm/ckpt{k}" for k in range(1, 5)]
    rows = []
    for run in first_runs(done):
        for phase, table in means.items():
            whole = by_seed(table, "grad_norm/perturbed").get(run.variant)
            on = [by_seed(table, name).get(run.variant) for name in norms]
            if not whole:
                continue
            shares = [sum((own[seed] / whole[seed]) ** 2 for seed in whole) / len(whole) for own in on if own]
            if len(shares) < len(on):
                continue
            row: dict[str, Any] = {"variant": run.variant, "phase": phase}
            row |= {f"ckpt{k}": share for k, share in enumerate(shares, start=1)}
            gains = gains_of(run.config)
            if gains is not None:
                row["dose"] = sum((gain - 1) ** 2 * share for gain, share in zip(gains, shares, strict=True)) ** 0.5
            elif rule_of(run.config) == "CheckpointDose":
                row["dose"] = abs(float(arguments_of(run.config).get("dose", 0.5)))
            rows.append(row)
    return pd.DataFrame(rows)
