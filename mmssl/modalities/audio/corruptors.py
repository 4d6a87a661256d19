"""Corruptors of frames: their values change, nothing is left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.registry import register
from mmssl.types import Mask, Tokens, TokenSpec


@register("corruptor/alter")
class Alter(nn.Module):
    """Alters frames in time, frequency and magnitude (TERA, Liu, Li, Lee 2021); made for `masker/bands`.

    * Time: one throw for each recording sets its hidden frames to zero, replaces each run of them by another stretch of
      the recording, or leaves them as they are.
    * Frequency: bins that are marked in all valid frames are set to zero.
    * Magnitude: some recordings get Gaussian noise on all values.

    Zero is the mean where values are standardised. What is scored does not depend on the throws.

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts; altered frames keep the sequence whole.
        dim: the encoder's width.
        zero: probability that hidden frames become zero.
        swap: probability that they are replaced; with the rest they stay.
        noise: probability of noise.
        std: its standard deviation.

    Raises:
        ValueError: for probabilities outside [0, 1].
    """

    on = "tokens"
    needs = ("sequence", "full")

    def __init__(
        self,
        spec: TokenSpec,
        accepts: str,
        dim: int,
        *,
        zero: float = 0.8,
        swap: float = 0.1,
        noise: float = 0.15,
        std: float = 0.2,
    ) -> None:
        super().__init__()
        if min(zero, swap, noise, std) < 0 or zero + swap > 1 + 1e-9 or noise > 1:
            raise ValueError(
                f"corruptor: zero, swap and noise are probabilities, and zero + swap is at most 1 (got {zero}, {swap}, "
                f"{noise})"
            )
        self.zero, self.swap, self.noise, self.std = zero, swap, noise, std

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """All frames, some values altered; padding as it was.

        Raises:
            ValueError: for a mask of whole tokens, or of several rows per sample.
        """
        if mask.elements is None or mask.row is not None:
            raise ValueError("corruptor/alter needs a masker that marks single values, such as masker/bands")
        raw, valid = tokens.raw, torch.ones_like(mask.visible) if tokens.valid is None else tokens.valid
        hidden = mask.hidden & valid
        dice = draws.named("time").uniform(1).to(raw.device)
        source = self._source(hidden, valid, draws.named("swap"))
        swapped = raw.gather(1, source.unsqueeze(-1).expand_as(raw))
        altered = torch.where(
            (hidden & (dice >= self.zero) & (dice < self.zero + self.swap)).unsqueeze(-1), swapped, raw
        )
        altered = altered.masked_fill((hidden & (dice < self.zero)).unsqueeze(-1), 0.0)
        altered = altered.masked_fill(self._band(mask, hidden, valid), 0.0)
        happens = draws.named("noise").uniform(1).to(raw.device) < self.noise
        # a uniform draw for each value, in order: the numbers of a frame do not depend on the length of the padding
        unit = draws.named("magnitude").uniform(*raw.shape[1:]).to(raw.device)
        noise = torch.special.ndtri(unit.double() + 2.0**-25).to(raw.dtype) * self.std
        altered = altered + noise * (happens & valid).unsqueeze(-1)
        return tokens.but(raw=altered)

    @staticmethod
    def _band(mask: Mask, hidden: Tensor, valid: Tensor) -> Tensor:
        """Values in the band, (b, n, v): marked outside of spans, and not all of the frame."""
        assert mask.elements is not None
        outside = (valid & ~hidden).unsqueeze(-1)
        band = (mask.elements & outside).any(1, keepdim=True)
        whole = band.all(-1, keepdim=True)  # nothing was hidden and all is scored
        return band & ~whole & valid.unsqueeze(-1)

    @staticmethod
    def _source(hidden: Tensor, valid: Tensor, draws: Draws) -> Tensor:
        """The frame that replaces each hidden frame, (b, n): every run moves to a random place as a whole."""
        b, n = hidden.shape
        before = torch.nn.functional.pad(hidden, (1, 0))[:, :-1]
        first = hidden & ~before
        run = torch.cumsum(first.long(), 1)  # from 1 on; frames behind a run keep its number, but are not hidden
        place = torch.arange(n, device=hidden.device).expand(b, n)
        zeros = torch.zeros(b, n + 1, dtype=torch.int64, device=hidden.device)
        start = zeros.scatter_add(1, torch.where(first, run, 0), torch.where(first, place, 0)).gather(1, run)
        length = zeros.scatter_add(1, torch.where(hidden, run, 0), hidden.long()).gather(1, run)
        unit = draws.uniform(n).to(hidden.device).gather(1, start)
        spare = (valid.sum(1, keepdim=True) - length).clamp(min=0)
        moved = torch.minimum((unit * (spare + 1)).long(), spare) + place - start
        return torch.where(hidden, moved, place).clamp(0, n - 1)
