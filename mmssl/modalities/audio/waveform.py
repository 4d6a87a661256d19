"""Recordings as they are: tokens of overlapping windows, and the convolutions that embed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.modalities.audio.filters import FilterBanks, within
from mmssl.modalities.audio.pictures import Spectrogram
from mmssl.modalities.audio.tokenizer import as_waves
from mmssl.modalities.audio.waves import as_float
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec, View

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


@register("tokenizer/waveform")
class WaveformTokenizer(nn.Module):
    """Windows of a recording of any length, one token every 20 ms, embedded by convolutions (wav2vec 2.0, HuBERT).

    A token's raw values are the samples that its convolutions hear: 400 every 320 by default, so that n samples make
    (n - 400) // 320 + 1 tokens. Shorter recordings of a batch are padded, and their padding is marked.

    Args:
        facts: the data's facts: `channels`.
        rate: samples per second; recordings have to come at this rate (view/resample).
        kernels: kernel sizes of the convolutions.
        strides: their strides.
        width: channels of each.
        dropout: behind the linear map that ends the embedding.
        gradient: what the gradient into the convolutions is multiplied by.

    Raises:
        ValueError: for kernels and strides that are not equally many, or below 1.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        *,
        rate: int = 16000,
        kernels: Sequence[int] = KERNELS,
        strides: Sequence[int] = STRIDES,
        width: int = 512,
        dropout: float = 0.1,
        gradient: float = 0.1,
    ) -> None:
        super().__init__()
        if len(kernels) != len(strides) or not kernels or min(*kernels, *strides) < 1:
            raise ValueError(
                f"tokenizer.kernels and tokenizer.strides are of the same convolutions, one number from 1 on for each "
                f"(got {list(kernels)} and {list(strides)})"
            )
        self.rate, self.channels = rate, int(facts["channels"])
        self.hop, self.window = 1, 1
        for kernel, stride in zip(kernels, strides, strict=True):
            self.window += (kernel - 1) * self.hop
            self.hop *= stride
        self.said = (tuple(kernels), tuple(strides), width, dropout, gradient)
        self.filters = FilterBanks(rate, 64, 1000 * self.hop / rate, "ast")  # for pictures
        self.spec = TokenSpec(self.window * self.channels, 1, cell=(self.hop,), channels=self.channels)

    def embedding(self, dim: int) -> Convolutions:
        """Convolutions of the recording that the windows were cut from."""
        kernels, strides, width, dropout, gradient = self.said
        return Convolutions(self.channels, self.hop, dim, kernels, strides, width, dropout, gradient)

    def forward(self, view: View) -> Tokens:
        """Windows of a batch.

        Args:
            view: `Waves`, or a tensor (b, n) or (b, c, n) of samples at the tokenizer's rate.

        Returns:
            Tokens with raw (b, windows of the longest, c * window), without embeddings.
        """
        waves = as_waves(view.data, self.rate, self.channels)
        wave = as_float(waves.data)
        real = within(waves.counts, wave.shape[-1], wave.device)
        wave = wave if real is None else wave.masked_fill(~real.unsqueeze(1), 0.0)
        each = [1 + max(0, count - self.window) // self.hop for count in waves.counts]
        n = max(each)
        length = self.window + (n - 1) * self.hop
        wave = F.pad(wave, (0, max(0, length - wave.shape[-1])))[..., :length]
        raw = wave.unfold(-1, self.window, self.hop).transpose(1, 2).flatten(2)
        index = torch.arange(n, device=raw.device).expand(len(raw), n)
        pos = index.unsqueeze(-1).to(raw.dtype)
        return Tokens(raw=raw, pos=pos, index=index, valid=within(each, n, raw.device), count=n)

    def restore(self, tokens: Tokens, shown: Tensor | None) -> list[Spectrogram]:
        """Spectrograms of what raw values make up, for pictures, without padding; hidden windows are grey."""
        made = []
        for i, wave in enumerate(whole(tokens.raw.float(), self.channels, self.hop)):
            n = tokens.raw.shape[1] if tokens.valid is None else int(tokens.valid[i].sum())
            heard = wave[None, :, : self.window + (n - 1) * self.hop]
            banks = self.filters(heard, [heard.shape[-1]])[0].mean(0)
            values = (banks - banks.mean()) / (4 * banks.std().clamp(min=1e-6)) + 0.5
            step = torch.arange(len(values), device=values.device).clamp(max=n - 1)
            flags = None if shown is None else shown[i, step].unsqueeze(-1).expand_as(values)
            made.append(Spectrogram(values, flags))
        return made


def whole(raw: Tensor, channels: int, hop: int) -> Tensor:
    """The recordings (b, c, n) that overlapping windows (b, windows, c * window) were cut from, one every `hop`."""
    windows = raw.unflatten(-1, (channels, -1))
    return torch.cat([windows[..., :hop].transpose(1, 2).flatten(2), windows[:, -1, :, hop:]], -1)


class Convolutions(nn.Module):
    """Convolutions without biases, each with a GELU behind it, a layer norm, and a linear map to the encoder's width.

    Behind the first, every channel is normalised over the time of its recording. Two layers are kept as taps:
    `conv`, what the convolutions give, and `features`, that behind the layer norm.
    """

    whole = True  # windows make up a recording only together

    def __init__(
        self,
        channels: int,
        hop: int,
        dim: int,
        kernels: Sequence[int],
        strides: Sequence[int],
        width: int,
        dropout: float,
        gradient: float,
    ) -> None:
        super().__init__()
        self.channels, self.hop, self.gradient, self.width = channels, hop, gradient, width
        widths = (channels, *[width] * len(kernels))
        self.convs = nn.ModuleList(
            nn.Conv1d(widths[i], width, kernel, stride, bias=False)
            for i, (kernel, stride) in enumerate(zip(kernels, strides, strict=True))
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)  # pyright: ignore[reportArgumentType]  # a Conv1d
        self.first = nn.GroupNorm(width, width)
        self.norm, self.proj, self.dropout = nn.LayerNorm(width), nn.Linear(width, dim), nn.Dropout(dropout)

    def forward(self, tokens: Tokens, kept: Tokens | None = None, row: Tensor | None = None) -> Tokens:
        """Tokens with `x` (b, n, dim) and taps; of `kept` alone, rows of samples `row`, where that is given."""
        x = whole(tokens.raw, self.channels, self.hop)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = F.gelu(self._normed(x, tokens.valid) if i == 0 else x)
        conv = x.transpose(1, 2)
        if self.gradient != 1:
            conv = conv * self.gradient + conv.detach() * (1 - self.gradient)
        features = self.norm(conv)
        out = tokens.but(x=self.dropout(self.proj(features)), taps={"conv": conv, "features": features})
        return out if kept is None else kept.but(x=out.take(kept.index, row).x)

    def _normed(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Group norm with a group for each channel, over the steps that belong to each recording."""
        if valid is None:
            return self.first(x)
        first: Any = self.convs[0]
        window = (x.shape[-1] - 1) * first.stride[0] + first.kernel_size[0] - (valid.shape[1] - 1) * self.hop
        heard = (valid.sum(1) - 1) * self.hop + window
        steps = torch.div(heard - first.kernel_size[0], first.stride[0], rounding_mode="floor") + 1
        flags = (torch.arange(x.shape[-1], device=x.device) < steps.unsqueeze(1)).unsqueeze(1)
        count = steps[:, None, None]
        mean = (x * flags).sum(-1, keepdim=True) / count
        variance = ((x - mean).square() * flags).sum(-1, keepdim=True) / count
        x = (x - mean) * torch.rsqrt(variance + self.first.eps) * flags
        return x * self.first.weight[:, None] + self.first.bias[:, None]
