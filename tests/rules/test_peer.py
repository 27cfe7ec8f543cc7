"""The rules against pytorch-optimizer."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fits import fit
from support.formulas import problem
from support.named_rules import Net
from support.nets import float64
from torch import Tensor, nn

from lightning_same import GSAM, SAM, WSAM, FriendlySAM, LookSAM, Rule, with_sam

# It accumulates the norm in float32 and adds 1e-12 to it; hence the tolerance.
PEER = {"rtol": 0, "atol": 1e-6}


def peer(name: str, module: Net, **options: Any) -> list[Tensor]:
    """The same problem under pytorch_optimizer's implementation."""
    peers = pytest.importorskip("pytorch_optimizer")
    params = list(module.parameters())
    sgd: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    if name == "GSAM":
        base = torch.optim.SGD(params, **sgd)
        optimizer = peers.GSAM(params, base, module, SimpleNamespace(step=lambda: 0.3), **options)
    elif name == "WSAM":
        optimizer = peers.WSAM(module, params, torch.optim.SGD, rho=0.3, **sgd, **options)
    else:
        optimizer = getattr(peers, name)(params, torch.optim.SGD, rho=0.3, **sgd, **options)
    for batch in module.train_dataloader():

        @torch.enable_grad()
        def closure(batch: Any = batch) -> Any:
            optimizer.zero_grad()
            loss = module.training_step(batch, 0)
            loss.backward()
            return (loss, loss) if name == "GSAM" else loss

        closure()
        optimizer.step(closure)
    return params


class OneTensor(Net):
    """All parameters in one tensor: the peer's LookSAM takes norms and projections tensor by tensor, the paper's global
    formula over all of them. (It also runs both passes on every step, where the method saves 1 - 1/k of them.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Tanh())
        self.layers[0].weight.data = torch.from_numpy(problem()[0][0][:2].copy())


@pytest.mark.parametrize(
    ("rule", "name", "options", "kind"),
    [
        (SAM(0.3), "SAM", {}, Net),
        # Its alpha is GSAM's; under DDP it perturbs by each rank's own gradient.
        (GSAM(0.3, alpha=0.4), "GSAM", {"alpha": 0.4}, Net),
        # By default it adds the sharpness after the base step; the coupled form is asked for.
        (WSAM(0.3, gamma=0.8), "WSAM", {"gamma": 0.8, "decouple": False}, Net),
        (FriendlySAM(0.3, sigma=0.8, keep=0.7), "FriendlySAM", {"sigma": 0.8, "lmbda": 0.7}, Net),
        (LookSAM(0.3, k=4, alpha=0.7), "LookSAM", {"k": 4, "alpha": 0.7}, OneTensor),
    ],
    ids=["SAM", "GSAM", "WSAM", "FriendlySAM", "LookSAM"],
)
def test_a_maintained_peer_agrees(rule: Rule, name: str, options: dict[str, Any], kind: type[Net]) -> None:
    with float64():
        ours, theirs = with_sam(kind(), rule), kind()
        fit(ours, max_epochs=1)
    for a, b in zip(ours.parameters(), peer(name, theirs, **options), strict=True):
        torch.testing.assert_close(a, b, **PEER)
