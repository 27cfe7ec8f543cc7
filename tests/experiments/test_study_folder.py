"""A study's folder: what is damaged in it is told, what is the user's stays, and it can be moved and partly removed."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.studies import MARKER, content, markers, said, wait_for, write_study

from lightning_same.experiments.study import main
from lightning_same.experiments.study.outcome import check
from lightning_same.experiments.study.plan import Study, StudyError
from lightning_same.experiments.study.run import finished, perform

RUN = "runs/SAM_seed=1"


@pytest.fixture
def results(undisturbed: Path, tmp_path: Path) -> Path:
    """Results that may be damaged."""
    return Path(shutil.copytree(undisturbed, tmp_path / "moved" / "results"))


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of the command, and its lines on the error stream."""
    code = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, said


def in_report(results: Path) -> set[str]:
    return set(pd.read_csv(results / "tables" / "curves.csv")["run"])


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rows_cut(path: Path) -> None:
    """At the end of a row: what is left is a whole file."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def a_pipe(path: Path) -> None:
    """Reading it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def huge(path: Path) -> None:
    os.truncate(path, 2**40)


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00{")


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def another_value(path: Path) -> None:
    path.write_text(path.read_text().replace("0.", "1.", 1))


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


def without_a_key(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["test" if path.name == MARKER else "runs"]
    path.write_text(json.dumps(content))


DAMAGES = [cut, emptied, a_folder, a_broken_link, not_text, a_pipe, huge, nested, another_value, a_list, without_a_key]


DAMAGED = [*((MARKER, damage) for damage in DAMAGES), *(("metrics.csv", damage) for damage in (*DAMAGES[:7], rows_cut))]
AT_ONCE = 3
"""A report on four runs takes two seconds: three are damaged, each in a way of its own, and one stays as it is."""


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damaged", [DAMAGED[start : start + AT_ONCE] for start in range(0, len(DAMAGED), AT_ONCE)])
def test_a_finished_run_that_is_damaged_is_told_and_left_out(
    damaged: list[tuple[str, Callable[[Path], None]]], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A metrics.csv that had lost its last rows was taken as whole; most others ended in a traceback."""
    runs = ["SAM_seed=0", "SAME-1_seed=0", "SAM_seed=1", "SAME-1_seed=1"]
    names = dict(zip(runs, damaged, strict=False))
    for run, (name, damage) in names.items():
        damage(results / "runs" / run / name)
    code, said = ended(capsys, "report", str(results))
    assert code == 0
    for run, (name, _) in names.items():
        assert f"Run {run} is not in the report: {name}" in said
    assert in_report(results) == set(runs) - names.keys()
    (listed,) = re.findall("Not finished, and not in what follows: (.*?)[.]", (results / "report.md").read_text())
    assert set(listed.split(", ")) == {f"`{run}`" for run in names}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_one_line_and_written_anew_from_the_studys_file(
    damage: Callable[[Path], None], study: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (results / "study.json").read_bytes()
    damage(results / "study.json")
    code, said = ended(capsys, "report", str(results))
    assert code == 2
    assert len(said.splitlines()) == 1
    assert "--config FILE --results DIR" in said
    if damage not in (a_folder, huge):
        assert ended(capsys, "--config", study, "--results", str(results), "--print-commands")[0] == 0
        assert (results / "study.json").read_bytes() == whole


def test_a_damaged_run_is_trained_anew_and_nothing_of_the_users_is_lost(
    study: str, undisturbed: Path, results: Path, start: Callable[..., BaseProcess]
) -> None:
    rows_cut(results / RUN / "metrics.csv")
    (results / RUN / "notes.txt").write_text("mine")
    process = start(results, "--config", study)
    process.join()
    assert process.exitcode == 0, said(results)
    assert "Run 'SAM_seed=1' does not count as finished: metrics.csv is not as it was" in said(results)
    aside = results / f"{RUN}.aside-1"
    assert (aside / "notes.txt").read_text() == "mine"
    shutil.rmtree(aside)
    assert content(results) == content(undisturbed)


def test_a_finished_run_of_another_configuration_is_never_removed(results: Path) -> None:
    study = Study.load(results / "study.json")
    run = study.runs[0]
    run.config["seed_everything"] = 99
    before = (results / "runs" / run.name / MARKER).read_bytes()
    perform(run, results / "runs")
    assert finished(run, results / "runs")
    assert (results / "runs" / f"{run.name}.aside-1" / MARKER).read_bytes() == before


# What is known of the runs


def changed(path: Path, **changes: Any) -> None:
    outcome = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**outcome, "check": check(outcome)}))


def test_done_json_says_where_and_with_what_the_run_was_trained(undisturbed: Path) -> None:
    outcome = json.loads((undisturbed / RUN / MARKER).read_text())
    assert outcome["threads"] == 1
    assert outcome["device"].startswith("cpu (")
    assert {"lightning-same", "lightning", "torch", "numpy", "python"} <= set(outcome["versions"])
    assert len(outcome["commit"] or "0" * 40) >= 40
    assert "The runs differ in" not in (undisturbed / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 8}, "The runs differ in threads: 1 (3), 8 (1)."),
        ({"device": "cuda (H100)"}, "The runs differ in device: cpu ("),
        ({"commit": "abc"}, "The runs differ in commit: "),
        ({"versions": {"torch": "0.4"}}, "The runs differ in version of torch: "),
    ],
)
def test_a_report_that_mixes_says_so(
    changes: dict[str, Any], said: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(results / RUN / MARKER, **changes)
    assert ended(capsys, "report", str(results))[0] == 0
    assert said in (results / "report.md").read_text()
    assert in_report(results) == {path.name for path in (results / "runs").iterdir() if path.is_dir()}


def without_checksums(results: Path) -> None:
    """As an earlier version has left them."""
    for path in results.glob(f"runs/*/{MARKER}"):
        outcome = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in outcome.items() if key not in ("files", "check")}))


@pytest.mark.usefixtures("undrawn")
def test_runs_without_checksums_are_told(study: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_checksums(results)
    assert ended(capsys, "report", str(results))[0] == 0
    text = (results / "report.md").read_text()
    assert "4 of 4 runs were ended by an earlier version, which kept no checksum" in text
    assert "Cut off or stopped early" not in text
    assert ended(capsys, "--config", study, "--results", str(results), "--dry-run")[0] == 0


@pytest.mark.usefixtures("undrawn")
def test_runs_without_checksums_that_are_short_are_told(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_checksums(results)
    metrics = results / RUN / "metrics.csv"
    rows = pd.read_csv(metrics)
    rows[rows["epoch"] < 2].to_csv(metrics, index=False)
    assert ended(capsys, "report", str(results))[0] == 0
    assert "Cut off or stopped early: SAM_seed=1 has 2 of 3 epochs." in (results / "report.md").read_text()
    metrics.write_bytes(metrics.read_bytes()[:-5])
    assert "metrics.csv ends in the middle of a row" in ended(capsys, "report", str(results))[1]


def test_the_digest_of_an_earlier_version_is_known(results: Path, tmp_path: Path) -> None:
    """There the order of a mapping did not count, and the keys of all were texts."""
    study = Study.load(results / "study.json")
    config = {**study.runs[0].config, "model": {"class_path": "Net", "init_args": {"x": {"b": 1, "a": 2}}}}
    run = dataclasses.replace(study.runs[0], config=config)
    path = results / "runs" / run.name / MARKER
    without_checksums(results)
    old = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    assert old != run.digest
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": old}))
    assert finished(run, results / "runs")
    numbered = dataclasses.replace(run, config={**config, "model": {"x": {1: 2}}})
    old = hashlib.sha256(json.dumps(numbered.config, sort_keys=True).encode()).hexdigest()[:16]
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": old}))
    assert not finished(numbered, results / "runs")


# The user's own files


def test_a_report_removes_nothing_but_what_a_report_has_written(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of the same kind in tables/ and figures/ were deleted."""
    mine = [results / name for name in ("tables/mine.csv", "figures/mine.svg", "mine.csv", "tables/report.md")]
    for path in mine:
        path.write_text("mine")
    edited = results / "figures" / "fractions-1.svg"
    edited.write_text("edited")
    for path in (results / "runs").glob("SAME-1*"):
        shutil.rmtree(path)
    before = {path.name for path in (results / "figures").iterdir()}
    assert ended(capsys, "report", str(results))[0] == 0
    assert [path.read_text() for path in mine] == ["mine"] * 4
    assert edited.read_text() == "edited"
    shutil.rmtree(results / "runs" / "SAM_seed=1")
    (results / "figures" / "fractions-0.svg").unlink()
    assert ended(capsys, "report", str(results))[0] == 0
    assert {path.name for path in (results / "figures").iterdir()} == before


def test_figures_of_the_last_report_go_when_the_next_has_none(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (results / "figures" / "fractions-1.svg").exists()
    for path in (results / "runs").glob("SAME-1*"):
        shutil.rmtree(path)
    assert ended(capsys, "report", str(results))[0] == 0
    assert not (results / "figures" / "fractions-1.svg").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "list_of_files", ["{", "[]", '{"../../mine.csv": "x", "mine.csv": "x", "tables/../mine.csv": 3}']
)
def test_an_odd_list_of_files_removes_nothing(
    list_of_files: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "mine.csv").write_text("mine")
    (results / ".report.json").write_text(list_of_files)
    assert ended(capsys, "report", str(results))[0] == 0
    assert (results / "mine.csv").read_text() == "mine"


def performed(tmp_path: Path, *callbacks: str) -> Path:
    """The directory of a run with these callbacks."""
    made = [{"class_path": name} for name in callbacks]
    config = write_study(tmp_path, methods={"SAM": {"sam": None, "trainer.callbacks": made}}, seeds=1)
    (run,) = Study.read(Path(config)).runs
    for _ in range(2):
        perform(run, tmp_path / "results" / "runs")
    assert finished(run, tmp_path / "results" / "runs")
    return tmp_path / "results" / "runs" / run.name


def test_a_run_whose_checkpoints_lie_beside_its_metrics_is_kept(tmp_path: Path) -> None:
    """All of it was deleted at its end."""
    place = performed(tmp_path, "support.studies.CheckpointsHere")
    assert {path.suffix for path in place.iterdir()} >= {".ckpt", ".csv", ".json"}


def test_files_of_the_users_callbacks_stay(tmp_path: Path) -> None:
    place = performed(tmp_path, "support.studies.Notes", "ModelCheckpoint")
    assert (place / "notes.txt").read_text() == "mine"
    assert not list(place.rglob("*.ckpt"))
    assert not (place / "checkpoints").exists()


def test_a_fit_that_logs_nothing_fails_at_once(tmp_path: Path) -> None:
    config = write_study(tmp_path, methods={"SAM": {"sam": None, "trainer.limit_train_batches": 0}}, seeds=1)
    (run,) = Study.read(Path(config)).runs
    with pytest.raises(StudyError, match="The fit has logged no metric, so nothing can be compared"):
        perform(run, tmp_path / "results" / "runs")


# Moved, removed


@pytest.mark.usefixtures("undrawn")
def test_results_removed_while_the_study_runs_are_not_stranded(
    study: str, start: Callable[..., BaseProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan was gone, and the runs that came after counted as those of no study."""
    results = tmp_path / "results"
    process = start(results, "--config", study)
    wait_for(lambda: len(markers(results)) >= 1, process)
    os.rename(results, tmp_path / "removed")
    process.join()
    assert "Traceback" not in said(results)
    assert (results / "study.json").exists()
    assert ended(capsys, "report", str(results))[0] == 0
    process = start(results, "--config", study)
    process.join()
    assert process.exitcode == 0
    assert len(markers(results)) == 4


def test_a_folder_without_its_plan_goes_on(
    study: str, undisturbed: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "study.json").unlink()
    code, said = ended(capsys, "report", str(results))
    assert code == 2
    assert "holds no study: there is no study.json in it" in said
    code, said = ended(capsys, "--config", study, "--results", str(results))
    assert code == 0
    assert said.endswith(f"4 of 4 runs are finished. Report: {results / 'report.html'}\n")
    assert content(results) == content(undisturbed)


def test_another_studys_runs_without_a_plan_are_refused(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "study.json").unlink()
    before = content(results)
    for changes, why in (
        ({"options": {"trainer.max_epochs": 9}}, "holds the results of another study: run 'SAM_seed=0' has another"),
        ({"seeds": 1}, "is not empty and holds no study, but 'runs/SAM"),
        ({"methods": {"SAM": {"sam": None}}}, "is not empty and holds no study, but 'runs/SAME-1_seed=0'"),
    ):
        code, said = ended(capsys, "--config", write_study(tmp_path / "other", **changes), "--results", str(results))
        assert code == 2
        assert why in said
    assert content(results) == before


def test_folders_of_common_names_are_not_taken_for_a_studys(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "runs", "figures":
        (tmp_path / "paper" / name).mkdir(parents=True)
    (tmp_path / "paper" / "figures" / "one.svg").write_text("mine")
    code, said = ended(capsys, "--config", study, "--results", str(tmp_path / "paper"))
    assert (code, "is not empty and holds no study, but 'figures'" in said) == (2, True)


def test_a_fit_may_have_written_there_before(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "version_0").mkdir(parents=True)
    words = ["--config", study, "--results", str(tmp_path / "runs"), "--dry-run"]
    assert ended(capsys, *words)[0] == 0
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    code, said = ended(capsys, *words)
    assert (code, "is not empty and holds no study, but 'notes.txt'" in said) == (2, True)
