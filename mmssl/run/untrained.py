"""Stages as they begin: for those who look at a run of several stages before any of them is trained."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmssl.config import build
from mmssl.config.stages import placed
from mmssl.run import checkpoints, directory, fitting

# What of the data changes none of their facts.
_NO_FACT = ("views", "view", "batch_size", "repeats", "workers", "drop_last")


@contextlib.contextmanager
def standing(tree: dict[str, Any], stage: str | None = None) -> Iterator[dict[str, Any]]:
    """A configuration in which untrained runs stand for its stages: random weights, random codes.

    Args:
        tree: a checked configuration.
        stage: the stage that is meant; None for the run itself.

    Yields:
        The configuration of the stage or run; what it names is there until the context is left.
    """
    if not tree.get("stages"):
        yield tree
        return
    with tempfile.TemporaryDirectory() as root:
        folders = {name: str(Path(root, name)) for name in tree["stages"]}
        facts: list[tuple[Any, dict[str, Any]]] = []
        for name, said in tree["stages"].items():
            if name == stage:
                break
            own = placed(said, folders)
            source = {key: value for key, value in own["data"].items() if key not in _NO_FACT}
            same = [known for other, known in facts if other == source]
            found = same[0] if same else build.data(own).facts()
            facts.append((source, found))
            _write(Path(folders[name]), own, found)
        yield placed(tree | {"stages": {}} if stage is None else tree["stages"][stage], folders)


def _write(folder: Path, tree: dict[str, Any], facts: dict[str, Any]) -> None:
    """The directory of a run that has not begun, with what others read of it."""
    directory.opened(folder, tree, [])
    if tree.get("fit"):
        part = fitting.module_of(tree, facts).objective["fit"]
        codes = torch.randn(part.clusters, part.dim, generator=torch.Generator().manual_seed(tree["seed"]))
        save_file({"centroids": codes}, folder / fitting.CODES)
        return
    own = {"schema": checkpoints.SCHEMA, "config": tree, "facts": facts}
    state = build.module(tree, facts).state_dict()
    checkpoints.save({"state_dict": state, "mmssl": own}, folder / "checkpoints" / "last.ckpt")
