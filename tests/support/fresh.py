"""Processes that begin with everything imported: one process imports, and is forked for each of them."""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from unittest import mock

from support.paths import TESTS

PRELOADED = [
    "support.environment",
    "support.studies",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "pandas",
    "sklearn.datasets",
    "lightning_same.callbacks",
    "lightning_same.cli.fit",
    "lightning_same.curvature",
    "lightning_same.experiments.study.command",
    "lightning_same.plots",
    "lightning_same.two_pass.mixin",
    "support.forked",  # the last
]


def fresh_processes() -> ForkServerContext:
    """A context whose processes start in a tenth of a second, in place of the seconds that importing takes.

    Nothing has run in the process that is forked, no thread of PyTorch's and nothing on an accelerator.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Until Python 3.12 the process that imports knows only this path, and says nothing of what it has not found.
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    with mock.patch.dict(os.environ, PYTHONPATH=path):
        forkserver.ensure_running()
    return context
