"""A study that makes no sense is refused before its first run."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.studies import content, write_study

from lightning_same.experiments import DigitsData
from lightning_same.experiments.images import Images
from lightning_same.experiments.study import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"X": {"sam": {"class_path": "SAMM"}}}, "reference": "X"}, "no rule 'SAMM'. Did you mean SAM?"),
        (
            {"methods": {"SAM": {"sam": {"class_path": "SAM", "init_args": {"radius": 1}}}}},
            "SAM has no argument 'radius'. Its arguments: rho",
        ),
        ({"options": {"data.init_args.noise_rate": 1.0}}, "`noise_rate` must be from 0 to below 1, got 1.0"),
        ({"options": {"data.init_args.noise_rate": -0.2}}, "`noise_rate` must be from 0 to below 1, got -0.2"),
        ({"sweep": {"data.init_args.noise_rate": [0.2, 1.5]}}, "`noise_rate` must be from 0 to below 1, got 1.5"),
        ({"options": {"data.init_args.noise": "symetric"}}, "symetric"),
        ({"reference": "SGD"}, "`reference` must be one of the methods (SAM, SAME 1), got 'SGD'"),
        ({"seeds": 0}, "`seeds` must be a number of seeds or a list of different ones, got 0"),
        ({"seeds": [1, 1]}, "`seeds` must be a number of seeds or a list of different ones, got [1, 1]"),
        ({"sweeps": {}}, "no option `sweeps`. Did you mean `sweep`?"),
        ({"methods": {"SAM": "SAM"}}, "method 'SAM' must have options, such as `sam: {class_path: SAM}`, got 'SAM'"),
        ({"options": ["x"]}, "`options` must be a mapping of full names to values, got ['x']"),
        ({"early": 0.7}, "`early` must be a share above 0, at most 0.5, got 0.7"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml cannot be read: No such file or directory"),
        ({"methods": {}}, "`methods` must name one method or more"),
        ({"methods": {"SAM": None, "S?M": None, "S!M": None}}, "two runs would have the name 'S-M_seed=0'"),
        (
            {
                "options": {
                    "data.class_path": "lightning_same.experiments.CIFAR10Data",
                    "data.init_args": {"noise": "file", "label_file": "x.pt", "data_dir": "/dev/null/x"},
                }
            },
            "the data set is not in '/dev/null/x' and could not be downloaded",
        ),
    ],
)
def test_bad_input_is_refused_before_the_first_run(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_study(tmp_path, **changes)
    assert message in refused(capsys, "--config", config, "--results", str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_the_results_of_another_study_are_refused(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(undisturbed)
    for changes, why in (
        ({"name": "other"}, "that is the study 'tiny', this one is 'other'"),
        ({"options": {"trainer.max_epochs": 9}}, "in run 'SAM_seed=0', trainer.max_epochs is 3 there and 9 here"),
        ({"seeds": 1}, "it has a run 'SAM_seed=1' that this one has not"),
    ):
        message = refused(capsys, "--config", write_study(tmp_path, **changes), "--results", str(undisturbed))
        assert "holds the results of another study" in message
        assert why in message
    assert content(undisturbed) == before
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".study.json.7.part").write_text("{")
    main(["--config", write_study(tmp_path), "--results", str(tmp_path / "killed"), "--dry-run"])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    message = refused(capsys, "--config", write_study(tmp_path), "--results", str(tmp_path / "photos"))
    assert "is not empty and holds no study" in message
    assert "holds no study" in refused(capsys, "report", str(tmp_path / "photos"))


def test_two_commands_do_not_share_a_directory(
    study: str, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(undisturbed / ".lock"):
        message = refused(capsys, "--config", study, "--results", str(undisturbed))
    assert "Another command is running the study" in message


def test_a_run_is_trained_by_one_process_at_a_time(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_same.experiments.study.run.PATIENCE", 0)
    main(["--config", study, "--results", str(tmp_path / "fresh"), "--print-commands"])
    runs = tmp_path / "fresh" / "runs"
    runs.mkdir()
    with FileLock(runs / ".SAM_seed=0.lock"):
        message = refused(capsys, "--config", study, "--results", str(tmp_path / "fresh"), "--run", "SAM_seed=0")
    assert "Run 'SAM_seed=0' is being trained by another process" in message


def test_a_run_that_is_not_there_is_named(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--config", study, "--results", str(tmp_path / "r"), "--run", "SGD_seed=0")
    assert "There is no run 'SGD_seed=0' in this study. Did you mean SAM_seed=0? Its runs: SAM_seed=0, " in message


def test_a_nearly_full_disk_is_refused(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "Only 1.0 MiB are free" in refused(capsys, "--config", study, "--results", str(tmp_path / "r"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the study: --config"),
        (["report"], "`report` needs the results directory"),
        (["--config", "x.yaml", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--config", "x.yaml", "--jobs", "257"], "--jobs must be at most 256, got 257"),
        (["--config", "nowhere.yaml"], "there is no file nowhere.yaml"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments)


def test_test_images_that_cannot_be_read_are_told_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not asked for until the fit is over. And what is logged after the check is shown as before."""
    whole = DigitsData.read

    def read(self: DigitsData, train: bool) -> Images:
        if train:
            return whole(self, train)
        raise ValueError("there is only half of them")

    monkeypatch.setattr(DigitsData, "read", read)
    config = write_study(tmp_path, options={"data.init_args.fake": False})
    message = refused(capsys, "--config", config, "--results", str(tmp_path / "results"), "--dry-run")
    assert "DigitsData: the test images cannot be used: there is only half of them" in message
    assert logging.getLogger("mine").isEnabledFor(logging.WARNING)


def test_what_is_wrong_for_all_is_blamed_on_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_study(tmp_path, options={"data.init_args.noise_rate": 1.0})
    message = refused(capsys, "--config", config, "--dry-run")
    assert message.startswith(f"lightning-same study: {config}: Every method: ")
    methods = {"SAM": {"sam": {"class_path": "SAM"}}, "X": {"sam": {"class_path": "SAMM"}}}
    config = write_study(tmp_path, methods=methods)
    assert "Method 'X': --sam: there is no rule 'SAMM'" in refused(capsys, "--config", config, "--dry-run")
