"""Lines: how sharp the loss is, and where the step and its perturbation point."""

import pandas as pd
from matplotlib.figure import Figure

from lightning_same.plots.comparison import Panels, Runs, by_name, compare, draw_panels, labelled, require
from lightning_same.plots.panels import finite

TOP = "sharpness/top_eigenvalue"
BOUND = "sharpness/upper_bound"
THRESHOLD = "sharpness/two_over_lr"
STABILITY = "edge of stability"
STABLE = {
    TOP: "largest eigenvalue",
    "sharpness/gradient_curvature": "g'Hg / g'g, along g",
    "sharpness/ascent_curvature": "on the way to w + e",
    THRESHOLD: "2 / lr",
}
PANELS: Panels = {
    "eigenvalues of the Hessian": labelled(
        {TOP: "largest", "sharpness/bottom_eigenvalue": "smallest", BOUND: "bound on the largest"}
    ),
    STABILITY: labelled(STABLE),
    "alignment with the top eigenvector": labelled(
        {"sharpness/ascent_alignment": "of e", "sharpness/step_alignment": "of the step"}
    ),
    "rise of the loss": labelled(
        {
            "sharpness/ascent_gap": "at w + e",
            "sharpness/worst_case": "worst in a ball",
            "sharpness/average_case": "mean around w",
        }
    ),
    "largest eigenvalue of T H T, T = diag(|w|)": labelled({"sharpness/adaptive_top_eigenvalue": ""}),
}
TITLES = {
    TOP: "largest eigenvalue",
    BOUND: "bound on the largest eigenvalue, with 99% probability",
    "sharpness/bottom_eigenvalue": "smallest eigenvalue",
    "sharpness/gradient_curvature": "curvature along g, g'Hg / g'g",
    "sharpness/ascent_curvature": "curvature on the way to w + e",
    THRESHOLD: "2 / lr",
    "sharpness/ascent_alignment": "alignment of e with the top eigenvector",
    "sharpness/step_alignment": "alignment of the step",
    "sharpness/ascent_gap": "rise of the loss at w + e",
    "sharpness/worst_case": "worst rise of the loss, in units of w",
    "sharpness/average_case": "mean rise of the loss, in units of w",
    "sharpness/adaptive_top_eigenvalue": "largest eigenvalue of T H T",
}
FAR = 10.0
"""Where 2 / lr is so many times as large as the curvatures, their axis is logarithmic."""


def draw_sharpness(runs: Runs) -> Figure:
    """Eigenvalues of the Hessian within the bands of their residuals, the edge of stability, alignments, rises.

    Eigenvalues that had not converged are drawn as crosses. In the panel of the edge of stability, gradient descent is
    unstable along directions whose curvature is above 2 / lr; the axis is logarithmic, without values below 0, where
    2 / lr is far above.

    Args:
        runs: what `read_metrics` returns, or several of these by the names of the runs: then each value has a panel,
            with a line for each run. What has not been logged is left out.

    Raises:
        KeyError: names the missing keys.
        ValueError: if none of the values is finite.
    """
    tables = by_name(runs)
    require(tables, [TOP])
    if len(tables) > 1:
        return compare(tables, TITLES)
    ((name, table),) = tables.items()
    panels = {title: styles for title, styles in PANELS.items() if title != STABILITY or len(_largest(table)) > 1}
    return draw_panels(table, name, panels, [STABILITY] if _is_far(table) else [])


def _largest(table: pd.DataFrame) -> dict[str, float]:
    """The largest values of what the panel of the edge of stability shows, where they are logged."""
    return {key: float(finite(table[[key]]).max().item()) for key in STABLE if key in table}


def _is_far(table: pd.DataFrame) -> bool:
    """Whether 2 / lr is far above the curvatures, of which some are above 0."""
    curvatures = _largest(table)
    threshold = curvatures.pop(THRESHOLD, 0.0)
    return threshold > FAR * max(curvatures.values()) > 0
