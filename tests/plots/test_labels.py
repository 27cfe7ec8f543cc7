"""What stands beside a line is the name of what the line shows."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from lightning_same.plots import draw_effects, draw_norms, draw_sharpness

CKPTS = {"ckpt1": "1: r > 1", "ckpt2": "2: 0 < r < 1", "ckpt3": "3: r < -1", "ckpt4": "4: -1 < r < 0"}
KINDS = {"": "all samples", "_clean": "clean samples", "_noisy": "noisy samples"}

NORMS = [
    ("grad_norm/base", "g, at w"),
    ("grad_norm/perturbed", "s, at w + e"),
    ("grad_norm/step", "d, the step"),
    *((f"grad_norm/{name}", label) for name, label in CKPTS.items()),
    *((f"grad_norm{kind}/perturbed", label) for kind, label in KINDS.items()),
    *((f"grad_cosine{kind}", label) for kind, label in KINDS.items()),
]
SHARPNESS = [
    ("sharpness/top_eigenvalue", "largest"),
    ("sharpness/bottom_eigenvalue", "smallest"),
    ("sharpness/upper_bound", "bound on the largest"),
    ("sharpness/top_eigenvalue", "largest eigenvalue"),
    ("sharpness/gradient_curvature", "g'Hg / g'g, along g"),
    ("sharpness/ascent_curvature", "on the way to w + e"),
    ("sharpness/two_over_lr", "2 / lr"),
    ("sharpness/ascent_alignment", "of e"),
    ("sharpness/step_alignment", "of the step"),
    ("sharpness/ascent_gap", "at w + e"),
    ("sharpness/worst_case", "worst in a ball"),
    ("sharpness/average_case", "mean around w"),
]
EFFECTS = [
    *(
        (key.format(name), label)
        for key in (
            *(f"ckpt_effect/{{}}/{loss}" for loss in ("clean", "noisy", "validation")),
            "ckpt_dominated/{}/noisy",
        )
        for name, label in CKPTS.items()
    ),
    *((f"ckpt_placebo_norm/{name}/validation", label) for name, label in CKPTS.items()),
    *((f"ckpt_share/{name}/noisy", CKPTS[name]) for name in ("ckpt1", "ckpt2")),
    *(
        (f"ckpt_amplification/{where}_dominated/{of}", f"{of}, |g_{where}| larger")
        for where in ("clean", "noisy")
        for of in ("clean", "noisy")
    ),
]


@pytest.mark.parametrize(
    ("draw", "labels"), [(draw_norms, NORMS), (draw_sharpness, SHARPNESS), (draw_effects, EFFECTS)]
)
def test_each_line_ends_at_its_own_label(draw: Callable[[pd.DataFrame], Figure], labels: list[tuple[str, str]]) -> None:
    """Every key has a height of its own, by which the end of a label is told."""
    keys = list(dict.fromkeys(key for key, _ in labels))
    heights = np.linspace(0.2, 0.8, len(keys))
    table = pd.DataFrame([heights] * 3, columns=keys, index=pd.RangeIndex(3, name="step"))
    found = set()
    for axes in draw(table).axes:
        for label in (text for text in axes.texts if isinstance(text, Annotation)):
            _, height = axes.transData.inverted().transform(axes.transAxes.transform(label.xy))
            (key,) = [key for key, its in zip(keys, heights, strict=True) if its == pytest.approx(height, abs=1e-6)]
            found.add((key, label.get_text()))
    assert found == set(labels)
