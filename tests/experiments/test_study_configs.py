"""The studies that are shipped, and how a study's options become runs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.studies import write_study

from lightning_same.experiments.study.check import check_runs
from lightning_same.experiments.study.plan import Run, Study, set_option

SHIPPED = sorted((ROOT / "configs" / "studies").rglob("*.yaml"))


def methods(study: Study) -> list[Run]:
    """One run of each method, on fake data."""
    runs = list({run.method: run for run in study.runs}.values())
    for run in runs:
        set_option(run.config, "data.init_args.fake", True)
    return runs


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_studies_can_be_read(path: Path) -> None:
    study = Study.read(path)
    assert study.description
    for run in study.runs:
        assert run.config["data"]["init_args"]["train_eval"] is True
        assert run.config["seed_everything"] == run.config["data"]["init_args"]["noise_seed"] == run.seed
    assert len({run.seed for run in study.runs}) >= 3


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.stem in ("digits", "step_length")], ids=lambda path: str(path.parent.name)
)
def test_the_methods_of_shipped_studies_can_be_built(path: Path) -> None:
    study = Study.read(path)
    check_runs(dataclasses.replace(study, runs=methods(study)))


def test_every_study_of_the_lineage_comes_in_three_sizes() -> None:
    folders = {path.parent.name: set() for path in SHIPPED if path.parent.name != "studies"}  # type: dict[str, set[str]]
    for path in SHIPPED:
        if path.parent.name in folders:
            folders[path.parent.name].add(path.stem)
    assert len(folders) == 6
    assert all(sizes >= {"digits", "fashion_mnist", "cifar100"} for sizes in folders.values())


def configs(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {run.name: run.config for run in Study.read(Path(write_study(tmp_path, **changes))).runs}


def test_sweeps_are_multiplied_and_a_method_may_leave_one_out(tmp_path: Path) -> None:
    sam = {"class_path": "SAM"}
    found = configs(
        tmp_path,
        seeds=[3],
        sweep={"sam.init_args.rho": [0.1, 0.2], "model.init_args.lr": [1.0]},
        methods={
            "SGD": {"sam": None, "sweep": {"sam.init_args.rho": None}},
            "SAM": {"sam": sam, "sweep": {"trainer.max_epochs": [5, 6]}},
        },
    )
    assert set(found) == {
        "SGD_lr=1.0_seed=3",
        *(f"SAM_rho={rho}_lr=1.0_max_epochs={n}_seed=3" for rho in (0.1, 0.2) for n in (5, 6)),
    }
    assert found["SGD_lr=1.0_seed=3"]["sam"] is None
    one = found["SAM_rho=0.2_lr=1.0_max_epochs=6_seed=3"]
    assert one["sam"] == {"class_path": "SAM", "init_args": {"rho": 0.2}}
    assert one["trainer"]["max_epochs"] == 6
    assert one["model"]["init_args"]["lr"] == 1.0


def test_an_option_of_a_method_wins_over_one_of_the_study(tmp_path: Path) -> None:
    found = configs(
        tmp_path,
        seeds=1,
        options={"trainer.max_epochs": 7, "data.init_args.noise_rate": 0.1},
        methods={"SAM": {"sam": None}, "longer": {"sam": None, "trainer.max_epochs": 9}},
    )
    assert [config["trainer"]["max_epochs"] for config in found.values()] == [7, 9]
    assert {config["data"]["init_args"]["noise_rate"] for config in found.values()} == {0.1}


def test_what_a_seed_sets_can_be_chosen(tmp_path: Path) -> None:
    found = configs(tmp_path, seeds=2, seed_options=["seed_everything", "data.init_args.split_seed"])
    one = found["SAM_seed=1"]
    assert one["seed_everything"] == one["data"]["init_args"]["split_seed"] == 1
    assert "noise_seed" not in one["data"]["init_args"]


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    study = Study.read(Path(write_study(tmp_path)))
    (tmp_path / "study.json").write_text(study.dump())
    assert Study.load(tmp_path / "study.json") == study
