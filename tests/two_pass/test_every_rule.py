"""All rules x {1, 2 processes} x {accumulation 1, 3} x resuming: the weights are those of one undisturbed process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from support.fits import differences, go_on, trainer
from support.named_rules import RULES
from support.nets import Plain, build, float64, seed_all
from support.ranks import Ranks
from torch import Tensor

from lightning_same import SAME, LookSAM, Rule, VaSSO, with_sam


def train(rule: Rule, accumulate: int, folder: str, resume: bool = False) -> list[Tensor]:
    """Three epochs, of which a resumed run takes the last; a checkpoint file after each."""
    options: dict[str, Any] = {}
    if torch.distributed.is_initialized():
        strategy = DDPStrategy(process_group_backend="gloo")
        options = {"devices": torch.distributed.get_world_size(), "strategy": strategy}
    with float64():
        module = with_sam(build(Plain), rule)
        keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        made = trainer(
            max_epochs=3, callbacks=[keep], enable_checkpointing=True, accumulate_grad_batches=accumulate, **options
        )
        seed_all(1)
        go_on(made, module, f"{folder}/epoch=1.ckpt" if resume else None)
    return [param.detach() for param in module.parameters()]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_processes_accumulation_and_resuming(
    ranks: dict[int, Ranks], name: str, accumulate: int, tmp_path: Path
) -> None:
    rule = RULES[name]
    one = train(rule, accumulate, str(tmp_path / "one"))
    assert differences(train(rule, accumulate, str(tmp_path / "one"), True), one) == []
    two = ranks[2].run(train, rule, accumulate, str(tmp_path / "two"))
    assert differences(two[0], two[1]) == []
    for a, b in zip(two[0], one, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    resumed = ranks[2].run(train, rule, accumulate, str(tmp_path / "two"), True)
    assert differences(resumed, two) == []


@pytest.mark.parametrize("rule", [VaSSO(0.3), LookSAM(0.3, k=5)], ids=repr)
def test_a_rule_that_forgets_would_be_noticed(rule: Rule, tmp_path: Path) -> None:
    """The suite above can fail: without its memory in the file, the resumed run ends elsewhere."""
    one = train(rule, 1, str(tmp_path))
    file = tmp_path / "epoch=1.ckpt"
    content = torch.load(file, weights_only=True)
    assert content["lightning_same"]["memories"]
    del content["lightning_same"]
    torch.save(content, file)
    assert differences(train(rule, 1, str(tmp_path), True), one) != []


def test_a_rule_that_remembers_nothing_leaves_its_name_in_the_file(tmp_path: Path) -> None:
    train(SAME(1, rho=0.3), 1, str(tmp_path / "same"))
    file = torch.load(tmp_path / "same" / "epoch=1.ckpt", weights_only=True)
    assert file["lightning_same"] == {"rule": repr(SAME(1, rho=0.3))}
    train(SAME(1, rho=0.0), 1, str(tmp_path / "plain"))
    assert "lightning_same" not in torch.load(tmp_path / "plain" / "epoch=1.ckpt", weights_only=True)


def test_plain_and_sam_resume_from_each_other(tmp_path: Path) -> None:
    def fit(rule: Rule | None, file: Path | None, mixed: bool = True) -> tuple[int, list[Tensor]]:
        module = with_sam(build(Plain), rule) if mixed else build(Plain)
        made = trainer(max_epochs=2 if file else 1)
        seed_all(1)
        go_on(made, module, file)
        made.save_checkpoint(tmp_path / "last.ckpt")
        return made.global_step, [param.detach() for param in module.parameters()]

    fit(None, None, mixed=False)
    steps, from_plain = fit(VaSSO(0.3), tmp_path / "last.ckpt")
    assert steps == 12
    fit(None, None)
    assert differences(from_plain, fit(VaSSO(0.3), tmp_path / "last.ckpt")[1]) == []
    fit(VaSSO(0.3), None)
    steps, _ = fit(None, tmp_path / "last.ckpt", mixed=False)
    assert steps == 12
