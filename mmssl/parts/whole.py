"""A term over whole answers: predictions at all tokens, laid back as images where a loss wants them so, and its losses.

Such a loss is built as (spec of the tokens) and called as (prediction (r, n, v), target (r, n, v), lost), giving a sum
and a number; `count(lost)` says the number beforehand. `lost` is what the look's corruptor says it took away (a region
of frequencies, a projection), or else which tokens are hidden, (r, n) bool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmssl import ranks
from mmssl.nn.patches import fold
from mmssl.parts.terms import Predict
from mmssl.registry import register
from mmssl.step import Look, Plan, Step
from mmssl.types import TokenSpec


@register("term/whole")
class Whole(Predict):
    """Predicts a target at all tokens and compares whole answers, for losses that are not one number per token.

    MFM's and A2MIM's losses are over frequencies of whole images, ROPIM's over all tokens but a subspace.

    Args:
        plan: sizes and twins.
        target: called as (plan, look), gives values for all tokens; it never carries a gradient.
        loss: built as (spec), called as (prediction, target, lost), for instance `whole/spectrum`.
        predictor: called as (spec, width in, width out, taps); it answers at all tokens.
        of: name of an earlier term whose predictor answers, in place of one of its own (A2MIM); null for none.
        look: which look.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look or term, both predictors or none, or a look that neither hides nor takes
            anything away.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        target: Callable[..., nn.Module],
        loss: Callable[[TokenSpec], Any],
        predictor: Callable[..., nn.Module] | None = None,
        of: str | None = None,
        look: str = "x",
        weight: float = 1.0,
    ) -> None:
        look = plan.named([look])[0]
        if predictor is None and of is None:
            raise ValueError("term/whole needs a predictor of its own, or `of`, the name of an earlier term with one")
        made = loss(plan.specs[look])
        super().__init__(plan, target=target, loss=made, predictor=predictor, of=of, at="all", look=look, weight=weight)
        spec = plan.looks[look]
        if spec.masker is None and spec.mask is None and not hasattr(spec.corruptor, "lost"):
            raise ValueError(
                f"term/whole asks what look {look!r} lost, but it has no masker, and its corruptor does not say; give "
                "it one, such as masker/units or corruptor/frequency"
            )
        self.compares = getattr(self.loss, "compares", False)

    @torch.no_grad()
    def lost(self, look: Look) -> Tensor:
        """What the look took away, as its corruptor says, or which tokens it hides."""
        said: Any = getattr(look.spec.corruptor, "lost", None)
        return look.mask.hidden if said is None else said(look, look.draws.named("corrupt"))

    def count(self, step: Step) -> Tensor:
        """What `forward` divides by, without encoding anything."""
        loss: Any = self.loss
        return loss.count(self.lost(step[self.looks[0]]))

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss, and its number."""
        look = step[self.looks[0]]
        loss: Any = self.loss
        [(query, prediction)] = self._answers(look)
        target, lost = self.target(look, query), self.lost(look)
        return loss(prediction.to(target.dtype), target, lost), loss.count(lost).to(target.dtype)


class OnGrid:
    """What losses share that lay tokens back as images.

    Args:
        spec: sizes of the tokens, whose raw values are the samples of a grid.

    Raises:
        ValueError: for tokens that are no cells of two axes.
    """

    def __init__(self, spec: TokenSpec) -> None:
        if spec.grid is None or spec.cell is None or spec.channels is None or len(spec.cell) != 2:
            raise ValueError("a loss over frequencies needs tokens that are patches of images or spectrograms")
        self.grid, self.cell, self.channels = spec.grid, spec.cell, spec.channels

    def image(self, values: Tensor) -> Tensor:
        """Values of all tokens (r, n, v) as images (r, c, h, w)."""
        return fold(values, self.grid, (self.cell[0], self.cell[1]))


@register("whole/spectrum")
class Spectrum(OnGrid):
    """Distance of the spectra at the frequencies that were taken away (MFM, Xie et al. 2022).

    The absolute value of the difference of orthonormal Fourier transforms, averaged over lost frequencies and channels.

    Args:
        spec: sizes of the tokens.
    """

    def count(self, lost: Tensor) -> Tensor:
        """How many frequencies were lost, of (r, h, w) bool."""
        return lost.sum()

    def __call__(self, prediction: Tensor, target: Tensor, lost: Tensor) -> Tensor:
        """The sum over lost frequencies, a mean over channels."""
        found = torch.fft.fft2(self.image(prediction - target), norm="ortho")
        distance = (found.real.square() + found.imag.square() + 1e-12).sqrt().mean(1)
        return (distance * lost).sum()


@register("whole/focal_spectrum")
class FocalSpectrum(OnGrid):
    """Focal frequency loss of the mean error of the global batch (A2MIM, Li et al. 2022; Jiang et al. 2021).

    Frequencies that are furthest off count most. At visible tokens the prediction is replaced by the mean of itself,
    without gradient, and the target, so that only hidden tokens learn.

    Args:
        spec: sizes of the tokens.
        keep: share of the prediction itself in what stands at visible tokens: 0 for ViTs, 1e-3 for CNNs.
    """

    compares = True

    def __init__(self, spec: TokenSpec, *, keep: float = 0.0) -> None:
        super().__init__(spec)
        self.keep = keep

    def count(self, lost: Tensor) -> Tensor:
        """One: every rank gives the value of the global batch."""
        return torch.ones((), dtype=torch.int64, device=lost.device)

    def __call__(self, prediction: Tensor, target: Tensor, lost: Tensor) -> Tensor:
        """The loss of the global batch; `lost` are hidden tokens, (r, n) bool."""
        beside = torch.lerp((prediction.detach() + target) / 2, prediction, self.keep)
        error = torch.where(lost.unsqueeze(-1), prediction, beside) - target
        rows = ranks.total(error.new_tensor(float(len(error))))
        # the transform is linear: that of the mean error is the mean of the transforms
        found = torch.fft.fft2(self.image(ranks.total(error.sum(0, keepdim=True)) / rows), norm="ortho")
        distance = found.real.square() + found.imag.square()
        with torch.no_grad():
            weight = torch.log1p(distance.sqrt())
            weight = weight / weight.max().clamp(min=1e-12)
        return (weight * distance).mean()


@register("whole/complement")
class Complement:
    """Absolute error in the subspace of tokens that a projection took away (ROPIM, Haghighat et al. 2023).

    Args:
        spec: sizes of the tokens.
    """

    def __init__(self, spec: TokenSpec) -> None:
        self.spec = spec

    def count(self, lost: Tensor) -> Tensor:
        """How many tokens there are."""
        return torch.full((), lost.shape[0] * lost.shape[1], dtype=torch.int64, device=lost.device)

    def __call__(self, prediction: Tensor, target: Tensor, lost: Tensor) -> Tensor:
        """The sum over tokens of the mean over values; `lost` is I - P of each row, (r, n, n)."""
        return (lost.to(target.dtype) @ (prediction - target)).abs().mean(-1).sum()
