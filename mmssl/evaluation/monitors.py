"""What features say about an encoder without any label. Plain functions of features (n, d)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

_CHUNK = 1 << 24  # pairs held at once


def rankme(x: Tensor, *, epsilon: float = 1e-7) -> float:
    """RankMe, the effective rank of the features, between 1 and min(n, d).

    RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank. Garrido et
    al., 2023. arXiv:2210.02885, eq. 1 and 2: exp of the entropy of the singular values over their sum, plus epsilon.
    Features are not centred, as published. Not a number where a feature is not finite.

    Args:
        x: features, (n, d); the paper takes 25,600 samples, and values of different n or d do not compare.
        epsilon: the paper's, for float32.
    """
    if len(x) == 0 or not bool(torch.isfinite(x).all()):
        return math.nan
    sigma = torch.linalg.svdvals(x.to(torch.float32)).to(torch.float64)
    p = sigma / sigma.sum().clamp(min=torch.finfo(torch.float32).tiny) + epsilon
    return float(torch.exp(-(p * p.log()).sum()))


def feature_std(x: Tensor) -> float:
    """Deviation of each dimension of the L2-normalised features over the samples, averaged over dimensions.

    Exploring Simple Siamese Representation Learning. Chen and He, 2020. arXiv:2011.10566, fig. 2: 0 when all samples
    have the same feature, `std_reference(d)` when features are spread evenly over the sphere.
    Not a number for fewer than two samples, or where a feature is not finite.
    """
    if len(x) < 2:
        return math.nan
    return float(normalize(x.to(torch.float64), dim=1).std(0).mean())


def std_reference(d: int) -> float:
    """What `feature_std` is for features spread evenly over the sphere in d dimensions: 1 / sqrt(d)."""
    return 1 / math.sqrt(d)


def uniformity(x: Tensor, *, t: float = 2.0) -> float:
    """Uniformity loss: log of the mean Gaussian potential over all pairs of distinct samples; lower is more uniform.

    Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere. Wang and
    Isola, 2020. arXiv:2005.10242. Between -4 (at t = 2, features far apart) and 0 (all the same).
    Not a number for fewer than two samples, or where a feature is not finite.

    Args:
        x: features, (n, d), normalised here.
        t: sharpness of the potential exp(-t |a - b|^2).
    """
    n = len(x)
    if n < 2:
        return math.nan
    unit = normalize(x.to(torch.float64), dim=1)
    total = unit.new_zeros(())
    step = max(1, _CHUNK // n)
    for first in range(0, n, step):
        rows = unit[first : first + step]
        potential = torch.exp(-t * (2 - 2 * rows @ unit.T).clamp(min=0))
        total += potential.sum() - potential.diagonal(first).sum()
    return float(torch.log(total / (n * (n - 1))))


def alignment(a: Tensor, b: Tensor, *, alpha: float = 2.0) -> float:
    """Alignment loss: mean distance between normalised features of two views of a sample, to the power alpha.

    Wang and Isola, 2020. arXiv:2005.10242. Between 0 (views agree) and 2 ** alpha (opposite).

    Args:
        a: features of one view, (n, d).
        b: features of the other view of the same samples in the same order, (n, d).
        alpha: the power; 2 in the paper.

    Raises:
        ValueError: where the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"alignment compares pairs, but the views have shapes {tuple(a.shape)} and {tuple(b.shape)}")
    apart = normalize(a.to(torch.float64), dim=1) - normalize(b.to(torch.float64), dim=1)
    return float(apart.norm(dim=1).pow(alpha).mean())


def alpha_req(x: Tensor, *, first: int = 11, last: int = 100) -> float | None:
    """alpha-ReQ, the exponent of the power law that the spectrum of the features' covariance follows; 1 is best.

    alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by Measuring Eigenspectrum Decay. Agrawal et
    al., NeurIPS 2022. The fit is that of its code (Stringer et al. 2019): least squares of the logarithms, the i-th
    eigenvalue weighted by 1 / i. Large exponents mean that few directions hold all variance.

    Args:
        x: features, (n, d).
        first: index of the first eigenvalue of the fit, from 0, as in the code; a quarter of them where they are few.
        last: index behind the last.

    Returns:
        The exponent; not a number where a feature is not finite, None where fewer than three eigenvalues are left.
    """
    if not bool(torch.isfinite(x).all()):
        return math.nan
    if len(x) < 2:
        return None
    centred = x.to(torch.float64) - x.to(torch.float64).mean(0)
    spectrum = torch.linalg.svdvals(centred).square()
    spectrum = spectrum[spectrum > 1e-12 * spectrum[0]] if len(spectrum) else spectrum
    start = min(first, len(spectrum) // 4)
    kept = spectrum[start:last]
    if len(kept) < 3:
        return None
    rank = torch.arange(start + 1, start + 1 + len(kept), dtype=torch.float64)
    weight, u, v = 1 / rank, rank.log(), kept.cpu().log()
    u, v = u - (weight * u).sum() / weight.sum(), v - (weight * v).sum() / weight.sum()
    return float(-(weight * u * v).sum() / (weight * u * u).sum())


def lidar(z: Tensor, *, delta: float = 1e-4, epsilon: float = 1e-7) -> float:
    """LiDAR, the effective rank of what tells samples apart once what differs between their views is divided out.

    LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures. Thilak et al., ICLR 2024.
    arXiv:2312.04000, eq. 1 to 4: every sample is a class, its views are the members; the matrix of linear discriminant
    analysis, within^(-1/2) between within^(-1/2), takes the place of RankMe's features. Between 1 and min(n - 1, d).
    Not a number where a feature is not finite.

    Args:
        z: features of q views of n samples, (n, q, d); the paper takes 1,000 samples and 50 views.
        delta: added to the diagonal of the covariance within samples.
        epsilon: added to each share of the spectrum.

    Raises:
        ValueError: for fewer than two samples or views.
    """
    n, q, d = z.shape
    if min(n, q) < 2:
        raise ValueError(f"lidar compares samples and their views, at least two of each (got {n} and {q})")
    if not bool(torch.isfinite(z).all()):
        return math.nan
    z = z.to(torch.float64)
    mean = z.mean(1)
    apart, spread = mean - mean.mean(0), (z - mean.unsqueeze(1)).flatten(0, 1)
    within = spread.T @ spread / (n * (q - 1)) + delta * torch.eye(d, dtype=z.dtype, device=z.device)
    # the matrix and (between^(1/2) within^-1 between^(1/2)) have one spectrum, which is that of these squared
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(within), apart.T / math.sqrt(n - 1), upper=False)
    spectrum = torch.linalg.svdvals(whitened).square()
    # of n samples n - 1 directions are left; the others are zero, as they are in the (d, d) matrix
    p = torch.zeros(d, dtype=z.dtype)
    p[: len(spectrum)] = spectrum.cpu()[:d] / spectrum.sum().clamp(min=torch.finfo(torch.float32).tiny).cpu()
    p = p + epsilon
    return float(torch.exp(-(p * p.log()).sum()))


def views_apart(z: Tensor) -> dict[str, float]:
    """What several views of each sample (n, q, d) say, by the names it is logged under; empty where all are the same.

    `lidar`, and `alignment` of the first two views.
    """
    if min(z.shape[:2]) < 2 or bool((z == z[:, :1]).all()):
        return {}
    return {"lidar": lidar(z), "alignment": alignment(z[:, 0], z[:, 1])}


def monitors(x: Tensor) -> dict[str, float]:
    """The label-free signals of one set of features, by the names they are logged under.

    `alpha_req` is left out where there are too few dimensions to fit it.
    """
    found = {"rankme": rankme(x), "feature_std": feature_std(x), "uniformity": uniformity(x)}
    alpha = alpha_req(x)
    return found if alpha is None else found | {"alpha_req": alpha}
