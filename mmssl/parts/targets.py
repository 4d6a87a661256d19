"""Targets: what should have been answered. Called as (look, query); they never carry a gradient and declare `dim`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.registry import register
from mmssl.step import Look, Plan
from mmssl.types import Tokens


@register("target/raw")
class Raw(nn.Module):
    """The raw values of the tokens: pixels, bins, offsets, features, cells (MAE, SimMIM, Audio-MAE, ReMasker).

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        normalize: whether each token is standardised by its own mean and unbiased variance (MAE's `norm_pix_loss`).
    """

    def __init__(self, plan: Plan, look: str, *, normalize: bool = False) -> None:
        super().__init__()
        self.dim, self.normalize = plan.specs[look].raw, normalize

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Values of the tokens asked for, (r, t, v)."""
        raw = query.raw
        if not self.normalize:
            return raw
        variance, mean = torch.var_mean(raw, dim=-1, keepdim=True)
        return (raw - mean) * torch.rsqrt(variance + 1e-6)

    def restore(self, query: Tokens, prediction: Tensor) -> Tensor:
        """Predictions in the units of raw values, for pictures: undoes the standardisation with the tokens' own."""
        if not self.normalize:
            return prediction
        variance, mean = torch.var_mean(query.raw, dim=-1, keepdim=True)
        return prediction * torch.sqrt(variance + 1e-6) + mean


@register("target/teacher")
class Teacher(nn.Module):
    """The teacher's features of the tokens in the whole view (I-JEPA, data2vec; SimSiam-like without a teacher).

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        normalize: whether each target is standardised over its features by a LayerNorm without weights.
    """

    def __init__(self, plan: Plan, look: str, *, normalize: bool = True) -> None:
        super().__init__()
        self.dim, self.normalize = plan.dims[look], normalize

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, (r, t, d)."""
        return _at(look, query, look.taught, self.normalize)


@register("target/frozen")
class Frozen(nn.Module):
    """Features of a frozen network that sees the whole view (MR-MAE, MaskAlign, MVP, EVA).

    The network is no part of a checkpoint: it is made again from its name and file.

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        network: called as (spec of the look's tokens), gives a frozen network that reads views and gives features on
            the same grid of tokens, for instance `network/timm` or `network/run`.
        normalize: whether each target is standardised over its features by a LayerNorm without weights.
    """

    def __init__(self, plan: Plan, look: str, *, network: Callable[..., nn.Module], normalize: bool = False) -> None:
        super().__init__()
        made = network(plan.specs[look])
        self.dim, self.normalize = made.dim, normalize
        self._network = (made.eval().requires_grad_(False),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        """Moves the frozen network along; it hides in a tuple so that checkpoints and optimizers do not see it."""
        super()._apply(fn, recurse)
        self._network[0]._apply(fn, recurse)
        return self

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, (r, t, d)."""
        features = self._network[0](look.views[0])
        if features.grid != look.tokens.grid:
            raise ValueError(
                f"target/frozen: the frozen network has tokens on {features.grid}, the student on {look.tokens.grid}; "
                "give both the same input size and patch"
            )
        return _at(look, query, features, self.normalize)


def _at(look: Look, query: Tokens, features: Tokens, normalize: bool) -> Tensor:
    """Features of whole samples at the places of a query, (r, t, d), standardised over d where asked."""
    assert features.x is not None
    if features.packed:
        values = features.at(query).float()
        return F.layer_norm(values, values.shape[-1:]) if normalize else values
    row = _rows(look, query)
    values = features.x if row is None else features.x[row]
    values = values.gather(1, query.index.unsqueeze(-1).expand(-1, -1, values.shape[-1])).float()
    return F.layer_norm(values, values.shape[-1:]) if normalize else values


def _rows(look: Look, query: Tokens) -> Tensor | None:
    """The sample each row of a query belongs to, None where rows are samples in order."""
    samples, rows = look.tokens.index.shape[0], query.index.shape[0]
    if rows == samples:
        return look.row
    owner = look.row
    masks = samples if owner is None else len(owner)
    each = torch.arange(masks, device=query.index.device).repeat_interleave(rows // masks)
    return each if owner is None else owner[each]
