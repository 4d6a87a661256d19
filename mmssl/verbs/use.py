"""`embed` and `export`: what is done with a trained encoder."""

from __future__ import annotations

from typing import Any

from mmssl.verbs.words import Usage, emit, needed, split, take


def embed(rest: list[str], flags: list[str]) -> int:
    """Features of a data set in a file, or the data with missing values filled in."""
    source, overrides = split(rest, "run, checkpoint or timm:NAME")
    out, what = take(overrides, "out"), take(overrides, "what") or "features"
    if out is None:
        raise Usage("`mmssl embed RUN` needs out=FILE.npz (or .parquet, .safetensors)")
    from mmssl.api import embed as write

    content = write(needed(source, "run", "embed"), out, overrides, what, "--trust" in flags)
    emit(flags, {"verb": "embed", "schema": 1} | content, lambda: f"wrote {content['file']}")
    return 0


def export(rest: list[str], flags: list[str]) -> int:
    """The encoder in the format of another library, checked by it."""
    source, overrides = split(rest, "run or checkpoint")
    kind, out, licence = take(overrides, "format"), take(overrides, "out"), take(overrides, "license")
    if kind is None or out is None:
        raise Usage("`mmssl export RUN` needs format=timm|hf|onnx|torch|safetensors and out=DIR")
    from mmssl.api import export as write

    source = needed(source, "run", "export")
    content = write(source, kind, out, overrides, licence or "unknown", "--trust" in flags)
    emit(flags, {"verb": "export", "schema": 1} | content, lambda: _told(content))
    return 0


def _told(content: dict[str, Any]) -> str:
    """What was written and how near it is, in lines."""
    head = f"wrote {content['dir']} (the {content['branch']} of {content['checkpoint']})"
    if content["checked"] is None:
        return f"{head}\nnot checked: {content['why']}"
    by = ", ".join(f"{name} {version}" for name, version in content["checked"]["by"].items())
    apart = max(entry["max_rel"] for entry in content["checked"]["differences"].values())
    return f"{head}\nloaded back in a clean process by {by}: at most {apart:.1e} of the largest value apart"
