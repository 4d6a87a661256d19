"""Scores from Python: `evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmssl.api.sources import FOREIGN, Source, check_protocol, chosen_protocols, opened
from mmssl.compat import check_trio
from mmssl.config.compose import ConfigError


def evaluate(
    source: str | list[str],
    overrides: list[str] | None = None,
    protocols: list[str] | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Scores an encoder, ours or foreign, beside random weights and the raw input, with intervals; or compares several.

    Args:
        source: a run's directory, a checkpoint, `timm:NAME`, `hf:DIR`, or an official file beside `recipe=...` in the
            overrides; or several of them, which are compared on the same data and split.
        overrides: `key=value`; another `data=...` scores the encoder on other data.
        protocols: names such as `knn` and `linear`; those of the configuration by default.
        trust: whether a checkpoint may name import paths.

    Returns:
        `summary.json`'s object. A run's own file is extended; several encoders get a directory of their own, with
        `encoders` (`name`, `source` and `eval` of each) and `differences` of all pairs by protocol.
    """
    overrides = list(overrides or [])
    if message := check_trio():
        raise ConfigError(message)
    if isinstance(source, str):
        source = [source]
    if not source:
        raise ConfigError("evaluate needs an encoder: a run, a checkpoint, timm:NAME, ...")
    for name in protocols or []:
        check_protocol(name)
        key = f"evaluation.protocols.{name}."
        if any(o.startswith(key) for o in overrides) and not any(o.startswith(f"{key}_target_=") for o in overrides):
            overrides.insert(0, f"{key}_target_=protocol/{name}")
    if len(source) > 1:
        return _compare(source, overrides, protocols, trust)
    one = opened(source[0], overrides, trust)
    scores = {name: result.entry() for name, result in _results(one, protocols, None).items()}
    return _keep(one, overrides, scores)


def _results(one: Source, protocols: list[str] | None, raw: dict[str, Any] | None) -> dict[str, Any]:
    """What the protocols find of an opened encoder."""
    from mmssl.run import scoring

    said = one.tree["evaluation"]
    if protocols is not None:
        said["protocols"] = chosen_protocols(said["protocols"], protocols)
    found = scoring.results(
        one.tree, one.data, one.network, one.fresh, module=one.module, strict=protocols is not None, raw=raw
    )
    print(f"scored {one.said}", file=sys.stderr)
    return found


def _compare(sources: list[str], overrides: list[str], protocols: list[str] | None, trust: bool) -> dict[str, Any]:
    """Scores several encoders on the same data and split, and every pair of them."""
    from mmssl.evaluation.comparing import check_alike, differences
    from mmssl.run import directory

    ours = [o for o in overrides if o.partition("=")[0].split(".")[0] in ("data", "evaluation")]
    bare = [o for o in overrides if not o.startswith("recipe=")]  # which is for official files
    said = {source: bare if source.startswith(FOREIGN) else overrides if ":" in source else ours for source in sources}
    if not any(":" in source for source in sources):  # nobody is there to take the others, which are refused by name
        said = dict.fromkeys(sources, overrides)
    first = opened(sources[0], said[sources[0]], trust, data_of=_data_of(sources, ours, trust))
    rest = [opened(source, said[source], trust, data_of=first) for source in sources[1:]]
    named = dict(zip(_names([first, *rest]), [first, *rest], strict=True))
    limits = {name: one.tree["evaluation"]["limit"] for name, one in named.items()}
    check_alike({name: (one.where, one.data.fingerprint, limits[name]) for name, one in named.items()})
    raw: dict[Any, dict[str, Any]] = {}  # of equal data, unless their channels are converted
    found = {}
    for name, one in named.items():
        print(f"evaluate: {name}", file=sys.stderr)
        found[name] = _results(one, protocols, raw.setdefault(one.data.channels, {}))
    run = directory.create(directory.root(first.tree["run"]["root"]) / "evaluate" / "compare")
    directory.write_config(run / "config.yaml", first.tree)
    blocks = {name: {key: result.entry() for key, result in results.items()} for name, results in found.items()}
    summary = {
        "verb": "evaluate", "schema": 1, "recipe": None, "run": str(run), "status": "completed",
        "encoders": [{"name": name, "source": one.name, "eval": blocks[name]} for name, one in named.items()],
        "differences": differences(found),
        "eval": {f"{name}/{key}": entry for name, block in blocks.items() for key, entry in block.items()},
    }  # fmt: skip
    directory.write_json(run / "summary.json", summary)
    return summary


def _data_of(sources: list[str], overrides: list[str], trust: bool) -> Source | None:
    """Whose data a foreign encoder at the front is scored on: the first of the others that has some of its own."""
    if ":" not in sources[0] or any(o.startswith("data=") for o in overrides):
        return None
    own = next((source for source in sources if ":" not in source), None)
    return None if own is None else opened(own, overrides, trust)


def _names(found: list[Source]) -> list[str]:
    """A short name for each encoder: the recipe's where it tells them apart, else with the run's, else numbered."""
    short = [one.short for one in found]
    names = [one.long if short.count(one.short) > 1 else one.short for one in found]
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _keep(one: Source, overrides: list[str], scores: dict[str, Any]) -> dict[str, Any]:
    """Adds scores to the run they belong to; those of a file or a foreign encoder get a directory of their own."""
    from mmssl.run import directory

    word = next((o.partition("=")[2] for o in overrides if o.startswith("data=")), None)
    named = {f"{word}/{key}" if word and one.loaded is not None else key: value for key, value in scores.items()}
    if one.loaded is not None and directory.is_run(Path(one.name)):
        run = Path(one.name)
        summary = directory.read_summary(run)
        summary["eval"] = {**summary.get("eval", {}), **named}
        directory.write_json(run / "summary.json", summary)
        from mmssl.report.html import write

        write(run)
        return summary | {"verb": "evaluate"}
    run = directory.create(directory.root(one.tree["run"]["root"]) / "evaluate" / one.stem)
    directory.write_config(run / "config.yaml", one.tree)
    summary = {
        "verb": "evaluate",
        "schema": 1,
        "recipe": None,
        "encoder": one.name,
        "run": str(run),
        "status": "completed",
        "eval": named,
    }
    directory.write_json(run / "summary.json", summary)
    return summary
