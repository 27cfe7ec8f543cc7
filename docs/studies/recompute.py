"""Works out the figures of the studies in this folder anew from their curves, without lightning-same.

    python docs/studies/recompute.py [FOLDER ...]

Every mean, difference and end of an interval in `claims.csv`, `controls.csv`, `frontier.csv`, `equivalent.csv`,
`mechanism.csv` and `explanation.csv` is compared with what comes out here, from `curves.csv.xz` (every seed's curve),
`final.csv` (which runs have collapsed) and the rule in docs/study.md. Needs numpy, pandas and scipy.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

HERE = Path(__file__).parent
DELTA = 0.02
METRICS = {
    "training": "train_eval/accuracy",
    "validation": "val/accuracy",
    "memorised": "train_eval/noisy_accuracy",
}


def interval(values, level=0.95):
    """The mean and Student's t interval; without ends where there is no spread."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return np.nan, np.nan, np.nan
    mean = values.mean()
    if len(values) < 2 or values.std(ddof=1) <= 1e-12 * max(1, abs(values).max()):
        return mean, np.nan, np.nan
    low, high = stats.t.interval(level, len(values) - 1, mean, values.std(ddof=1) / np.sqrt(len(values)))
    return mean, low, high


def word(values):
    """Less, greater, similar (two one-sided tests at 5% each) or open."""
    (_, low, high), (_, inner_low, inner_high) = interval(values), interval(values, 0.90)
    if low > 0 or high < 0:
        return "greater" if low > 0 else "less"
    return "similar" if inner_low > -DELTA and inner_high < DELTA else "open"


def phase_means(curves):
    """For each phase, the mean of every metric over its epochs: a row per variant and seed."""
    epochs = curves.groupby("run")["epoch"].transform("max")
    quarter = (epochs / 4).round()
    parts = {
        "early": curves["epoch"] <= quarter,
        "late": curves["epoch"] > epochs - quarter,
        "middle": (curves["epoch"] > quarter) & (curves["epoch"] <= epochs - quarter),
    }
    return {name: curves[rows].groupby(["variant", "seed"]).mean(numeric_only=True) for name, rows in parts.items()}


def pair(table, metric, one, other):
    """The differences within the seeds that both variants have."""
    both = [
        table.loc[name, metric].dropna() if name in table.index else pd.Series(dtype=float) for name in (one, other)
    ]
    return (both[0] - both[1]).dropna()


def beside(row, means, other, metrics):
    """The differences of a variant to another one, as a row of `claims.csv` or `controls.csv` has them."""
    for name in metrics:
        differences = pair(means[row["phase"]], METRICS[name], row["variant"], row[other])
        yield from zip((name, f"{name}_low", f"{name}_high"), interval(differences), strict=True)
        yield f"{name}_is", word(differences)


def equivalent(row, late, reference="SAM"):
    """The validation beside the reference's at the radius that memorises as much, seed by seed."""
    path = {0.0: "SGD"} | {rho_of(name): name for name in late.index.unique(0) if name.startswith(f"{reference} (rho")}
    path = dict(sorted((rho, name) for rho, name in path.items() if name in late.index))
    matched = METRICS[row["matched_on"]]
    radii, differences = [], []
    for seed, reached in late.loc[row["variant"], matched].items():
        known = {rho: name for rho, name in path.items() if (name, seed) in late.index}
        level = falling([late.loc[(name, seed), matched] for name in known.values()])
        if len(known) < 3 or not level[-1] <= reached <= level[0] or level[0] - level[-1] < DELTA:
            continue
        radii.append(np.interp(-reached, -level, list(known)))
        there = [late.loc[(name, seed), METRICS["validation"]] for name in known.values()]
        differences.append(
            late.loc[(row["variant"], seed), METRICS["validation"]] - np.interp(radii[-1], list(known), there)
        )
    yield "equivalent_rho", np.mean(radii) if radii else np.nan
    yield from zip(("validation", "validation_low", "validation_high"), interval(differences), strict=True)


def falling(values):
    """The closest values in the least squares that never increase: the minimum of the maximal means."""
    values = np.asarray(values, dtype=float)
    count = len(values)
    mean = [[values[a : b + 1].mean() if a <= b else np.nan for b in range(count)] for a in range(count)]
    return np.array([min(max(mean[a][b] for b in range(i, count)) for a in range(i + 1)) for i in range(count)])


def mechanism(row, means):
    """The effects of a step along a checkpoint, and the share of noisy samples."""
    table, k = means[row["phase"]].loc[row["variant"]], row["ckpt"]
    keys = {name: f"ckpt_effect/ckpt{k}/{name}" for name in ("clean", "noisy", "validation")}
    for name, key in (keys | {"noisy_share": f"ckpt_share/ckpt{k}/noisy"}).items():
        yield from zip((name, f"{name}_low", f"{name}_high"), interval(table[key].dropna()), strict=True)
    for match in "count", "norm":
        found = (table[keys["validation"]] - table[f"ckpt_placebo_{match}/ckpt{k}/validation"]).dropna()
        names = [f"beyond_{match}{end}" for end in ("", "_low", "_high")]
        yield from zip(names, interval(found), strict=True)


DOMINATED = {
    side: {of: f"ckpt_amplification/{side}_dominated/{of}" for of in ("clean", "noisy", "whole")}
    for side in ("clean", "noisy")
}
PREDICTIONS = {
    "where noisy": ([DOMINATED["noisy"]["clean"]], [DOMINATED["noisy"]["noisy"]]),
    "by more": ([side["clean"] for side in DOMINATED.values()], [side["noisy"] for side in DOMINATED.values()]),
    "the whole": ([DOMINATED["clean"]["whole"]], [DOMINATED["noisy"]["whole"]]),
    "noisy gradients": (["ckpt_dominated/ckpt2/noisy"], ["ckpt_dominated/ckpt1/noisy"]),
    "more of s": (["ckpt_share/ckpt2/noisy"], ["ckpt_share/ckpt1/noisy"]),
}


def explanation(row, means):
    """A prediction of the published explanation: the larger value minus the smaller one."""
    larger, smaller = next(keys for begin, keys in PREDICTIONS.items() if row["prediction"].startswith(begin))
    table = means[row["phase"]].loc[row["variant"]]
    names = ("difference", "difference_low", "difference_high")
    yield from zip(names, interval((table[larger].mean(axis=1) - table[smaller].mean(axis=1)).dropna()), strict=True)


def frontier(row, late):
    """Where a method ends at a radius."""
    method, _, others = row["method"].rstrip(")").partition(" (")
    swept = ", ".join(filter(None, [f"rho {row['rho']:g}" if row["rho"] else "", others]))
    name = f"{method} ({swept})" if swept else method
    for column, metric in METRICS.items():
        if column in row:
            yield column, late.loc[name, metric].mean()


def rho_of(variant):
    return float(re.search(r"rho ([\d.]+)", variant)[1])


def check(folder):
    """Compare one study, and return how many numbers were compared and which are different."""
    tables = folder / "tables"
    curves = pd.read_csv(tables / "curves.csv.xz")
    final = pd.read_csv(tables / "final.csv", keep_default_na=False)
    dead = set(final.loc[final["collapsed"] != "", ["variant", "seed"]].itertuples(index=False, name=None))
    curves = curves[[key not in dead for key in zip(curves["variant"], curves["seed"], strict=True)]]
    means = phase_means(curves)
    ways = {
        "claims": lambda row: beside(row, means, "reference", ("training", "validation")),
        "controls": lambda row: beside(row, means, "control", ("training", "validation", "memorised")),
        "frontier": lambda row: frontier(row, means["late"]),
        "equivalent": lambda row: equivalent(row, means["late"]),
        "mechanism": lambda row: mechanism(row, means),
        "explanation": lambda row: explanation(row, means),
    }
    compared, wrong = 0, []
    for name, way in ways.items():
        if not (tables / f"{name}.csv").exists():
            continue
        for number, row in pd.read_csv(tables / f"{name}.csv").iterrows():
            for column, value in way(row):
                compared += 1
                same = (
                    row[column] == value if isinstance(value, str) else np.isclose(row[column], value, 1e-6, 1e-7, True)
                )
                if not same:
                    wrong.append(f"{folder.name}/{name}.csv, row {number}, {column}: {row[column]} there, {value} here")
    return compared, wrong


def main(folders):
    failed = 0
    for folder in folders or sorted(path.parent.parent for path in HERE.glob("*/tables/curves.csv.xz")):
        compared, wrong = check(Path(folder))
        said = "\n  ".join([f"{Path(folder).name}: {compared} numbers compared, {len(wrong)} differ", *wrong[:20]])
        sys.stdout.write(said + "\n")
        failed += len(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
