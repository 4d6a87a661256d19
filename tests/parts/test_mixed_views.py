"""Mixed Barlow Twins: the mixed view, and both losses against the formulas of the paper's code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmssl.draws import Draws
from mmssl.parts.encoders.timm import build
from mmssl.parts.mixed_views import MixedCorrelation, mixture
from mmssl.parts.set_losses import Barlow
from mmssl.types import TokenSpec, View
from tests.small import batch, module

HOW = {"eps": 0.0, "unit": True, "unbiased": True}
MIX = {
    "views": {"a": [], "b": []}, "masker": None, "corruptor": None,
    "looks": {"a": {}, "b": {}, "m": {"views": ["a"], "corruptor": {"_target_": "corruptor/mixture", "other": "b"}}},
    "objective": {"mix": {"_target_": "term/set", "looks": ["a", "b", "m"], "loss": {"_target_": "set/mixture", **HOW}}},
}  # fmt: skip


def draws(seed=0):
    return Draws.of(seed, 0, torch.arange(3), step=5).named("set").batch()


def by_hand(z, partner, share):
    """Both losses, entry by entry, from standardised answers."""
    n, d = z.shape[1:]
    z = F.normalize(z, dim=-1)
    one, two, mixed = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True)
    c = one.T @ two / n
    off = c.square().sum() - c.diagonal().square().sum()
    mix = torch.zeros(())
    for other in (one, two):
        for i in range(d):
            for j in range(d):
                found = (mixed[:, i] * other[:, j]).sum() / n
                wanted = share * (one[:, i] * other[:, j]).sum() / n
                wanted = wanted + (1 - share) * (two[partner, i] * other[:, j]).sum() / n
                mix = mix + (found - wanted) ** 2
    return (c.diagonal() - 1).square().sum(), off, mix, c


def test_both_losses_are_the_papers():
    z = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    partner, share = mixture(draws(), 6)
    assert sorted(partner.tolist()) == list(range(6)) and 0 < float(share) < 1
    on, off, mix, _ = by_hand(z, partner, share)
    torch.testing.assert_close(Barlow(redundancy=0.0078125, **HOW)(z[:2], draws()), on + 0.0078125 * off)
    torch.testing.assert_close(MixedCorrelation(**HOW)(z, draws()), mix)


def test_variances_are_sums_over_n_less_one():
    z = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1)
    *_, c = by_hand(torch.cat([z, z[:1]]), torch.arange(8), torch.zeros(()))
    torch.testing.assert_close(c.diagonal(), torch.full((5,), 7 / 8))
    torch.testing.assert_close(Barlow(redundancy=0.0, **HOW)(z, draws()), torch.tensor(5 / 64))


def test_a_mixture_that_keeps_all_costs_nothing(monkeypatch):
    monkeypatch.setattr("mmssl.parts.mixed_views.mixture", lambda draws, n: (torch.arange(n).flip(0), torch.ones(())))
    part, given = module(**MIX).double(), batch(names=("a", "b"))
    given |= {name: View(given[name].data.double(), "image") for name in "ab"}
    step = part.begin(given)
    corruptor = step["m"].spec.corruptor
    assert torch.equal(corruptor(given["a"], step["m"], step["m"].draws).data, given["a"].data)
    total, weight = part.objective["mix"](step)
    assert float(total.detach()) < 1e-9 and float(weight) == 1


def test_view_and_loss_draw_the_same_mixture():
    part, given = module(**MIX), batch(names=("a", "b"))
    step = part.begin(given)
    mixed = step["m"].spec.corruptor(given["a"], step["m"], step["m"].draws).data
    partner, share = mixture(step.draws.named("set").batch(), 4)
    torch.testing.assert_close(mixed, share * given["a"].data + (1 - share) * given["b"].data[partner])
    whole = {name: View((given[name].data * 255).to(torch.uint8), "image") for name in "ab"}
    step = part.begin(given | whole)
    rounded = step["m"].spec.corruptor(whole["a"], step["m"], step["m"].draws).data
    assert rounded.dtype == torch.uint8
    exact = share * whole["a"].data.float() + (1 - share) * whole["b"].data[partner].float()
    assert float((rounded.float() - exact).abs().max()) <= 0.5001
    torch.testing.assert_close(part.objective["mix"](step)[0].isfinite(), torch.tensor(True))


def test_targets_carry_a_gradient():
    z = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    MixedCorrelation(**HOW)(z, draws()).backward()
    assert (z.grad.abs().sum((1, 2)) > 1e-4).all()


def test_what_cannot_be_mixed_is_refused():
    wrong = {"m": {"views": ["a"], "corruptor": {"_target_": "corruptor/mixture", "other": "c"}}}
    part = module(**(MIX | {"looks": MIX["looks"] | wrong}))
    with pytest.raises(ValueError, match="look 'm' cannot be mixed with 'c', which is no view"):
        part.objective["mix"](part.begin(batch(names=("a", "b"))))
    with pytest.raises(ValueError, match="set/mixture compares views"):
        MixedCorrelation()(torch.randn(2, 4, 3), draws())


def test_a_small_resnet_keeps_the_size_of_small_images():
    spec = TokenSpec(48, 2, (8, 8), (4, 4), 3)
    part = build(spec, name="resnet18", small=True)
    conv = part.model.conv1
    assert (conv.kernel_size, conv.stride, conv.weight.shape) == ((3, 3), (1, 1), (64, 3, 3, 3))
    assert isinstance(part.model.maxpool, nn.Identity)
    with torch.no_grad():
        assert part.model.eval().forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)
    with pytest.raises(ValueError, match=r"encoder\.small=true is for a ResNet without weights"):
        build(spec, name="convnext_atto", small=True)
