"""Label-free signals against their published definitions."""

import math

import numpy as np
import pytest
import torch

from mmssl.evaluation import monitors as module
from mmssl.evaluation.monitors import alignment, feature_std, monitors, rankme, std_reference, uniformity

torch.set_num_threads(1)


def features(n: int = 50, d: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, d + 1) + 0.5


@pytest.mark.parametrize(("n", "d"), [(50, 7), (5, 12)])
def test_rankme_is_the_published_formula(n: int, d: int) -> None:
    x = features(n, d)
    sigma = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = sigma / np.abs(sigma).sum() + 1e-7
    assert rankme(x) == pytest.approx(math.exp(-sum(p * np.log(p))), rel=1e-5)


def test_rankme_at_its_ends() -> None:
    assert rankme(torch.eye(6).repeat(10, 1)) == pytest.approx(6, rel=1e-4)
    assert rankme(torch.ones(20, 6)) == pytest.approx(1, rel=1e-4)
    assert rankme(torch.zeros(20, 6)) == pytest.approx(1, rel=1e-4)


def test_feature_std_is_the_mean_deviation_of_normalised_features() -> None:
    x = features().double().numpy()
    unit = x / np.sqrt((x**2).sum(1, keepdims=True))
    assert feature_std(features()) == pytest.approx(np.mean([np.std(column, ddof=1) for column in unit.T]), rel=1e-6)
    assert feature_std(torch.ones(20, 6) * 3) == pytest.approx(0, abs=1e-12)
    sphere = torch.randn(5000, 64, generator=torch.Generator().manual_seed(1))
    assert feature_std(sphere) == pytest.approx(std_reference(64), rel=0.01) == pytest.approx(0.125, rel=0.01)


def test_uniformity_and_alignment_are_the_papers_code(monkeypatch: pytest.MonkeyPatch) -> None:
    # Wang and Isola 2020, fig. 5: uniform_loss and align_loss
    x, y = (torch.nn.functional.normalize(features(seed=s).double(), dim=1) for s in (0, 1))
    expected = torch.pdist(x, p=2).pow(2).mul(-2).exp().mean().log().item()
    assert uniformity(features()) == pytest.approx(expected, rel=1e-9)
    assert uniformity(features(), t=5) == pytest.approx(torch.pdist(x).pow(2).mul(-5).exp().mean().log().item())
    monkeypatch.setattr(module, "_CHUNK", 50 * 3)
    assert uniformity(features()) == pytest.approx(expected, rel=1e-9)
    for alpha in (1.0, 2.0):
        expected = (x - y).norm(p=2, dim=1).pow(alpha).mean().item()
        assert alignment(features(), features(seed=1), alpha=alpha) == pytest.approx(expected, rel=1e-9)
    assert uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="compares pairs"):
        alignment(x, y[:3])


def test_what_cannot_be_measured_is_not_a_number() -> None:
    broken = features()
    broken[3, 2] = math.inf
    assert all(math.isnan(value) for value in monitors(broken).values())
    assert math.isnan(feature_std(features(1))) and math.isnan(uniformity(features(1)))
    assert set(monitors(features())) == {"rankme", "feature_std", "uniformity"}
