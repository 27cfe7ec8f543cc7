"""The command that looks at a machine: its page, its self-test, and the first hour, which is listed without GPUs."""

import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.command import tests as run_tests
from support.speed import idle_seconds, slowness

from lightning_same.__main__ import main
from lightning_same.cli.doctor import first_hour, machine, page, self_test
from lightning_same.cli.doctor.page import FirstHour, Result
from lightning_same.rules import base

ROOT = Path(__file__).parents[2]


def test_it_prints_and_writes_what_the_machine_has_and_tests_each_route(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with idle_seconds() as passed:
        main(["doctor", "--out", str(tmp_path / "page.md")])
    assert passed() < 60
    told, written = capsys.readouterr().out, (tmp_path / "page.md").read_text()
    for text in (told, written):
        assert f"| torch | {torch.__version__.partition('+')[0]} |" in text
        assert "| cpu | " in text
        assert "| FSDP2 by ModelParallelStrategy | " in text
        assert "failed" not in text
    assert written.count("| passed | cpu: ") == len(self_test.TESTS)


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        ("w + e is w", {"accumulation", "autocast"}),
        ("nothing is replayed", {"replayed"}),
        ("d is NaN", {"automatic", "manual"}),
    ],
)
def test_the_self_test_notices_faults(fault: str, noticed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "w + e is w":
        monkeypatch.setattr(base, "add_scaled_", lambda *args: None)
    elif fault == "d is NaN":
        monkeypatch.setattr(base.Rule, "combine_", lambda self, g, s, *args: torch._foreach_mul_(s, float("nan")))
    else:
        from lightning_same.replay.undisturbed import ReplayState

        monkeypatch.setattr(ReplayState, "restore", lambda self: None)
    results = self_test.run(report=lambda result: None)
    failed = {test.__name__ for test, result in zip(self_test.TESTS, results, strict=False) if not result.passed}
    assert noticed <= failed
    assert "sharpness" not in failed


def test_a_failed_test_is_an_exit_code_of_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def wrong(device: torch.device) -> str:
        """Something."""
        raise ValueError("the reason\nin two lines")

    monkeypatch.setattr(self_test, "TESTS", (wrong,))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1
    assert "failed   cpu: Something" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # A page is written if it is asked for.


def test_the_callers_random_state_and_loggers_stay() -> None:
    import logging

    level, state = logging.getLogger("lightning.pytorch").level, torch.get_rng_state()
    self_test.run(report=lambda result: None)
    assert logging.getLogger("lightning.pytorch").level == level
    assert torch.equal(torch.get_rng_state(), state)


def test_python_m_is_the_same_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "lightning_same.doctor", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60 * slowness(),
    )
    assert ran.stdout.startswith("usage: lightning-same doctor")
    assert "--full" in ran.stdout


def test_without_the_repository_the_first_hour_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As from a wheel, which has no tests."""
    monkeypatch.setattr(first_hour, "lightning_same", type(sys)("lightning_same"))
    first_hour.lightning_same.__file__ = str(tmp_path / "site-packages" / "lightning_same" / "__init__.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--full"])
    assert ended.value.code == 2
    assert "checkout of the repository" in capsys.readouterr().err
    monkeypatch.chdir(ROOT)
    assert first_hour.find() == ROOT


def test_the_first_hour_is_complete(tmp_path: Path) -> None:
    words = ["--numprocesses=0", "-q", "-p", "no:cacheprovider", "--collect-only", "-m", "gpu or multi_gpu"]
    listed = run_tests(str(ROOT / "tests" / "gpu"), *words, folder=tmp_path).out
    for file in ("replay", "waits", "precision", "compile", "cost", "curvature", "ddp", "fsdp2", "errors"):
        assert f"tests/gpu/test_{file}.py::" in listed
    assert "deselected" not in listed, "each test there is marked"


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_without_gpus_it_says_what_it_has_skipped() -> None:
    outcome = first_hour.run(ROOT)
    assert len(outcome.results) > 200
    assert {result.outcome for result in outcome.results} == {"skipped"}
    assert not outcome.failed
    assert f"none of these {len(outcome.results)} tests was run" in page.first_hour(outcome)


def test_results_are_read_with_what_was_recorded(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.gpu.test_cost" name="test_a[x|y]" time="1.5"><properties>'
        '<property name="launches" value="12 (plain 5)"/></properties></testcase>'
        '<testcase classname="tests.gpu.test_cost" name="test_b" time="0.5"><properties>'
        '<property name="launches" value="7"/></properties><failure message="assert 1 == 2&#10; no">trace</failure>'
        "</testcase><testcase classname='tests.gpu.test_ddp' name='test_c' time='0'>"
        '<skipped message="needs 2 GPUs">x</skipped></testcase>'
        "<testcase classname='tests.gpu.test_ddp' name='test_d' time='0'><error message='no port'>x</error></testcase>"
        "</testsuite></testsuites>"
    )
    results = first_hour.read(report)
    assert results == [
        Result("test_cost::test_a[x|y]", "passed", 1.5, "launches 12 (plain 5)"),
        Result("test_cost::test_b", "failed", 0.5, "assert 1 == 2 no; launches 7"),
        Result("test_ddp::test_c", "skipped", 0.0, "needs 2 GPUs"),
        Result("test_ddp::test_d", "failed", 0.0, "no port"),
    ]
    written = page.first_hour(FirstHour(results, 2.0))
    assert "1 passed, 2 failed, 1 skipped, in 2 s" in written
    assert written.index("test_b") < written.index("test_a[x\\|y]") < written.index("test_ddp::test_c")


def test_what_is_not_supported_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_installed", lambda *modules: False)
    found: dict[str, Any] = machine.supported()
    assert found["lightning-same plot"] == 'no: pip install "lightning-same[plots]"'
    assert all(value == "yes" or value.startswith("no: ") for value in found.values())


def test_a_command_needs_all_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.importlib.util.find_spec
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None if name == "pandas" else found(name))
    supported = machine.supported()
    assert supported["lightning-same plot"].startswith("no: ")
    assert supported["lightning-same fit"] == "yes"


@pytest.mark.parametrize("gpus", [1, 2])
def test_what_gpus_there_are(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    of = SimpleNamespace(name="Card", total_memory=24 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: of)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: gpus > 1)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    found = machine.devices()
    assert list(found) == ["cpu", *(f"cuda:{index}" for index in range(gpus))]
    assert found["cuda:0"] == "Card, 24 GiB, compute 9.0"
    supported = machine.supported()
    assert supported["Training on a GPU"] == supported["16-mixed with a loss scaler"] == "yes"
    assert supported["bf16-mixed"] == ("yes" if gpus > 1 else "no: the GPU has no bfloat16")
    assert supported["DDP on GPUs"] == ("yes" if gpus > 1 else "no: 1 GPUs")


def test_a_package_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    versions = machine.versions()
    assert versions["no-such-package"] == "not installed"
    assert versions["torch"][0].isdigit()


def test_a_page_is_markdown_whatever_a_test_says() -> None:
    passed, failed = Result("a|b", "passed", 1.26), Result("c", "failed", 0.04, "x\n| y")
    written = page.results("Self-test", [passed, failed], 61.4)
    assert written.splitlines() == [
        "## Self-test",
        "",
        "1 passed, 1 failed, in 61 s.",
        "",
        "| | test | seconds | |",
        "|---|---|---|---|",
        "| passed | a\\|b | 1.3 |  |",
        "| failed | c | 0.0 | x \\| y |",
    ]
    assert page.line(failed) == "failed   c (0.0 s): x | y"
    assert page.line(passed) == "passed   a|b (1.3 s)"
    assert page.summary([]) == "nothing was run"
    assert FirstHour([passed, failed], 1.0).failed
    assert not FirstHour([passed, Result("d", "skipped", 0.0)], 1.0).failed


@pytest.mark.parametrize("outcome", ["passed", "failed"])
def test_with_full_the_gpu_tests_count_and_a_page_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(self_test, "TESTS", ())
    monkeypatch.setattr(first_hour, "find", lambda: tmp_path)
    results = [Result("test_a", "passed", 1.0), Result("test_b", outcome, 1.0)]
    monkeypatch.setattr(first_hour, "run", lambda root: FirstHour(results, 2.0, f"in {root.name}"))
    with pytest.raises(SystemExit) if outcome == "failed" else contextlib.nullcontext() as ended:
        main(["doctor", "--full"])
    assert ended is None or ended.value.code == 1
    written = Path("lightning-same-doctor.md").read_text()
    assert f"| {outcome} | test_b | 1.0 |  |" in written
    assert f"in {tmp_path.name}" in written
