"""The small experiments of benchmarks/measurements, in tiny versions: numbers that are known, and the order of claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.measurements.contrastive_temperature import Digits, measured, trained, view
from benchmarks.measurements.deep_linear import times
from benchmarks.measurements.reconstruction_features import angle, denoiser, directions, errors, learned, subspace
from mmssl.draws import Draws
from mmssl.parts.losses import InfoNCE
from mmssl.parts.set_losses import NTXent

torch.set_num_threads(1)


def test_a_deep_jepa_learns_clean_features_first_and_an_autoencoder_strong_ones():
    found, drift = times("mae", 5)
    np.testing.assert_allclose(found, [9.87, 8.57, 7.55], rtol=0.02)
    assert drift < 1e-6
    jepa, drift = times("jepa", 5, rate=0.5)
    np.testing.assert_allclose(jepa, [811, 888, 1179], rtol=0.02)
    assert drift < 1e-6 and jepa.argsort().tolist() == [0, 1, 2] and found.argsort().tolist() == [2, 1, 0]
    flat, _ = times("jepa", 1)
    np.testing.assert_allclose(flat, [102.6, 89.5, 79.6], rtol=0.02)
    assert flat.argsort().tolist() == times("mae", 1)[0].argsort().tolist() == [2, 1, 0]  # no depth, no difference


def test_gaussian_noise_leaves_the_principal_subspace_and_masks_do_not():
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 8)) @ random.normal(size=(8, 8)) * np.array([3.0, 1, 1, 2, 1, 1, 1, 0.5])
    variance, vectors = directions(x)
    sigma = np.cov(x.T, bias=True)
    for noise in (0.1, 1.0, 5.0):
        assert angle(denoiser(sigma, 3, noise=noise), vectors[:, :3]) < 1e-5
    assert angle(denoiser(sigma, 3, kept=0.5), vectors[:, :3]) > 1e-2
    top, bottom = subspace(variance, 0.6, True), subspace(variance, 0.4, False)
    assert variance[top].sum() >= 0.6 * variance.sum() > variance[: top.stop - 1].sum()
    assert variance[bottom].sum() <= 0.4 * variance.sum() < variance[bottom.start - 1 :].sum()
    bands = [vectors[:, band] for band in (slice(0, 3), slice(3, 8))]
    np.testing.assert_allclose(sum(x @ band @ band.T for band in bands), x, atol=1e-10)
    found = errors(x, vectors, [slice(0, 3), slice(3, 8)])
    np.testing.assert_allclose(found, [np.square(x @ band).sum(1).mean() for band in bands])
    np.testing.assert_allclose(found.sum(), np.square(x).sum(1).mean())


def test_an_autoencoder_learns_last_what_varies_least():
    random = np.random.default_rng(0)
    scale = np.repeat([2.0, 0.5, 0.0], [8, 8, 48])
    turned = np.linalg.qr(random.normal(size=(64, 64)))[0]
    first, second = learned((random.normal(size=(500, 64)) * scale) @ turned, [slice(0, 8), slice(8, 16)], 60)
    assert first < second < np.inf


def test_uniformity_tolerance_and_views_of_digits():
    y = torch.arange(40) % 4
    made = Digits(torch.rand(40, 64, generator=torch.Generator().manual_seed(0)), y)
    still = measured(torch.nn.Linear(64, 4).requires_grad_(False), made, made)
    assert set(still) == {"uniformity", "tolerance", "accuracy"}
    alike = torch.nn.Linear(64, 4)
    torch.nn.init.zeros_(alike.weight)
    flat = measured(alike, made, made)
    assert flat["uniformity"] == pytest.approx(0.0, abs=1e-5) and flat["tolerance"] == pytest.approx(1.0)  # the worst
    assert still["uniformity"] < 0.0 and still["tolerance"] < 1.0
    seen = view(torch.ones(40, 64), torch.Generator().manual_seed(0))
    assert seen.shape == (40, 64) and 0.05 < float((seen == 0).float().mean()) < 0.2
    before, after = trained(made, 0.2, 1), trained(made, 0.2, 2)
    assert not torch.equal(before[0].weight, after[0].weight)
    assert torch.equal(after[0].weight, trained(made, 0.2, 2)[0].weight)  # seeds are fixed


def test_penalties_are_evener_the_higher_the_temperature():
    """The claim behind the order: a low temperature pushes the nearest negatives alone."""
    cosine = torch.linspace(-0.5, 0.9, 12)
    penalties = [torch.softmax(cosine / t, 0) for t in (0.07, 0.2, 0.3, 0.7, 1.0)]
    entropy = [float(torch.special.entr(p).sum()) for p in penalties]
    assert entropy == sorted(entropy) and entropy[0] < 0.6 * entropy[-1]


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_gradients_of_a_contrast_are_boltzmann_weights(temperature):
    """What pulls the positive is what pushes all negatives; a negative of 0.8 is pushed e^(0.6 / tau) times one of 0.2."""
    cosine = torch.tensor([0.9, 0.8, 0.2], requires_grad=True)
    loss = -torch.log_softmax(cosine / temperature, 0)[0]
    (slope,) = torch.autograd.grad(loss, cosine)
    assert abs(float(slope[0])) == pytest.approx(float(slope[1:].sum()), rel=1e-5)
    assert float(slope[1] / slope[2]) == pytest.approx(math.exp(0.6 / temperature), rel=1e-3)
    keys = torch.stack([torch.tensor([c, math.sqrt(1 - c * c)]) for c in cosine.tolist()])
    query = torch.tensor([[1.0, 0.0]] * 3)
    assert float(InfoNCE(temperature=temperature)(query, keys)[0]) == pytest.approx(float(loss.detach()), rel=1e-5)
    pair = torch.eye(2).repeat(2, 1, 1)
    assert float(NTXent(temperature=1.0)(pair, Draws.of(0, 0, torch.arange(2)))) == pytest.approx(0.551445, abs=1e-6)
