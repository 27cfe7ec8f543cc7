"""The report of a study: what stands in it, and in which order."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lightning_same.experiments.study.analysis import Analysis, analyse
from lightning_same.experiments.study.charts import Charts
from lightning_same.experiments.study.claims import WHY_T, rule_text
from lightning_same.experiments.study.escape import as_markdown, escaped
from lightning_same.experiments.study.figures import (
    AGAINST,
    CURVES,
    SHARES,
    Picture,
    against_accuracy,
    clean_against_memorised,
    curve_pictures,
    fraction_pictures,
    frontier_pictures,
)
from lightning_same.experiments.study.mechanism import LOSSES
from lightning_same.experiments.study.mechanism_figures import mechanism_pictures
from lightning_same.experiments.study.page import report_page
from lightning_same.experiments.study.plan import RUNS, Run, Study
from lightning_same.experiments.study.results import Results, read_results
from lightning_same.experiments.study.summary import about_text, summary_text
from lightning_same.experiments.study.tables import END, claims_shown, markdown, parts, sensitivity_shown, spread
from lightning_same.experiments.study.tables import points as in_points
from lightning_same.experiments.study.variants import pairs
from lightning_same.experiments.study.writing import replace_files

MOST_NAMES = 5
"""Unfinished or collapsed runs that are listed by name; more are counted by seed or by variant."""


def write_report(study: Study, done: Sequence[Run], directory: Path, runs: Path | None = None) -> Path:
    """Write the report on the runs that are finished.

    Args:
        study: the study.
        done: its finished runs, at least one.
        directory: receives ``report.md``, ``report.html``, ``tables/`` and ``figures/``.
        runs: the directory of all runs. Default: ``runs`` in the first one, which is the study's then.

    Returns:
        The HTML page.
    """
    results = read_results(done, runs or directory / RUNS)
    found = analyse(study, done, results)
    reference = list(dict.fromkeys(run.variant for run in done if run.method == study.reference))
    pictures = {
        "Over the radius": frontier_pictures(found.frontier, study.reference),
        "The mechanism": mechanism_pictures(results.curves),
        "Over training": curve_pictures(results.curves, reference),
        "True and wrong labels": clean_against_memorised(results.curves, reference),
        "Sharpness and gradient norm": against_accuracy(results.curves, reference),
        "The four checkpoints": fraction_pictures(results.curves),
    }
    tables = {f"tables/{name}.csv": _csv(rows) for name, rows in found.tables(results.curves).items()}
    figures = {f"figures/{picture.name}.svg": picture.svg for group in pictures.values() for picture in group}
    parts = _parts(study, done, results, found)
    html = report_page(parts, Charts(study, done, results.curves, found), study.name)
    text = "\n\n".join(_with_pictures(part, pictures) for part in parts) + "\n"
    replace_files(directory, {**tables, **figures, "report.md": text, "report.html": html})
    return directory / "report.html"


def _parts(study: Study, done: Sequence[Run], results: Results, found: Analysis) -> list[str]:
    """The report in pieces of Markdown: what was found first, the pictures, the tables, and the method last."""
    several = len({other.variant for _, other in pairs(study.reference, done)}) > 1
    summary = summary_text(study, done, found)
    study, found = as_markdown(study), as_markdown(found)
    body = [
        f"# {study.name}",
        study.description,
        "## What was found",
        *summary,
        *_runs(study, done, results, found),
        *_frontier(study, found),
        *(text for pair in _pictures(results.curves).items() for text in pair),
        *_claims(study, found, several),
        *_radius(study, found),
        *_mechanism(found),
        *_options(found),
        "## At the end of training",
        _final_note(),
        markdown(_final_table(found.summary)),
    ]
    if len(found.grid):
        note = "Accuracy in percent (loss) of the last weights, all runs."
        body += ["## Over what was swept", note, _grid_table(found.grid)]
    body += [*_method(study, found), *about_text(results)]
    starts = [number for number, text in enumerate(body) if number == 0 or text.startswith("## ")]
    ends = [*starts[1:], len(body)]
    return ["\n\n".join(filter(None, body[start:end])) for start, end in zip(starts, ends, strict=True)]


def _pictures(curves: pd.DataFrame) -> dict[str, str]:
    """The headings of the pictures, and below each what is said where there is nothing to draw."""
    parts = {"train_eval/noisy_accuracy", "train_eval/clean_accuracy"} <= set(curves)
    shares = {f"ckpt_fraction/{name}" for name in SHARES} <= set(curves)
    return {
        "## Over training": "" if set(CURVES) & set(curves) else "Not logged.",
        "## True and wrong labels": "" if parts else NO_PARTS,
        "## Sharpness and gradient norm": "" if set(AGAINST) & set(curves) and "val/accuracy" in curves else NO_MONITOR,
        "## The four checkpoints": "" if shares else NO_FRACTIONS,
    }


NO_PARTS = "Not logged: set `data.init_args.train_eval: true`, with labels of which some are wrong."
NO_MONITOR = (
    "Neither was logged: add `GradientNormMonitor` or `SharpnessMonitor` to the callbacks of the study's base"
    " configuration."
)
NO_FRACTIONS = "Not logged: add `CheckpointFractionMonitor` to the callbacks."


def _with_pictures(part: str, pictures: dict[str, list[Picture]]) -> str:
    """A piece of the report with the pictures that stand below its heading."""
    heading, _, rest = part.partition("\n\n")
    shown = _shown(pictures.get(heading.removeprefix("## "), []))
    if not shown:
        return part
    introduction, mark, tables = rest.partition("\n\n|")
    return "\n\n".join(filter(None, [heading, introduction, shown])) + mark + tables


def _runs(study: Study, done: Sequence[Run], results: Results, found: Analysis) -> list[str]:
    """How many runs this is said of, and what is wrong with some."""
    seeds = sorted({run.seed for run in done})
    left = [run for run in study.runs if run not in done]
    rates = results.runs["noise_rate"].dropna()
    head = [
        f"{len(done)} of {len(study.runs)} runs are finished: {len({run.variant for run in done})} variants, seeds "
        + ", ".join(map(str, seeds))
        + "."
        + (f" Wrong training labels: {_range(rates)}." if len(rates) else "")
        + f" The early phase is the first {study.early:.0%} of the epochs, the late phase the last {study.late:.0%}."
    ]
    head += results.notes
    if left:
        head.append(f"Not finished, and not in what follows: {_unfinished(study, left)}.")
    if found.collapsed:
        head.append(
            f"**{len(found.collapsed)} of {len(done)} runs have collapsed** by the late phase: more than half of the"
            " gradient's elements are in no checkpoint, or the training loss is above that of a guess. They are in the"
            f" pictures, and in no difference, interval or mean: {_collapsed(found, done)}."
        )
    return head


def _unfinished(study: Study, left: Sequence[Run]) -> str:
    if len(left) <= MOST_NAMES:
        return ", ".join(f"`{run.name}`" for run in left)
    missing, planned = (Counter(run.seed for run in runs) for runs in (left, study.runs))
    return ", ".join(f"{count} of {planned[seed]} runs of seed {seed}" for seed, count in sorted(missing.items()))


def _collapsed(found: Analysis, done: Sequence[Run]) -> str:
    if len(found.collapsed) <= MOST_NAMES:
        return ", ".join(f"`{name}` ({why})" for name, why in found.collapsed.items())
    trained = Counter(run.variant for run in done)
    gone = Counter(run.variant for run in done if run.name in found.collapsed)
    listed = ", ".join(f"{count} of {trained[name]} of {escaped(name)}" for name, count in gone.items())
    return f"{listed} (`tables/final.csv` says why)"


def _claims(study: Study, found: Analysis, several: bool) -> list[str]:
    title, said = ("Claims", "the notes") if study.claims == "notes" else ("Hypotheses", "the hypothesis")
    body = [f"## {title if study.claims else 'Comparisons'}"]
    if not len(found.claims):
        return [*body, f"No pair of runs is finished that could be compared with {study.reference}."]
    body += [
        _in_short(found.claims),
        f"Differences to {study.reference} in percentage points, with their 95% intervals. *Seeds needed* is the number"
        f" that would show a difference of {100 * study.delta:g} points, or that there is none, in 80% of studies,"
        " before the correction:",
        markdown(claims_shown(found.claims, several, said)),
        "The notes were made without label noise." if study.claims == "notes" else "",
    ]
    if len(found.comparisons.columns) > 3:
        body += [
            "The same for the two halves of the training accuracy: on samples whose label is true (*clean*), and"
            " the share of the wrong labels that is predicted (*memorised*):",
            markdown(parts(found.comparisons, several)),
        ]
    return [
        *body,
        "The early phase in two other ways, uncorrected: without its first epochs, in which large steps have not yet"
        " settled, and by how fast the accuracies increase, in points per epoch:",
        markdown(sensitivity_shown(found.sensitivity, several)),
    ]


def _frontier(study: Study, found: Analysis) -> list[str]:
    if not len(found.frontier):
        return []
    return [
        "## Over the radius",
        "Where each method ends in the late phase, a point per radius. A variant that lies on the curve of"
        f" {study.reference} does what another radius does.",
    ]


def _radius(study: Study, found: Analysis) -> list[str]:
    body: list[str] = []
    if len(found.equivalent):
        body += [
            f"### At the radius of {study.reference} that does as much",
            f"The radius at which {study.reference} would do as much as a variant (memorised share of the wrong labels,"
            " or training accuracy where no label is wrong), within each seed, and the difference of validation"
            f" accuracy there. *Explained* by the radius: *yes* if that is shown to be within ±{100 * study.delta:g}"
            " points, *no* if it is beyond zero and not shown to be that small, after Holm's correction. *Outside*:"
            " seeds in which no radius does as much, or all do.",
            markdown(in_points(found.equivalent, {"validation"}, {"rho": 3, "equivalent_rho": 3})),
        ]
    if len(found.interpolation):
        body += [
            f"How far that errs by itself: each radius of {study.reference}, left out and matched with its others, over"
            " a wider gap than that of any variant.",
            markdown(in_points(found.interpolation, {"validation"}, {"left_out": 3, "equivalent_rho": 3})),
        ]
    if len(found.best):
        body += [
            "### At the best radius",
            "Each method at the radius that is best for it on validation, seed by seed (how often each was chosen), and"
            " its accuracy on the test images, which had no say in the choice:",
            markdown(in_points(found.best, {"test", "difference"}, {})),
        ]
    return ["## The radius in numbers", *body] if body else []


def _method(study: Study, found: Analysis) -> list[str]:
    return ["## How it was tested", rule_text(study), WHY_T] if len(found.claims) else []


def _mechanism(found: Analysis) -> list[str]:
    if not len(found.mechanism):
        return []
    return [
        "## The mechanism",
        "What a step of length one along s on each checkpoint does to first order: by how much it lowers the clean and"
        " the noisy samples' part of the batch's loss, and the loss on validation data; means over the phase and the"
        " seeds, with the interval over the seeds. *Noisy share*: the share of s there that comes from noisy samples."
        " *Noisy dominated*: the share of elements on which their gradient is the larger one. *Beyond count*, *beyond"
        " norm*: the effect on validation beyond that of a random set of elements, as many or with as large a norm of"
        " s; the words hold after Holm's correction. *A step* there learns patterns if it is shown to lower the"
        " validation loss; it fits noise if it is shown to lower the noisy samples' loss and to raise the validation"
        " loss.",
        markdown(_merged(found.mechanism, (*LOSSES, "noisy_share", "beyond_count", "beyond_norm"))),
        "By how much the second pass amplifies gradients (the sum of |s| over that of |g|), on elements where clean and"
        " where noisy samples have the larger gradient. *Difference*: clean minus noisy, within a seed.",
        markdown(_merged(found.amplification, ("difference",))),
        *_explanation(found),
    ]


def _explanation(found: Analysis) -> list[str]:
    if not len(found.explanation):
        return []
    return [
        "The published explanation of SAM's robustness (Luong et al., arXiv 2411.17132), as predictions: that the"
        " *larger* value is above the *smaller* one, within each seed, and whether that *holds* after Holm's"
        " correction.",
        markdown(_merged(found.explanation, ("difference",))),
    ]


def _merged(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A table whose columns ``NAME_low``, ``NAME_high`` and ``NAME_is`` stand in that of ``NAME``."""
    shown: dict[str, list[str]] = {}
    for name in map(str, rows.columns):
        if name.removesuffix("_low").removesuffix("_high").removesuffix("_is") in names and name not in names:
            continue
        cells = []
        for _, row in rows.iterrows():
            value = row[name]
            cell = "" if pd.isna(value) else f"{value:.3g}" if isinstance(value, float) else str(value)
            if name in names and not pd.isna(row[f"{name}_low"]):
                cell += f" [{row[f'{name}_low']:.3g}, {row[f'{name}_high']:.3g}]"
            cells.append(f"{cell} {row.get(f'{name}_is', '')}".strip())
        shown[name.replace("_", " ")] = cells
    return pd.DataFrame(shown)


def _options(found: Analysis) -> list[str]:
    """What single options do: condition, radius, gains, doses."""
    body: list[str] = []
    if len(found.trends):
        claimed = any(found.trends["notes"])
        body += [
            "## Over condition and radius",
            "How the late phase changes as the condition, or the radius, doubles: the mean over the seeds of the slope,"
            " with its interval; accuracies as shares, norms and eigenvalues as logarithms to base 2 (-1 is half as"
            " much)." + (" Claims after Holm's correction." if claimed else ""),
            markdown(_rounded(found.trends if claimed else found.trends.drop(columns=["notes", "claim"]))),
        ]
    if len(found.factors):
        body += [
            "## Single gains",
            "The mean difference of all pairs of variants that differ in the gain on one checkpoint alone; where all"
            " combinations were trained, its main effect. *Supported*: whether the effect on validation speaks for what"
            " CustomSAME does with the checkpoint, after Holm's correction.",
            markdown(in_points(found.factors, {"training", "validation"}, {})),
        ]
    if len(found.controls):
        body += [
            "## Beside placebos and equal doses",
            "Amplified checkpoints beside random elements, as many or with as large a norm of s, amplified by as much,"
            " and equal doses beside the same dose on all checkpoints; differences in points. *Beyond*: what the"
            " checkpoint does to validation beyond its control, after Holm's correction.",
            markdown(in_points(found.controls, {"training", "memorised", "validation"}, {})),
        ]
    if "dose" in found.doses:
        body += [
            "## How much of the step is changed",
            "The share of the squared norm of s on each checkpoint, and the *dose*: the length of d - s over that of"
            " s.",
            markdown(_rounded(found.doses)),
        ]
    if len(found.sharpness):
        body += [
            "## Sharpness at equal training loss",
            "The top eigenvalue over that of SAM, at the lowest training loss that both have reached: the geometric"
            " mean over the seeds with its interval.",
            markdown(_rounded(found.sharpness)),
        ]
    return body


def _shown(pictures: Sequence[Picture]) -> str:
    return "\n".join(f"![{escaped(picture.caption)}](figures/{picture.name}.svg)" for picture in pictures)


def _in_short(claims: pd.DataFrame) -> str:
    """What was shown of which variant; the reference is named where a variant stands beside several."""
    several = claims.groupby("variant")["reference"].transform("nunique") > 1
    names = claims["variant"] + (" / " + claims["reference"]).where(several, "") + " (" + claims["phase"] + ")"
    lines = []
    for column, words in ("claim", ("confirmed", "refuted", "open")), ("verdict", tuple(claims["verdict"].unique())):
        for word in words:
            found = names[claims[column] == word]
            if len(found) and not (column == "verdict" and word == "open"):
                lines.append(f"- {'Claims ' if column == 'claim' else ''}**{word}**: {', '.join(found)}")
    return "\n".join(lines)


def _rounded(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.map(lambda value: "" if pd.isna(value) else f"{value:.3g}" if isinstance(value, float) else value)


def _range(rates: pd.Series) -> str:
    low, high = rates.min(), rates.max()
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"


def _final_note() -> str:
    return (
        "Mean ± standard deviation over the seeds that have not collapsed, accuracies in percent. *Test, best* is at"
        " the epoch that was best on validation, not on test. *Training* counts the labels given, *true labels* the"
        " samples whose label is true, *memorised* the wrong labels predicted; all three without augmentation, in"
        " evaluation mode, after the epoch. *Gap* is training minus validation."
    )


def _final_table(rows: pd.DataFrame) -> pd.DataFrame:
    shown = {"method": rows["variant"], "seeds": rows["seeds"]}
    if rows["collapsed"].any():
        shown["collapsed"] = rows["collapsed"]
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
