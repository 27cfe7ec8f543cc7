"""Tables of the studies in docs/studies, for pages that quote them: they are what the last report found."""

import csv
from pathlib import Path

STUDIES = Path(__file__).parents[1] / "studies"

OVER_RADIUS = ("radius", "radius_clean")
"""The studies that train every method at several radii; the others' best of one or two says nothing of a method."""


def best() -> str:
    """For each of these studies: every method at the radius that validation chose, against the reference."""
    parts = []
    for study in OVER_RADIUS:
        rows = list(csv.DictReader((STUDIES / study / "tables" / "best.csv").open()))
        lines = [
            f"**Study [{study}](studies/{study}/report.md)**, {rows[0]['seeds']} seeds:",
            "",
            "| method | radius chosen (seeds) | test accuracy | minus the reference's, in points (95% interval) |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['method']} | {row['chosen']} | {100 * float(row['test']):.1f}% | {_difference(row)} |"
            for row in sorted(rows, key=lambda row: -float(row["test"]))
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _difference(row: dict[str, str]) -> str:
    if not row["difference"]:
        return "the reference"
    middle, low, high = (100 * float(row[f"difference{end}"]) for end in ("", "_low", "_high"))
    return f"{middle:+.1f} ({low:.1f} to {high:.1f})"
