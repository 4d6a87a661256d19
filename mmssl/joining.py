"""Token sets put together: streams of the same samples as one sequence, and looks of one size as one batch."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from mmssl.types import Tokens


def signature(tokens: Tokens) -> Hashable:
    """What has to be equal for two token sets to be one batch; None where they cannot be joined (packed batches)."""
    if tokens.packed or type(tokens) is not Tokens:
        return None
    present = tuple(field is None for field in (tokens.x, tokens.stream, tokens.condition))
    widths = (tokens.raw.shape[-1], tokens.pos.shape[-1], tokens.grid, tokens.count)
    return (tokens.index.shape[1], *widths, *present)


def join(parts: list[Tokens]) -> Tokens:
    """Dense token sets of one signature as one batch, one behind the other."""
    if len(parts) == 1:
        return parts[0]

    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return parts[0].but(
        raw=cat("raw"), pos=cat("pos"), index=cat("index"), x=cat("x"), stream=cat("stream"),
        valid=_flags(parts, "valid", 0), given=_flags(parts, "given", 0), condition=cat("condition"),
    )  # fmt: skip


def split(whole: Tokens, parts: list[Tokens]) -> list[Tokens]:
    """What an encoder made of joined parts, apart again; each keeps its geometry, unless the encoder made a new one."""
    if len(parts) == 1:
        return [whole]
    rows = [len(part.index) for part in parts]
    names = ("raw", "pos", "index", "x", "valid", "given", "stream", "prefix", "condition")
    pieces = {name: field.split(rows) for name in names if (field := getattr(whole, name)) is not None}
    taps = {name: tap.split(rows) for name, tap in whole.taps.items()}
    found = []
    for i, part in enumerate(parts):
        own: dict[str, Any] = {name: piece[i] for name, piece in pieces.items()}
        own["taps"] = {name: tap[i] for name, tap in taps.items()}
        if whole.index.shape[1] == part.index.shape[1]:
            own |= {name: getattr(part, name) for name in ("raw", "pos", "index", "valid", "given", "stream")}
        found.append(whole.but(**own))
    return found


def chunks(tokens: Tokens, count: int) -> list[Tokens]:
    """A dense batch in so many pieces, whose rows differ by one at most."""
    names = ("raw", "pos", "index", "x", "valid", "given", "stream", "condition")
    pieces = {name: field.tensor_split(count) for name in names if (field := getattr(tokens, name)) is not None}
    return [tokens.but(**{name: piece[i] for name, piece in pieces.items()}) for i in range(len(pieces["index"]))]


def joined(parts: list[Tokens]) -> Tokens:
    """Encoded pieces of one batch as a whole again."""
    prefix = [part.prefix for part in parts if part.prefix is not None]
    taps = {name: torch.cat([part.taps[name] for part in parts]) for name in parts[0].taps}
    return join(parts).but(prefix=torch.cat(prefix) if prefix else None, taps=taps)


def _flags(parts: list[Tokens], name: str, axis: int) -> Tensor | None:
    """Flags of all parts, where any has them; None says true everywhere."""
    values = [getattr(part, name) for part in parts]
    if all(value is None for value in values):
        return None
    full = [torch.ones_like(p.index, dtype=torch.bool) if v is None else v for p, v in zip(parts, values, strict=True)]
    return torch.cat(full, axis)


def concat(parts: list[Tokens]) -> Tokens:
    """Dense token sets of the same samples as one sequence; `stream` tells them apart, `index` goes on counting."""
    offsets, total = [], 0
    for part in parts:
        offsets.append(total)
        total += part.length

    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else torch.cat(values, 1)

    width = max(part.raw.shape[-1] for part in parts)
    coordinates = max(part.pos.shape[-1] for part in parts)
    pad = torch.nn.functional.pad
    return Tokens(
        raw=torch.cat([pad(part.raw, (0, width - part.raw.shape[-1])) for part in parts], 1),
        pos=torch.cat([pad(part.pos, (0, coordinates - part.pos.shape[-1])) for part in parts], 1),
        index=torch.cat([part.index + offset for part, offset in zip(parts, offsets, strict=True)], 1),
        x=cat("x"), valid=_flags(parts, "valid", 1), given=_flags(parts, "given", 1),
        stream=torch.cat([torch.full_like(part.index, i) for i, part in enumerate(parts)], 1),
        grid=(total,),
    )  # fmt: skip
