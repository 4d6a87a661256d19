"""Cepstral coefficients as targets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmssl.modalities.audio.filters import FilterBanks
from mmssl.modalities.audio.tokenizer import as_waves
from mmssl.parts.targets import gathered
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Look
from mmssl.types import Tokens

_LIFTER = 22.0


@register("target/mfcc")
class MFCC(nn.Module):
    """Mel-frequency cepstral coefficients with their first and second differences, where a token begins (HuBERT).

    Kaldi's coefficients every 10 ms, as `torchaudio.compliance.kaldi.mfcc` has them of samples times 32768, and
    torchaudio's differences over five of them. A token takes those of the frame that begins with it.

    Args:
        plan: the look's tokenizer says the rate and how far tokens are apart.
        look: the look whose tokens are meant, windows of a recording (`tokenizer/waveform`).
        coefficients: how many, before differences are taken.
        bins: mel filters.

    Raises:
        ValueError: for a tokenizer of other tokens.
    """

    matrix: Tensor

    def __init__(self, plan: Plan, look: str, *, coefficients: int = 13, bins: int = 23) -> None:
        super().__init__()
        from torchaudio.functional import create_dct

        spec = plan.specs[look]
        rate = getattr(plan.networks[look].tokenizer, "rate", None)
        if rate is None or spec.cell is None or len(spec.cell) != 1:
            raise ValueError("target/mfcc is of tokens in time; choose tokenizer/waveform")
        self.rate, self.hop, self.channels = int(rate), int(spec.cell[0]), spec.channels or 1  # pyright: ignore
        self.filters, self.dim = FilterBanks(self.rate, bins, 10.0, "beats"), 3 * coefficients
        lifter = 1 + 0.5 * _LIFTER * torch.sin(math.pi * torch.arange(coefficients) / _LIFTER)
        self.register_buffer("matrix", create_dct(coefficients, bins, "ortho") * lifter, persistent=False)

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Coefficients of the tokens asked for, (r, t, 3 * coefficients)."""
        from torchaudio.functional import compute_deltas

        waves = as_waves(look.views[0].data, self.rate, self.channels)
        banks = self.filters(waves.data, waves.counts).mean(1)
        frames = torch.tensor(self.filters.frames(waves.counts), device=banks.device).unsqueeze(1)
        steps = torch.arange(banks.shape[1], device=banks.device).expand(len(banks), -1)
        last = steps.minimum(frames - 1).unsqueeze(-1)

        def continued(x: Tensor) -> Tensor:
            """Behind its end a recording goes on as it ended."""
            return x.gather(1, last.expand(-1, -1, x.shape[-1]))

        values = [continued(banks @ self.matrix)]
        for _ in range(2):
            values.append(continued(compute_deltas(values[-1].mT).mT))
        place = torch.arange(look.tokens.index.shape[1], device=banks.device) * self.hop // self.filters.shift
        at = place.clamp(max=banks.shape[1] - 1)
        return gathered(look, query, look.tokens.but(x=torch.cat(values, -1)[:, at]))
