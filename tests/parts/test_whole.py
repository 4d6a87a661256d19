"""Losses over whole answers, and what takes frequencies and subspaces away (MFM, ROPIM, A2MIM), from their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.nn.patches import cut
from mmssl.parts.projections import Frequency, Project
from mmssl.parts.whole import Complement, FocalSpectrum, Spectrum
from mmssl.types import TokenSpec, View
from tests.small import batch, images, module

SPEC = TokenSpec(192, 2, (4, 4), (8, 8), 3)
BEIT = {"_target_": "encoder/beit", "dim": 32, "depth": 2, "heads": 4}


def draws(count=4):
    return Draws.of(0, 0, torch.arange(count))


class Looks:
    """A look as far as corruptors of views ask for one."""

    def __init__(self, data):
        self.views = [View(data, "image")]


def whole(loss, **changes):
    term = {
        "_target_": "term/whole", "predictor": {"_target_": "predictor/linear"}, "target": {"_target_": "target/raw"},
        "loss": {"_target_": f"whole/{loss}"},
    }  # fmt: skip
    return module(objective={"whole": term}, encoder=BEIT, **changes)


def disc(size, radius):
    """Low frequencies as the released code has them: pixels around the centre of a shifted spectrum."""
    centre = size // 2
    flags = [[(u - centre) ** 2 + (v - centre) ** 2 < radius**2 for v in range(size)] for u in range(size)]
    return torch.fft.ifftshift(torch.tensor(flags))


def test_frequencies_of_the_paper():
    lost = Frequency(low=1.0).lost(Looks(torch.zeros(1, 3, 224, 224)), draws(1))
    assert int((~lost).sum()) == 793
    assert torch.equal(~lost[0], disc(224, 16))


def test_frequency_keeps_a_band_of_each_sample():
    x, part = images(8), Frequency(radius=4, low=0.5)
    view, look = View(x, "image"), Looks(x)
    lost, found = part.lost(look, draws(8)), part(view, look, draws(8)).data
    low = torch.fft.ifft2(torch.fft.fft2(x) * disc(32, 4)).real
    keeps = ~lost[:, 0, 0]
    assert 0 < int(keeps.sum()) < 8
    for i in range(8):
        expected = low[i] if keeps[i] else x[i] - low[i]  # both bands together are the image
        torch.testing.assert_close(found[i], expected.clamp(0, 1), atol=1e-6, rtol=0)
        assert torch.equal(lost[i], disc(32, 4) != keeps[i])
    bytes_ = (x * 255).round().to(torch.uint8)
    torch.testing.assert_close(
        part(View(bytes_, "image"), look, draws(8)).data, part(View(bytes_ / 255, "image"), look, draws(8)).data
    )


def test_spectrum_sees_lost_frequencies_alone():
    loss, target = Spectrum(SPEC), cut(images(2), (8, 8))
    lost = torch.stack([disc(32, 4), ~disc(32, 4)])
    noise = images(2, seed=3)
    other = target + cut(noise, (8, 8))
    sums, expected = float(loss(other, target, lost)), 0.0
    for i in range(2):
        for c in range(3):
            values = torch.view_as_real(torch.fft.fft2(noise[i, c]) / 32)
            expected += float((values.square().sum(-1) + 1e-12).sqrt()[lost[i]].sum()) / 3
    assert sums == pytest.approx(expected, rel=1e-5) and int(loss.count(lost)) == 1024
    assert float(loss(target, target, lost)) / 1024 < 1.1e-6
    kept = torch.fft.ifft2(torch.fft.fft2(noise) * ~lost.unsqueeze(1)).real
    assert float(loss(target + cut(kept, (8, 8)), target, lost)) / 1024 < 1e-5


def test_projection_of_the_paper():
    part = Project(TokenSpec(1, 2, (14, 14)), "full", 8)
    p = part.projection(196, draws(2)).double()
    torch.testing.assert_close(p @ p, p, atol=1e-6, rtol=0)
    assert torch.equal(p, p.mT) and torch.allclose(p.diagonal(dim1=1, dim2=2).sum(1), torch.tensor(28.0).double())
    assert torch.equal((p != 0).sum(2), torch.full((2, 196), 7)) and not torch.equal(p[0], p[1])
    code = Project(TokenSpec(1, 2, (14, 14)), "full", 8, factor=0.14).projection(196, draws(1)).double()
    torch.testing.assert_close(
        torch.linalg.eigvalsh(code)[0, -28:], torch.full((28,), 0.98).double(), atol=1e-5, rtol=0
    )
    uneven = part.projection(10, draws(1)).double()  # 2 buckets of 5; 11 in 2 are 6 and 5
    odd = part.projection(11, draws(1)).double()
    for p in (uneven, odd):
        torch.testing.assert_close(p @ p, p, atol=1e-6, rtol=0)


def test_complement_forgives_what_the_projection_holds():
    part, loss = Project(TokenSpec(1, 2, (4, 4)), "full", 8, ratio=0.25), Complement(SPEC)
    p, x, v = part.projection(16, draws(3)), torch.randn(3, 16, 5), torch.randn(3, 16, 5)
    lost = torch.eye(16) - p
    assert float(loss(x + p @ v, x, lost)) < 1e-4 < float(loss(x + v, x, lost))
    assert int(loss.count(lost)) == 48
    hidden = torch.arange(16) < 6
    masked = float((v.abs().mean(-1) * hidden).sum())  # a projection onto some tokens is a mask
    assert float(loss(x + v, x, torch.diag(hidden.float()).expand(3, 16, 16))) == pytest.approx(masked, rel=1e-5)


@pytest.mark.parametrize("keep", [0.0, 0.1])
def test_focal_spectrum_teaches_hidden_tokens(keep):
    loss, target = FocalSpectrum(SPEC, keep=keep), cut(images(2), (8, 8))
    hidden = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.6
    prediction = (target + torch.randn(target.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    value = loss(prediction, target, hidden)
    value.backward()
    assert (prediction.grad[hidden] != 0).any() and bool((prediction.grad[~hidden] != 0).any()) == (keep > 0)
    with torch.no_grad():
        mixed = torch.where(hidden[..., None], prediction, keep * prediction + (1 - keep) * (prediction + target) / 2)
        frequencies = torch.fft.fft2(loss.image(mixed), norm="ortho") - torch.fft.fft2(loss.image(target), norm="ortho")
        squares = torch.view_as_real(frequencies.mean(0)).square().sum(-1)
        weight = torch.log(1 + squares.sqrt())
        expected = (weight / weight.max() * squares).mean()
    torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=0)
    assert float(loss(target, target, hidden)) == 0 and int(loss.count(hidden)) == 1


def test_steps_without_a_masker_train_all():
    for loss, corruptor in (
        ("spectrum", {"_target_": "corruptor/frequency", "radius": 4}),
        ("complement", {"_target_": "corruptor/project"}),
    ):
        part = whole(loss, masker=None, corruptor=corruptor)
        value = part.training_step(batch())
        value.backward()
        assert math.isfinite(float(value.detach())) and all(p.grad is not None for p in part.parameters())


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="has no masker"):
        whole("spectrum", masker=None, corruptor=None)
    with pytest.raises(ValueError, match="radius has to be above 0"):
        Frequency(radius=0)
    with pytest.raises(ValueError, match="has to be above 0 and at most 1"):
        Project(SPEC, "full", 8, ratio=0)
    with pytest.raises(ValueError, match="patches of images"):
        Spectrum(TokenSpec(5, 1))
