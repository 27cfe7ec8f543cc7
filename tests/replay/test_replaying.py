"""Whether the forward that runs now is a repeated one."""

import contextlib

from support.fits import fit
from support.nets import Plain, build

from lightning_same import SAM, CheckpointFractionMonitor, replaying, with_sam
from lightning_same.replay.replaying import as_replay


def test_within_replays_it_is_one_until_the_outermost_ends() -> None:
    assert not replaying()
    with as_replay():
        with as_replay():
            assert replaying()
        assert replaying()
        with contextlib.suppress(ValueError), as_replay():
            raise ValueError
        assert replaying()
    assert not replaying()


def test_pass_two_and_the_passes_of_a_monitor_are_replays() -> None:
    seen: list[bool] = []
    for module, monitors in ((with_sam(build(Plain), SAM(0.1)), []), (build(Plain), [CheckpointFractionMonitor()])):
        seen.clear()
        module.layers.register_forward_hook(lambda *_: seen.append(replaying()))
        fit(module, callbacks=monitors, max_steps=2)
        assert seen == ([False, True] if not monitors else [True, True, False]) * 2
    assert not replaying()
