"""Frozen networks that hear recordings, for `target/frozen`."""

from __future__ import annotations

import math
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from mmssl.modalities.audio.filters import within
from mmssl.modalities.audio.tokenizer import as_waves
from mmssl.modalities.audio.waves import Waves, as_float
from mmssl.nn.patches import coordinates
from mmssl.registry import register, suggest
from mmssl.types import Tokens, TokenSpec, View

# Samples that one frame of these networks hears, and from frame to frame.
_RECEPTIVE, _HOP = 400, 320


@register("network/torchaudio")
class TorchaudioNetwork(nn.Module):
    """A wav2vec 2.0, HuBERT or WavLM network of torchaudio's pipelines, as features of patches of a spectrogram.

    The network gives a vector every 20 ms. A patch takes the mean of those that begin within its stride in time; all
    patches of one time have the same. Patches behind a recording's end are zero: give the tokenizer `padding: masked`,
    so that nothing is learnt from them. Recordings are resampled and mixed to one channel as the network wants.

    Args:
        spec: sizes of the student's tokens, on a grid of time and frequency.
        name: of a pipeline: HUBERT_BASE, WAV2VEC2_BASE, WAVLM_BASE_PLUS, ...
        layer: number of the transformer layer, from 1 on; null for the last.
        folder: where the pipeline's file of weights lies, or is put; null for PyTorch's own cache.
        shift_ms: milliseconds from frame to frame of the student's spectrogram, as in its tokenizer.

    Raises:
        ValueError: for an unknown pipeline or layer, tokens without such a grid, or weights that cannot be had.
    """

    def __init__(
        self, spec: TokenSpec, *, name: str = "HUBERT_BASE", layer: int | None = None, folder: str | None = None,
        shift_ms: float = 10.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if spec.grid is None or len(spec.grid) != 2 or spec.cell is None:
            raise ValueError(
                f"network/torchaudio needs tokens on a grid of time and frequency (got {spec.grid}); use "
                "tokenizer/spectrogram"
            )
        bundle = _bundle(name)
        made = _weights(name, bundle, folder)
        # torchaudio's wrapper would standardise a whole batch at once
        self.standard = bool(getattr(made, "normalize_waveform", False))
        self.model: Any = getattr(made, "model", made)
        blocks = self.model.encoder.transformer.layers
        self.layer = len(blocks) if layer is None else layer
        if not 1 <= self.layer <= len(blocks):
            raise ValueError(f"network/torchaudio: {name} has layers 1 to {len(blocks)} (got layer={layer})")
        self.rate = int(bundle.sample_rate)
        self.grid, self.channels = spec.grid, spec.channels or 1
        self.step = spec.cell[0] * shift_ms / 1000 * self.rate
        self.dim = _width(self.model)

    def forward(self, view: View) -> Tokens:
        """Features of every patch, `x` (b, n, dim) on the student's grid."""
        waves = self._heard(view.data)
        real = within(waves.counts, waves.data.shape[-1], waves.data.device)
        wave = waves.data.mean(1)
        if self.standard:
            wave = _standardised(wave, waves.counts, real)
        lengths = None if real is None else torch.tensor(waves.counts, device=wave.device)
        layers, _ = self.model.extract_features(wave, lengths, self.layer)
        x = self._steps(layers[-1], waves.counts).repeat_interleave(self.grid[1], 1)
        b, n = x.shape[:2]
        index = torch.arange(n, device=x.device).expand(b, n)
        pos = coordinates(self.grid).to(x.device).expand(b, -1, -1)
        return Tokens(raw=x[..., :0], pos=pos, index=index, x=x, grid=self.grid)

    def _heard(self, data: Waves | Tensor) -> Waves:
        """Recordings at the network's rate, silent behind their ends and as long as one frame at least."""
        import torchaudio.functional

        waves = data if isinstance(data, Waves) else as_waves(data, self.rate, self.channels)
        wave = as_float(waves.data)
        real = within(waves.counts, wave.shape[-1], wave.device)
        wave = wave if real is None else wave.masked_fill(~real.unsqueeze(1), 0.0)
        wave = torchaudio.functional.resample(wave, waves.rate, self.rate)
        counts = tuple(max(_RECEPTIVE, math.ceil(count * self.rate / waves.rate)) for count in waves.counts)
        wave = nn.functional.pad(wave, (0, max(0, max(counts) - wave.shape[-1])))[..., : max(counts)]
        return Waves(wave, counts, self.rate)

    def _steps(self, features: Tensor, counts: tuple[int, ...]) -> Tensor:
        """The mean of the frames (b, f, d) that begin within each step, (b, steps, d); zero behind the end."""
        starts = torch.arange(features.shape[1], device=features.device) * _HOP
        owner = (starts / self.step).floor().long()
        steps = self.grid[0]
        share = (owner == torch.arange(steps, device=owner.device).unsqueeze(1)).to(features.dtype)
        if self.step < _HOP:  # finer than the network: each step takes the frame it lies in
            place = (torch.arange(steps, device=owner.device) * self.step / _HOP).floor().long()
            share = (place.unsqueeze(1) == torch.arange(len(starts), device=owner.device)).to(features.dtype)
        frames = [(count - _RECEPTIVE) // _HOP + 1 for count in counts]
        kept = within(frames, features.shape[1], features.device)
        weight = share.expand(len(features), -1, -1) if kept is None else share * kept.unsqueeze(1)
        return (weight / weight.sum(-1, keepdim=True).clamp(min=1)) @ features


def _bundle(name: str) -> Any:
    from torchaudio import pipelines

    known = [other for other in dir(pipelines) if hasattr(getattr(pipelines, other), "get_model")]
    known = [other for other in known if isinstance(getattr(pipelines, other), pipelines.Wav2Vec2Bundle)]
    if name not in known:
        raise ValueError(f"network/torchaudio: there is no pipeline {name!r}{suggest(name, known)}")
    return getattr(pipelines, name)


def _weights(name: str, bundle: Any, folder: str | None) -> Any:
    """The pipeline's network with its weights."""
    try:
        return bundle.get_model(dl_kwargs=None if folder is None else {"model_dir": folder})
    except (URLError, OSError) as error:
        raise ValueError(
            f"network/torchaudio: the weights of {name} are not here and cannot be fetched ({error}). Run "
            f"torchaudio.pipelines.{name}.get_model() where there is a network, and give the folder of its file as "
            "`folder`"
        ) from error


def _width(model: Any) -> int:
    return int(model.encoder.transformer.layers[0].final_layer_norm.normalized_shape[0])


def _standardised(wave: Tensor, counts: tuple[int, ...], real: Tensor | None) -> Tensor:
    """Each recording (n,) of a batch less its mean, over its deviation."""
    count = torch.tensor(counts, device=wave.device).unsqueeze(1)
    kept = torch.ones_like(wave) if real is None else real.to(wave.dtype)
    away = (wave - (wave * kept).sum(1, keepdim=True) / count) * kept
    return away * torch.rsqrt(away.square().sum(1, keepdim=True) / count + 1e-5)
