"""Corruptors that need no masker: a band of frequencies, or a random subspace of tokens, is taken away."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.registry import register
from mmssl.types import Mask, Tokens, TokenSpec, View


@register("corruptor/frequency")
class Frequency(nn.Module):
    """Takes the high or the low frequencies of each image away (MFM, Xie et al. 2022).

    A throw per sample keeps what lies inside a disc around frequency zero, or what lies outside of it, for all
    channels. Values are in [0, 1] before and after; what leaves this range is cut off.

    Args:
        radius: of the disc, in cycles per image; frequencies nearer to zero than that are low. 16 for 224 pixels.
        low: probability that low frequencies are kept: 0.5 for ViTs, 0.3 for CNNs.

    Raises:
        ValueError: for a radius not above 0, or a probability outside [0, 1].
    """

    on = "view"

    def __init__(self, *, radius: float = 16, low: float = 0.5) -> None:
        super().__init__()
        if radius <= 0 or not 0 <= low <= 1:
            raise ValueError(
                f"corruptor/frequency: radius has to be above 0 and low between 0 and 1, usually 16 and 0.5 (got "
                f"{radius:g} and {low:g})"
            )
        self.radius, self.low = radius, low

    def lost(self, look: Any, draws: Draws) -> Tensor:
        """Which frequencies are gone, (b, h, w) bool in the order of `torch.fft.fft2`."""
        height, width = look.views[0].data.shape[-2:]
        inside = self._disc(height, width, draws.keys.device)
        return inside != self._keeps_low(draws).view(-1, 1, 1)

    def forward(self, view: View, look: Any, draws: Draws) -> View:
        """The images without the frequencies, floats in [0, 1]."""
        x = view.data
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        kept = self._disc(x.shape[-2], x.shape[-1], x.device) == self._keeps_low(draws).view(-1, 1, 1).to(x.device)
        filtered = torch.fft.ifft2(torch.fft.fft2(x) * kept.unsqueeze(1)).real
        return View(filtered.clamp(0, 1), view.modality)

    def _keeps_low(self, draws: Draws) -> Tensor:
        return draws.named("band").uniform(1)[:, 0] < self.low

    def _disc(self, height: int, width: int, device: torch.device) -> Tensor:
        """Low frequencies, (h, w) bool."""
        rows, columns = (torch.fft.fftfreq(side, 1 / side, device=device) for side in (height, width))
        return rows.square().unsqueeze(1) + columns.square() < self.radius**2


@register("corruptor/project")
class Project(nn.Module):
    """Projects the tokens of each sample onto a random subspace (ROPIM, Haghighat et al. 2023).

    Each token falls into one of m buckets, all of them equally full, with a random sign; the signed mean of a bucket
    stands in place of each of its tokens, with the token's sign. Nothing is masked, and all tokens stay.

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts.
        dim: the encoder's width.
        ratio: dimensions of the subspace over the number of tokens; m is rounded up.
        factor: of the sum over a bucket; null for one over its tokens, which makes the projection exact. The released
            code has 0.14, whose eigenvalues on 196 tokens are 0.98.

    Raises:
        ValueError: for a ratio outside (0, 1].
    """

    on = "embedded"
    needs = ("sequence", "full")
    maskless = True

    def __init__(
        self, spec: TokenSpec, accepts: str, dim: int, *, ratio: float = 0.14, factor: float | None = None
    ) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(f"corruptor/project: ratio has to be above 0 and at most 1, usually 0.14 (got {ratio:g})")
        self.ratio, self.factor = ratio, factor

    def projection(self, n: int, draws: Draws) -> Tensor:
        """The projection of each sample, (b, n, n) float32."""
        m = math.ceil(n * self.ratio)
        rounds = -(-n // m)
        # every bucket once, in random order, again and again until all tokens have one
        bucket = draws.named("buckets").uniform(rounds, m).argsort(-1).flatten(1)[:, :n]
        sign = 1.0 - 2.0 * (draws.named("signs").order(n) % 2)
        same = (bucket.unsqueeze(2) == bucket.unsqueeze(1)).float()
        share = 1 / same.sum(2, keepdim=True) if self.factor is None else self.factor
        return same * share * sign.unsqueeze(2) * sign.unsqueeze(1)

    def lost(self, look: Any, draws: Draws) -> Tensor:
        """Identity less the projection of each sample, (b, n, n)."""
        n = look.tokens.index.shape[1]
        return torch.eye(n, device=draws.keys.device) - self.projection(n, draws)

    def forward(self, tokens: Tokens, mask: Mask | None, draws: Draws) -> Tokens:
        """All tokens, projected."""
        assert tokens.x is not None
        return tokens.but(x=self.projection(tokens.x.shape[1], draws).to(tokens.x.dtype) @ tokens.x)
