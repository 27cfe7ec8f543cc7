"""Attacks on study files and on folders of results."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
from hypothesis import strategies as st

from attacks.values import BYTES, FILES, VALUES, Silent, as_text, damage_file, damaged, edited, places
from lightning_same.experiments.study import main as study
from lightning_same.experiments.study.check import check_directory
from lightning_same.experiments.study.identity import checksum
from lightning_same.experiments.study.outcome import check, state
from lightning_same.experiments.study.plan import Study
from lightning_same.experiments.study.reading import dump_yaml
from lightning_same.experiments.study.results import read_results

BASE = {
    "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 2},
    "model": {
        "class_path": "lightning_same.experiments.ImageClassifier",
        "init_args": {
            "num_classes": 10,
            "model": {
                "class_path": "lightning_same.experiments.SmallCNN",
                "init_args": {"num_classes": 10, "width": 2},
            },
        },
    },
    "data": {"class_path": "lightning_same.experiments.DigitsData", "init_args": {"fake": True, "batch_size": 20}},
}
STUDY = {
    "name": "tiny",
    "description": "Random images.",
    "base": "base.yaml",
    "options": {"data.init_args.train_eval": True, "trainer.log_every_n_steps": 2},
    "seeds": [0, 1],
    "methods": {
        "SGD": {"sam": None, "sweep": {"sam.init_args.rho": None}},
        "SAM": {"sam": {"class_path": "SAM"}},
        "SAME 1": {
            "sam": {"class_path": "SAME", "init_args": {"ckpt": 1}},
            "sweep": {"sam.init_args.condition": [0.5, 2.0]},
        },
    },
    "sweep": {"sam.init_args.rho": [0.1, 0.2]},
    "reference": "SAM",
    "early": 0.25,
    "late": 0.25,
    "threads": 1,
    "delta": 0.02,
    "claims": {"SAME 1": {"early": ["less", "similar"]}},
}


PLACES = [place for place in places(STUDY) if place]
EDITS = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "set", "key", "drop", "copy"]), VALUES),
    min_size=0,
    max_size=3,
)


@st.composite
def study_files(draw: st.DrawFn) -> bytes:
    how = draw(st.sampled_from(["edit", "edit", "edit", "bytes", "lines"]))
    text = as_text(edited(STUDY, draw(EDITS))).encode("utf-8", "surrogatepass")
    if how == "bytes":
        return damaged(text, draw(BYTES))
    if how == "lines":
        lines = text.splitlines(keepends=True)
        for _ in range(draw(st.integers(1, 3))):
            at, to = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
            lines.insert(
                to, draw(st.sampled_from([lines[at], b"  " + lines[at], b"<<: *a\n", b"a: &a {b: 1}\n", b"\t\n"]))
            )
        return b"".join(lines)
    return text


def as_fit_reads(text: str) -> Any:
    """A reading of our own: the parser's own loader."""
    return jsonargparse._loaders_dumpers.yaml_load(text)


def attack_study_file(content: bytes, folder: Path) -> None:
    """Read it; what comes out must be what `fit` reads there, nothing lost, added or changed."""
    (folder / "base.yaml").write_text(as_text(BASE))
    path = folder / "study.yaml"
    path.write_bytes(content)
    made = Study.read(path)
    file = as_fit_reads(content.decode())
    again = folder / "study.json"
    again.write_text(made.dump(), encoding="utf-8")
    loaded = Study.load(again)
    if [run.digest for run in loaded.runs] != [run.digest for run in made.runs] or loaded.extends(made):
        raise Silent("the plan is read as another one")
    seeds = file["seeds"] if isinstance(file["seeds"], list) else list(range(file["seeds"]))
    seen: dict[str, int] = {}
    for run in made.runs:
        seen[run.variant] = seen.get(run.variant, 0) + 1
        given = {**(file.get("options") or {})}
        method = file["methods"][run.method] or {}
        given |= {key: value for key, value in method.items() if key != "sweep"}
        for key, value in given.items():
            swept = [name for name in run.settings if name == key or name.startswith(f"{key}.")]
            inner = [name for name in given if name.startswith(f"{key}.")]
            over = [
                name
                for name, other in method.items()
                if key.startswith(f"{name}.") and name != "sweep" and other is None
            ]
            if not swept and not inner and not over and repr(at(run.config, key)) != repr(value):
                raise Silent(f"{key} of {run.name} is {at(run.config, key)!r}, the file says {value!r}")
        for key, value in run.settings.items():
            if repr(at(run.config, key)) != repr(value):
                raise Silent(f"{key} of {run.name} is {at(run.config, key)!r}, its variant says {value!r}")
        if repr(as_fit_reads(dump_yaml(run.config))) != repr(run.config):
            raise Silent(f"the fit of {run.name} gets another configuration")
    if set(seen.values()) != {len(seeds)} or {run.method for run in made.runs} != set(file["methods"]):
        raise Silent(f"runs are missing or pooled: {seen}")


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def attack_dry_run(content: bytes, folder: Path) -> None:
    (folder / "base.yaml").write_text(as_text(BASE))
    (folder / "study.yaml").write_bytes(content)
    mine = folder / "results" / "mine.txt"
    study(["--config", str(folder / "study.yaml"), "--results", str(folder / "results"), "--dry-run"])
    if mine.parent.exists():
        raise Silent("a dry run has written something")


METRICS = "epoch,step,train/loss,val/accuracy,val/loss\n" + "".join(
    f"{n},{n},{1 / (n + 1)},0.5,1.0\n" for n in range(4)
)
NAMES = [
    "study.json",
    "runs/{}/done.json",
    "runs/{}/metrics.csv",
    "runs/{}/fit.yaml",
    "runs/{}",
    "report.md",
    ".report.json",
]


def write_results(folder: Path, place: Path) -> tuple[str, Study]:
    """A finished study without a training."""
    place.mkdir(parents=True)
    (folder / "base.yaml").write_text(as_text(BASE))
    (folder / "study.yaml").write_text(as_text({**STUDY, "seeds": 2}))
    made = Study.read(folder / "study.yaml")
    (place / "study.json").write_text(made.dump())
    for run in made.runs:
        where = place / "runs" / run.name
        where.mkdir(parents=True)
        (where / "metrics.csv").write_text(METRICS)
        (where / "fit.yaml").write_text(dump_yaml(run.config))
        said = {"digest": run.digest, "test": {"last": {"test/accuracy": 0.5}}, "best_epoch": 1, "noise_rate": 0.4}
        said |= {"seconds_per_epoch": 0.1, "device": "cpu", "threads": 1, "versions": {"torch": "2"}}
        said |= {"files": {"metrics.csv": checksum(METRICS)}}
        (where / "done.json").write_text(json.dumps(said | {"check": check(said)}))
    return str(folder / "study.yaml"), made


@st.composite
def results_damage(draw: st.DrawFn) -> list[Any]:
    damages = []
    for _ in range(draw(st.integers(1, 3))):
        name, number = draw(st.sampled_from(NAMES)), draw(st.integers(0, 5))
        how = draw(st.sampled_from(["file", "json"])) if name.endswith("json") else "file"
        damages.append((name, number, how, draw(FILES if how == "file" else st.tuples(st.integers(0, 40), VALUES))))
    return damages


def attack_results(whole: Path, config: str, made: Study, report: bool) -> Callable[[list[Any], Path], None]:
    def target(damages: list[Any], folder: Path) -> None:
        place = folder / "results"
        shutil.copytree(whole, place)
        for mine in "notes.txt", "tables/mine.csv", "figures/mine.svg", "runs/mine.txt":
            (place / mine).parent.mkdir(exist_ok=True)
            (place / mine).write_text("mine")
        for name, number, how, what in damages:
            path = place / name.format(made.runs[number % len(made.runs)].name)
            if how == "file":
                if path.parent.is_dir():
                    damage_file(path, what)
            elif path.is_file() and not path.is_symlink():
                try:
                    content = json.loads(path.read_text())
                    spots = [spot for spot in places(content) if spot][:60]
                    if spots:
                        content = edited(content, [(spots[what[0] % len(spots)], "set", what[1])])
                    path.write_text(json.dumps(content))
                except (ValueError, TypeError, OSError):
                    path.write_text("{")
        try:
            if report:
                study(["report", str(place)])
            else:
                again = Study.read(Path(config))
                check_directory(again, place)
                done = [run for run in again.runs if state(run, place / "runs").kind == "done"]
                for run in done:
                    same(place / "runs" / run.name, whole / "runs" / run.name)
                if done:
                    read_results(done, place / "runs")
        finally:
            for mine in "notes.txt", "tables/mine.csv", "figures/mine.svg", "runs/mine.txt":
                if not (place / mine).is_file():
                    raise Silent(f"{mine} is gone")

    return target


def same(place: Path, whole: Path) -> None:
    """What counts as finished must be as it was."""
    for name in "metrics.csv", "done.json":
        there, here = (place / name).read_bytes(), (whole / name).read_bytes()
        if there != here and not (name == "done.json" and json.loads(there) == json.loads(here)):
            raise Silent(f"{name} of {place.name} was changed, and the run counts as finished")
