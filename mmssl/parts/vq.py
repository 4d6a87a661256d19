"""Vector quantisation: tokenizers that are trained, by predicting features through a bottleneck of codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ranks
from mmssl.nn.init import trunc_normal_
from mmssl.parts.codes import nearest
from mmssl.parts.regions import counted
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


class Quantizer(nn.Module):
    """Codes of length 1 that follow the vectors they stand for by a moving average, over all ranks.

    The first batch of training places them, by k-means with cosines. Codes that a batch does not use stay.

    Args:
        count: number of codes.
        dim: their width.
        decay: share of a code that is kept where it is used.
        rounds: iterations of the first k-means.
    """

    codes: Tensor
    placed: Tensor

    def __init__(self, count: int, dim: int, decay: float, rounds: int) -> None:
        super().__init__()
        self.count, self.decay, self.rounds = count, decay, rounds
        self.register_buffer("codes", F.normalize(torch.randn(count, dim), dim=-1))
        self.register_buffer("placed", torch.tensor(False))
        self._placed = False  # what the buffer says, so that the device is asked once

    def forward(self, z: Tensor, flags: Tensor | None) -> tuple[Tensor, Tensor]:
        """The codes of vectors (..., d) with straight-through gradient, and each vector's commitment (...).

        Args:
            z: vectors of any length.
            flags: which of them count (...); None for all.
        """
        with torch.autocast(z.device.type, enabled=False):
            unit = F.normalize(z.to(self.codes.dtype), dim=-1)
            rows = unit.detach() if flags is None else unit.detach()[flags]
            rows = rows.reshape(-1, rows.shape[-1])
            if self.training and not self._placed:
                self._place(rows)
            chosen = self.codes[nearest(unit.detach(), self.codes)]
            if self.training:
                self._follow(rows)
            return unit + (chosen - unit).detach(), (chosen - unit).square().mean(-1)

    @torch.no_grad()
    def assign(self, z: Tensor) -> Tensor:
        """Numbers of the codes (...) of vectors (..., d)."""
        with torch.autocast(z.device.type, enabled=False):
            return nearest(F.normalize(z.to(self.codes.dtype), dim=-1), self.codes)

    def _means(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised mean of the rows of all ranks that are nearest to each code, and which codes have any."""
        ids = nearest(rows, self.codes)
        sums = torch.zeros_like(self.codes).index_add_(0, ids, rows)
        counts = torch.bincount(ids, minlength=self.count).to(rows.dtype)
        both = ranks.total(torch.cat([sums, counts.unsqueeze(1)], 1))
        return F.normalize(both[:, :-1] / both[:, -1:].clamp(min=1), dim=-1), both[:, -1:] > 0

    @torch.no_grad()
    def _place(self, rows: Tensor) -> None:
        """Codes begin as vectors of the first global batch, and as means of those that are near."""
        if not bool(self.placed):
            every = ranks.gather(rows)
            order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).to(rows.device)
            self.codes.copy_(every[order[torch.arange(self.count, device=rows.device) % len(every)]])
            for _ in range(self.rounds):
                means, used = self._means(rows)
                self.codes.copy_(torch.where(used, means, self.codes))
            self.placed.fill_(True)
        self._placed = True

    @torch.no_grad()
    def _follow(self, rows: Tensor) -> None:
        """One step of the codes that are used towards their means."""
        means, used = self._means(rows)
        moved = F.normalize(self.codes.lerp(means, 1 - self.decay), dim=-1)
        self.codes.copy_(torch.where(used, moved, self.codes))


@register("predictor/quantized")
class Quantized(nn.Module):
    """Answers from codes alone: features, a code for each token, a decoder (BEiT v2's VQ-KD; BEATs' tokenizer).

    Linear, tanh, linear, the nearest code, linear, an encoder as decoder, linear, tanh, linear. It says `commitment`
    beside, how far tokens are from their codes: `term/aside` makes it a term. `codes/run` gives the codes to others.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        decoder: an encoder, called as (spec), that takes whole sequences of codes.
        count: number of codes.
        dim: their width.
        decay: share of a code that is kept at each step.
        rounds: iterations of the k-means that places the codes in the first batch.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        decoder: Callable[[TokenSpec], nn.Module],
        count: int = 8192,
        dim: int = 32,
        decay: float = 0.99,
        rounds: int = 10,
    ) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))
        self.quantizer = Quantizer(count, dim, decay, rounds)
        self.decoder: Any = decoder(spec)
        wide = int(self.decoder.dim)
        self.up = nn.Linear(dim, wide)
        self.head = nn.Sequential(nn.Linear(wide, wide), nn.Tanh(), nn.Linear(wide, out))
        for part in (self.down, self.up, self.head):
            trunc_normal_(part)
        self.asides: dict[str, Tensor] = {}

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query, all of which must be among the seen tokens."""
        codes, apart = self.quantizer(self._narrow(seen), counted(seen))
        flags, values = counted(query), seen.at(query, apart.unsqueeze(-1))[..., 0]
        self.asides = {"commitment": (values if flags is None else torch.where(flags, values, 0.0)).sum()}
        decoded = self.decoder(seen.but(x=self.up(codes.to(self.up.weight.dtype)), prefix=None, taps={}))
        return self.head(decoded.at(query))

    def _narrow(self, seen: Tokens) -> Tensor:
        assert seen.x is not None
        with torch.autocast(seen.x.device.type, enabled=False):
            return self.down(seen.x.to(self.up.weight.dtype))


class Assigned(nn.Module):
    """Codes of a quantised predictor that is not trained any more, as `codes/...` parts are called.

    Args:
        predictor: the predictor, with `down` and `quantizer`.
    """

    def __init__(self, predictor: Quantized) -> None:
        super().__init__()
        self.count = predictor.quantizer.count
        self.down, self.quantizer = predictor.down.requires_grad_(False), predictor.quantizer
        self.train()  # nothing here depends on it, and Lightning warns of parts that are not

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        """Numbers of codes (...) of features (..., width)."""
        with torch.autocast(values.device.type, enabled=False):
            return self.quantizer.assign(self.down(values))
