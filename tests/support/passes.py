"""Modules with the mixin, and the passes that they see."""

from typing import Any

from lightning_same import SAME, SAMMixin
from support.nets import Everything, Plain

FORCED = SAME(1, condition=3.0, rho=0.0)


class PlainSAM(SAMMixin, Plain):
    pass


class EverythingSAM(SAMMixin, Everything):
    pass


def count_passes(module: Any) -> list[int]:
    """The pass of each training step, as the module sees it."""
    passes: list[int] = []
    module.layers.register_forward_hook(lambda *_: passes.append(module.sam_pass))
    return passes
