"""Checks of what is installed."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import sys
from collections.abc import Iterator

from mmssl.compat import check_trio
from mmssl.run.doctor.findings import Case, Finding, error, note, ok, warning

_PURPOSE = {"optuna": "searches (hydra/sweeper=optuna)", "tensorboard": "logger=tensorboard"}
_DEVELOPERS = "dev"


def versions(case: Case) -> Iterator[Finding]:
    """Python, and the torch, torchvision and torchaudio that belong together."""
    said = ", ".join(f"{name} {_version(name)}" for name in ("mmssl", "torch", "torchvision", "torchaudio"))
    if message := check_trio():
        found, _, remedy = message.partition(" To mend it")
        yield error(found, f"To mend it{remedy}")
    else:
        yield ok(f"Python {platform.python_version()}, {said}")


def libraries(case: Case) -> Iterator[Finding]:
    """Everything that mmssl depends on, in versions that it was made for."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in importlib.metadata.requires("mmssl") or []]
    fine = []
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        number = _version(one.name)
        command = shlex.join([sys.executable or "python", "-m", "pip", "install", f"{one.name}{one.specifier}"])
        if number is None:
            yield error(f"{one.name} is not installed", f"Run: {command}")
        elif not one.specifier.contains(number, prereleases=True):
            yield warning(f"{one.name} is {number}; mmssl was made for {one.specifier}", f"Run: {command}")
        else:
            fine.append(f"{one.name} {number}")
    yield ok(", ".join(fine))


def optional(case: Case) -> Iterator[Finding]:
    """Libraries of some features only."""
    for line in importlib.metadata.requires("mmssl") or []:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        if extra is None or name is None or extra[1] == _DEVELOPERS:
            continue
        purpose = _PURPOSE.get(extra[1], extra[1])
        if number := _version(name[0]):
            yield ok(f"{name[0]} {number}, for {purpose}")
        else:
            yield note(f"{name[0]} is not installed; {purpose} needs it", f"pip install 'mmssl[{extra[1]}]'")


def wandb(case: Case) -> Iterator[Finding]:
    """Whether Weights & Biases knows who is logging, where a run logs there."""
    logger = ((case.tree or {}).get("logger") or {}).get("wandb")
    if logger is None:
        return
    mode = case.environ.get("WANDB_MODE", "")
    if logger.get("offline") or mode in ("offline", "disabled"):
        yield ok("Weights & Biases writes to disk; `wandb sync` uploads later")
        return
    if case.environ.get("WANDB_API_KEY") or _logged_in():
        yield ok("Weights & Biases has a key")
        return
    yield error(
        "logger=wandb, but there is no key of Weights & Biases here",
        "Run `wandb login`, or write to disk with logger.wandb.offline=true",
    )


def _logged_in() -> bool:
    """Whether a netrc file names W&B's host; the key itself is not looked at."""
    import netrc

    try:
        return "api.wandb.ai" in netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
