"""A study's file that is none ends in one line with the file, the line, the key, what was got and what was wanted."""

import errno
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT
from support.studies import write_study

from lightning_same.experiments.study import main
from lightning_same.experiments.study.plan import Study, StudyError
from lightning_same.experiments.study.reading import read_yaml


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("lightning-same study: ")
    return lines[0].removeprefix("lightning-same study: ")


def bomb(merge: bool) -> str:
    """A thousand bytes that say more than ten thousand million."""
    lines = ["a: &a {x: 1}" if merge else "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for one, two in zip("abcdefghij", "bcdefghijk", strict=True):
        names = ", ".join([f"*{one}"] * 9)
        lines.append(f"{two}: &{two} " + (f"{{<<: [{names}]}}" if merge else f"[{names}]"))
    return "\n".join(lines)


def chain(length: int) -> str:
    """Each value in the next one, by aliases: never deep as it is written."""
    return "\n".join(["a0: &a0 [1]", *(f"a{n + 1}: &a{n + 1} [*a{n}]" for n in range(length))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a mapping of options, but is empty"),
        ("- 1", ":1: must be a mapping of options, got a list"),
        ("text", ":1: must be a mapping of options, got a text"),
        ("a: 1\n--- \nb: 2", ":2: a second document begins here"),
        ("a: 1\nb: [1, 2\nc: 3", ":3: this is no YAML: while parsing a flow sequence"),
        ("a: 1\n\tb: 2", ":2: this is no YAML: while scanning "),
        ("a: \x01", "this is no YAML: "),
        ("a: 1\nb: 2\na: 3", ":3: the key `a` stands here for the second time; first in line 1"),
        ("a: {b: 1, 'b': 2}", ":1: the key `b` stands here for the second time"),
        ("1: a\ntrue: b", ":2: the key `True` stands here for the second time"),
        ("? [1]\n: 2", ":1: a key must be a text or a number, got a list"),
        ("a: !!set {x}", ":1: !!set is not used in a study"),
        ("a: !!binary aGk=", ":1: !!binary is not used in a study"),
        ("a: !!python/object/apply:os.system [ls]", ":1: !!python/object/apply:os.system is not used in a study"),
        ("a: !!float x", ":1: 'x' is no float"),
        ("a: !!bool 7", ":1: '7' is no bool"),
        ("a: " + "9" * 5000, ":1: this number has 5000 characters"),
        ("a: *b", ":1: "),
        ("a: &a [*a]", ":1: the alias *a stands within what it names"),
        ("a: {<<: 3}", ":1: `<<` must name a mapping, or a list of mappings"),
        (bomb(merge=False), "with its aliases written out, this is more than 100000 values"),
        (bomb(merge=True), "with its aliases written out, this is more than 100000 values"),
        (chain(2000), "nested more than 50 deep"),
        ("a: " + "[" * 60 + "]" * 60, "this is nested more than 50 deep"),
        ("a: " + "[" * 100_000, "nest"),
        ("#" * 2**20 + "\na: 1", "is longer than 1 MiB"),
    ],
)
def test_yaml_that_is_no_study(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    begun = time.process_time()
    said = refused(capsys, "--config", str(path), "--results", str(tmp_path / "results"))
    assert said.startswith(str(path))
    assert message in said
    assert time.process_time() - begun < 10
    assert not (tmp_path / "results").exists()


def test_merged_mappings_and_dates_are_what_fit_reads(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: 2020-01-01\nw: 1e-3\nv: =\n")
    document = read_yaml(tmp_path / "a.yaml")
    assert document.content == {
        "x": {"a": 1, "b": 2},
        "y": {"a": 1, "b": 3},
        "z": "2020-01-01",
        "w": 0.001,
        "v": "=",
    }
    assert document.at("z") == f"{tmp_path / 'a.yaml'}:3"
    assert document.at("y", "b", "nowhere") == f"{tmp_path / 'a.yaml'}:2"


def odd_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Names that lead to no file that can be read, and what is said of them."""
    folder.mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "latin").write_bytes("# a\n# Größe\n".encode("latin-1"))
    os.mkfifo(folder / "fifo")
    loop, long = os.strerror(errno.ELOOP), os.strerror(errno.ENAMETOOLONG)
    return {
        "a folder": (folder, "cannot be read: it is a directory"),
        "a pipe": (folder / "fifo", "cannot be read: it is no regular file"),
        "a device": (Path("/dev/zero"), "cannot be read: it is no regular file"),
        "a loop": (folder / "loop", f"cannot be read: {loop}"),
        "a long name": (folder / ("x" * 300), f"cannot be read: {long}"),
        "a null byte": (folder / "a\0b", "is no name of a file: "),
        "nothing": (folder / "nowhere", "cannot be read: No such file or directory"),
        "Latin-1": (folder / "latin", ":2: must be in UTF-8, got the byte 0xf6"),
    }


@pytest.mark.parametrize(
    "kind", ["a folder", "a pipe", "a device", "a loop", "a long name", "a null byte", "nothing", "Latin-1"]
)
@pytest.mark.parametrize("place", ["study", "base"])
def test_files_that_are_none(kind: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, message = odd_files(tmp_path / "odd")[kind]
    config = write_study(tmp_path, base=str(path)) if place == "base" else str(path)
    said = refused(capsys, "--config", config, "--results", str(tmp_path / "results"))
    if (place, kind) == ("study", "nothing"):
        message = f"there is no file {path}, and no configuration of that name comes with the package."
    assert message in said


def test_a_byte_that_is_no_text_in_a_files_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--config", os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml"))
    assert "there is no file" in said
    assert r"\udcff.yaml, and no configuration of that name" in said


LONG = "x" * 260


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "`name` must be a text, got 3"),
        ({"name": ""}, "`name` must be a text of 1 to 100 printable characters"),
        ({"name": "a\nb"}, "`name` must be a text of 1 to 100 printable characters"),
        ({"description": ["x"]}, "`description` must be a text, got ['x']"),
        ({"description": "x" * 20_000}, "`description` must be a text, got 'xxx"),
        ({"methods": {1: {"sam": None}}}, "the name of a method must be a text, got 1"),
        ({"methods": {True: {"sam": None}}}, "the name of a method must be a text, got true"),
        ({"methods": {None: {"sam": None}}}, "the name of a method must be a text, got null"),
        ({"methods": {LONG: {"sam": None}}}, "the name of a method must be a text of 1 to 100 printable characters"),
        ({"methods": {"a\u202eb": {"sam": None}}}, "the name of a method must be a text of 1 to 100 printable"),
        ({"methods": {"SAM": {3: None}}}, "the name of an option of method 'SAM' must be a text, got 3"),
        (
            {"methods": {"SAM": {"a..b": None}}},
            "must have options by their full names, such as trainer.max_epochs, got",
        ),
        ({"methods": {"SAM": {"sweep": [1]}}}, "`sweep` of method 'SAM' must be a mapping of full names to lists"),
        ({"methods": {"SAM": {"sweep": {"a": {}}}}}, "`sweep` of a must list its values, got {}"),
        ({"options": {4: 5}}, "the name of an option must be a text, got 4"),
        ({"sweep": {"trainer.max_epochs": []}}, "`sweep` of trainer.max_epochs must list its values, got []"),
        ({"seeds": 100_000_000}, "`seeds` must be at most 10000 seeds, got 100000000"),
        ({"seeds": [0, 2**32]}, "`seeds` must be seeds from 0 to 4294967295, got [0, 4294967296]"),
        ({"seeds": [True]}, "`seeds` must be a number of seeds or a list of different ones, got [True]"),
        ({"seeds": "3"}, "`seeds` must be a number of seeds or a list of different ones, got '3'"),
        ({"early": float("nan")}, "`early` must be a share above 0, at most 0.5, got nan"),
        ({"late": True}, "`late` must be a share above 0, at most 0.5, got true"),
        ({"threads": True}, "`threads` must be a whole number from 1 to 1024, got true"),
        ({"threads": 10**9}, "`threads` must be a whole number from 1 to 1024, got 1000000000"),
        ({"seed_options": "seed_everything"}, "`seed_options` must be a list of full names of options"),
        ({"base": 3}, "`base` must be the name of a configuration file, got 3"),
        ({"reference": ["SAM"]}, "`reference` must be the name of a method, got ['SAM']"),
        (
            {"sweep": {f"trainer.{name}": list(range(200)) for name in ("a", "b", "c")}},
            "a study may have 20000 runs, this one has 32000000",
        ),
    ],
)
def test_values_of_the_wrong_kind(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_study(tmp_path, **changes)
    said = refused(capsys, "--config", config, "--results", str(tmp_path / "results"))
    assert message in said
    (key,) = changes
    lines = Path(config).read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith(key))
    if "20000 runs" not in said:
        assert said.startswith(f"{config}:")
        assert first <= int(said.removeprefix(f"{config}:").partition(":")[0]) <= len(lines)
    assert not (tmp_path / "results").exists()


def test_the_number_of_errors_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"study.yaml:\d+: `seeds` must be .* There are 2 more errors\."):
        Study.read(Path(write_study(tmp_path, seeds=0, early=3, thread=1)))


def test_of_several_errors_the_first_in_the_file_is_told(tmp_path: Path) -> None:
    """Whatever the order in which a study's options are checked."""
    lines = ["delta: 2", "threads: 0", "seeds: 0", "methods: {}"]
    for text in lines, lines[::-1]:
        (tmp_path / "study.yaml").write_text("\n".join(["base: base.yaml", *text]))
        key = text[0].partition(":")[0]
        with pytest.raises(StudyError, match=rf"study.yaml:2: `{key}` must .* There are 3 more errors\."):
            Study.read(tmp_path / "study.yaml")


def test_what_is_left_out_has_the_default_that_the_page_on_studies_shows(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "study.md").read_text(), re.DOTALL)
    example = yaml.safe_load(shown)
    study = Study.read(Path(write_study(tmp_path, description=None)))
    defaults = {"reference": "SAM", "early": 0.25, "late": 0.25, "threads": 1, "delta": 0.02}
    assert {name: getattr(study, name) for name in defaults} == defaults
    assert {name: example[name] for name in defaults} == defaults
    assert (study.claims, study.description) == (None, "")
    run = study.runs[1]
    assert run.seed == run.config["seed_everything"] == run.config["data"]["init_args"]["noise_seed"] == 1
    assert example["seed_options"] == ["seed_everything", "data.init_args.noise_seed"]


# The results


def test_results_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_study(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("file", "is no directory. Give another --results"),
        ("file/below", "Not a directory"),
        ("loop", "is no directory. Give another --results"),
        ("loop/below", os.strerror(errno.ELOOP)),
        ("x" * 300, os.strerror(errno.ENAMETOOLONG)),
        ("/proc/results", "No such file or directory"),
    ):
        assert message in refused(capsys, "--config", config, "--results", str(tmp_path / name))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_leads_elsewhere_is_a_folder_below_runs(tmp_path: Path) -> None:
    for name, folder in (("../../x", "x"), ("/etc/x", "etc-x"), ("..", "study"), ("a: b", "a- b"), ("tiny", "tiny")):
        assert Study.read(Path(write_study(tmp_path, name=name))).folder == folder


# What fit refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer.max_epoch": 1}, "max_epoch"),
        ({"trainer.max_epochs": "many"}, "max_epochs"),
        ({"trainer.precision": "x"}, "trainer.precision must be one of 64, 32, 16, 'transformer-engine', "),
        ({"trainer": 5}, "`trainer` must be a mapping of options, got 5"),
        ({"model.class_path": "nowhere.Net"}, "nowhere"),
        ({"data.init_args.batch_size": 0}, "`batch_size` must be a whole number from 1"),
        ({"data.init_args.train_size": 199}, "`train_size` must be "),
        ({"trainer.callbacks": [{"class_path": "nowhere.Callback"}]}, "nowhere"),
        ({"trainer.callbacks": [{"class_path": "lightning_same.GradientNormMonitor", "init_args": {"x": 1}}]}, "'x'"),
    ],
)
def test_what_fit_would_refuse_is_refused_before_it_by_a_dry_run_too(
    options: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_study(tmp_path, options=options)
    said = refused(capsys, "--config", config, "--results", str(tmp_path / "results"), "--dry-run")
    assert message in said
    if "must be a mapping" not in said:
        assert "study.yaml: Every method: " in said or ("study.yaml:" in said and "Method 'SAM'" in said)


def test_an_error_that_nobody_foresaw_is_one_line_and_keeps_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("surprise\nin two lines")

    monkeypatch.setattr("lightning_same.experiments.study.command.check_directory", broken)
    with pytest.raises(SystemExit) as stop:
        main(["--config", write_study(tmp_path), "--results", str(tmp_path / "results")])
    assert stop.value.code == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert "not foreseen, ZeroDivisionError: surprise in two lines. Traceback: /" in line
    log = Path(line.rpartition("Traceback: ")[2])
    assert "ZeroDivisionError: surprise" in log.read_text()
    log.unlink()
