"""Losses over all answers of the global batch: called as (answers (views, n, d), draws of the step), giving a scalar.

`chance` is what an encoder that knows nothing gets, for the verdict on a run's health; `scaled` says that the length of
answers matters, and not their direction alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.draws import Draws
from mmssl.parts.norms import check_temperature
from mmssl.registry import register


def several(z: Tensor, name: str, views: int = 1) -> None:
    """Refuses what has no second sample or view.

    Raises:
        ValueError: naming the key.
    """
    if z.shape[1] < 2:
        raise ValueError(
            f"{name} compares samples, but the batch holds {z.shape[1]}; set data.batch_size to at least 2"
        )
    if z.shape[0] < views:
        raise ValueError(f"{name} compares views, but its term names {z.shape[0]} look; give looks: [a, b]")


@register("set/ntxent")
class NTXent:
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al. 2020; GRACE, SCARF).

    Each answer has to find the other views of its sample among all other answers: with two views, one right one in 2 n
    - 1. The mean over all answers; SimCLR's own code adds the means of the two views, which is twice as much.

    Args:
        temperature: of the cosines.

    Raises:
        ValueError: for a temperature not above 0; when called, for a batch of one or a single view.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        check_temperature(temperature, "set/ntxent: temperature")
        self.temperature = temperature

    def __call__(self, z: Tensor, draws: Draws) -> Tensor:
        """The loss of answers (views, n, d)."""
        several(z, "set/ntxent", 2)
        unit = F.normalize(z, dim=-1)
        # right ones without a mask over all pairs: with thousands of nodes it would cost more than the product
        right = (unit * (unit.sum(0) - unit)).sum(-1).mean() / (self.temperature * (len(z) - 1))
        flat = unit.flatten(0, 1)
        logits = (flat / self.temperature) @ flat.T
        return logits.fill_diagonal_(-torch.inf).logsumexp(1).mean() - right

    def chance(self, views: int, n: int, d: int) -> float:
        """The logarithm of the number of candidates."""
        return math.log(views * n - 1)


def columns(z: Tensor, eps: float, unit: bool, unbiased: bool) -> Tensor:
    """Answers (views, n, d), every dimension of each view with mean 0 and variance 1 over the samples.

    Args:
        z: the answers.
        eps: added to variances.
        unit: whether each answer is divided by its length before.
        unbiased: whether the variance is a sum over n - 1.
    """
    z = F.normalize(z, dim=-1) if unit else z
    variance, mean = torch.var_mean(z, dim=1, keepdim=True, correction=int(unbiased))
    return (z - mean) * torch.rsqrt(variance + eps)


@register("set/barlow")
class Barlow:
    """Barlow Twins (Zbontar et al. 2021): the cross-correlation of two views' features should be the identity.

    Args:
        redundancy: factor of the entries off the diagonal.
        eps: added to variances.
        unit: whether answers are divided by their length before they are standardised (Mixed Barlow Twins).
        unbiased: whether variances are sums over n - 1, those of the matrix still over n (Mixed Barlow Twins).
    """

    def __init__(
        self, *, redundancy: float = 0.0051, eps: float = 1e-5, unit: bool = False, unbiased: bool = False
    ) -> None:
        self.redundancy, self.eps, self.unit, self.unbiased = redundancy, eps, unit, unbiased

    def __call__(self, z: Tensor, draws: Draws) -> Tensor:
        """The loss of answers (2, n, d), summed over the entries of the matrix."""
        several(z, "set/barlow", 2)
        a, b = columns(z, self.eps, self.unit, self.unbiased)
        c = a.T @ b / z.shape[1]
        diagonal = c.diagonal()
        off = c.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + self.redundancy * off

    def chance(self, views: int, n: int, d: int) -> float:
        """The width: views that have nothing to do with one another correlate not at all."""
        return float(d)


@register("set/vicreg")
class VICReg:
    """Variance, invariance and covariance (Bardes, Ponce, LeCun 2021).

    Args:
        invariance: factor of the mean squared difference of the two views.
        variance: factor of the hinge that keeps each dimension's deviation at 1; half of each view's is taken.
        covariance: factor of the squared covariances off the diagonal, over the width.
        eps: added to variances under the root.
    """

    scaled = True

    def __init__(
        self, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, eps: float = 1e-4
    ) -> None:
        self.invariance, self.variance, self.covariance, self.eps = invariance, variance, covariance, eps

    def __call__(self, z: Tensor, draws: Draws) -> Tensor:
        """The loss of answers (2, n, d)."""
        several(z, "set/vicreg", 2)
        n, d = z.shape[1:]
        apart = (z[0] - z[1]).square().mean()
        centred = z - z.mean(1, keepdim=True)
        deviation = torch.sqrt(centred.square().sum(1) / (n - 1) + self.eps)
        hinge = F.relu(1 - deviation).mean(1).sum() / 2
        c = centred.transpose(1, 2) @ centred / (n - 1)
        off = (c.square().sum((1, 2)) - c.diagonal(dim1=1, dim2=2).square().sum(1)).sum() / d
        return self.invariance * apart + self.variance * hinge + self.covariance * off


@register("set/koleo")
class KoLeo:
    """Spreads features: minus the mean log distance to the nearest other feature of the same view, meaned over views.

    Kozachenko and Leonenko's entropy (Sablayrolles et al. 2019; DINOv2).

    Args:
        eps: added to distances.
    """

    def __init__(self, *, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, z: Tensor, draws: Draws) -> Tensor:
        """The loss of features (views, n, d), which are normalised here."""
        several(z, "set/koleo")
        unit = F.normalize(z, dim=-1, eps=self.eps)
        with torch.no_grad():
            dots = unit @ unit.transpose(1, 2)
            dots.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            nearest = dots.argmax(2)
        near = unit.gather(1, nearest.unsqueeze(-1).expand_as(unit))
        return -torch.log((unit - near + self.eps).norm(dim=-1) + self.eps).mean()


@register("set/invariance")
class Invariance:
    """Mean squared distance of each view's answer from the mean of all views (LeJEPA)."""

    scaled = True

    def __call__(self, z: Tensor, draws: Draws) -> Tensor:
        """The loss of answers (views, n, d)."""
        return (z.mean(0) - z).square().mean()


@register("set/sigreg")
class SIGReg:
    """Sketched isotropic Gaussian regularisation (LeJEPA, Balestriero and LeCun 2025).

    Along random directions, drawn anew each step, the answers of a view should be normal: the Epps-Pulley statistic
    integral |mean exp(i t x) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, by the trapezoid rule on [0, limit], doubled.

    Args:
        directions: how many random directions.
        knots: points of the integral.
        limit: its upper end.
        scale_by_n: whether the statistic is multiplied by the number of samples, as a test would.
    """

    scaled = True

    def __init__(self, *, directions: int = 256, knots: int = 17, limit: float = 3.0, scale_by_n: bool = True) -> None:
        self.directions, self.knots, self.limit, self.scale_by_n = directions, knots, limit, scale_by_n

    def __call__(self, z: Tensor, draws: Draws) -> Tensor:
        """The loss of answers (views, n, d): the mean over views and directions."""
        several(z, "set/sigreg")
        a = draws.named("sigreg").normal(z.shape[-1], self.directions)[0].to(z)
        x = z @ F.normalize(a, dim=0)
        t = torch.linspace(0, self.limit, self.knots, dtype=z.dtype, device=z.device)
        step = self.limit / (self.knots - 1)
        weight = torch.full_like(t, 2 * step)
        weight[0] = weight[-1] = step
        normal = torch.exp(-t.square() / 2)
        angle = x.unsqueeze(-1) * t
        error = (angle.cos().mean(1) - normal).square() + angle.sin().mean(1).square()
        statistic = error @ (weight * normal)
        return statistic.mean() * (z.shape[1] if self.scale_by_n else 1)
