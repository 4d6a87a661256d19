"""`shards`: a data set of files written as tar shards, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from mmssl.config.compose import ConfigError
from mmssl.data.writing import write
from mmssl.evaluation.score import say

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size_of(text: str) -> int:
    """Bytes that a text such as `256MB` says.

    Raises:
        ConfigError: where it says none.
    """
    found = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", text.strip().lower())
    try:
        bytes_ = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    except (ValueError, KeyError):
        bytes_ = 0
    if bytes_ < 1:
        raise ConfigError(f"size={text}: the largest size of a shard is a number of bytes, such as 256MB or 1GB")
    return bytes_


def write_shards(data: Any, out: str | Path, size: str = "256MB", samples: int | str | None = None) -> dict[str, Any]:
    """Writes all splits of some data as shards into a new folder, which appears when all of it is written.

    Progress goes to standard error.

    Args:
        data: the data.
        out: the folder; it must not be there yet, or be empty.
        size: largest size of a shard.
        samples: most samples of a shard; None for no limit.

    Returns:
        What `shards.json` in the folder says too: `modality`, `classes`, and of each split `samples`, `bytes`, `shards`
        and `skipped`, which lists the samples that could not be read.

    Raises:
        ConfigError: for data that are no files, a folder that cannot be written, or where nothing can be read.
    """
    target, limit = Path(out).expanduser(), size_of(size)
    if "://" in str(out):
        raise ConfigError(f"out={out}: shards are written to a folder of this machine; copy it to its URL afterwards")
    if samples is not None and not (str(samples).isdecimal() and int(samples) > 0):
        raise ConfigError(f"samples={samples}: the most samples of a shard are a number from 1 on")
    most = None if samples is None else int(samples)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"out={out} is there already; give a new folder, so that no other shards are mixed with these"
        )
    splits = data.source.splits()
    draft = target.absolute().with_name(f".{target.absolute().name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.mkdir(parents=True)
        found: dict[str, Any] = {}
        for split, dataset in splits.items():
            found[split] = vars(write(dataset, data.adapter, split, draft, limit, most, _told))
            if not found[split]["samples"]:
                name, why = next(iter(found[split]["skipped"]), ("it", "it is empty"))
                raise ConfigError(f"data: nothing of the {split} split can be read; {name}: {why}")
        content = {"modality": data.adapter.name, "classes": splits["train"].classes, "splits": found}
        (draft / "shards.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        os.replace(draft, target)
    except OSError as error:
        raise ConfigError(
            f"out={out}: the shards cannot be written ({error.strerror or error}); nothing is left of them"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"folder": str(out)} | content


def text(content: dict[str, Any]) -> str:
    """What was written, in words; at most 20 of the samples that were skipped."""
    lines = []
    for split, found in content["splits"].items():
        lines.append(
            f"{split:6} {found['samples']} samples in {len(found['shards'])} shards, {found['bytes'] / 1e6:.1f} MB"
        )
        lines += [f"       skipped {name}: {why}" for name, why in found["skipped"][:20]]
        if len(found["skipped"]) > 20:
            lines.append(f"       and {len(found['skipped']) - 20} more, all in shards.json")
    return "\n".join([*lines, f"wrote {content['folder']}; read it with data=shards data.root={content['folder']}"])


def _told(line: str) -> None:
    say(f"shards: {line}")
