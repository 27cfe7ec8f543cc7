"""What every process of the tests begins with; importing it is enough."""

import logging

import torch
from hypothesis import settings

# The nets are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)

# Others may use the machine too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
