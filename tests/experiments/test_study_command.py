"""What the command says and in which order it begins runs; nothing trains."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.ray_jobs import leave
from support.studies import write_study

from lightning_same.experiments.study import main
from lightning_same.experiments.study.executors.events import Event
from lightning_same.experiments.study.executors.processes import Processes
from lightning_same.experiments.study.plan import RUNS, Run, Study
from lightning_same.experiments.study.run import disk_is_full, why

BEGUN: list[str] = []


class Begins(Processes):
    """Keeps the names of the runs, and performs none."""

    def run_all(self, runs: Sequence[Run], directory: Path, threads: int, stopped: Any = None) -> Iterator[Event]:  # type: ignore[override]
        BEGUN.extend(run.name for run in runs)
        yield from ()


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    BEGUN.clear()
    monkeypatch.setattr("lightning_same.experiments.study.command.check_runs", lambda study: None)
    monkeypatch.setattr("lightning_same.experiments.study.command.Processes", Begins)


def test_runs_are_begun_seed_by_seed(study: str, tmp_path: Path) -> None:
    """So that a report on a part of them has all methods."""
    main(["--config", study, "--results", str(tmp_path / "results")])
    assert BEGUN == ["SAM_seed=0", "SAME-1_seed=0", "SAM_seed=1", "SAME-1_seed=1"]


def test_a_dry_run_lists_what_is_done_and_what_is_left(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Study.read(Path(study)).runs[1]
    leave(done, tmp_path / "results" / RUNS)
    main(["--config", study, "--results", str(tmp_path / "results"), "--dry-run"])
    lines = ["left  SAM_seed=0", "done  SAM_seed=1", "left  SAME-1_seed=0", "left  SAME-1_seed=1", "4 runs"]
    assert capsys.readouterr().out.splitlines() == lines
    assert done.name == "SAM_seed=1"
    assert BEGUN == []


def test_results_go_to_a_folder_of_the_studys_name_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_study(tmp_path / "configs", name="my: study", seeds=[3])
    main(["--config", config, "--print-commands"])
    assert (tmp_path / "runs" / "my- study" / "study.json").is_file()
    (first, _) = capsys.readouterr().out.splitlines()
    assert first == f"lightning-same study --config {config} --results 'runs/my- study' --run SAM_seed=3"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_from_other_failures_also_behind_another_error(number: int, tmp_path: Path) -> None:
    def raised(full: bool, cause: bool) -> Exception:
        try:
            try:
                raise OSError(number if full else errno.EACCES, "told")
            except OSError as error:
                if cause:
                    raise RuntimeError("torch's writer") from error
                raise RuntimeError("torch's writer")  # noqa: B904
        except RuntimeError as error:
            return error

    for cause in True, False:
        assert disk_is_full(raised(full=True, cause=cause), tmp_path)
        assert why(raised(full=True, cause=cause), tmp_path)[0] == "full"
        assert why(raised(full=False, cause=cause), tmp_path) == ("failed", "RuntimeError: torch's writer")
