"""Noise of a diffusion as a way to hide, and shares of a batch that are hidden differently (UMD)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.plan import Masker
from mmssl.registry import register
from mmssl.step import Look, Plan
from mmssl.types import Mask, Tokens, TokenSpec


@register("masker/share")
class Share:
    """Masks a share of the samples of a batch by another masker; the others take no part in the look.

    Samples are taken at even steps of the global batch, whatever the ranks, so that two looks with the same share, one
    of them with `rest`, divide it between them.

    Args:
        masker: the masker that is asked.
        share: share of the samples, in (0, 1).
        rest: whether the other samples are taken.

    Raises:
        ValueError: for another share; when called, for a packed batch, or a batch too small to leave a sample.
    """

    def __init__(self, *, masker: Masker, share: float = 0.5, rest: bool = False) -> None:
        if not 0 < share < 1:
            raise ValueError(f"masker.share has to be above 0 and below 1, usually 0.5 (got {share:g})")
        self.masker, self.share, self.rest = masker, share, rest

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row for each sample that is taken."""
        b = len(tokens.index)
        first = ranks.offset(b, draws.keys.device)
        places = range(first, first + b)
        taken = [i for i, p in enumerate(places) if (int((p + 1) * self.share) > int(p * self.share)) != self.rest]
        if tokens.packed or (not taken and ranks.world() == 1):  # other ranks may have some
            raise ValueError(
                f"masker/share: a share of {self.share:g} of {b} samples{' less' if self.rest else ''} leaves none, or "
                "samples are packed; raise data.batch_size"
            )
        row = torch.tensor(taken, dtype=torch.int64, device=draws.keys.device)
        given, picked = tokens.take(tokens.index[row], row), None if score is None else score[row]
        mask = self.masker(given, draws.rows(row), progress, picked)
        assert mask.row is None, "masker/share asks a masker of one mask per sample"
        return Mask(
            mask.visible, mask.targets, row.to(mask.visible.device), mask.visible_count, mask.target_count, mask.loss
        )


def kept_signal(steps: int, schedule: str) -> Tensor:
    """Share of the signal's variance that is left at every step, (steps,) float32.

    Args:
        steps: number of steps.
        schedule: `cosine` (Nichol and Dhariwal 2021) or `linear` (Ho et al. 2020).

    Raises:
        ValueError: for another word, or less than two steps.
    """
    if schedule not in ("cosine", "linear") or steps < 2:
        raise ValueError(
            f"corruptor/diffuse: schedule has to be cosine or linear, and steps at least 2 (got {schedule!r}, {steps})"
        )
    if schedule == "linear":
        beta = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64).clamp(max=0.999)
    else:
        at = torch.arange(steps + 1, dtype=torch.float64) / steps
        level = torch.cos((at + 0.008) / 1.008 * math.pi / 2).square()
        beta = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - beta, 0).float()


@register("corruptor/diffuse")
class Diffuse(nn.Module):
    """Adds the noise of a random step of a diffusion to raw values, and leaves hidden tokens out (UMD).

    Encoder and predictor are told the step, as `Tokens.condition`.

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts.
        dim: the encoder's width.
        steps: steps of the diffusion.
        schedule: of the noise: `cosine` for pixels or `linear` for latents.

    Raises:
        ValueError: for another schedule.
    """

    on = "tokens"
    drops = True
    needs = ("sequence",)
    signal: Tensor

    def __init__(self, spec: TokenSpec, accepts: str, dim: int, *, steps: int = 1000, schedule: str = "cosine") -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("signal", kept_signal(steps, schedule), persistent=False)

    def noise(self, tokens: Tokens, draws: Draws) -> Tensor:
        """Standard normal numbers for the raw values of all samples, (b, n, v)."""
        return draws.named("noise").normal(*tokens.raw.shape[1:]).to(tokens.raw)

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """The visible tokens, noised, one row per mask."""
        step = draws.named("step").integers(0, self.steps, 1).to(tokens.raw.device)
        signal = self.signal.to(tokens.raw.dtype)[step].unsqueeze(-1)
        noised = signal.sqrt() * tokens.raw + (1 - signal).sqrt() * self.noise(tokens, draws)
        index, valid = mask.visible_index
        return tokens.but(raw=noised, condition=step.to(tokens.raw.dtype)).take(index, mask.row, valid)


@register("target/denoise")
class Denoise(nn.Module):
    """Clean raw values of hidden tokens and the noise of visible ones, side by side; what is not asked is no number.

    For `loss/known_mse`. Tokens of looks without noise have no second half (UMD's samples without noise).

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
    """

    def __init__(self, plan: Plan, look: str) -> None:
        super().__init__()
        self.dim = 2 * plan.specs[look].raw

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """(r, t, 2 v): clean values, noise."""
        mask, noise = look.mask, torch.full_like(query.raw, torch.nan)
        corruptor: Any = look.spec.corruptor
        seen = mask.visible.gather(1, query.index).unsqueeze(-1)
        if hasattr(corruptor, "noise"):
            all_of = corruptor.noise(look.tokens, look.draws.named("corrupt"))
            all_of = all_of if mask.row is None else all_of[mask.row]
            noise = torch.where(seen, all_of.gather(1, query.index.unsqueeze(-1).expand_as(query.raw)), noise)
        return torch.cat([query.raw.masked_fill(seen, torch.nan), noise], -1)


@register("loss/known_mse")
def known_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error, averaged over the values of a target that are numbers."""
    known = ~target.isnan()
    error = torch.where(known, prediction.to(target.dtype) - target.nan_to_num(), 0.0)
    return error.square().sum(-1) / known.sum(-1).clamp(min=1)
