"""Draw the README's picture from three runs of configs/digits.yaml.

lightning-same fit --config digits --trainer.logger.name SAME
lightning-same fit --config digits --trainer.logger.name SAM --sam SAM --sam.rho 0.2
lightning-same fit --config digits --trainer.logger.name plain --sam null
python docs/four_checkpoints.py runs
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lightning_same.plots.palette import CKPTS, REST, method_styles

SHARES = CKPTS | {"rest": REST}
RULES = {"plain": "SGD", "SAM": "SAM", "SAME": "SAME, ckpt 1"}


def main(runs: Path, target: Path) -> None:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
    figure, (plane, fractions, noise) = plt.subplots(1, 3, figsize=(10.5, 3.1), layout="constrained")
    draw_plane(plane)
    draw_fractions(fractions, metrics(runs / "SAME"))
    draw_noise(noise, runs)
    figure.savefig(target, dpi=150)


def metrics(run: Path) -> pd.DataFrame:
    return pd.read_csv(max(run.glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime))


def draw_plane(axes: plt.Axes) -> None:
    g, s = np.meshgrid(np.linspace(-1, 1, 801), np.linspace(-1, 1, 801))
    same, larger = g * s > 0, np.abs(s) > np.abs(g)
    for name, mask in {
        "ckpt1": same & larger,
        "ckpt2": same & ~larger,
        "ckpt3": ~same & larger,
        "ckpt4": ~same & ~larger,
    }.items():
        axes.contourf(g, s, mask, levels=[0.5, 1.5], colors=[CKPTS[name].color])
    spots = {
        "ckpt1\nr > 1": (0.36, 0.78),
        "ckpt2\n0 < r < 1": (0.70, 0.24),
        "ckpt3\nr < -1": (0.36, -0.78),
        "ckpt4\n-1 < r < 0": (0.68, -0.24),
    }
    for text, (x, y) in spots.items():
        axes.text(x, y, text, ha="center", va="center", color="white" if text[4] in "13" else "black")
    axes.axhline(0, color="black", lw=0.8)
    axes.axvline(0, color="black", lw=0.8)
    axes.set(
        xlabel="g, the gradient at w",
        ylabel="s, the gradient at w + e",
        xticks=[],
        yticks=[],
        title="Four checkpoints, by r = s / g",
        aspect="equal",
    )


def draw_fractions(axes: plt.Axes, table: pd.DataFrame) -> None:
    shares = table[[f"ckpt_fraction/{name}" for name in SHARES]].dropna().rolling(18, min_periods=1).mean()
    steps = table.loc[shares.index, "step"]
    areas = axes.stackplot(steps, shares.to_numpy().T)
    for area, style in zip(areas, SHARES.values(), strict=True):
        area.set(facecolor=style.color, hatch=style.hatch, edgecolor="white", linewidth=0.6)
    ends = shares.iloc[-1].cumsum() - shares.iloc[-1] / 2
    height = -1.0
    for name, middle in zip(SHARES, ends, strict=True):
        height = max(middle, height + 0.065)
        if name != "rest":
            axes.text(steps.max() * 1.02, height, name, va="center", fontsize=8)
    axes.set(
        xlabel="step",
        ylabel="share of the elements",
        title="What CheckpointFractionMonitor logs",
        xlim=(0, steps.max()),
        ylim=(0, 1),
    )


def draw_noise(axes: plt.Axes, runs: Path) -> None:
    styles = method_styles(RULES.values(), references=["SAM"])
    for run, label in RULES.items():
        table = metrics(runs / run)[["epoch", "train/noisy_accuracy"]].dropna()
        style = styles[label]
        axes.plot(
            table["epoch"] + 1,
            table["train/noisy_accuracy"],
            linestyle=style.linestyle,
            color=style.color,
            marker=style.marker,
            markersize=4,
            markevery=5,
            label=label,
        )
    axes.set(xlabel="epoch", ylabel="wrong labels fitted", title="Digits, 40% wrong labels, one seed", ylim=(0, 1.02))
    axes.legend(frameon=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_suffix(".png"))
