"""The charts of a report's page: what the pictures of `figures` show, for a browser."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from lightning_same.experiments.study.analysis import Analysis
from lightning_same.experiments.study.figures import AGAINST, CURVES, SHARES
from lightning_same.experiments.study.identity import label
from lightning_same.experiments.study.mechanism_figures import EFFECTS
from lightning_same.experiments.study.plan import Run, Study
from lightning_same.experiments.study.variants import first_runs
from lightning_same.plots.palette import Style, method_styles
from lightning_same.plots.web import METHODS, Chart, numbers

CKPTS = "ckpts"
RADII = "radii"

EPOCH = {"title": "epoch", "plain": True}


class Shown(NamedTuple):
    """Under which name and which choice of the setting a variant is drawn."""

    name: str
    setting: str | None


class Charts:
    """The charts of a study.

    Args:
        study: the study.
        done: its finished runs.
        curves: a row for each run and epoch.
        found: the tables of the report, not escaped.

    Attributes:
        groups: the charts under their headings.
        legends: the styles of each legend.
        settings: the choices of the setting: the values of what is swept for the reference, and so for all methods.
        chosen: the one that is shown first: that of the most methods, and of several such the one in the middle.
    """

    def __init__(self, study: Study, done: Sequence[Run], curves: pd.DataFrame, found: Analysis) -> None:
        self.study, self.curves = study, curves
        self.shown = shown_as(study, done)
        counts = Counter(one.setting for one in self.shown.values() if one.setting is not None)
        self.settings = list(counts)
        fullest = [setting for setting, count in counts.items() if count == max(counts.values())]
        self.chosen = fullest[len(fullest) // 2] if fullest else None
        names = list(dict.fromkeys(one.name for one in self.shown.values()))
        self.legends: dict[str, Mapping[str, Style]] = {
            METHODS: method_styles(names, [study.reference] if study.reference in names else []),
            CKPTS: {style.label: style for style in SHARES.values()},
        }
        self.groups = {
            "What was found": self._differences(found.claims),
            "Over the radius": self._frontier(found.frontier),
            "Over training": self._over_training(),
            "True and wrong labels": self._clean_against_memorised(),
            "Sharpness and gradient norm": self._against_accuracy(),
            "The four checkpoints": self._fractions(),
            "The mechanism": self._mechanism(),
        }

    def _differences(self, claims: pd.DataFrame) -> list[Chart]:
        charts = []
        for part, of in ("validation", "validation accuracy"), ("training", "training accuracy"):
            series: dict[Shown, list[dict[str, Any]]] = {}
            for _, row in claims.iterrows():
                if not pd.isna(row[part]):
                    values = numbers(100 * row[name] for name in (part, f"{part}_low", f"{part}_high"))
                    one = dict(zip(("mean", "low", "high"), values, strict=True))
                    # One without a setting, such as SGD, is beside the reference at each of its settings.
                    key = self.shown[row["variant"]]._replace(setting=self.shown[row["reference"]].setting)
                    series.setdefault(key, []).append({**one, "phase": row["phase"], "word": row["verdict"]})
            spec = {
                "kind": "intervals",
                "x": {"title": "percentage points"},
                "delta": 100 * self.study.delta,
                "series": [{**one._asdict(), "rows": rows} for one, rows in series.items()],
            }
            caption = (
                f"Over equal seeds, with the 95% interval of each row alone. Open point:"
                f" early phase; filled: late. The band, ±{100 * self.study.delta:g} points, counts as no difference."
            )
            if series:
                charts.append(
                    Chart(
                        f"differences-{part}", f"Difference of {of} to {self.study.reference}", caption, METHODS, spec
                    )
                )
        return charts

    def _over_training(self) -> list[Chart]:
        charts = []
        for metric, title in CURVES.items():
            series = []
            for variant, one in self.shown.items():
                own = self._of(variant, metric)
                if own.empty:
                    continue
                over = own.groupby("epoch")[metric].agg(["mean", "min", "max"])
                points = {"x": over.index.tolist(), "y": numbers(over["mean"])}
                if own["seed"].nunique() > 1:
                    points |= {"low": numbers(over["min"]), "high": numbers(over["max"])}
                series.append({**one._asdict(), **points})
            if len({x for one in series for x in one["x"]}) > 1:  # one measurement makes no curve
                log = metric == "sharpness/top_eigenvalue" and bool((self.curves[metric].dropna() > 0).all())
                y = {"title": title.lower(), "percent": "accuracy" in metric, "log": log, "zero": "norm" in metric}
                spec = {"kind": "lines", "x": EPOCH, "y": y, "at": "epoch", "phases": self._phases(), "series": series}
                caption = "Mean over the seeds; the band spans them. Shaded: the early and the late phase."
                charts.append(Chart(f"curve-{metric.replace('/', '-')}", title, caption, METHODS, spec))
        return charts

    def _clean_against_memorised(self) -> list[Chart]:
        x, y = "train_eval/noisy_accuracy", "train_eval/clean_accuracy"
        if not {x, y} <= set(self.curves):
            return []
        series = []
        for variant, one in self.shown.items():
            path = self._of(variant, x).groupby("epoch")[[x, y]].mean()
            if len(path):
                points = {"x": numbers(path[x]), "y": numbers(path[y]), "at": path.index.tolist()}
                series.append({**one._asdict(), **points})
        caption = "A point per epoch, the last one large. Further up and to the left is better."
        spec = {
            "kind": "path",
            "x": {"title": "memorised share of the wrong labels", "percent": True},
            "y": {"title": "accuracy on true labels", "percent": True},
            "at": "epoch",
            "series": series,
        }
        return [Chart("clean-against-memorised", "True against wrong labels", caption, METHODS, spec)]

    def _frontier(self, points: pd.DataFrame) -> list[Chart]:
        x = "memorised" if "memorised" in points else "training"
        if x not in points:  # no module needs to log it
            return []
        series = []
        for method, rows in points.groupby("method", sort=False):
            path = rows.sort_values("rho")
            ways = {"x": numbers(path[x]), "y": numbers(path["validation"]), "at": numbers(path["rho"])}
            series.append({"name": method, "setting": None, **ways})
        names = [str(one["name"]) for one in series]
        legend = METHODS if set(names) <= set(self.legends[METHODS]) else RADII
        if legend == RADII:
            self.legends[RADII] = method_styles(names, [self.study.reference] if self.study.reference in names else [])
        label = {"memorised": "memorised share of the wrong labels", "training": "training accuracy"}[x]
        caption = (
            "The late phase, a point per radius, the largest one large. A method on the curve of"
            f" {self.study.reference} does what another radius of {self.study.reference} does."
        )
        spec = {
            "kind": "path",
            "x": {"title": label, "percent": True},
            "y": {"title": "validation accuracy", "percent": True},
            "at": "rho",
            "series": series,
        }
        return [Chart("frontier", f"Validation accuracy against the {label}", caption, legend, spec)]

    def _against_accuracy(self) -> list[Chart]:
        charts = []
        for metric, title in AGAINST.items():
            if metric in self.curves and "val/accuracy" in self.curves:
                last = self.curves.dropna(subset=[metric]).groupby("run").tail(1)
                series = []
                for variant, one in self.shown.items():
                    own = last[last["variant"] == variant]
                    points = {"x": numbers(own[metric]), "y": numbers(own["val/accuracy"]), "at": own["seed"].tolist()}
                    series.append({**one._asdict(), **points})
                name = f"accuracy-against-{metric.split('/')[-1]}"
                spec = {
                    "kind": "points",
                    "x": {"title": title},
                    "y": {"title": "validation accuracy", "percent": True},
                    "at": "seed",
                    "series": series,
                }
                heading = f"Accuracy against the {title}"
                charts.append(Chart(name, heading, "A point per run, at its end.", METHODS, spec))
        return charts

    def _fractions(self) -> list[Chart]:
        columns = {f"ckpt_fraction/{name}": style.label for name, style in SHARES.items()}
        if not set(columns) <= set(self.curves):
            return []
        charts = []
        for number, (variant, one) in enumerate(self.shown.items()):
            shares = self.curves[self.curves["variant"] == variant].groupby("epoch")[list(columns)].mean().dropna()
            if len(shares) > 1:  # an area needs two edges
                epochs = shares.index.tolist()
                spec = {
                    "kind": "areas",
                    "x": EPOCH,
                    "y": {"title": "share of the elements", "percent": True},
                    "at": "epoch",
                    "owner": {**one._asdict(), "legend": METHODS},
                    "series": [{"name": name, "x": epochs, "y": numbers(shares[key])} for key, name in columns.items()],
                }
                caption = "Shares of the gradient's elements, means over the epoch and the seeds."
                charts.append(Chart(f"fractions-{number}", variant, caption, CKPTS, spec))
        return charts

    def _mechanism(self) -> list[Chart]:
        charts: list[Chart] = []
        ckpts = {f"ckpt{k}": SHARES[f"ckpt{k}"].label for k in range(1, 5)}
        parts = {f"ckpt_effect/{{}}/{loss}": title for loss, title in EFFECTS.items()}
        parts["ckpt_share/{}/noisy"] = "Share of s from noisy samples"
        for number, (variant, one) in enumerate(self.shown.items()):
            for key, title in parts.items():
                series = []
                for ckpt, entry in ckpts.items():
                    own = self._of(variant, key.format(ckpt))
                    over = own.groupby("epoch")[key.format(ckpt)].agg(["mean", "min", "max"]) if len(own) else own
                    if len(over) > 1 and (over["mean"] != 0).any():
                        points = {"y": numbers(over["mean"]), "low": numbers(over["min"]), "high": numbers(over["max"])}
                        series.append({"name": entry, "x": over.index.tolist(), **points})
                if series:
                    spec = {
                        "kind": "lines",
                        "x": EPOCH,
                        "y": {"title": title.lower(), "zero": True, "percent": "share" in key},
                        "at": "epoch",
                        "of": "checkpoint",
                        "phases": self._phases(),
                        "owner": {**one._asdict(), "legend": METHODS},
                        "series": series,
                    }
                    file = f"mechanism-{number}-{len(charts)}"
                    charts.append(
                        Chart(file, f"{title}: {variant}", "Mean over the seeds, with their range.", CKPTS, spec)
                    )
        return charts

    def _of(self, variant: str, metric: str) -> pd.DataFrame:
        if metric not in self.curves:
            return self.curves.iloc[:0]
        return self.curves[self.curves["variant"] == variant].dropna(subset=[metric])

    def _phases(self) -> list[list[Any]]:
        """First and last epoch of the two phases."""
        last = int(self.curves["epoch"].max())
        early, late = (max(1, round(share * last)) for share in (self.study.early, self.study.late))
        return [[1, early, "early"], [last - late + 1, last, "late"]]


def shown_as(study: Study, done: Sequence[Run]) -> dict[str, Shown]:
    """How each variant is drawn: what is swept for the reference too can be chosen, all else belongs to the name."""
    common = {name for run in done if run.method == study.reference for name in run.settings}
    shown = {}
    for run in first_runs(done):
        chosen = {name: value for name, value in run.settings.items() if name in common}
        others = {name: value for name, value in run.settings.items() if name not in common}
        name = f"{run.method} ({label(others)})" if others else run.method
        shown[run.variant] = Shown(name, label(chosen) if chosen else None)
    return shown
