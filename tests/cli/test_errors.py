"""What is wrong is said where it is, in one line, and what to do in another."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from support.nets import Plain

from lightning_same import SAM
from lightning_same.cli.fit import SAMCLI, main
from lightning_same.cli.given import value_of

BORING = "lightning.pytorch.demos.boring_classes.BoringModel"


QUIET = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]


class TrainingData(pl.LightningDataModule):
    """Has nothing to test on either."""

    def train_dataloader(self) -> Any:
        return Plain().train_dataloader()


class NoTestStep(Plain):
    """Cannot be tested."""


class NoTestData(Plain):
    """Has nothing to be tested on."""

    def test_step(self, batch: Any, batch_idx: int) -> None: ...


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["lightning-same"])


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    with pytest.raises(SystemExit) as stop:
        SAMCLI(args=["fit", *args, "--trainer.accelerator=cpu", "--trainer.max_epochs=1"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    return err[err.index("error: ") :].strip().splitlines()


@pytest.mark.parametrize(
    ("args", "what", "to_do"),
    [
        (["--sam=SAM", "--sam.rho=abc"], "--sam.rho must be a number or a schedule, got 'abc'.", "Cosine"),
        (["--sam=SAME", "--sam.ckpt=1,3"], "--sam.ckpt must be a whole number or a list, got '1,3'.", '"[1,3]"'),
        (["--sam=SAME", "--sam.condition=x"], "--sam.condition must be a number, got 'x'.", "--sam.help SAME"),
        (["--sam=SAM", "--sam.timing=Every", "--sam.timing.k=x"], "--sam.timing.k must be a whole number", "Every"),
        (["--trainer.max_steps=x"], "--trainer.max_steps must be a whole number, got 'x'.", None),
        (["--trainer.detect_anomaly=x"], "--trainer.detect_anomaly must be true or false, got 'x'.", None),
        (["--optimizer=SGD", "--optimizer.lr=x"], "--optimizer.lr must be a number, got 'x'.", None),
        (["--sam"], "--sam needs a value.", "`lightning-same fit --help`"),
        (["--trainer.callbacks=EarlyStopping"], "--trainer.callbacks: ", "--trainer.callbacks.help"),
    ],
)
def test_a_value_of_another_type(
    capsys: pytest.CaptureFixture[str], args: list[str], what: str, to_do: str | None
) -> None:
    lines = refused(capsys, f"--model={BORING}", *args)
    assert lines[0].startswith(f"error: {what}")
    assert len(lines) == (1 if to_do is None else 2)
    assert to_do is None or to_do in lines[1]


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("LitNet", "--model: there is no class 'LitNet'."),
        ("no_module.LitNet", "--model: no_module.LitNet: No module named 'no_module'."),
    ],
)
def test_a_model_that_is_none(capsys: pytest.CaptureFixture[str], model: str, what: str) -> None:
    lines = refused(capsys, f"--model={model}")
    assert lines[0] == f"error: {what}"
    assert "the folder where the command is given" in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("args", "what", "to_do"),
    [
        ([], "--model is missing.", "lightning-same configs"),
        ([f"--model={BORING}", "--sma=SAM"], "there is no option --sma.", "Did you mean --sam?"),
        ([f"--model={BORING}", "--model.lrr=1"], f"--model: {BORING}: Option 'lrr' is not accepted.", "--model.help"),
        (["--model=collections.OrderedDict"], "--model: collections.OrderedDict is no LightningModule.", "derives"),
        ([f"--model={BORING}l"], "--model: ", "Did you mean BoringModel?"),
    ],
)
def test_what_is_missing_or_mistyped(
    capsys: pytest.CaptureFixture[str], args: list[str], what: str, to_do: str
) -> None:
    lines = refused(capsys, *args)
    assert lines[0].startswith(f"error: {what}")
    assert to_do in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize("config", ["", "optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}", "sam: null"])
@pytest.mark.parametrize("argument", ["--sam.rho=0.1", "--sam.ckpt=1"])
def test_an_argument_of_no_rule(capsys: pytest.CaptureFixture[str], argument: str, config: str) -> None:
    Path("mine.yaml").write_text(config)
    lines = refused(capsys, f"--model={BORING}", argument, *(["--config=mine.yaml"] if config else []))
    name, _, value = argument.partition("=")
    assert lines[0] == f"error: {name} is an argument of a rule, and no rule is named."
    assert f"--sam SAM {name} {value}" in lines[1]


@pytest.mark.parametrize("named", [["--sam=SAM"], ["--sam", "SAM"], ["--config=mine.yaml"]])
def test_an_argument_of_a_rule_that_is_named(named: list[str]) -> None:
    Path("mine.yaml").write_text("sam: {class_path: SAM}")
    cli = SAMCLI(
        args=[
            "fit",
            *named,
            f"--model={BORING}",
            "--sam.rho=0.25",
            "--trainer.fast_dev_run=true",
            "--trainer.accelerator=cpu",
        ]
    )
    assert cli.model.sam == SAM(rho=0.25)


def test_help_on_a_rule_needs_no_rule(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--sam.help", "SAME"])
    assert stop.value.code == 0
    assert "--sam.condition" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--ckpt_path", "a", "--ckpt_path", "b"], "b"),
        (["--ckpt_path=a", "--ckpt_path=b"], "b"),
        (["--ckpt_path=a", "--ckpt_path", "b"], "b"),
        (["--ckpt_path", "a", "--ckpt_path=b"], "b"),
        (["--ckpt_path", "a", "--model", "b"], "a"),
        (["--ckpt_path"], ""),
        (["--model=a"], ""),
    ],
)
def test_of_an_option_given_twice_the_last_value_counts(words: list[str], value: str) -> None:
    assert value_of("--ckpt_path", words) == value


def test_what_a_class_says_of_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = ["--trainer.callbacks=SharpnessMonitor", "--trainer.callbacks.every_n_steps=0"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--model={BORING}", *monitor, *QUIET])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "lightning-same: SharpnessMonitor: `every_n_steps` must be a whole number >= 1, got 0."
    assert not any("Traceback" in line for line in said)


@pytest.mark.parametrize(
    ("content", "what", "to_do"),
    [
        (b"modle: net.LitNet", "there is no option --modle.", "Did you mean --model?"),
        (b"trainer: {max_epoch: 3}", "there is no option --trainer.max_epoch.", "--trainer.max_epochs?"),
        (b"model: a\n  sam: [b", "--config: mine.yaml, line 2: mapping values are not allowed here.", "configs copy"),
        (b"", "--config: mine.yaml is empty.", "configs copy"),
        (b"only words", "--config: mine.yaml holds no options, but 'only words'.", "configs copy"),
        (b"%PDF\xff", "--config: mine.yaml is no text in UTF-8.", "configs copy"),
    ],
)
def test_a_file_that_is_no_configuration(
    capsys: pytest.CaptureFixture[str], content: bytes, what: str, to_do: str
) -> None:
    Path("mine.yaml").write_bytes(content)
    lines = refused(capsys, "--config=mine.yaml")
    assert lines[0] == f"error: {what}"
    assert to_do in lines[1]
    assert len(lines) == 2


class WithLBFGS(Plain):
    """Cannot be trained by two passes."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters())


class Mistaken(Plain):
    """Has an error of its own."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        raise RuntimeError("of the user's own")


class WithoutFile(Plain):
    """Opens a file that is not there."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), float(Path("learning_rate.txt").read_text()))


@pytest.mark.parametrize(("kind", "code"), [(WithLBFGS, 2), (Mistaken, 70), (WithoutFile, 70)])
def test_a_refusal_within_a_fit_is_one_line_and_an_error_of_the_users_a_traceback(
    capsys: pytest.CaptureFixture[str], kind: type, code: int
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--model={__name__}.{kind.__name__}", "--sam=SAM", "--trainer.accelerator=cpu", *QUIET])
    assert stop.value.code == code
    err = capsys.readouterr().err
    assert ("Traceback" in err) == (code == 70)
    assert err.splitlines()[-1].startswith("lightning-same: ")
    assert "LBFGS evaluates the loss several times" in err or code == 70


@pytest.mark.parametrize(
    ("kind", "data", "lacks"),
    [
        (NoTestStep, None, "NoTestStep has no `test_step`"),
        (NoTestData, None, "NoTestData has no `test_dataloader`"),
        (NoTestData, TrainingData, "TrainingData has no `test_dataloader`"),
    ],
)
def test_what_cannot_be_tested_is_not_trained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: type, data: type | None, lacks: str
) -> None:
    monkeypatch.setattr(pl.Trainer, "fit", lambda *args, **options: pytest.fail("it was trained"))
    with_data = [] if data is None else [f"--data={__name__}.{data.__name__}"]
    lines = refused(capsys, f"--model={__name__}.{kind.__name__}", *with_data, "--test_after_fit=true")
    assert lines == [
        f"error: --test_after_fit: {lacks}.",
        "       Leave --test_after_fit out, or define it.",
    ]
