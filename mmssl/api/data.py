"""Data without training from Python: `audit`, `shards`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def audit(overrides: list[str], near: bool | None = None) -> dict[str, Any]:
    """Looks at every sample of some data once; the same as `mmssl audit data=... [against=...]`.

    Args:
        overrides: `modality=...`, `data=...`, `data.*`; `against=...` and `against.*` name data to compare with.
        near: whether pairs that look alike are looked for; None where samples are pictures.

    Returns:
        Counts, measures, and the names of what is unreadable, doubled or in both.
    """
    from mmssl.run.audit import audit as look
    from mmssl.run.bare import two_data

    data, other = two_data(list(overrides))
    return look(data, near, other)


def shards(
    out: str | Path, overrides: list[str], size: str = "256MB", samples: int | str | None = None
) -> dict[str, Any]:
    """Writes a data set of files as tar shards; the same as `mmssl shards data=... out=DIR`.

    Args:
        out: a new folder.
        overrides: `modality=...`, `data=...` and `data.*`.
        size: largest size of a shard.
        samples: most samples of a shard; None for no limit.

    Returns:
        What was written of each split, and what could not be read.
    """
    from mmssl.run.bare import bare_data
    from mmssl.run.write_shards import write_shards

    return write_shards(bare_data(list(overrides)), out, size, samples)
