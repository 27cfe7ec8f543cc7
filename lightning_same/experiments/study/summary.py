"""What a report begins and ends with: what was found, in sentences, and what it was made with."""

import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import pandas as pd

from lightning_same.experiments.study.analysis import Analysis
from lightning_same.experiments.study.charts import Shown, shown_as
from lightning_same.experiments.study.escape import escaped
from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.results import Results
from lightning_same.experiments.study.statistics import LEVEL
from lightning_same.experiments.study.tables import difference

MOST = 16
"""Lines on verdicts."""

FEW = 3
"""With fewer seeds next to nothing can be shown."""

ABOUT = "About this report"


def summary_text(study: Study, done: Sequence[Run], found: Analysis) -> list[str]:
    """What was found.

    Args:
        study: the study.
        done: its finished runs.
        found: its tables; all texts as they were given.
    """
    rows = found.claims
    if not len(rows):
        return []
    shown, reference = shown_as(study, done), escaped(study.reference)
    lines = _verdicts(rows, shown)
    if len(lines) > MOST:
        lines[MOST:] = [f"- {len(lines) - MOST} more lines like these are in the table below."]
    undecided = int((rows["verdict"] == "open").sum())
    if undecided:
        lines.append(
            f"- In {undecided} of {len(rows)} comparisons with {reference} nothing is decided: a difference, or"
            " that there is none, was not shown in both accuracies."
        )
    body = ["\n".join([*lines, *_of_claims(study, rows), *_of_the_radius(study, found)])]
    seeds = int(rows["seeds"].max())
    if seeds < FEW:
        body.append(
            f"**{seeds} {'seed is' if seeds == 1 else 'seeds are'} too few.** Give {FEW} or more: intervals from so few"
            " seeds are very wide, or there are none."
        )
    return body


def _verdicts(rows: pd.DataFrame, shown: Mapping[str, Shown]) -> list[str]:
    """A sentence for each method, phase and verdict, over all settings at which it holds."""
    groups: dict[tuple[str, str, str], list[pd.Series]] = {}
    for _, row in rows[rows["verdict"] != "open"].iterrows():
        groups.setdefault((shown[row["variant"]].name, row["phase"], row["verdict"]), []).append(row)
    lines = []
    for (name, phase, verdict), of in groups.items():
        settings = [shown[row["reference"]].setting for row in of]
        at = f" at {', '.join(escaped(one) for one in settings if one)}" if any(settings) else ""
        parts = ", ".join(f"{part} accuracy {_over(of, part)}" for part in ("training", "validation"))
        lines.append(f"- **{escaped(name)}, {phase} phase: {verdict}**{at}: {parts}.")
    return lines


def _over(rows: Sequence[pd.Series], part: str) -> str:
    if len(rows) == 1:
        return f"{difference(rows[0], part)} points"
    values = sorted(100 * row[part] for row in rows)
    return f"{values[0]:+z.1f} to {values[-1]:+z.1f} points"


def _of_claims(study: Study, rows: pd.DataFrame) -> list[str]:
    counts = rows["claim"].value_counts()
    made = int(counts.drop("", errors="ignore").sum())
    if not made:
        return []
    of = "claims of the notes" if study.claims == "notes" else "hypotheses"
    parts = ", ".join(f"{counts.get(word, 0)} {word}" for word in ("confirmed", "refuted", "open"))
    return [f"- Of the {made} {of}: {parts}."]


def _of_the_radius(study: Study, found: Analysis) -> list[str]:
    lines, reference = [], escaped(study.reference)
    if len(found.equivalent):
        counts = found.equivalent["explained"].value_counts()
        lines.append(
            f"- What a variant does, another radius of {reference} does as well: shown for"
            f" {counts.get('yes', 0)}, refuted for {counts.get('no', 0)}, open for {counts.get('open', 0)} of"
            f" {len(found.equivalent)} variants."
        )
    if "difference" in found.best:
        sure = found.best[(found.best["p"] < 1 - LEVEL) & found.best["difference_is"].isin(["less", "greater"])]
        for _, row in sure.iterrows():
            points = f"{difference(row, 'difference')} points of test accuracy"
            lines.append(f"- Each at its best radius, {escaped(row['method'])} beside {reference}: {points}.")
        if sure.empty:
            lines.append(f"- Each at its best radius, no method is shown to differ from {reference} in test accuracy.")
    return lines


def about_text(results: Results) -> list[str]:
    """Versions, machine, date, and the commands that repeat the study."""
    made = f"Written on {datetime.date.today():%Y-%m-%d} by lightning-same {version('lightning-same')}."
    return [
        f"## {ABOUT}",
        "\n".join(f"- {line}" for line in (made, *map(escaped, results.made_with))),
        "The study's file, or its name if it comes with the package, trains what is missing and writes the report anew;"
        " the results' folder alone writes the report:",
        "```bash\nlightning-same study --config FILE --jobs 2\nlightning-same study report DIR\n```",
        "All numbers are in `tables/`, the pictures in `figures/`. Times are in `times.csv` only: runs that share a"
        " machine slow each other down.",
    ]
