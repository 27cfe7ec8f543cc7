"""Configurations by name, and copies of them."""

import tomllib
from pathlib import Path

import pytest

import lightning_same
from lightning_same.__main__ import main
from lightning_same.cli import configs

ROOT = Path(lightning_same.__file__).parents[1]


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_every_file_is_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "}
    files = [file.relative_to(ROOT / "configs").with_suffix("") for file in (ROOT / "configs").rglob("*.yaml")]
    names = {file.as_posix().removeprefix("studies/") for file in files}
    assert set(lines) == names
    assert all(len(words) > 3 for words in lines.values())
    assert all("".join(words).endswith((".", "...")) for words in lines.values())
    assert not any(". " in " ".join(words) for words in lines.values()), "the first sentence alone"
    assert len(names) == len(files) - 2  # digits and fashion_mnist are both


def test_the_wheel_has_them_where_they_are_looked_for() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["force-include"] == {"configs": "lightning_same/configs"}


def test_those_of_the_package_go_before_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "lightning_same" / "cli" / "configs.py"
    monkeypatch.setattr(configs, "__file__", str(module))
    assert configs.folder() == tmp_path / "configs"
    (tmp_path / "lightning_same" / "configs" / "studies").mkdir(parents=True)
    (tmp_path / "lightning_same" / "configs" / "studies" / "mine.yaml").touch()
    assert configs.names("study") == ["mine"]


def test_a_copy_is_in_the_folder_configs_unless_told_otherwise(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["configs", "copy", "digits"])
    assert capsys.readouterr().out == f"{Path('configs', 'digits.yaml')}\n"
    assert Path("configs", "digits.yaml").read_bytes() == (ROOT / "configs" / "digits.yaml").read_bytes()


def test_a_study_is_copied_with_what_it_builds_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["configs", "copy", "studies/subsets/digits", "--to", str(tmp_path)])
    copies = [tmp_path / "studies" / "subsets" / "digits.yaml", tmp_path / "digits.yaml"]
    assert capsys.readouterr().out.split() == list(map(str, copies))
    assert copies[0].read_bytes() == (ROOT / "configs" / "studies" / "subsets" / "digits.yaml").read_bytes()
    main(["configs", "copy", "studies/subsets/digits", "--to", str(tmp_path)])  # once more changes nothing
    copies[1].write_text("seed_everything: 3")
    err = fails(["configs", "copy", "studies/digits", "--to", str(tmp_path)], capsys)
    assert f"{copies[1]} is there and differs" in err
    assert not (tmp_path / "studies" / "digits.yaml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs", "copy", "radius"], "Did you mean studies/radius?"),
        (["configs", "copy"], "needs a name"),
        (["study", "--config", "radios"], "Did you mean radius?"),
        (["fit", "--config", "digit"], "Did you mean digits?"),
        (["fit", "--config", "other/place.yaml"], "there is no file other/place.yaml"),
    ],
)
def test_a_name_that_is_none_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = fails(words, capsys)
    assert message in err
    assert err.count("\n") == 1


def test_a_fit_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", "digits", "--trainer.max_epochs", "7", "--print_config"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "max_epochs: 7" in out
    assert "class_path: lightning_same.SAME" in out
    Path("digits").write_text("trainer: {max_epochs: 9}\nmodel: lightning.pytorch.demos.boring_classes.BoringModel")
    with pytest.raises(SystemExit):
        main(["fit", "-c", "digits", "--print_config"])
    assert "max_epochs: 9" in capsys.readouterr().out


def test_a_study_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_same.experiments.study.options import parsed

    monkeypatch.chdir(tmp_path)
    for name in "digits", "studies/digits":
        assert parsed(["--config", name]).config == str(ROOT / "configs" / "studies" / "digits.yaml")
    Path("digits").touch()
    assert parsed(["--config", "digits"]).config == "digits"
