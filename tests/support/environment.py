"""What every process of the tests begins with; importing it is enough."""

import logging
from functools import cache

import lightning.pytorch  # noqa: F401
import torch
from hypothesis import settings
from lightning.fabric.utilities import registry

# The nets are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)

# Each Trainer reads anew what all installed packages offer to Lightning: as long as a short fit.
registry.entry_points = cache(registry.entry_points)

# Others may use the machine too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)

# Where nobody listens to the root logger yet, Lightning keeps its messages from it, and so from `caplog`.
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).propagate = True
