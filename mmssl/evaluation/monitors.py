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


def monitors(x: Tensor) -> dict[str, float]:
    """The label-free signals of one set of features, by the names they are logged under."""
    return {"rankme": rankme(x), "feature_std": feature_std(x), "uniformity": uniformity(x)}
