"""Scoring checkpoints as they land, from Python: `watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.api.sources import check_protocol, chosen_protocols, other_data
from mmssl.compat import check_trio
from mmssl.config.compose import ConfigError


def watch(
    run: str | Path,
    overrides: list[str] | None = None,
    protocols: list[str] | None = None,
    best: str | None = None,
    seconds: float = 20.0,
    minutes: float | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Scores each checkpoint of a run as it lands, until the run has ended; `mmssl evaluate RUN watch=true`.

    Meant for a process apart from training, which may then have `evaluation.online=false`. What is scored are rows that
    probes are validated on, never the test split. See `mmssl.run.watching.Watcher`.

    Args:
        run: the run's directory; it may have no checkpoint yet.
        overrides: keys under `evaluation`, such as `evaluation.limit=5000`.
        protocols: names of probes; kNN and a quick linear probe by default.
        best: the criterion that `best.ckpt` is chosen by; None to leave it alone.
        seconds: between two looks.
        minutes: without a new checkpoint after which to give up; None for never.
        trust: whether the configuration may name import paths.

    Returns:
        `run`, `status`, `scores` (a row a checkpoint), and `best` where a criterion was given.

    Raises:
        ConfigError: for what is no run's directory, an unknown protocol or criterion.
    """
    if message := check_trio():
        raise ConfigError(message)
    import yaml

    from mmssl.config import build
    from mmssl.config.check import check
    from mmssl.run.directory import is_run
    from mmssl.run.watching import Watcher

    path = Path(run)
    if not is_run(path):
        raise ConfigError(f"watch=true looks at a run's directory, and {path} is none; `mmssl runs` lists them")
    tree = yaml.safe_load((path / "config.yaml").read_text())
    check(tree, trust=trust)
    tree = other_data(tree, list(overrides or []))
    chosen: dict[str, Any] | None = None
    if protocols:
        for name in protocols:
            check_protocol(name)
        said = chosen_protocols(tree["evaluation"]["protocols"], protocols)
        chosen = build.make(said, "evaluation.protocols")
    return {"run": str(path)} | Watcher(path, tree, chosen, best).go(seconds, minutes)
