"""What samples hold: digests that are equal where contents are, and hashes that are near where pictures look alike."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.ragged import Lazy
from mmssl.data.source import Adapter

BYTES = 16
"""Length of digests and hashes."""

_GRID = 8
# Grey levels that a neighbour has to be brighter by, and that a picture has to span: less is noise of encoding.
_MARGIN, _SPAN = 3, 8
# Bits of 128 that pictures of one scene may differ in: 95 of 100 of CIFAR-10, encoded anew, differ in fewer. Of eight
# bands at least one is equal then.
_APART = 5
_CROWD = 2000  # pictures with an equal band that say nothing of one another


def content(adapter: Adapter, sample: Any) -> bytes:
    """A digest of a decoded sample: equal for samples of equal values, whatever files they were decoded from.

    Raises:
        ValueError: where a lazy sample cannot be decoded after all.
    """
    value = sample
    if isinstance(sample, Lazy):
        value = sample.whole()
    else:
        with suppress(ValueError):  # of samples that a view has to prepare before they can be joined, such as meshes
            value = adapter.collate([sample])
    total = hashlib.blake2b(digest_size=BYTES)
    _feed(total, value)
    return total.digest()


def _feed(total: Any, value: Any) -> None:
    """Adds a value to a digest, with its type and shape."""
    if isinstance(value, Tensor):
        value = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy(), tuple(value.shape), str(value.dtype)
    if isinstance(value, np.ndarray):
        total.update(f"{value.shape}{value.dtype}".encode())
        total.update(np.ascontiguousarray(value).data)
    elif isinstance(value, (list, tuple)):
        total.update(f"[{len(value)}".encode())
        for item in value:
            _feed(total, item)
    elif hasattr(value, "to_dict") or isinstance(value, Mapping):
        items: Mapping[str, Any] = getattr(value, "to_dict", lambda held=value: held)()
        for key in sorted(items):
            _feed(total, (str(key), items[key]))
    elif dataclasses.is_dataclass(value):
        _feed(total, vars(value))
    else:
        assert value is None or isinstance(value, (bool, int, float, str, bytes)), f"no digest of {type(value)}"
        total.update(repr(value).encode())


def look(picture: np.ndarray) -> bytes | None:
    """A difference hash of 128 bits: which of 8 x 8 places of a grey picture are darker than their two neighbours.

    Args:
        picture: (h, w, 3) uint8.

    Returns:
        16 bytes, that differ in few bits for pictures of one scene; None for a picture of one grey.
    """
    from PIL import Image

    side = _GRID + 1
    grey = np.asarray(
        Image.fromarray(picture).convert("L").resize((side, side), Image.Resampling.BILINEAR), dtype=np.int16
    )
    if int(grey.max()) - int(grey.min()) < _SPAN:
        return None
    right, below = np.diff(grey, axis=1)[:_GRID], np.diff(grey, axis=0)[:, :_GRID]
    return np.packbits(np.stack([right, below]) >= _MARGIN).tobytes()


def alike(hashes: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of places whose hashes differ in at most 5 of 128 bits, sorted.

    A hash that more than 2,000 pictures have, and a band of 16 bits that more than 2,000 hashes share, stand for plain
    pictures and are not looked at.

    Args:
        hashes: (n, 16) uint8.
    """
    different, inverse = np.unique(hashes, axis=0, return_inverse=True)
    places = np.argsort(inverse.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(inverse.reshape(-1), minlength=len(different)))
    members = np.split(places, ends[:-1]) if len(different) else []
    few = [group.tolist() for group in members if len(group) <= _CROWD]
    found = {pair for group in few for pair in combinations(group, 2)}
    bands = np.ascontiguousarray(different).view(np.uint16)
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            if not 1 < len(group) <= _CROWD:
                continue
            apart = np.bitwise_count(bands[group][:, None] ^ bands[group][None]).sum(-1)
            for a, b in np.argwhere(np.triu(apart <= _APART, 1)).tolist():
                both = product(members[group[a]].tolist(), members[group[b]].tolist())
                found |= {(min(pair), max(pair)) for pair in both}
    return sorted(found)
