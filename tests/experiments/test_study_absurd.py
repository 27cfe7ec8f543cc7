"""Numbers that make no sense are told before anything trains, in one line with what was got and what was wanted."""

from pathlib import Path
from typing import Any

import pytest
from support.studies import write_study

from lightning_same.experiments.study import main

MODEL, DATA = "model.init_args", "data.init_args"
NET = f"{MODEL}.model.init_args"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sam": {"class_path": "SAM", "init_args": {"rho": 1e30}}},
            "`rho` must be a finite number >= 0 and <= 1.8e+19",
        ),
        ({f"{MODEL}.lr": -1}, "ImageClassifier: `lr` must be a finite number >= 0, got -1."),
        ({f"{MODEL}.lr": float("nan")}, "ImageClassifier: `lr` must be a finite number >= 0, got nan."),
        ({f"{MODEL}.momentum": 2}, "ImageClassifier: `momentum` must be a finite number >= 0 and < 1, got 2."),
        ({f"{MODEL}.weight_decay": -1}, "ImageClassifier: `weight_decay` must be a finite number >= 0, got -1."),
        ({f"{MODEL}.num_classes": 1}, "ImageClassifier: `num_classes` must be a whole number >= 2, got 1."),
        (
            {f"{MODEL}.num_classes": 5, f"{NET}.num_classes": 5},
            "ImageClassifier: `num_classes` must be 10, as DigitsData has, got 5.",
        ),
        (
            {f"{NET}.num_classes": 5},
            "ImageClassifier: SmallCNN must give logits of shape (2, 10), got (2, 5). Its own `num_classes` must be 10",
        ),
        ({f"{NET}.num_classes": 0}, "SmallCNN: `num_classes` must be a whole number >= 1, got 0."),
        ({f"{NET}.width": -1}, "SmallCNN: `width` must be a whole number >= 1, got -1."),
        ({f"{NET}.in_channels": 3}, "SmallCNN does not take images of shape (1, 8, 8): "),
        ({f"{DATA}.batch_size": 0}, "DigitsData: `batch_size` must be a whole number from 1 to 4294967295, got 0."),
        ({f"{DATA}.eval_batch_size": 0}, "DigitsData: `eval_batch_size` must be a whole number from 1 to 4294967295"),
        (
            {f"{DATA}.num_workers": 10_000},
            "DigitsData: `num_workers` must be a whole number from 0 to 1024, got 10000.",
        ),
        ({"trainer.max_epochs": 0}, "`trainer.max_epochs` must be above 0, got 0: nothing would be trained."),
        ({"trainer.max_epochs": -1}, "the cosine learning rate needs `Trainer(max_epochs=...)` of at least 1, got -1."),
        ({"trainer.max_steps": 0}, "`trainer.max_steps` must be above 0, got 0"),
        ({"trainer.limit_train_batches": 0}, "`trainer.limit_train_batches` must be above 0, got 0"),
        ({"trainer.num_nodes": 2}, "`trainer.num_nodes` must be 1, got 2: a run takes devices of one machine."),
        ({"trainer.accumulate_grad_batches": 0}, "`trainer.accumulate_grad_batches` must be at least 1, got 0."),
        ({"trainer.check_val_every_n_epoch": 0}, "`trainer.check_val_every_n_epoch` must be at least 1, got 0."),
        ({"trainer.fast_dev_run": True}, "`trainer.fast_dev_run` must be false"),
    ],
)
def test_it_is_told_before_anything_trains(
    options: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_study(tmp_path, methods={"SAM": None, "X": options})
    with pytest.raises(SystemExit) as stopped:
        main(["--config", config, "--results", str(tmp_path / "results"), "--dry-run"])
    said = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2, said
    assert len(said) == 1, said
    assert said[0].startswith(f"lightning-same study: {config}:")
    assert "Method 'X': " in said[0]
    assert message in said[0]
    assert not (tmp_path / "results").exists()
