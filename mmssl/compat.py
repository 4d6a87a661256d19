"""Whether the installed torch, torchvision and torchaudio belong together. Reads version numbers, imports no torch."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys
from collections.abc import Callable

TORCHVISION = {"2.11": "0.26", "2.12": "0.27", "2.13": "0.28", "2.14": "0.29"}
"""The torchvision built for each supported torch: its compiled operators load with no other."""

TORCHAUDIO = "2.11"
"""The one torchaudio for all of them: its last release, which no longer depends on the version of torch."""

TESTED = "2.11"
"""The torch that `constraints.txt` pins."""


def check_trio(version: Callable[[str], str] = importlib.metadata.version) -> str | None:
    """Compares the installed versions of torch, torchvision and torchaudio.

    A mismatch ends in messages such as `operator torchvision::nms does not exist`, which name neither cause nor remedy.

    Args:
        version: gives the version of an installed distribution, or raises `PackageNotFoundError`.

    Returns:
        None where the three fit; else one paragraph that says what was found, what fits and the command that mends it.
    """
    found = {name: _installed(name, version) for name in ("torch", "torchvision", "torchaudio")}
    torch = _minor(found["torch"])
    chosen = torch if torch in TORCHVISION else TESTED
    wanted = {"torch": chosen, "torchvision": TORCHVISION[chosen], "torchaudio": TORCHAUDIO}
    if all(_minor(found[name]) == minor for name, minor in wanted.items()):
        return None
    listed = ", ".join(f"{name} {number or '(missing)'}" for name, number in found.items())
    if torch == chosen:
        reason = f"torch {torch} goes with torchvision {wanted['torchvision']} and torchaudio {TORCHAUDIO}"
    else:
        reason = f"mmssl works with torch {min(TORCHVISION, key=_order)} to {max(TORCHVISION, key=_order)}"
    return (
        f"the installed torch, torchvision and torchaudio cannot be used together: {reason}, but there is {listed}. "
        f"To mend it{_origin(found['torch'])}, run: {_command(wanted)}"
    )


def _installed(name: str, version: Callable[[str], str]) -> str | None:
    try:
        return version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str | None) -> str | None:
    """`2.11` of `2.11.0+cu130`, `2.11.1` or `2.11.0a0+git1234`; None where there is no number."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return f"{match[1]}.{match[2]}" if match else None


def _order(minor: str) -> tuple[int, ...]:
    return tuple(int(part) for part in minor.split("."))


def _command(wanted: dict[str, str]) -> str:
    packages = [f"{name}=={minor}.*" for name, minor in wanted.items()]
    return shlex.join([sys.executable or "python", "-m", "pip", "install", *packages])


def _origin(torch: str | None) -> str:
    """A build such as `+cpu` or `+cu130` comes from an index of its own, and so must its companions."""
    label = (torch or "").partition("+")[2]
    if not label:
        return ""
    return f" (adding the --index-url that torch {torch} came from, so that all three are {label} builds)"
