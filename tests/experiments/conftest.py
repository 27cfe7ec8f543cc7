"""A study, and its results by the command as it is."""

from pathlib import Path

import pytest
from support.studies import write_study

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
