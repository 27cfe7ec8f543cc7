"""Every table of a report, from what the finished runs have measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lightning_same.experiments.study.claims import COLUMNS, claims, seeds_needed, sensitivity
from lightning_same.experiments.study.collapse import collapsed
from lightning_same.experiments.study.controls import controls
from lightning_same.experiments.study.mechanism import amplification, explanation, mechanism
from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.radius import best_radius, equivalent_radius, frontier, interpolation
from lightning_same.experiments.study.results import Results
from lightning_same.experiments.study.statistics import phase_means
from lightning_same.experiments.study.tables import comparisons, doses, final_values, grid, summary
from lightning_same.experiments.study.trends import factors, sharpness_at_equal_loss, trends


@dataclass(frozen=True)
class Analysis:
    """The tables of a report; one without rows has nothing to say.

    Attributes:
        collapsed: the runs that are in no interval, by name, and why.
        claims: each variant beside the reference, and what was claimed of it.
        comparisons: the same on samples of true and of wrong label.
        sensitivity: the early phase in other ways.
        equivalent: the radius at which the reference does as much, and what is left there.
        interpolation: how far that errs by itself.
        best: each method at its best radius.
        frontier: where each method ends over the radius.
        trends: what changes with the condition and the radius.
        factors: what single gains do.
        mechanism: whose gradient lies in which checkpoint, and whom a step along it helps.
        amplification: by how much the second pass amplifies clean and noisy gradients.
        explanation: what the published explanation of SAM's robustness predicts of them.
        controls: amplified checkpoints beside placebos and equal doses.
        doses: how much of the step each variant changes.
        sharpness: top eigenvalues at equal training loss.
        final: each run at its end.
        summary: mean and standard deviation of that.
        grid: accuracy and loss over what was swept.
        times: seconds per epoch.
    """

    collapsed: dict[str, str]
    claims: pd.DataFrame
    comparisons: pd.DataFrame
    sensitivity: pd.DataFrame
    equivalent: pd.DataFrame
    interpolation: pd.DataFrame
    best: pd.DataFrame
    frontier: pd.DataFrame
    trends: pd.DataFrame
    factors: pd.DataFrame
    mechanism: pd.DataFrame
    amplification: pd.DataFrame
    explanation: pd.DataFrame
    controls: pd.DataFrame
    doses: pd.DataFrame
    sharpness: pd.DataFrame
    final: pd.DataFrame
    summary: pd.DataFrame
    grid: pd.DataFrame
    times: pd.DataFrame

    def tables(self, curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """The tables that are written, by name; those without rows are not."""
        names = [name for name in vars(self) if name not in ("collapsed", "claims")]
        found = {"curves": curves, **{name: getattr(self, name) for name in names}}
        if len(self.claims):
            found["claims"] = self.claims[COLUMNS]
            found["tests"] = self.claims[["variant", "reference", "phase", "p", "claim_p", "seeds_needed"]]
        return {name: rows for name, rows in found.items() if len(rows)}


def analyse(study: Study, done: Sequence[Run], results: Results) -> Analysis:
    """Work out all tables.

    Args:
        study: the study.
        done: its finished runs, at least one.
        results: what they have measured.
    """
    why = collapsed(done, results.curves, study.late)
    # A run of a variant stays in `done`, so that the variant has its row, also if all of its runs have collapsed.
    curves = results.curves[~results.curves["run"].isin(why)]
    runs = results.runs[~results.runs["run"].isin(why)]
    means = {
        "early": phase_means(curves, study.early, late=False),
        "late": phase_means(curves, study.late, late=True),
    }
    final = final_values(results, why)
    cells = grid(results, final)
    return Analysis(
        collapsed=why,
        claims=claims(study, done, means).assign(seeds_needed=seeds_needed(study, done, means)),
        comparisons=comparisons(study, done, means),
        sensitivity=sensitivity(study, done, curves),
        equivalent=equivalent_radius(study, done, means["late"]),
        interpolation=interpolation(study, done, means["late"]),
        best=best_radius(study, done, means["late"], runs),
        frontier=frontier(study, done, means["late"]),
        trends=trends(study, done, means["late"]),
        factors=pd.concat([factors(study, done, means[phase], phase) for phase in means], ignore_index=True),
        mechanism=mechanism(study, done, curves),
        amplification=amplification(study, done, curves),
        explanation=explanation(study, done, curves),
        controls=controls(study, done, means),
        doses=doses(done, means),
        sharpness=sharpness_at_equal_loss(study, done, curves),
        final=final,
        summary=summary(final),
        grid=pd.DataFrame() if cells is None else cells,
        times=results.runs.groupby("variant", sort=False)["seconds_per_epoch"].median().reset_index(),
    )
