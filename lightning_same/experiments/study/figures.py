"""The pictures of a report, each one panel, so that a page can lay them out for a wide and for a narrow screen."""

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lightning_same.plots.palette import CKPTS, METHODS, REFERENCES, REST, Style, method_styles

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "lightning-same",  # the same picture for the same numbers, byte for byte
}
SHARES = CKPTS | {"rest": REST}

CURVES = {
    "val/accuracy": "Validation accuracy",
    "train_eval/clean_accuracy": "Training accuracy, true labels",
    "train_eval/noisy_accuracy": "Memorised share of the wrong labels",
    "val/loss": "Validation loss",
    "grad_norm/base": "Norm of the gradient",
    "sharpness/top_eigenvalue": "Top eigenvalue of the Hessian",
}
"""Metrics that are drawn over the epochs, where the runs have logged them."""

AGAINST = {"grad_norm/base": "norm of the gradient", "sharpness/top_eigenvalue": "top eigenvalue of the Hessian"}
"""Metrics that are drawn against the validation accuracy, likewise."""


class Picture(NamedTuple):
    """A figure.

    Attributes:
        name: of its file.
        caption: what it shows, for those who cannot see it too.
        svg: the picture.
    """

    name: str
    caption: str
    svg: bytes


def curve_pictures(curves: pd.DataFrame, reference: Sequence[str]) -> list[Picture]:
    """Each metric over the epochs: the mean over the seeds and the band from the lowest to the highest seed."""
    pictures = []
    for metric, title in CURVES.items():
        if metric in curves:
            for group, variants in _groups(curves, reference):
                with panel(title, f"curve-{metric.replace('/', '-')}{group}") as (axes, found):
                    for variant, style in method_styles(variants, reference).items():
                        # What is measured at every n-th epoch has its points joined.
                        own = curves[curves["variant"] == variant].dropna(subset=[metric])
                        over = own.groupby("epoch")[metric].agg(["mean", "min", "max"])
                        axes.plot(
                            over.index,
                            over["mean"],
                            linewidth=1.4,
                            markersize=3.5,
                            markevery=max(1, len(over) // 8),
                            **line(style),
                        )
                        axes.fill_between(
                            over.index, over["min"], over["max"], color=style.color, alpha=0.12, linewidth=0
                        )
                    axes.set_xlabel("epoch")
                    if "accuracy" in metric:
                        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
                    if metric == "sharpness/top_eigenvalue" and (curves[metric].dropna() > 0).all():
                        axes.set_yscale("log")
                        axes.yaxis.set_major_formatter("{x:g}")
                        axes.yaxis.set_minor_formatter("{x:g}")
                    found.caption = f"{title} over the epochs; bands span the seeds"
                pictures.append(found.picture)
    return pictures


def clean_against_memorised(curves: pd.DataFrame, reference: Sequence[str]) -> list[Picture]:
    """How much of the true labels is learnt by the time that so much of the wrong ones is (Baek et al., figure 1)."""
    x, y = "train_eval/noisy_accuracy", "train_eval/clean_accuracy"
    pictures = []
    if x in curves and y in curves:
        for group, variants in _groups(curves, reference):
            with panel("True against wrong labels", f"clean-against-memorised{group}") as (axes, found):
                for variant, style in method_styles(variants, reference).items():
                    path = curves[curves["variant"] == variant].groupby("epoch")[[x, y]].mean()
                    last = [len(path) - 1]
                    axes.plot(path[x], path[y], linewidth=1.2, markersize=6, markevery=last, **line(style))
                    axes.plot(path[x], path[y], ".", color=style.color, markersize=3)
                axes.set(xlabel="memorised share of the wrong labels", ylabel="accuracy on true labels")
                for axis in axes.xaxis, axes.yaxis:
                    axis.set_major_formatter(PercentFormatter(1.0))
                found.caption = (
                    "Training accuracy on true labels against the memorised share of the wrong ones, a point per epoch,"
                    " the last one large; further up and left is better"
                )
            pictures.append(found.picture)
    return pictures


def frontier_pictures(points: pd.DataFrame, reference: str) -> list[Picture]:
    """Validation accuracy against the memorised share, or the training accuracy, a line per method over its radii."""
    x = "memorised" if "memorised" in points else "training"
    if x not in points:  # no module needs to log it
        return []
    label = {"memorised": "memorised share of the wrong labels", "training": "training accuracy"}[x]
    named = points.rename(columns={"method": "variant"})
    pictures = []
    for group, methods in _groups(named, [reference]):
        with panel("Over the radius", f"frontier{group}") as (axes, found):
            for method, style in method_styles(methods, [reference]).items():
                path = named[named["variant"] == method].sort_values("rho")
                # The largest radius has a large point, so that the way along the line is seen.
                last = [len(path) - 1]
                axes.plot(path[x], path["validation"], linewidth=1.2, markersize=6, markevery=last, **line(style))
                axes.plot(path[x], path["validation"], ".", color=style.color, markersize=3)
            axes.set(xlabel=label, ylabel="validation accuracy")
            for axis in axes.xaxis, axes.yaxis:
                axis.set_major_formatter(PercentFormatter(1.0))
            found.caption = (
                f"Validation accuracy against the {label} in the late phase, a point per radius, the largest one large"
            )
        pictures.append(found.picture)
    return pictures


def against_accuracy(curves: pd.DataFrame, reference: Sequence[str]) -> list[Picture]:
    """Gradient norm and sharpness against the validation accuracy at the end, a point per run."""
    pictures = []
    for metric, title in AGAINST.items():
        if metric in curves and "val/accuracy" in curves:
            last = curves.dropna(subset=[metric]).groupby("run").tail(1)
            for group, variants in _groups(last, reference):
                with panel(f"Accuracy against the {title}", f"accuracy-against-{metric.split('/')[-1]}{group}") as (
                    axes,
                    found,
                ):
                    for variant, style in method_styles(variants, reference).items():
                        points = last[last["variant"] == variant]
                        axes.scatter(
                            points[metric],
                            points["val/accuracy"],
                            color=style.color,
                            marker=style.marker,
                            label=_label(variant),
                            s=18,
                        )
                    axes.set(xlabel=title, ylabel="validation accuracy")
                    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
                    found.caption = f"Validation accuracy against the {title} at the end of each run"
                pictures.append(found.picture)
    return pictures


def fraction_pictures(curves: pd.DataFrame) -> list[Picture]:
    """The shares of the four checkpoints and the rest over training, one picture per variant."""
    columns = [f"ckpt_fraction/{name}" for name in SHARES]
    if not set(columns) <= set(curves):
        return []
    pictures = []
    for number, variant in enumerate(curves["variant"].unique()):
        shares = curves[curves["variant"] == variant].groupby("epoch")[columns].mean()
        with panel(variant, f"fractions-{number}") as (axes, found):
            areas = axes.stackplot(shares.index, shares.T, labels=[style.label for style in SHARES.values()])
            for area, style in zip(areas, SHARES.values(), strict=True):
                area.set(facecolor=style.color, hatch=style.hatch, edgecolor="white", linewidth=0)
            axes.set(
                xlabel="epoch", ylabel="share of the elements", ylim=(0, 1), xlim=(shares.index[0], shares.index[-1])
            )
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(False)
            found.caption = f"Shares of the four checkpoints over training under {variant}"
        pictures.append(found.picture)
    return pictures


class panel:
    """One axes with a title, and a legend below it when it is drawn."""

    picture: Picture
    caption = ""

    def __init__(self, title: str, name: str) -> None:
        self.title, self.name = title, name

    def __enter__(self) -> tuple[Axes, "panel"]:
        self.style = mpl.rc_context(STYLE)
        self.style.__enter__()
        self.figure = Figure(figsize=(4.8, 3.6), layout="constrained")
        self.axes = self.figure.subplots()
        self.axes.set_title(self.title, parse_math=False)
        return self.axes, self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._legend()
                file = io.BytesIO()
                self.figure.savefig(file, format="svg", metadata={"Date": None})
                self.picture = Picture(self.name, self.caption, file.getvalue())
        finally:
            self.style.__exit__(None, None, None)

    def _legend(self) -> None:
        """A legend of as many columns as the figure is wide enough for."""
        for columns in (5, 4, 3, 2, 1):
            legend = self.figure.legend(loc="outside lower center", ncols=columns, handlelength=1.2, columnspacing=1.2)
            for text in legend.get_texts():
                text.set_parse_math(False)  # the user's names may hold dollars
            if columns == 1 or legend.get_window_extent().width <= self.figure.bbox.width:
                break
            legend.remove()


def _groups(curves: pd.DataFrame, reference: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The variants, a few to a picture, each time with those that they are compared with."""
    others = [variant for variant in curves["variant"].unique() if variant not in reference]
    shown = [variant for variant in reference if variant in set(curves["variant"])]
    if len(shown) > len(REFERENCES):  # a reference at many settings is itself a curve among others
        others, shown = [*shown, *others], []
    size = len(METHODS)
    batches = [others[start : start + size] for start in range(0, len(others), size)] or [[]]
    for number, batch in enumerate(batches):
        yield (f"-{number + 1}" if len(batches) > 1 else ""), [*shown, *batch]


def _label(name: str) -> str:
    """A name as a label; a legend leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def line(style: Style) -> dict[str, Any]:
    """How Matplotlib draws a line of a style."""
    return {"color": style.color, "linestyle": style.linestyle, "marker": style.marker, "label": _label(style.label)}
