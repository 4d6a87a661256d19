"""A plan in words."""

from __future__ import annotations

from typing import Any


def text(found: dict[str, Any]) -> str:
    """The lines of a plan: what the run is, and what it will take."""
    flops, memory, disk = found["flops"], found["memory"], found["disk"]
    ranks = f", {found['world']} ranks ({found['strategy']})" if found["world"] > 1 else ""
    passes = f", {found['accumulate']} passes" if found["accumulate"] > 1 else ""
    lines = [
        f"{found['recipe']} on {found['device']}{ranks}, {found['precision']}",
        f"batch        {found['batch_size']} samples a step, {found['per_pass']} in a pass{passes}",
        f"steps        {found['steps']}",
        f"parameters   {count(found['parameters']['total']['parameters'])}, "
        f"{count(found['parameters']['total']['trained'])} of them trained",
    ]
    lines += [
        f"  {name:<24} {count(own['parameters']):>8}" + ("" if own["trained"] else "  not trained")
        for name, own in found["parameters"].items()
        if name != "total"
    ]
    for name, look in found["tokens"].items():
        seen = "" if look["visible"] is None else f", {look['visible']:g} visible"
        lines.append(f"tokens       {name}: {look['tokens']:g} of a sample{seen}")
    lines.append(
        f"arithmetic   {count(flops['step'])} operations a step: {count(flops['forward'])} forward, "
        f"{count(flops['backward'])} backward"
    )
    kinds = [(key.removesuffix("_mb"), size) for key, size in memory.items() if key.endswith("_mb") and size]
    parts = ", ".join(f"{kind} {size:g}" for kind, size in kinds if kind != "peak")
    lines.append(f"memory       {memory['peak_mb']:g} MiB at most: {parts}")
    lines += [_fits(found["largest"]), _time(found["time"])]
    lines.append(
        f"disk         {disk['checkpoints_mb']:g} MiB for checkpoints of {disk['checkpoint_mb']:g}, "
        f"{disk['cache_mb']:g} for decoded data; {disk['free_mb']} free"
    )
    return "\n".join(lines)


def _fits(largest: dict[str, Any]) -> str:
    if largest["per_pass"] is None:
        return f"largest      {largest['why']}"
    tried = "tried" if largest["verified"] else "estimated"
    more = f"; {largest['why']}" if largest["why"] else ""
    return f"largest      batch of {largest['batch_size']} in {largest['memory_mb']} MiB ({tried}){more}"


def _time(took: dict[str, Any]) -> str:
    if took["seconds"] is None:
        return f"time         unknown: {took['why']}"
    return (
        f"time         {duration(took['seconds'])}, {took['step_ms']:.0f} ms a step: {took['efficiency']:.0%} of "
        f"{count(took['matrix_rate'])} operations a second, as {took['samples']} samples took here"
    )


def count(number: float) -> str:
    """A large number in three digits: `85.8M`."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}E"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
