"""`audit`: what data hold, what of them cannot be read, and what is in two places at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.contents import BYTES, alike, content, look
from mmssl.data.skipped import try_read
from mmssl.data.source import Adapter, Dataset
from mmssl.evaluation.score import say

_AHEAD = 64
_WIDE = 160  # letters of a fact in text
_SHOWN = 5  # of each finding in text; the object has all


@dataclass
class Seen:
    """All samples of a split, looked at once.

    Args:
        dataset: the split.
        place: where in the data the samples lie that could be read.
        contents: their digests, in this order.
        looks: hashes of their pictures, None where there is none; empty where pictures are not looked at.
        bad: names of the samples that could not be read, and why.
        facts: what the modality measures of them.
    """

    dataset: Dataset
    place: list[int] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    looks: list[bytes | None] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def names(self, places: Any) -> list[str]:
        """Names of samples by their place among those that could be read."""
        return [self.dataset.name(self.place[int(i)]) for i in places]


def audit(data: Any, near: bool | None = None, against: Any = None) -> dict[str, Any]:
    """Looks at every sample of some data once. Progress goes to standard error.

    Args:
        data: the data.
        near: whether pictures that look alike are searched for; None does where samples are pictures themselves.
        against: other data of the same modality; what is in both is listed.

    Returns:
        `modality`, `unit`; of each split `samples`, `readable`, `unreadable` (name and reason), `labelled`, `classes`
        (samples of each), `facts` (what the modality measures: sizes, channels, mean, deviation), `duplicates` (groups
        of names of equal content) and `conflicts` (those whose labels differ); `overlap`, pairs of names of equal
        content in two splits, or in a split and the other data; `near`, pairs of names that look alike, None where
        that was not looked for.
    """
    token = data.unit == "token"
    seen = _seen(data, near, token, "")
    others = {} if against is None else _seen(against, near, token, "against/", data)
    content = {
        "modality": data.adapter.name,
        "unit": data.unit,
        "splits": {split: _told(one, token) for split, one in seen.items()},
        "against": None if against is None else {split: len(one.dataset) for split, one in others.items()},
        "overlap": [],
        "near": None,
    }
    if token:  # the splits are one graph with other labels in view
        return content
    pairs = [*combinations(seen.items(), 2)]
    pairs += [(own, (f"against/{split}", other)) for own in seen.items() for split, other in others.items()]
    content["overlap"] = [row for (a, one), (b, two) in pairs if (row := _overlap(a, one, b, two))["samples"]]
    everything = seen | {f"against/{split}": one for split, one in others.items()}
    if near or any(hashed is not None for one in everything.values() for hashed in one.looks):
        content["near"] = _near(everything)
    return content


def _seen(data: Any, near: bool | None, token: bool, word: str, like: Any = None) -> dict[str, Seen]:
    """Every split, all samples read."""
    if hasattr(data.adapter, "use") and not token:  # samples may be encoded by facts, and both data by the same
        with suppress(ValueError):  # the facts of each split say why
            data.use(data.facts() if like is None else like.facts())
    splits = data.source.splits()
    ordered = [split for split in ("train", "val", "test") if split in splits]
    return {split: _look_at(splits[split], data.adapter, near, token, word + split) for split in ordered}


def _look_at(dataset: Dataset, adapter: Adapter, near: bool | None, token: bool, word: str) -> Seen:
    seen = Seen(dataset)
    samples = _samples(seen, adapter, near, token, word)
    try:
        seen.facts = adapter.facts(samples)
    except ValueError as error:
        seen.facts = {"error": str(error)}
    for _ in samples:  # what an adapter that gave up has left
        pass
    return seen


def _samples(seen: Seen, adapter: Adapter, near: bool | None, token: bool, word: str) -> Iterator[Any]:
    """The readable samples of a split in order; what is found out about them is noted on the way."""

    def one(i: int) -> tuple[int, Any, bytes, bytes | None, str | None]:
        sample, reason = try_read(seen.dataset, i)
        if reason is not None or token:
            return i, sample, b"", None, reason
        shown = (
            near
            if near is not None
            else isinstance(sample, Tensor) and sample.dtype == torch.uint8 and sample.ndim == 3
        )
        try:
            return i, sample, content(adapter, sample), look(adapter.picture(sample)) if shown else None, None
        except (ValueError, OSError) as error:
            return i, None, b"", None, str(error) or type(error).__name__

    count = len(seen.dataset)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, count, _AHEAD):
            if start % (100 * _AHEAD) == 0:
                say(f"audit: {word}, {start} of {count} samples, {len(seen.bad)} unreadable")
            for i, sample, digest, hashed, reason in pool.map(one, range(start, min(start + _AHEAD, count))):
                if reason is not None:
                    seen.bad.append((seen.dataset.name(i), reason))
                    continue
                seen.place.append(i)
                seen.contents.append(digest)
                seen.looks.append(hashed)
                yield sample


def _told(seen: Seen, token: bool) -> dict[str, Any]:
    labels, names = seen.dataset.labels, seen.dataset.classes
    classes = None
    if labels is not None:
        values, counts = labels[labels >= 0].unique(return_counts=True)
        classes = {
            names[value] if names and value < len(names) else str(value): count
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        }
    groups = [] if token else _groups(seen)
    return {
        "samples": len(seen.dataset),
        "readable": len(seen.place),
        "unreadable": [{"name": name, "reason": reason} for name, reason in seen.bad],
        "labelled": 0 if labels is None else int((labels >= 0).sum()),
        "classes": classes,
        "facts": seen.facts,
        "duplicates": [seen.names(group) for group in groups],
        "conflicts": [
            seen.names(group)
            for group in groups
            if labels is not None and len(labels[[seen.place[i] for i in group]].unique(dim=0)) > 1
        ],
    }


def _groups(seen: Seen) -> list[list[int]]:
    """Samples of equal content, in groups of at least two."""
    found: dict[bytes, list[int]] = {}
    for i, digest in enumerate(seen.contents):
        found.setdefault(digest, []).append(i)
    return [group for group in found.values() if len(group) > 1]


def _overlap(a: str, one: Seen, b: str, two: Seen) -> dict[str, Any]:
    """The samples of the second that the first holds too, each with one of the first."""
    held = {digest: i for i, digest in reversed(list(enumerate(one.contents)))}
    both = [(held[digest], i) for i, digest in enumerate(two.contents) if digest in held]
    pairs = [[*one.names([i]), *two.names([j])] for i, j in both]
    return {"in": a, "of": b, "samples": len(pairs), "share": len(pairs) / max(1, len(two.contents)), "pairs": pairs}


def _near(everything: dict[str, Seen]) -> list[dict[str, Any]]:
    """Pairs that look alike and are not equal, of all splits; of the other data only with a sample of these."""
    flat = {}  # of samples with equal content the first
    for split, one in everything.items():
        for i, (hashed, digest) in enumerate(zip(one.looks, one.contents, strict=True)):
            if hashed is not None:
                flat.setdefault(digest, (hashed, split, one, i))
    rows = list(flat.values())
    hashes = np.frombuffer(b"".join(row[0] for row in rows), np.uint8).reshape(-1, BYTES)
    found = []
    for i, j in alike(hashes):
        (_, a, one, m), (_, b, two, n) = rows[i], rows[j]
        if not a.startswith("against/"):
            found.append({"in": a, "of": b, "pair": [*one.names([m]), *two.names([n])]})
    return found


def text(found: dict[str, Any]) -> str:
    """The same in words; at most five examples of each finding."""
    lines = []
    for split, one in found["splits"].items():
        lines.append(
            f"{split}: {one['samples']} samples, {len(one['unreadable'])} unreadable, {one['labelled']} labels"
        )
        lines += _some([f"{bad['name']}: {bad['reason']}" for bad in one["unreadable"]], "unreadable")
        if one["classes"]:
            lines.append("  classes: " + ", ".join(f"{name} {count}" for name, count in one["classes"].items()))
        lines += [f"  {name}: {str(value)[:_WIDE]}" for name, value in one["facts"].items()]
        lines += _some([" = ".join(group) for group in one["duplicates"]], "of equal content")
        lines += _some([" = ".join(group) for group in one["conflicts"]], "of equal content, with different labels")
    for row in found["overlap"]:
        lines.append(f"{row['samples']} samples of {row['of']} ({row['share']:.1%}) are in {row['in']} too")
        lines += _some([" = ".join(pair) for pair in row["pairs"]], "in both")
    if found["near"] is not None:
        lines.append(f"{len(found['near'])} pairs look alike")
        lines += _some(
            [f"{row['in']}/{row['pair'][0]} ~ {row['of']}/{row['pair'][1]}" for row in found["near"]], "alike"
        )
    if found["unit"] == "sample" and not found["overlap"]:
        lines.append("no sample is in two splits" + ("" if found["against"] is None else " or in the other data"))
    return "\n".join(lines)


def _some(rows: list[str], what: str) -> list[str]:
    more = [f"  and {len(rows) - _SHOWN} more {what}; --json lists all"] if len(rows) > _SHOWN else []
    return [f"  {what}: {row}" for row in rows[:_SHOWN]] + more
