"""The command line, on modules that never heard of this package."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from support.nets import Plain

from lightning_same import SAM, SAME, SANER, SAMMixin, TwoPassOptions
from lightning_same.__main__ import main
from lightning_same.cli.explanations import CHOICES
from lightning_same.cli.fit import SAMCLI
from lightning_same.rules.perturbations import Adaptive
from lightning_same.rules.timing import Every

BORING = "lightning.pytorch.demos.boring_classes.BoringModel"


QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=3",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
    "--trainer.logger.save_dir=.",
]


class Owner(SAMMixin, Plain):
    """A class with a rule of its own."""

    sam = SAM(0.7)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The parsers follow the terminal's width.
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["lightning-same"])


def cli(*args: str) -> SAMCLI:
    return SAMCLI(args=["fit", *args, *QUICK])


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli(*args)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "rule"),
    [
        (["--sam=SAME", "--sam.ckpt=1", "--sam.rho=0.1"], SAME(1, rho=0.1)),
        (["--sam=SAME", "--sam.ckpt=[1,3]", "--sam.condition=3"], SAME((1, 3), 3.0)),
        (["--sam=lightning_same.SANER", "--sam.warmup_epochs=5"], SANER(warmup_epochs=5)),
        (["--sam=SAM", "--sam.timing=Every", "--sam.timing.k=2"], SAM(timing=Every(2))),
        (["--sam=SAM", "--sam.perturbation=Adaptive", "--sam.rho=1"], SAM(1.0, perturbation=Adaptive())),
        (["--sam=null"], None),
        ([], None),
    ],
)
def test_any_model_trains_by_any_rule(args: list[str], rule: Any) -> None:
    made = cli(f"--model={BORING}", *args)
    assert getattr(made.model, "sam", None) == rule
    assert isinstance(made.model, SAMMixin) == bool(args)
    assert made.trainer.global_step == 3


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("lightning.pytorch.demos.LightningTransformer", None),
        (BORING, "lightning.pytorch.demos.boring_classes.BoringDataModule"),
    ],
)
def test_lightnings_demo_modules(model: str, data: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if "Transformer" in model:
        from lightning.pytorch.demos import LightningTransformer, transformer

        data_set = torch.utils.data.TensorDataset(torch.randint(0, 90, (8, 12)), torch.randint(0, 90, (8, 12)))
        monkeypatch.setattr(LightningTransformer, "prepare_data", lambda self: None)
        monkeypatch.setattr(
            LightningTransformer, "train_dataloader", lambda self: torch.utils.data.DataLoader(data_set, 4)
        )
        assert transformer
    extra = [f"--data={data}"] if data else []
    made = cli(f"--model={model}", "--sam=SAME", "--sam.ckpt=1", *extra)
    assert made.model.sam == SAME(1)
    assert made.trainer.global_step > 0


def test_a_demo_in_manual_optimization_is_told_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"ManualOptimBoringModel is in manual optimization .* `two_pass_step`"):
        cli("--model=lightning.pytorch.demos.boring_classes.ManualOptimBoringModel", "--sam=SAM")


def test_a_rule_of_the_class_stays_unless_told_otherwise() -> None:
    model = f"--model={__name__}.Owner"
    assert cli(model).model.sam == SAM(0.7)
    assert cli(model, "--sam=null").model.sam is None
    assert cli(model, "--sam=SAME").model.sam == SAME()
    assert Owner.sam == SAM(0.7)


def test_the_saved_config_runs_again() -> None:
    first = cli(f"--model={BORING}", "--sam=SAME", "--sam.ckpt=[1,4]", "--sam.timing=Every", "--sam.timing.k=2")
    saved = Path(first.trainer.log_dir) / "config.yaml"
    content = yaml.safe_load(saved.read_text())
    assert saved.read_text().startswith(f"# lightning-same=={version('lightning-same')}\n# lightning==")
    assert content["model"]["class_path"] == BORING
    assert content["sam"]["init_args"]["ckpt"] == [1, 4]
    again = SAMCLI(args=["fit", "--config", str(saved)])
    assert again.model.sam == first.model.sam == SAME((1, 4), timing=Every(2))
    saved_again = yaml.safe_load((Path(again.trainer.log_dir) / "config.yaml").read_text())
    assert saved_again == content
    for one, two in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


TEXTS = ["sam: null", "sam: SAM", "sam: {class_path: SAME, init_args: {ckpt: 2, rho: 0.3}}"]


@pytest.mark.parametrize("text", TEXTS)
def test_yaml(text: str) -> None:
    Path("mine.yaml").write_text(text)
    rule = cli(f"--model={BORING}", "--config=mine.yaml").model.sam
    assert rule == {"sam: null": None, "sam: SAM": SAM()}.get(text, SAME(2, rho=0.3))


def test_optimizer_and_scheduler_options_work() -> None:
    made = cli(
        f"--model={BORING}",
        "--sam=SAM",
        "--optimizer=SGD",
        "--optimizer.lr=0.01",
        "--lr_scheduler=StepLR",
        "--lr_scheduler.step_size=1",
    )
    assert isinstance(made.model.optimizers().optimizer, torch.optim.SGD)


def test_the_best_checkpoint_is_tested_after_the_fit(capsys: pytest.CaptureFixture[str]) -> None:
    cli(f"--model={BORING}", "--sam=SAM")
    assert "Test of" not in capsys.readouterr().out
    made = cli(f"--model={BORING}", "--sam=SAM", "--test_after_fit=true")
    assert made.trainer.state.fn == "test"
    assert Path(str(made.trainer.ckpt_path)).exists()
    made = cli(f"--model={BORING}", "--test_after_fit=true", "--trainer.enable_checkpointing=false")
    assert made.trainer.state.fn == "test"
    assert made.trainer.ckpt_path is None
    assert "Test of the last weights: " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_take_the_same_config(command: str) -> None:
    Path("mine.yaml").write_text(f"model: {BORING}\nsam: SAM\ntest_after_fit: true")
    quick = [arg for arg in QUICK if "logger" not in arg]
    made = SAMCLI(args=[command, "--config=mine.yaml", "--trainer.logger=false", *quick])
    assert made.trainer.state.finished


def test_a_checkpoint_file_written_by_the_command_loads_into_the_users_class() -> None:
    made = cli(f"--model={__name__}.Net", "--model.lr=0.3", "--sam=SAM")
    path = made.trainer.checkpoint_callback.best_model_path
    for kind in (Net, type(made.model)):
        assert kind.load_from_checkpoint(path).hparams["lr"] == 0.3
    made.trainer.validate(ckpt_path=path, model=made.model, dataloaders=made.model.train_dataloader())


class Net(Plain):
    """Saved hyper-parameters that the command's own parser wrote."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))


def test_a_mistyped_rule_names_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, f"--model={BORING}", "--sam=SAMEE")
    assert line.startswith("error: --sam: there is no rule 'SAMEE'. Did you mean SAME? The rules: ")
    assert "CustomSAME" in line
    Path("mine.yaml").write_text("sam: {class_path: Foo}")
    assert "no rule 'Foo'. The rules:" in refused(capsys, f"--model={BORING}", "--config=mine.yaml")


def test_a_mistyped_argument_names_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, f"--model={BORING}", "--sam=SAME", "--sam.condtion=3")
    assert line == (
        "error: --sam: SAME has no argument 'condtion'. Did you mean condition? Its arguments: ckpt, condition, rho,"
        " perturbation, timing."
    )
    Path("mine.yaml").write_text("sam: {class_path: SAM, init_args: {radius: 1}}")
    line = refused(capsys, f"--model={BORING}", "--config=mine.yaml")
    assert line == "error: --sam: SAM has no argument 'radius'. Its arguments: rho, perturbation, timing."


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sam.perturbation=Adaptve"], "--sam: there is no perturbation 'Adaptve'. Did you mean Adaptive?"),
        (["--sam.timing=Evry"], "--sam: there is no timing 'Evry'. Did you mean Every?"),
        (["--sam.timing=Every", "--sam.timing.kk=2"], "--sam: Every has no argument 'kk'. Did you mean k?"),
        (["--sam.perturbation=Adaptive", "--sam.perturbation.etta=3"], "--sam: Adaptive has no argument 'etta'."),
    ],
)
def test_a_mistyped_part_names_its_kind(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert message in refused(capsys, f"--model={BORING}", "--sam=SAM", *args)


@pytest.mark.parametrize("name", sorted(CHOICES["rule"]))
def test_every_rule_by_flag_and_back_from_its_file(name: str) -> None:
    extra = {"MomentumSAM": ["--optimizer=Adam"]}.get(name, [])
    made = cli(f"--model={BORING}", f"--sam={name}", "--sam.rho=0.1", "--trainer.max_epochs=1", *extra)
    assert repr(made.model.sam).startswith(f"{name}(")
    assert made.model.sam.rho == 0.1
    again = SAMCLI(args=["fit", "--config", str(Path(made.trainer.log_dir) / "config.yaml")])
    assert again.model.sam == made.model.sam


def test_a_value_out_of_range_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, f"--model={BORING}", "--sam=SAM", "--sam.rho=-1")
    assert line == "error: --sam: SAM: `rho` must be a finite number >= 0 and <= 1.8e+19, got -1.0."
    assert "`ckpt` must be one of 1, 2, 3, 4" in refused(capsys, f"--model={BORING}", "--sam=SAME", "--sam.ckpt=7")


def test_how_the_two_passes_run() -> None:
    done = cli("--model", BORING, "--sam", "SAM", "--two_pass.ascent", "local", "--two_pass.nonfinite", "skip")
    expected = TwoPassOptions(ascent="local", nonfinite="skip")
    assert done.model.two_pass == expected
    saved = next(Path().rglob("config.yaml"))
    again = SAMCLI(args=["fit", "--config", str(saved)])
    assert again.model.two_pass == expected
    Path("short.yaml").write_text("two_pass: {accumulate: micro_batch}\n")
    short = cli("--config", "short.yaml", "--model", f"{__name__}.Owner")
    assert short.model.two_pass == TwoPassOptions(accumulate="micro_batch")
    assert short.model.sam == SAM(0.7)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sam=SAM", "--two_pass.ascent=lokal"], "--two_pass.ascent must be global or local; got 'lokal'. Did you"),
        (["--sam=SAM", "--two_pass.assent=local"], "--two_pass: there is no option 'assent'. Did you mean ascent?"),
        (["--two_pass.ascent=local"], "--two_pass says how a rule's two passes run, and there is none. Give --sam"),
    ],
)
def test_mistaken_options_of_the_two_passes(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert message in refused(capsys, "--model", BORING, *args)


def test_mistakes_elsewhere_keep_their_own_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--sam" not in refused(capsys, "--model=no.such.Model")


SCRIPT = str(Path(sys.executable).with_name("lightning-same"))


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "lightning_same"]], ids=["script", "module"])
def test_a_model_in_the_working_directory_is_found(command: list[str]) -> None:
    if not Path(command[0]).exists():
        pytest.skip("the package is not installed")
    Path("mine.py").write_text(f"from {BORING.rpartition('.')[0]} import BoringModel\nclass Mine(BoringModel): pass\n")
    done = subprocess.run(
        [*command, "fit", "--model=mine.Mine", "--sam=SAME", *QUICK], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert Path("lightning_logs/version_0/config.yaml").exists()


def test_main_takes_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    assert "--sam" in capsys.readouterr().out
    assert issubclass(SAMCLI, LightningCLI)
