"""Label-free signals against their published definitions."""

import math

import numpy as np
import pytest
import torch

from mmssl.evaluation import monitors as module
from mmssl.evaluation.monitors import (
    alignment,
    alpha_req,
    feature_std,
    lidar,
    monitors,
    rankme,
    std_reference,
    uniformity,
    views_apart,
)

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


def powerlaw(spectrum: np.ndarray, chosen: np.ndarray) -> float:
    """The exponent as the code of alpha-ReQ finds it (stringer_get_powerlaw), written with lstsq."""
    rank = chosen + 1
    design = np.stack([-np.log(rank), np.ones(len(rank))], 1)
    root = np.sqrt(1 / rank)[:, None]
    return float(np.linalg.lstsq(design * root, np.log(spectrum[chosen]) * root[:, 0], rcond=None)[0][0])


@pytest.mark.parametrize(("n", "d", "chosen"), [(300, 150, np.arange(11, 100)), (80, 20, np.arange(5, 20))])
def test_alpha_req_is_the_published_fit(n: int, d: int, chosen: np.ndarray) -> None:
    from sklearn.decomposition import PCA

    x = features(n, d).numpy().astype(np.float64)
    spectrum = PCA(svd_solver="full").fit(x).explained_variance_ratio_
    assert alpha_req(features(n, d)) == pytest.approx(powerlaw(spectrum, chosen), rel=1e-6)


def test_alpha_req_of_a_known_spectrum() -> None:
    x, _ = torch.linalg.qr(features(400, 120).double() - features(400, 120).double().mean(0))
    scaled = x * torch.arange(1, 121, dtype=torch.float64) ** (-0.7 / 2)
    assert alpha_req(scaled) == pytest.approx(0.7, rel=1e-6)
    assert alpha_req(torch.ones(20, 6)) is None and alpha_req(features(1)) is None
    assert "alpha_req" not in monitors(torch.ones(20, 6))


def test_lidar_is_the_published_formula() -> None:
    from scipy.linalg import fractional_matrix_power

    n, q, d = 12, 5, 7
    g = torch.Generator().manual_seed(3)
    z = torch.randn(n, 1, d, generator=g) * torch.arange(1, d + 1) + 0.3 * torch.randn(n, q, d, generator=g)
    views = z.double().numpy()
    means = views.mean(1)
    between = np.cov(means.T)  # divides by n - 1
    within = sum(np.outer(e - m, e - m) for row, m in zip(views, means, strict=True) for e in row) / (n * (q - 1))
    root = fractional_matrix_power(within + 1e-4 * np.eye(d), -0.5)
    spectrum = np.linalg.eigvalsh(root @ between @ root)
    p = spectrum / np.abs(spectrum).sum() + 1e-7
    assert lidar(z) == pytest.approx(math.exp(-sum(p * np.log(p))), rel=1e-6)
    few = lidar(z[:4])  # fewer samples than dimensions: at most n - 1 directions
    assert 1 < few < 3.001


def test_lidar_at_its_ends() -> None:
    corners = torch.cat([torch.eye(6), -torch.eye(6)]).unsqueeze(1)
    noise = torch.cat([torch.eye(6), -torch.eye(6)]).unsqueeze(0) * 0.1
    assert lidar(corners + noise) == pytest.approx(6, rel=1e-4)
    line = torch.linspace(-1, 1, 9)[:, None, None] * torch.eye(6)[0] + noise
    assert lidar(line) == pytest.approx(1, rel=1e-4)
    broken = line.clone()
    broken[0, 0, 0] = math.nan
    assert math.isnan(lidar(broken))
    for shape in ((1, 4, 3), (4, 1, 3)):
        with pytest.raises(ValueError, match="at least two of each"):
            lidar(torch.zeros(shape))


def test_views_that_draw_nothing_say_nothing() -> None:
    z = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    assert views_apart(z) == {"lidar": lidar(z), "alignment": alignment(z[:, 0], z[:, 1])}
    assert views_apart(z[:, :1].expand(-1, 3, -1)) == {} and views_apart(z[:1]) == {}


def test_what_cannot_be_measured_is_not_a_number() -> None:
    broken = features()
    broken[3, 2] = math.inf
    assert all(math.isnan(value) for value in monitors(broken).values())
    assert math.isnan(feature_std(features(1))) and math.isnan(uniformity(features(1)))
    assert set(monitors(features())) == {"rankme", "feature_std", "uniformity", "alpha_req"}
