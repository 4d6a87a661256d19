"""A view that is a mixture of two others over the whole batch, and what its answers should then be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.parts.set_losses import columns, several
from mmssl.registry import register
from mmssl.types import View


def mixture(draws: Draws, n: int) -> tuple[Tensor, Tensor]:
    """How the n samples of a global batch are mixed: each one's partner, a permutation (n,), and the share kept, ().

    The share is uniform in [0, 1), which is Beta(1, 1), and the same for all samples.

    Args:
        draws: of the step, as losses over sets get them: one row.
        n: number of samples of all ranks.
    """
    draws = draws.named("mixture")
    return draws.named("partner").order(n)[0], draws.named("share").uniform(1)[0, 0]


@register("corruptor/mixture")
class Mixture(nn.Module):
    """Mixes a view with another view of other samples of the global batch (Mixed Barlow Twins, Bandara et al. 2023).

    The result is a x + (1 - a) y[p] for a view x, another one y, a permutation p and one share a a step, what
    `mixture` draws. Whole numbers are rounded. A look that is mixed reads the one view:
    `looks: {m: {views: [a], corruptor: {_target_: corruptor/mixture, other: b}}}`.

    Args:
        other: the other view.

    Raises:
        ValueError: when called, for samples that are no dense tensors, or a view that there is not.
    """

    on = "view"

    def __init__(self, *, other: str) -> None:
        super().__init__()
        self.other = other

    def forward(self, view: View, look: Any, draws: Draws) -> View:
        """The mixed samples, (b, ...)."""
        other: Any = look.step.batch.get(self.other)
        if not isinstance(other, View) or not isinstance(view.data, Tensor) or not isinstance(other.data, Tensor):
            raise ValueError(
                f"corruptor/mixture mixes dense tensors of two views; look {look.spec.name!r} cannot be mixed with "
                f"{self.other!r}, which is {'no view' if not isinstance(other, View) else type(other.data).__name__}"
            )
        everyone = ranks.gather(other.data)
        partner, share = mixture(look.step.draws.named("set").batch(), len(everyone))
        first = ranks.offset(len(view.data), view.data.device)
        theirs = everyone[partner[first : first + len(view.data)]]
        dtype = view.data.dtype if view.data.is_floating_point() else torch.float32
        mixed = torch.lerp(theirs.to(dtype), view.data.to(dtype), share.to(dtype))
        return View(mixed if mixed.dtype == view.data.dtype else mixed.round().to(view.data.dtype), view.modality)


@register("set/mixture")
class MixedCorrelation:
    """The answers to a mixture should correlate with those of both views as the mixed answers do (Mixed Barlow Twins).

    With answers standardised over the batch and t = a z1 + (1 - a) z2[p], what `corruptor/mixture` did to the views:
    |zm' z1 - t' z1|^2 / n^2 + |zm' z2 - t' z2|^2 / n^2, summed over the entries. Everything carries a gradient, t too.

    Args:
        eps: added to variances.
        unit: whether answers are divided by their length before they are standardised.
        unbiased: whether variances are sums over n - 1.
    """

    def __init__(self, *, eps: float = 1e-5, unit: bool = False, unbiased: bool = False) -> None:
        self.eps, self.unit, self.unbiased = eps, unit, unbiased

    def __call__(self, z: Tensor, draws: Draws) -> Tensor:
        """The loss of answers (3, n, d): of both views and of their mixture."""
        several(z, "set/mixture", 3)
        a, b, mixed = columns(z, self.eps, self.unit, self.unbiased)
        partner, share = mixture(draws, z.shape[1])
        apart = mixed - torch.lerp(b[partner], a, share.to(a.dtype))
        return sum(((apart.T @ one / z.shape[1]).square().sum() for one in (a, b)), z.new_zeros(()))
