"""Multinomial logistic regression, solved to convergence by preconditioned L-BFGS: deterministic, no step size to tune.

Letters in shapes: n samples, d features, c classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

_CHEAP = 1 << 26  # numbers that may be held in float64: 512 MB


@dataclass(frozen=True)
class Scaler:
    """Standardises features by the mean and deviation of the set it was fitted on.

    Args:
        mean: (d,) float64.
        std: (d,) float64; 1 for a feature that does not vary.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> Scaler:
        """Mean and deviation of each feature of (n, d). What varies by no more than float32's rounding is constant."""
        std, mean = torch.std_mean(x.to(torch.float64), 0, correction=0)
        noise = 10 * torch.finfo(torch.float32).eps * mean.abs()
        return cls(mean, torch.where(std > noise, std, torch.ones_like(std)))

    def __call__(self, x: Tensor) -> Tensor:
        """The features standardised, in float64 where that is cheap, else in float32."""
        dtype = torch.float64 if x.numel() <= _CHEAP else torch.float32
        return (x.to(dtype) - self.mean.to(dtype)) / self.std.to(dtype)


class Logistic:
    """Minimises mean cross entropy + l2 / 2 * |W|^2 over W (d, c) and an unpenalised bias (c,).

    In scikit-learn's terms `C = 1 / (n * l2)`.

    L-BFGS runs in coordinates in which the objective is round: features are rotated to their principal axes and each
    axis is scaled by the curvature that the objective has there at W = 0. The minimum stays where it is; on correlated
    features, as trained encoders have them, tens of iterations do what else takes a thousand.

    Args:
        x: standardised features, (n, d), float64 or float32.
        y: class of each sample as 0 .. c - 1, (n,) int64.
        classes: c.
        mix: where what has a class is no row of x, but lies between some: a sparse matrix (r, n) whose rows sum to 1.
            The answers before the softmax are then `mix @ (x @ W + b)`, and y is (r,).
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int, mix: Tensor | None = None) -> None:
        if len(x) < x.shape[1]:  # the minimum lies in the span of the samples, which has fewer axes than features
            _, length, rows = torch.linalg.svd(x, full_matrices=False)
            variance, axes = length.square() / len(x), rows.T
        else:
            variance, axes = torch.linalg.eigh(x.T @ x / len(x))
        self.variance, self.axes = variance.clamp(min=0), axes
        self.x, self.y, self.classes = x @ axes, y, classes
        self.target = torch.nn.functional.one_hot(y, classes).to(x.dtype)
        # both compressed by rows, which is the order that products with them read quickly
        self.mix, self.back = (None, None) if mix is None else (_compressed(mix), _compressed(mix.t()))

    def fit(
        self, l2: float, *, start: tuple[Tensor, Tensor] | None = None, max_iter: int = 1000, tolerance: float = 1e-6
    ) -> tuple[Tensor, Tensor]:
        """Weights (d, c) and bias (c,) at the minimum.

        Args:
            l2: strength of the penalty, above 0.
            start: where to begin, for instance the solution of a stronger penalty; zero by default.
            max_iter: limit on iterations.
            tolerance: largest entry of the (preconditioned) gradient at which the search ends.
        """
        scale = torch.rsqrt(self.variance / self.classes + l2).unsqueeze(1)
        if start is None:
            weight, bias = self.x.new_zeros(self.x.shape[1], self.classes), self.x.new_zeros(self.classes)
        else:
            weight, bias = (self.axes.T @ start[0]) / scale, start[1].clone()
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=max_iter, max_eval=4 * max_iter, history_size=20, line_search_fn="strong_wolfe",
            tolerance_grad=tolerance, tolerance_change=torch.finfo(self.x.dtype).eps / 10,
        )  # fmt: skip

        def closure() -> Tensor:
            value, weight.grad, bias.grad = self._objective(weight, bias, scale, l2)
            return value

        # the gradient is written out, so that the fit also works under inference_mode, where trainers evaluate
        solver.step(closure)
        return self.axes @ (scale * weight), bias

    def _objective(self, weight: Tensor, bias: Tensor, scale: Tensor, l2: float) -> tuple[Tensor, Tensor, Tensor]:
        plain = scale * weight
        answers = torch.addmm(bias, self.x, plain)
        log_p = torch.log_softmax(answers if self.mix is None else self.mix @ answers, 1)
        value = -(log_p * self.target).sum() / len(self.y) + l2 / 2 * plain.square().sum()
        error = (log_p.exp_() - self.target) / len(self.y)
        blame = error if self.back is None else self.back @ error
        return value, scale * (self.x.T @ blame + l2 * plain), error.sum(0)


def mixture(column: Tensor, share: Tensor, columns: int) -> Tensor:
    """A sparse matrix (r, columns) in coordinates.

    Args:
        column: where each row has entries, (r, k) int64; entries at one place add up.
        share: what they are, (r, k).
        columns: how many.
    """
    row = torch.arange(len(column)).unsqueeze(1).expand_as(column)
    index = torch.stack([row.flatten(), column.flatten()])
    with _quiet():
        return torch.sparse_coo_tensor(index, share.flatten(), (len(column), columns)).coalesce()


def _compressed(mix: Tensor) -> Tensor:
    with _quiet():
        return mix.coalesce().to_sparse_csr()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's word that its sparse tensors are new and unchecked: ours are right by construction."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse ")
        yield
