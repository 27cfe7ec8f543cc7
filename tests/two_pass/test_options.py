"""`TwoPassOptions`: the ways to give them, and what they refuse."""

import pickle
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from support.fits import fit
from support.nets import Plain, build

from lightning_same import AESAM, SAM, FriendlySAM, Rule, TwoPassOptions, VaSSO, with_sam


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (FriendlySAM(0.1), {"ascent": "local"}, "carries an average of g"),
        (VaSSO(0.1), {"ascent": "local"}, "carries an average of g"),
        (AESAM(0.1), {"ascent": "local"}, "carries an average of g"),
        (AESAM(0.1), {"accumulate": "micro_batch"}, "decides by the gradient of the whole step"),
    ],
    ids=repr,
)
def test_rules_that_cannot_be_served_that_way_are_refused(rule: Rule, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(with_sam(build(Plain), rule, **options))
    module = with_sam(build(Plain), None, **options)

    class Later(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            pl_module.sam = rule

    with pytest.raises(ValueError, match=message):
        fit(module, callbacks=[Later()])


@pytest.mark.parametrize(("name", "value"), [("ascent", "lokal"), ("accumulate", 3), ("nonfinite", None)])
def test_a_choice_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"TwoPassOptions: `{name}` must be '.*' or '.*', got {value!r}"):
        with_sam(Plain(), SAM(), **{name: value})


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="assent"):
        with_sam(Plain(), SAM(), assent="local")
    module = with_sam(build(Plain), SAM())
    module.two_pass = {"ascent": "local"}
    with pytest.raises(TypeError, match=r"Plain.two_pass must be `TwoPassOptions\(...\)`, got \{'ascent'"):
        fit(module)


def test_the_ways_to_give_options() -> None:
    kind = with_sam(Plain, SAM(), ascent="local")
    assert kind().two_pass == TwoPassOptions(ascent="local")
    assert pickle.loads(pickle.dumps(kind())).two_pass == TwoPassOptions(ascent="local")
    module = with_sam(Plain(), SAM(), nonfinite="skip")
    assert module.two_pass == TwoPassOptions(nonfinite="skip")
    assert pickle.loads(pickle.dumps(module)).two_pass == TwoPassOptions(nonfinite="skip")
    assert with_sam(module, SAM(0.2)).two_pass == TwoPassOptions(nonfinite="skip")
    assert with_sam(Plain, SAM())().two_pass == TwoPassOptions()
