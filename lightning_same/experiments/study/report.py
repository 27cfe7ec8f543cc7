"""The report of a study: what stands in it, and in which order."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lightning_same.experiments.study.figures import (
    Picture,
    against_accuracy,
    clean_against_memorised,
    curve_pictures,
    fraction_pictures,
)
from lightning_same.experiments.study.page import page
from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.results import Results, read_results
from lightning_same.experiments.study.statistics import RULE, WHY_T, comparisons, pairs
from lightning_same.experiments.study.tables import END, final_values, grid, markdown, parts, spread, summary, verdicts
from lightning_same.experiments.study.writing import write_atomically


def write_report(study: Study, done: Sequence[Run], directory: Path) -> Path:
    """Write the report on the runs that are finished.

    Args:
        study: the study.
        done: its finished runs, at least one.
        directory: the study's directory; receives ``report.md``, ``report.html``, ``tables/`` and ``figures/``.

    Returns:
        The HTML page.
    """
    results = read_results(done, directory / "runs")
    compared = comparisons(study, done, results.curves)
    finals = final_values(results)
    cells = grid(results, finals)
    reference = list(dict.fromkeys(run.variant for run in done if run.method == study.reference))
    pictures = {
        "Over training": curve_pictures(results.curves, reference),
        "True and wrong labels": clean_against_memorised(results.curves, reference),
        "Sharpness and gradient norm": against_accuracy(results.curves, reference),
        "The four checkpoints": fraction_pictures(results.curves),
    }
    times = results.runs.groupby("variant", sort=False)["seconds_per_epoch"].median().reset_index()
    content = {
        "verdicts": compared,
        "final": finals,
        "summary": summary(finals),
        "curves": results.curves,
        "grid": cells,
        "times": times,
    }
    _replace(directory / "tables", {f"{name}.csv": _csv(rows) for name, rows in content.items() if rows is not None})
    drawn = [picture for group in pictures.values() for picture in group]
    _replace(directory / "figures", {f"{picture.name}.svg": picture.svg for picture in drawn})
    text = _text(study, done, results, compared, finals, cells, times, pictures)
    write_atomically(directory / "report.md", text)
    path = directory / "report.html"
    write_atomically(path, page(text, study.name, {f"figures/{p.name}.svg": p.svg for p in drawn}))
    return path


def _text(
    study: Study,
    done: Sequence[Run],
    results: Results,
    compared: pd.DataFrame,
    finals: pd.DataFrame,
    cells: pd.DataFrame | None,
    times: pd.DataFrame,
    pictures: dict[str, list[Picture]],
) -> str:
    several = len({other.variant for _, other in pairs(study.reference, done)}) > 1
    seeds = sorted({run.seed for run in done})
    left = [run.name for run in study.runs if run not in done]
    rates = results.runs["noise_rate"].dropna()
    head = [f"# {study.name}", study.description]
    head.append(
        f"{len(done)} of {len(study.runs)} runs are finished: {len({run.variant for run in done})} variants, seeds "
        + ", ".join(map(str, seeds))
        + "."
        + (f" Wrong training labels: {_range(rates)}." if len(rates) else "")
        + f" The early phase is the first {study.early:.0%} of the epochs, the late phase the last {study.late:.0%}."
    )
    if left:
        head.append("Not finished, and not in what follows: " + ", ".join(f"`{name}`" for name in left) + ".")
    body = ["## Verdicts", RULE]
    if len(compared):
        body += [
            _in_short(compared, several),
            f"Differences to {study.reference} in percentage points, with their 95% intervals:",
            markdown(verdicts(compared, several)),
            "*The notes say* holds their own reading, made without label noise; *open* means that this study does not"
            " decide."
            if any(compared["notes_say"])
            else "",
            WHY_T,
        ]
        if "clean" in compared or "memorised" in compared:
            body += [
                "The same for the two halves of the training accuracy: on samples whose label is true (*clean*), and"
                " the share of the wrong labels that is predicted (*memorised*):",
                markdown(parts(compared, several)),
            ]
    else:
        body.append(f"No pair of runs is finished that could be compared with {study.reference}.")
    body += ["## At the end of training", _final_note(), markdown(_final_table(finals))]
    if cells is not None:
        body += [
            "## Over what was swept",
            "Accuracy in percent (loss) of the last weights.",
            _grid_table(cells),
        ]
    notes = {
        "Sharpness and gradient norm": "Neither was logged: add `GradientNormMonitor` or `SharpnessMonitor` to the"
        " callbacks of the study's base configuration.",
        "The four checkpoints": "Not logged: add `CheckpointFractionMonitor` to the callbacks.",
    }
    for title, group in pictures.items():
        shown = "\n".join(f"![{picture.caption}](figures/{picture.name}.svg)" for picture in group)
        body += [f"## {title}", shown or notes.get(title, "Not logged.")]
    body += [
        "## Time",
        "Median seconds of training per epoch, without validation. Only these depend on the machine.",
        markdown(times, {"seconds_per_epoch": lambda value: f"{value:.2f}"}),
    ]
    return "\n\n".join(part for part in [*head, *body] if part) + "\n"


def _in_short(compared: pd.DataFrame, several: bool) -> str:
    lines = []
    for word, rows in compared.groupby("verdict"):
        names = rows["variant"] + (" / " + rows["reference"] if several else "") + " (" + rows["phase"] + ")"
        lines.append(f"- **{word}**: {', '.join(names)}")
    return "\n".join(lines)


def _range(rates: pd.Series) -> str:
    low, high = rates.min(), rates.max()
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"


def _final_note() -> str:
    return (
        "Mean ± standard deviation over the seeds, accuracies in percent. *Test, best* is at the epoch that was best on"
        " validation, not on test. *Training* counts the labels given, *true labels* the samples whose label is true,"
        " *memorised* the wrong labels predicted; all three without augmentation, in evaluation mode, after the epoch."
        " *Gap* is training minus validation."
    )


def _final_table(finals: pd.DataFrame) -> pd.DataFrame:
    rows = summary(finals)
    shown = {"method": rows["variant"], "seeds": rows["seeds"]}
    for name, heading in END.items():
        if f"{name}/mean" in rows:
            pair = zip(rows[f"{name}/mean"], rows[f"{name}/std"], strict=True)
            shown[heading] = pd.Series([spread(mean, std, "loss" not in name) for mean, std in pair])
    return pd.DataFrame(shown)


def _grid_table(cells: pd.DataFrame) -> str:
    down, across, accuracy, *loss = cells.columns
    shown = cells.assign(
        cell=[f"{100 * row[accuracy]:.2f}" + (f" ({row[loss[0]]:.4f})" if loss else "") for _, row in cells.iterrows()]
    )
    wide = shown.pivot(index=down, columns=across, values="cell").reindex(columns=shown[across].unique())
    return markdown(wide.fillna("").reset_index())


def _csv(rows: pd.DataFrame) -> bytes:
    return rows.to_csv(index=False, lineterminator="\n").encode()


def _replace(directory: Path, files: dict[str, bytes]) -> None:
    """Make a directory hold these files and no others of their kind."""
    directory.mkdir(exist_ok=True)
    suffixes = {Path(name).suffix for name in files}
    for path in directory.iterdir():
        if path.suffix in suffixes and path.name not in files:
            path.unlink()
    for name, content in files.items():
        write_atomically(directory / name, content)
