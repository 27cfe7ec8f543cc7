"""A plain loop inside one autocast context: autocast keeps low-precision copies of the weights, pass two must not."""

import pytest
import torch
from torch import Tensor, nn

from lightning_same import ASAM, SAM, SAME, LookSAM, Memory, MomentumSAM, Progress, Rule

STEPS = 4


def network() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    return net, torch.randn(STEPS, 32, 8), torch.randint(0, 3, (STEPS, 32))


def gradients(net: nn.Module, x: Tensor, y: Tensor) -> tuple[float, list[Tensor]]:
    loss = nn.functional.cross_entropy(net(x), y)
    return loss.item(), list(torch.autograd.grad(loss, list(net.parameters())))


def in_one_autocast(rule: Rule) -> list[tuple[float, float, float, list[Tensor], list[Tensor]]]:
    """The losses at w, at w + e and at w again, g and s, where both passes of a step share one autocast context."""
    net, xs, ys = network()
    params = list(net.parameters())
    memory, rows = Memory(params), []
    optimizer = torch.optim.SGD(params, lr=0.1)
    for step, (x, y) in enumerate(zip(xs, ys, strict=True)):
        with torch.autocast("cpu", torch.bfloat16):
            before, g = gradients(net, x, y)
            with rule.perturbed(params, g, memory=memory):
                ahead, s = gradients(net, x, y)
            after, _ = gradients(net, x, y)
        rows.append((before, ahead, after, g, s))
        for param, d in zip(params, rule.combine(g, s, Progress(step), memory), strict=True):
            param.grad = d
        optimizer.step()
    return rows


def by_hand() -> list[tuple[float, float, float, list[Tensor], list[Tensor]]]:
    """SAM(2.0), with an autocast context for each pass."""
    net, xs, ys = network()
    params, rows = list(net.parameters()), []
    for x, y in zip(xs, ys, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            before, g = gradients(net, x, y)
        saved = [param.detach().clone() for param in params]
        norm = torch.sqrt(sum((part**2).sum() for part in g))
        with torch.no_grad():
            for param, part in zip(params, g, strict=True):
                param += 2.0 * part / norm
        with torch.autocast("cpu", torch.bfloat16):
            ahead, s = gradients(net, x, y)
        with torch.no_grad():
            for param, value, d in zip(params, saved, s, strict=True):
                param.copy_(value - 0.1 * d)
        rows.append((before, ahead, before, g, s))
    return rows


def test_a_loop_inside_autocast_is_the_loop_by_hand() -> None:
    for ours, hand in zip(in_one_autocast(SAM(2.0)), by_hand(), strict=True):
        assert ours[:3] == pytest.approx(hand[:3], rel=1e-3)
        for mine, theirs in zip([*ours[3], *ours[4]], [*hand[3], *hand[4]], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0.02, atol=2e-3)


RULES = [SAM(2.0), ASAM(8.0), SAME(1, 2.0, 2.0), LookSAM(2.0, k=1), MomentumSAM(2.0)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_pass_two_sees_w_plus_e_and_what_follows_sees_w(rule: Rule) -> None:
    for before, ahead, after, g, s in in_one_autocast(rule):
        assert ahead != before
        assert after == before
        assert max((a - b).abs().max().item() for a, b in zip(g, s, strict=True)) > 0.01


def test_weights_are_seen_again_after_an_error_too() -> None:
    net, xs, ys = network()
    params = list(net.parameters())

    def fail() -> None:
        with SAM(2.0).perturbed(params, g):
            gradients(net, xs[0], ys[0])
            raise KeyboardInterrupt

    with torch.autocast("cpu", torch.bfloat16):
        before, g = gradients(net, xs[0], ys[0])
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert gradients(net, xs[0], ys[0])[0] == before


def test_autocast_does_keep_copies() -> None:
    """Without which the tests above would prove nothing."""
    net, xs, ys = network()
    with torch.autocast("cpu", torch.bfloat16):
        before, _ = gradients(net, xs[0], ys[0])
        with torch.no_grad():
            for param in net.parameters():
                if param.dim() == 2:
                    param.mul_(3.0)
        assert gradients(net, xs[0], ys[0])[0] == before
        torch.clear_autocast_cache()
        assert gradients(net, xs[0], ys[0])[0] != before
