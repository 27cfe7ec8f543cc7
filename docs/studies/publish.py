"""Puts a finished study into this folder: report, figures, tables, every seed's curve, and what each run ran on.

    python docs/studies/publish.py RESULTS [--seeds N]

RESULTS is the directory that `lightning-same study` has written, whose name becomes the folder's. With ``--seeds`` only
the seeds below N are taken, where a study has been ended in the middle of one.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import pandas as pd

from lightning_same.experiments.study.outcome import finished
from lightning_same.experiments.study.plan import MARKER, PLAN, RUNS, Study
from lightning_same.experiments.study.report import write_report

HERE = Path(__file__).parent

KEPT = ("frontier", "clean-against-memorised", "curve-val-accuracy", "mechanism")
"""How the names of the figures begin that are kept; the others can be made from the curves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    study = Study.load(options.results / PLAN)
    done = [
        run
        for run in study.runs
        if (options.seeds is None or run.seed < options.seeds) and finished(run, options.results / RUNS)
    ]
    target = HERE / options.results.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    write_report(study, done, target, runs=options.results / RUNS)
    for figure in (target / "figures").iterdir():
        if not figure.name.startswith(KEPT):
            figure.unlink()
    report = target / "report.md"
    lines = report.read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if _is_there(line, target))
    report.write_text(re.sub(r"^## .*\n+(?=## |\Z)", "", kept, flags=re.MULTILINE))  # no heading of nothing
    curves = target / "tables" / "curves.csv"
    # Nine digits hold what was logged in float32 exactly.
    pd.read_csv(curves).to_csv(f"{curves}.xz", index=False, lineterminator="\n", float_format="%.9g")
    curves.unlink()
    rows = []
    for run in done:
        outcome = json.loads((options.results / RUNS / run.name / MARKER).read_text())
        versions = ", ".join(f"{name} {version}" for name, version in outcome["versions"].items())
        rows.append(
            {"run": run.name, "variant": run.variant, "seed": run.seed, "epochs": run.epochs}
            | {name: outcome[name] for name in ("noise_rate", "best_epoch", "seconds_per_epoch", "device", "threads")}
            | {"versions": versions, "configuration": outcome["digest"]}
        )
    pd.DataFrame(rows).to_csv(target / "tables" / "runs.csv", index=False, lineterminator="\n")


def _is_there(line: str, folder: Path) -> bool:
    """Whether a line shows no figure, or one that is kept."""
    shown = re.match(r"!\[.*\]\((figures/.*)\)", line)
    return shown is None or (folder / shown[1]).exists()


if __name__ == "__main__":
    main()
