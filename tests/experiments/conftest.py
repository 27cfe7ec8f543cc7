"""A study, its results by the command as it is, and that command in a process that can be killed."""

from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from support.fresh import fresh_processes
from support.studies import begin, write_study

from lightning_same.experiments.study import main


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def undisturbed(study: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the study, by the command as it is."""
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    main(["--config", study, "--results", str(results)])
    return results


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Start the command in a process that can be killed."""
    context = fresh_processes()
    started = []

    def begun(results: Path, *arguments: str, target: Callable[..., None] = begin) -> BaseProcess:
        process = context.Process(target=target, args=([*arguments, "--results", str(results)], f"{results}.log"))
        process.start()
        started.append(process)
        return process

    yield begun
    for process in started:
        process.kill()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are written without being drawn, which is most of the work of a report: for tests that look at none."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(b"<svg/>"))
