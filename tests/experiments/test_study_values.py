"""What a study says of its runs, worked out again by other ways: from the saved weights, and from the raw logs."""

import json
import math
import signal
import subprocess
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from support.planted import run_of, same, study_of
from support.studies import MARKER, said, write_study
from torch import nn

from lightning_same.experiments import DigitsData, ImageClassifier, SmallCNN
from lightning_same.experiments.study.claims import NOTES, expected_of
from lightning_same.experiments.study.plan import Study
from lightning_same.experiments.study.report import write_report
from lightning_same.experiments.study.run import _commit, finished, perform

CLOCK = [0.0]
SECONDS = [100.0, 1.0, 2.0, 30.0, 4.0, 3.0]
"""Of each epoch, by `CLOCK`."""


class Slow(Callback):
    """Lets `CLOCK` run on in each epoch, and in each validation too."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            CLOCK[0] += SECONDS[trainer.current_epoch]

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        CLOCK[0] += 1000


class Interrupts(Callback):
    """As Ctrl-C in the second epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def one_run(folder: Path, *callbacks: dict[str, Any], epochs: int = 3) -> Any:
    config = write_study(
        folder,
        methods={"SAM": {"sam": {"class_path": "SAM"}, "trainer.callbacks": list(callbacks)}},
        options={"trainer.max_epochs": epochs},
        seeds=1,
    )
    return Study.read(Path(config)).runs[0]


def scores_of(file: Path, config: dict[str, Any]) -> dict[str, float]:
    """Accuracy and loss on the test images of the weights in a file."""
    model = ImageClassifier(num_classes=10, model=SmallCNN(num_classes=10, width=2))
    model.load_state_dict(torch.load(file, weights_only=False)["state_dict"])
    data = DigitsData(**config["data"]["init_args"])
    data.prepare_data()
    data.setup("test")
    model.eval()
    with torch.no_grad():
        pairs = [(model(batch[0]), batch[1]) for batch in data.test_dataloader()]
    out, y = (torch.cat(part) for part in zip(*pairs, strict=True))
    accuracy = (out.argmax(1) == y).double().mean().item()
    return {"test/accuracy": accuracy, "test/loss": nn.functional.cross_entropy(out, y).item()}


def test_the_tests_are_of_the_last_and_of_the_best_weights(tmp_path: Path) -> None:
    """The best here are those of the first epoch, so that the two differ."""
    best, last = (
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "kept"), "filename": name, **options}}
        for name, options in {"best": {"monitor": "epoch", "mode": "min"}, "last": {}}.items()
    )
    run = one_run(tmp_path, best, last)
    perform(run, tmp_path / "runs")
    place = tmp_path / "runs" / run.name
    outcome = json.loads((place / MARKER).read_text())
    config = yaml.safe_load((place / "config.yaml").read_text())
    at_last, at_best = (scores_of(tmp_path / "kept" / f"{name}.ckpt", config) for name in ("last", "best"))
    assert at_last["test/loss"] != pytest.approx(at_best["test/loss"], rel=1e-4)
    assert outcome["test"] == {"last": pytest.approx(at_last, rel=1e-6), "best": pytest.approx(at_best, rel=1e-6)}
    assert (outcome["best_epoch"], outcome["best_score"]) == (0, 0)


def test_the_time_of_an_epoch_is_the_median_after_the_first_without_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(perf_counter=lambda: CLOCK[0])
    monkeypatch.setattr("lightning_same.experiments.study.run.time", clock)
    run = one_run(tmp_path, {"class_path": f"{__name__}.Slow"}, epochs=len(SECONDS))
    perform(run, tmp_path / "runs")
    outcome = json.loads((tmp_path / "runs" / run.name / MARKER).read_text())
    assert outcome["seconds_per_epoch"] == np.median(SECONDS[1:]) == 3


def test_a_commit_is_told_with_whether_something_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the directory in which the command is given, where the user's modules are."""

    def git(*words: str) -> str:
        me = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
        return subprocess.run(["git", *me, *words], check=True, capture_output=True, text=True).stdout.strip()

    def told() -> str | None:
        _commit.cache_clear()
        return _commit()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert told() is None
    git("init", "-q")
    (tmp_path / "mine.py").write_text("1")
    git("add", "mine.py")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "results.csv").write_text("untracked")
    assert told() == head
    (tmp_path / "mine.py").write_text("2")
    assert told() == f"{head} with changes"
    _commit.cache_clear()


def test_a_fit_that_was_interrupted_is_not_finished(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    run = one_run(tmp_path, {"class_path": f"{__name__}.Interrupts"})
    try:
        with pytest.raises((Exception, SystemExit, KeyboardInterrupt)):
            perform(run, tmp_path / "runs")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on.
    assert (tmp_path / "runs" / run.name / "metrics.csv").exists()
    assert not (tmp_path / "runs" / run.name / MARKER).exists()
    assert not finished(run, tmp_path / "runs")


def test_a_run_has_the_threads_that_the_study_asks_for(start: Callable[..., BaseProcess], tmp_path: Path) -> None:
    once = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 1}
    config = write_study(tmp_path, methods={"SAM": {"sam": None}}, seeds=1, threads=2, options=once)
    process = start(tmp_path / "results", "--config", config)
    process.join()
    assert process.exitcode == 0, said(tmp_path / "results")
    (marker,) = tmp_path.glob(f"results/runs/*/{MARKER}")
    assert json.loads(marker.read_text())["threads"] == 2


@pytest.mark.parametrize("condition", [2.0, 1.0, 0.5])
def test_the_notes_claim_something_of_amplified_checkpoints_alone(condition: float) -> None:
    """With a condition of 1 a rule is SAM, and below it the checkpoint is damped."""
    sam = {"class_path": "SAME", "init_args": {"ckpt": 3, "condition": condition}}
    run, reference = run_of("SAME 3", 0, sam=sam), run_of("SAM", 0)
    study = study_of([run, reference], claims="notes")
    for phase in ("early", "late"):
        assert expected_of(study, run, reference, phase) == (NOTES[3, phase] if condition > 1 else None)


EPOCHS, SHARE, DELTA = 10, 0.3, 0.02
METRICS = ("train_eval/accuracy", "val/accuracy", "train_eval/clean_accuracy", "train_eval/noisy_accuracy")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on runs of random logs, in which the steps of a monitor stand between the rows of the epochs."""
    folder, rng = tmp_path_factory.mktemp("logged"), np.random.default_rng(0)
    methods = {"SAM": None, "SAME 1": same(1), "SAME 3": same(3)}
    runs = [run_of(method, seed, sam=sam) for method, sam in methods.items() for seed in range(4)]
    for run in runs:
        place = folder / "runs" / run.name
        place.mkdir(parents=True)
        rows: list[dict[str, float]] = []
        for epoch in range(EPOCHS):
            rows += [{"step": 4 * epoch + i, "ckpt_fraction/ckpt1": rng.uniform(0.1, 0.4)} for i in (1, 3)]
            lift = 0.1 * (run.method == "SAME 1") + 0.01 * run.seed
            values = {name: 0.5 + lift + 0.01 * epoch + rng.normal(0, 0.02) for name in METRICS}
            losses = {"val/loss": 1 - 0.01 * epoch, "train_eval/loss": 0.9}
            rows.append({"step": 4 * epoch + 3, "epoch": epoch, **values, **losses})
        pd.DataFrame(rows).to_csv(place / "metrics.csv", index=False)
        test = {
            which: {"test/accuracy": rng.uniform(0.4, 0.9), "test/loss": rng.uniform(1, 2)}
            for which in ("last", "best")
        }
        outcome = {"test": test, "best_epoch": 3, "noise_rate": 0.4, "digest": run.digest}
        outcome["seconds_per_epoch"] = rng.uniform(1, 9)
        (place / MARKER).write_text(json.dumps(outcome))
    write_report(study_of(runs, early=SHARE, late=SHARE, delta=DELTA, claims="notes"), runs, folder)
    return folder


def raw(folder: Path) -> pd.DataFrame:
    """Every row of every log that ends an epoch."""
    frames = []
    for path in sorted(folder.glob("runs/*/metrics.csv")):
        method, seed = path.parent.name.rsplit("_", 1)
        frames.append(pd.read_csv(path).assign(variant=method.replace("-", " "), seed=int(seed)))
    return pd.concat(frames)


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "tables" / f"{name}.csv")


def phase_of(rows: pd.DataFrame, phase: str) -> pd.DataFrame:
    """With 10 epochs and a share of 0.3, those before the fourth, or those from the eighth on."""
    return rows[rows["epoch"] < 3] if phase == "early" else rows[rows["epoch"] >= 7]


def test_curves_are_those_of_the_logs(logged: Path) -> None:
    curves, rows = table(logged, "curves"), raw(logged)
    ends = rows.dropna(subset="epoch")
    for name in METRICS:
        expected = ends.set_index(["variant", "seed", "epoch"])[name].sort_index().to_numpy()
        found = curves.set_index(["variant", "seed", "epoch"])[name].sort_index().to_numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    within = rows[rows["epoch"].isna()].assign(epoch=lambda frame: frame["step"] // 4 + 1)
    expected = within.groupby(["variant", "seed", "epoch"])["ckpt_fraction/ckpt1"].mean().to_numpy()
    found = curves.set_index(["variant", "seed", "epoch"])["ckpt_fraction/ckpt1"].sort_index().to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_differences_and_intervals_are_students_over_the_seeds(logged: Path) -> None:
    """Each phase's mean of each run, the difference of equal seeds, and scipy's test of them."""
    claims, comparisons = table(logged, "claims"), table(logged, "comparisons")
    rows = raw(logged).dropna(subset="epoch")
    checked = 0
    for _, row in claims.iterrows():
        means = phase_of(rows, row["phase"]).groupby(["variant", "seed"])[list(METRICS)].mean()
        for name, metric in {"training": METRICS[0], "validation": METRICS[1]}.items():
            paired = (means.loc[row["variant"], metric] - means.loc["SAM", metric]).to_numpy()
            assert len(paired) == row["seeds"] == 4
            found = scipy.stats.ttest_1samp(paired, 0)
            low, high = found.confidence_interval(0.95)
            assert row[name] == pytest.approx(paired.mean())
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))
            narrow = found.confidence_interval(0.9)
            word = "greater" if low > 0 else "less" if high < 0 else "open"
            if word == "open" and narrow[0] > -DELTA and narrow[1] < DELTA:
                word = "similar"
            assert row[f"{name}_is"] == word
            checked += 1
    assert checked == 8
    for _, row in comparisons.iterrows():
        means = phase_of(rows, row["phase"]).groupby(["variant", "seed"])[list(METRICS)].mean()
        for name, metric in {"clean": METRICS[2], "memorised": METRICS[3]}.items():
            paired = (means.loc[row["variant"], metric] - means.loc["SAM", metric]).to_numpy()
            assert row[name] == pytest.approx(paired.mean())


def p_of(paired: np.ndarray, word: str) -> float:
    """Of the differences of four seeds, by scipy."""

    def one_sided(than: float, side: str) -> float:
        return float(scipy.stats.ttest_1samp(paired, than, alternative=side).pvalue)

    if word == "similar":
        return max(one_sided(-DELTA, "greater"), one_sided(DELTA, "less"))
    if word == "apart":
        return min(1.0, 2 * min(one_sided(DELTA, "greater"), one_sided(-DELTA, "less")))
    return min(1.0, 2 * one_sided(0, word))


def test_p_values_are_scipys_with_holms_correction(logged: Path) -> None:
    """A claim is confirmed by the weaker of two observations, or refuted by the stronger one of two contradictions."""
    tests, claims = table(logged, "tests"), table(logged, "claims")
    rows = raw(logged).dropna(subset="epoch")
    by_hand = []
    for _, row in claims.iterrows():
        means = phase_of(rows, row["phase"]).groupby(["variant", "seed"])[list(METRICS)].mean()
        confirming, contradicting = [], []
        for metric, word in zip(METRICS[:2], NOTES[int(row["variant"][-1]), row["phase"]], strict=True):
            paired = (means.loc[row["variant"], metric] - means.loc["SAM", metric]).to_numpy()
            confirming.append(p_of(paired, word))
            if word == "similar":
                contradicting.append(p_of(paired, "apart"))
            else:
                opposite = p_of(paired, "less" if word == "greater" else "greater")
                shown = p_of(paired, word) < 0.05
                contradicting.append(opposite if shown else min(opposite, p_of(paired, "similar")))
        confirmed, refuted = max(confirming), min(1.0, 2 * min(contradicting))
        by_hand.append(("confirmed", confirmed) if confirmed <= refuted else ("refuted", refuted))
    order = sorted(range(len(by_hand)), key=lambda i: by_hand[i][1])
    corrected, largest = {}, 0.0
    for rank, i in enumerate(order):
        corrected[i] = largest = max(largest, min(1.0, (len(order) - rank) * by_hand[i][1]))
    assert tests["claim_p"].tolist() == pytest.approx([corrected[i] for i in range(len(order))])
    expected = [outcome if corrected[i] < 0.05 else "open" for i, (outcome, _) in enumerate(by_hand)]
    assert claims["claim"].tolist() == expected
    assert {"confirmed", "refuted"} <= set(expected)


def test_final_values_and_their_summary_are_those_of_the_last_epoch(logged: Path) -> None:
    final, summary, times = table(logged, "final"), table(logged, "summary"), table(logged, "times")
    rows = raw(logged).dropna(subset="epoch")
    last = rows[rows["epoch"] == EPOCHS - 1].set_index(["variant", "seed"])
    outcomes = {path.parent.name: json.loads(path.read_text()) for path in logged.glob(f"runs/*/{MARKER}")}
    for _, row in final.iterrows():
        name, key = f"{row['variant'].replace(' ', '-')}_{row['seed']}", (row["variant"], row["seed"])
        for which in ("last", "best"):
            accuracy = outcomes[name]["test"][which]["test/accuracy"]
            assert row[f"{which}/test/accuracy"] == pytest.approx(accuracy, rel=1e-14)  # as older pandas reads it
        assert row["val/accuracy"] == pytest.approx(last.loc[key, "val/accuracy"])
        assert row["gap"] == pytest.approx(last.loc[key, "train_eval/accuracy"] - last.loc[key, "val/accuracy"])
    for _, row in summary.iterrows():
        own = final[final["variant"] == row["variant"]]["val/accuracy"]
        mean, std = own.sum() / 4, math.sqrt(((own - own.mean()) ** 2).sum() / 3)
        assert (row["val/accuracy/mean"], row["val/accuracy/std"]) == pytest.approx((mean, std))
    for _, row in times.iterrows():
        own = [outcomes[f"{row['variant'].replace(' ', '-')}_{seed}"]["seconds_per_epoch"] for seed in range(4)]
        assert row["seconds_per_epoch"] == pytest.approx(np.median(own))
