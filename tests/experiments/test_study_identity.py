"""What a study makes of its file is what stands there; and no two methods or settings are taken for one."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.studies import write_study

from lightning_same.experiments.study import main
from lightning_same.experiments.study.identity import decode, digest, encode, short_names
from lightning_same.experiments.study.plan import Run, Study, StudyError
from lightning_same.experiments.study.reading import dump_yaml, read_yaml
from lightning_same.experiments.study.run import fit_config


def as_fit_reads(text: str) -> Any:
    """What ``lightning-same fit`` makes of a configuration, by its own reader."""
    from jsonargparse import get_loader

    return get_loader("yaml")(text)


def read(folder: Path, **changes: Any) -> Study:
    return Study.read(Path(write_study(folder, **changes)))


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(StudyError) as error:
        read(folder, **changes)
    return str(error.value)


SAM: dict[str, Any] = {"sam": {"class_path": "SAM"}}
RHO = "sam.init_args.rho"


# Configurations


NUMBERED = {"SAM": {"sam": None, "model.init_args.weights": {2: 0.5, 10: 2.0, "2": 1.0, True: 0.0}}}


def test_keys_that_are_numbers_stay_numbers(tmp_path: Path) -> None:
    """As in fit. A study made texts of them, and then took its own results for another study's."""
    study = read(tmp_path, methods=NUMBERED)
    weights = NUMBERED["SAM"]["model.init_args.weights"]
    kept = as_fit_reads(dump_yaml(fit_config(study.runs[0], tmp_path)))["model"]["init_args"]["weights"]
    assert [(type(key), key) for key in kept] == [(type(key), key) for key in weights]
    assert kept == weights
    (tmp_path / "study.json").write_text(study.dump())
    again = Study.load(tmp_path / "study.json")
    assert again == study
    assert [run.digest for run in again.runs] == [run.digest for run in study.runs]
    assert study.extends(again) is None


def test_a_study_of_such_keys_goes_on_in_its_own_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"class_path": "support.studies.Weighted", "init_args": {"weights": {10: 2.0, 2: 0.5}}}
    config = write_study(tmp_path, methods={"SAM": {"sam": None, "trainer.callbacks": [weights]}}, seeds=1)
    for _ in range(2):
        main(["--config", config, "--results", str(tmp_path / "results"), "--print-commands"])
    assert capsys.readouterr().out.count("--run SAM_seed=0") == 2


def test_a_run_is_its_configuration_with_its_types_and_the_order_of_values(tmp_path: Path) -> None:
    def config(value: Any) -> dict[str, Any]:
        return {"model": {"class_path": "M", "init_args": {"x": value}}}

    values: list[Any] = [1, 1.0, True, "1", None, [1], {"a": 1, "b": 2}, {"b": 2, "a": 1}, {1: "a"}, {"1": "a"}]
    values += [{True: "a"}, {None: "a"}, {2: 1, 10: 2}, {10: 2, 2: 1}, {"!pairs": [[1, "a"]]}]
    assert len({digest(config(value)) for value in values}) == len(values)
    one = {"a": 1, "model": {"class_path": "M", "init_args": {"x": 1, "y": 2}}}
    other = {"model": {"init_args": {"y": 2, "x": 1}, "class_path": "M"}, "a": 1}
    assert digest(one) == digest(other)
    for options in "init_args", "dict_kwargs":  # options too, by whatever way a class takes them
        pair = [
            {"data": {"class_path": "D", options: dict(order)}}
            for order in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)])
        ]
        assert digest(pair[0]) == digest(pair[1])


def test_long_names_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """Each is that of a folder, and of files beside it."""
    texts = [f"{'a' * 150}{end}" for end in "12"]
    study = read(tmp_path, seeds=[7], methods={"SAM": {**SAM, "sweep": {"model.init_args.text": texts}}})
    names = [run.name for run in study.runs]
    assert len(set(names)) == 2
    for name in names:
        assert len(name) < 140
        assert name.startswith("SAM_text=aaa")
        assert name.endswith("_seed=7")


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars | st.just("!pairs"), inner, max_size=3),
    max_leaves=10,
)


def exact(value: Any) -> Any:
    """A value with all types and orders in it, to be compared."""
    if isinstance(value, dict):
        return [(type(key), key, exact(item)) for key, item in value.items()]
    return [exact(item) for item in value] if isinstance(value, list) else (type(value), value)


@settings(max_examples=200)
@given(value=values)
def test_what_json_keeps_is_what_was_given(value: Any) -> None:
    assert exact(decode(json.loads(json.dumps(encode(value))))) == exact(value)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"))


@settings(max_examples=200)
@given(
    value=st.dictionaries(plain, st.lists(plain, max_size=3), max_size=3),
    text=st.text("0123456789._-+eE:xob", min_size=1),
)
def test_fit_reads_what_the_study_has_written(value: Any, text: str) -> None:
    content = {"a": value, "b": text, "c": {text: text}}
    assert repr(exact(as_fit_reads(dump_yaml(content)))) == repr(exact(content))


def test_what_an_alias_names_is_copied(tmp_path: Path) -> None:
    """Two sections of the base that share an anchor: an option of one changed the other, too."""
    config = Path(write_study(tmp_path, options={"trainer.logger_options.a": 2}))
    base = (tmp_path / "base.yaml").read_text()
    base = base.replace("trainer:\n", "trainer:\n  logger_options: &shared {a: 1}\n  other_options: *shared\n")
    (tmp_path / "base.yaml").write_text(base)
    trainer = Study.read(config).runs[0].config["trainer"]
    assert trainer["logger_options"] == {"a": 2}
    assert trainer["other_options"] == {"a": 1}


def test_of_merged_mappings_the_first_wins_as_in_fit(tmp_path: Path) -> None:
    text = "x: &x {a: 1}\ny: &y {a: 2, b: 3}\none: {<<: [*x, *y], c: 4}\nother: {<<: [*y, *x], b: 5}\n"
    (tmp_path / "merged.yaml").write_text(text)
    content = read_yaml(tmp_path / "merged.yaml").content
    assert content == as_fit_reads(text)
    assert content["one"] == {"a": 1, "b": 3, "c": 4}


@pytest.mark.parametrize("name", ["study.yaml", "base.yaml"])
def test_a_key_given_twice_is_told(name: str, tmp_path: Path) -> None:
    """The last one won: a method was lost without a word."""
    config = Path(write_study(tmp_path))
    path = tmp_path / name
    lines = path.read_text().splitlines()
    key = "methods" if name == "study.yaml" else "trainer"
    path.write_text("\n".join([*lines, f"{key}: {{SGD: {{sam: null}}}}"]))
    with pytest.raises(StudyError, match=rf"{name}:{len(lines) + 1}: the key `{key}` stands here for the second time"):
        Study.read(config)


# Options that would be lost


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed_options": []}, "`seed_options` must name what a seed sets, got []"),
        ({"seed_options": ["data"]}, "`data` is no seed"),
        ({"seed_options": ["data.init_args.noise_seed"]}, "`seed_everything` must be a number, got null"),
        ({"seeds": True}, "`seeds` must be a number of seeds or a list of different ones, got true"),
        ({"options": {"seed_everything": 3}}, "`seed_everything` is set by `seeds`"),
        ({"options": {"data.init_args": {"noise_seed": 3}}}, "`data.init_args.noise_seed` is set by `seeds`"),
        ({"methods": {"SAM": {**SAM, "trainer.logger": False}}}, "`trainer.logger` is set by the study itself"),
        ({"sweep": {"test_after_fit": [True]}}, "`test_after_fit` is set by the study itself"),
        ({"options": {RHO: 0.3}}, f"method 'SAM' gives the whole of `sam`, and so would lose {RHO}"),
        ({"sweep": {RHO: [0.3]}}, f"method 'SAM' gives {RHO}, which is swept too"),
        (
            {"sweep": {"trainer.max_epochs": [1]}, "options": {"trainer.max_epochs": 2}},
            "stands in `options` and in `sweep`",
        ),
        ({"methods": {"SAM": {**SAM, "sam.class_path": "SAME"}}}, "sam.class_path is given twice"),
        ({"options": {"trainer.callbacks.0": 1}}, "`trainer.callbacks` must be a mapping of options, got [{"),
        (
            {"options": {"model.class_path.x": 1}},
            "`model.class_path` must be a mapping of options, got 'lightning_same",
        ),
        ({"methods": {"SAM": {**SAM, "sweep": {RHO: [1, 1.0]}}}}, "must list different values, got 1 and 1.0"),
        ({"methods": {"SAM": {**SAM, "sweep": {RHO: [1, "1"]}}}}, "must list different values, got 1 and '1'"),
    ],
)
def test_what_would_be_changed_without_a_word_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    said = refused(tmp_path, **changes)
    assert message in said
    assert "study.yaml:" in said or "base.yaml" in said


def test_null_may_take_the_place_of_options(tmp_path: Path) -> None:
    study = read(tmp_path, options={RHO: 0.3}, methods={"SAM": {"sam": None}}, seeds=1)
    assert study.runs[0].config["sam"] is None


# Variants


@pytest.mark.parametrize(
    ("value", "read"),
    [("", '""'), (" a", '" a"'), ("a\nb", '"a\\nb"'), ("a", "a"), (None, "null"), (True, "true"), (1.0, "1.0")],
)
def test_every_value_can_be_seen_in_the_name_of_a_variant(value: Any, read: str) -> None:
    assert Run("x", "SAM", {"a.b": value}, 0, {}).variant == f"SAM (b {read})"
    assert Run("x", "SAM", {"a.b": [{"c": value}]}, 0, {}).variant == f"SAM (b [{{c: {read}}}])"


def test_a_name_that_spells_another_methods_settings_is_refused(tmp_path: Path) -> None:
    """Both were called `SAM (rho 0.1)`, and their seeds were pooled."""
    swept = {**SAM, "sweep": {RHO: [0.1, 0.2]}}
    for name in "SAM (rho 0.1)", "SAM, rho 0.1":
        said = refused(tmp_path, methods={"SAM": swept, name: SAM})
        assert "two variants would read 'sam rho 0.1'" in said
        assert f"method {name!r} with {{}}" in said


def test_a_column_of_the_grid_cannot_be_two_methods(tmp_path: Path) -> None:
    """There the radius stands at the head of the row, and the rest at the head of the column."""
    condition = "sam.init_args.condition"
    swept = {**SAM, "sweep": {RHO: [0.1], condition: [2.0]}}
    other = {**SAM, "sweep": {RHO: [0.1]}}
    assert "two variants would read" in refused(tmp_path, methods={"SAM": swept, "SAM, condition 2.0": other})


def test_names_that_differ_in_their_case_alone_are_refused(tmp_path: Path) -> None:
    assert "two runs would have the name" in refused(tmp_path, methods={"SAM": SAM, "Sam": SAM})


def test_settings_are_told_apart_by_as_much_of_their_names_as_it_takes() -> None:
    names = ["sam.class_path", "model.class_path", "sam.init_args.rho", "rho", "x.init_args.lr"]
    assert list(short_names(names).values()) == ["sam.class_path", "model.class_path", "init_args.rho", "rho", "lr"]


def test_equal_last_names_are_both_in_the_name_of_the_variant(tmp_path: Path) -> None:
    sweep = {"sam.class_path": ["SAM", "SAME"], "model.class_path": ["A", "B"]}
    study = read(tmp_path, seeds=1, methods={"SAM": {"model.init_args.lr": 1.0}}, sweep=sweep)
    assert len({run.variant for run in study.runs}) == len({run.name for run in study.runs}) == 4
    assert study.runs[1].variant == "SAM (sam.class_path SAM, model.class_path B)"


def test_a_plan_of_runs_that_read_the_same_is_not_loaded(tmp_path: Path) -> None:
    study = read(tmp_path, seeds=1)
    twins = [*study.runs, Run("other_seed=0", "SAM (rho 0.1)", {}, 0, {}), Run("x", "SAM", {RHO: 0.1}, 0, {})]
    content = json.loads(study.dump())
    del content["check"]
    content["runs"] = [vars(run) for run in twins]
    (tmp_path / "study.json").write_text(json.dumps(content))
    with pytest.raises(StudyError, match="two variants would read"):
        Study.load(tmp_path / "study.json")


def test_the_base_is_what_the_file_says(tmp_path: Path) -> None:
    """All that stands in the two files is in a run's configuration, against PyYAML and dictionaries by hand."""
    study = read(tmp_path, seeds=[7], methods={"SAM": {**SAM, "trainer.max_epochs": 9}})
    expected = yaml.safe_load((tmp_path / "base.yaml").read_text())
    expected["trainer"]["max_epochs"] = 9
    expected |= {"sam": {"class_path": "SAM"}, "seed_everything": 7}
    expected["data"]["init_args"]["noise_seed"] = 7
    assert exact(study.runs[0].config) == exact(expected) or study.runs[0].config == expected


def test_a_part_that_stands_before_the_whole_is_not_lost(tmp_path: Path) -> None:
    options = {"trainer.deep.part": 1, "trainer.deep": {"other": 2}}
    (run,) = read(tmp_path, seeds=1, methods={"SAM": SAM}, options=options).runs
    assert run.config["trainer"]["deep"] == {"other": 2, "part": 1}


def test_a_study_and_its_plan_keep_all_that_the_file_says(tmp_path: Path) -> None:
    said = {"name": "mine", "description": "Why.", "early": 0.3, "late": 0.4, "threads": 2, "delta": 0.07}
    study = Study.read(Path(write_study(tmp_path, **said, claims="notes")))
    (tmp_path / "study.json").write_text(study.dump())
    for kept in (study, Study.load(tmp_path / "study.json")):
        assert {name: getattr(kept, name) for name in said} == said
        assert kept.claims == "notes"
