"""Frozen features of every token, for probes that pool them in their own way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.evaluation.features import UNLABELLED, Features, device_of, evaluating, untouched


@dataclass(frozen=True)
class TokenFeatures:
    """All tokens of each sample, and its label.

    Args:
        x: (n, t, d) float16, which halves the memory and is finer than what probes can tell; zeros at padding.
        y: (n,) int64, -1 where there is no label.
        valid: False at padding, (n, t) bool; None where there is none.
        summary: the class token of each sample, (n, d) float16; None where the encoder has none.
    """

    x: Tensor
    y: Tensor
    valid: Tensor | None = None
    summary: Tensor | None = None

    def __len__(self) -> int:
        """Number of samples, n."""
        return len(self.y)

    def known(self) -> Tensor:
        """Which samples have a label, (n,) bool."""
        return self.y >= 0

    def where(self, keep: Tensor) -> TokenFeatures:
        """The samples at which `keep` holds: (n,) bool, or their places (m,) int64."""
        valid, summary = (None if field is None else field[keep] for field in (self.valid, self.summary))
        return TokenFeatures(self.x[keep], self.y[keep], valid, summary)

    def labelled(self) -> TokenFeatures:
        """The samples that have a label."""
        return self.where(self.known())


def single(features: Features) -> TokenFeatures:
    """One vector per sample as its only token: what the raw input is to a probe of tokens."""
    return TokenFeatures(features.x.unsqueeze(1), features.y)


def embed_tokens(
    encoder: nn.Module, batches: Iterable[Mapping[str, Any]], memory_mb: float, samples: int
) -> TokenFeatures:
    """All tokens of a data set in evaluation mode, on the CPU; nothing global is changed.

    Args:
        encoder: `encoder(view) -> Tokens`, unmasked.
        batches: dicts with `x` (a `View`) and, where there are labels, `label` (b,) integers.
        memory_mb: more MiB than this are refused after the first batch, before the time is spent.
        samples: number of samples that the batches hold in all, for that estimate.

    Raises:
        ValueError: where there is no sample, or the tokens do not fit into memory.
    """
    device = device_of(encoder)
    parts: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = []
    with untouched(), evaluating(encoder), torch.inference_mode():
        for batch in batches:
            tokens = encoder(batch["x"].to(device)).dense()
            x = tokens.x.to(torch.float16).cpu()
            if tokens.valid is not None:
                x = x.masked_fill(~tokens.valid.cpu().unsqueeze(-1), 0.0)
            if not parts:
                fits(x, samples, memory_mb)
            y = batch.get("label")
            summary = None if tokens.prefix is None else tokens.prefix[:, 0].to(torch.float16).cpu()
            valid = None if tokens.valid is None else tokens.valid.cpu()
            parts.append((x, torch.full((len(x),), UNLABELLED) if y is None else y.cpu(), valid, summary))
    if not parts:
        raise ValueError("data: there is nothing to embed; the split is empty. Check data.root and the split's size.")
    return _joined(parts)


def fits(x: Tensor, samples: int, memory_mb: float, beside: int = 0) -> None:
    """Refuses more features than fit into memory.

    Args:
        x: the tokens of some samples, (b, t, d), kept as half floats.
        samples: number of samples in all.
        memory_mb: MiB that may be used.
        beside: bytes of each sample that are kept beside its tokens.

    Raises:
        ValueError: with the number of samples that would fit.
    """
    need = (x[0].numel() * 2 + beside) * samples / 2**20
    if need > memory_mb:
        fit = int(samples * memory_mb / need)
        raise ValueError(
            f"evaluation.memory_mb={memory_mb:g}: the tokens of {samples} samples ({x.shape[1]} of width {x.shape[2]} "
            f"each) need {need:.0f} MiB. Set evaluation.limit={fit} to probe so many samples of each split, or raise "
            "evaluation.memory_mb."
        )


def _joined(parts: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]) -> TokenFeatures:
    """Batches one behind the other, padded to the longest. Copies leave inference mode behind."""
    most = max(x.shape[1] for x, *_ in parts)
    ragged = any(valid is not None or x.shape[1] < most for x, _, valid, _ in parts)
    xs, valids = [], []
    for x, _, valid, _ in parts:
        gap = most - x.shape[1]
        xs.append(torch.nn.functional.pad(x, (0, 0, 0, gap)))
        kept = torch.ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
        valids.append(torch.nn.functional.pad(kept, (0, gap), value=False))
    summaries = [summary for *_, summary in parts if summary is not None]
    return TokenFeatures(
        torch.cat(xs), torch.cat([y for _, y, _, _ in parts]), torch.cat(valids) if ragged else None,
        torch.cat(summaries) if summaries else None,
    )  # fmt: skip
