"""An export, loaded back by the other library in a process of its own, against our features."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.config.compose import ConfigError
from mmssl.run.export import clean
from mmssl.run.export.formats import Source, Written, install
from mmssl.run.export.graphs import join

# Largest difference that may be, over the largest value: other libraries sum in another order, in single precision.
TOLERANCE = 1e-4
_SECONDS = 1800


def ours(source: Source, written: Written) -> dict[str, Tensor]:
    """What our own network gives for the batch."""
    with torch.inference_mode():
        tokens = source.network(source.view)
        found = {"tokens": join(tokens) if tokens.sample is None else tokens.x}
        if source.pool != "token" and written.features:
            found["features"] = tokens.pool(source.pool)
    return found | ({"pixels": written.inputs["pixels"]} if "images" in written.inputs else {})


def check(kind: str, folder: Path, source: Source, written: Written, scratch: Path) -> dict[str, Any]:
    """Loads an export in a clean process and compares.

    Args:
        kind: the format.
        folder: the export.
        source: what was exported.
        written: what it was given.
        scratch: a folder for what goes between the processes.

    Returns:
        `checked`, the versions of the libraries and the largest differences by output; or None, and `why`.

    Raises:
        ConfigError: where the library cannot load it, or its features are others.
    """
    arrays: dict[str, Any] = {name: value.numpy() for name, value in written.inputs.items()}
    np.savez(scratch / "input.npz", **arrays)
    said = json.dumps({"pool": source.pool, "trust": source.trust, **written.more})
    words = [kind, str(folder), str(scratch / "input.npz"), str(scratch / "output.npz"), said]
    done = subprocess.run(
        [sys.executable, "-P", clean.__file__, *words], env=_environment(kind), cwd=scratch, capture_output=True,
        text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ConfigError(
            f"format={kind}: what was written could not be loaded back in a clean process, so it was deleted "
            f"({lines[-1]}). Other formats may do: safetensors holds every encoder."
        )
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if "missing" in told:
        why = f"{told['missing']}, so nothing was loaded back. Install it and export again: {install(kind)}"
        return {"checked": None, "why": why}
    with np.load(scratch / "output.npz") as file:
        found = {name: file[name] for name in file.files}
    return {"checked": _compare(kind, ours(source, written), found) | {"by": told["versions"]}}


def _environment(kind: str) -> dict[str, str]:
    """The same environment, without network; mmssl is found only where the format is its own."""
    found = dict(os.environ) | {"HF_HUB_OFFLINE": "1"}
    if kind == "safetensors":
        root = str(Path(clean.__file__).parents[3])
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [root, found.get("PYTHONPATH")]))
    return found


def _compare(kind: str, expected: dict[str, Tensor], found: dict[str, np.ndarray]) -> dict[str, Any]:
    told: dict[str, Any] = {"rows": len(expected["tokens"]), "tolerance": TOLERANCE, "differences": {}}
    for name, got in found.items():
        first, _, bare = name.rpartition(".")
        want = expected[bare].numpy()[:1] if first else expected[bare].numpy()
        if got.shape != want.shape:
            raise ConfigError(f"format={kind}: {name} came back as {got.shape}, ours is {want.shape}; it was deleted")
        apart = np.abs(got.astype(np.float64) - want)
        largest = float(apart.max(initial=0.0))
        relative = largest / max(float(np.abs(want).max(initial=0.0)), 1e-12)
        told["differences"][name] = {"max_abs": largest, "max_rel": relative}
        if not relative <= TOLERANCE:  # also where it is not a number
            raise ConfigError(
                f"format={kind}: {name} differ from ours by up to {largest:.3g} ({relative:.3g} of the largest value, "
                f"{TOLERANCE:g} is allowed), so what was written was deleted. This is a fault of the export: please "
                "report it with the recipe."
            )
    if missing := sorted(set(expected) - set(found)):
        raise ConfigError(f"format={kind}: {', '.join(missing)} did not come back, so what was written was deleted")
    return told
