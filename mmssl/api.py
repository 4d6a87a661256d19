"""mmssl in Python: `pretrain`, `evaluate`, `load` and `build` do what the command line does."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from mmssl.compat import check_trio
from mmssl.config.check import check
from mmssl.config.compose import ConfigError, compose


def resolve(recipe: str | None, overrides: list[str] | None = None) -> dict[str, Any]:
    """The checked configuration of a recipe with overrides.

    Raises:
        ConfigError: for anything misspelt or missing, naming the key.
    """
    tree = compose(recipe, list(overrides or []))
    check(tree)
    if message := check_trio():
        raise ConfigError(message)
    return tree


def pretrain(recipe: str | None, overrides: list[str] | None = None) -> Any:
    """Trains a recipe; the same as `mmssl pretrain RECIPE key=value ...`.

    Args:
        recipe: a name such as `image/mae`, the path of a YAML, or None where the overrides hold `recipe=...`.
        overrides: `key=value` as on the command line.

    Returns:
        A `Run` with `path` and `summary`.

    Raises:
        ConfigError: for anything misspelt, missing, or unfit for the data.
    """
    tree = resolve(recipe, overrides)
    from mmssl.run.training import train

    return train(tree, ["mmssl", "pretrain", *([recipe] if recipe else []), *(overrides or [])])


def build(recipe: str, overrides: list[str] | None = None) -> tuple[Any, Any]:
    """The module and the data of a recipe, nothing trained yet.

    Returns:
        `(module, data)`: a LightningModule and a LightningDataModule.
    """
    tree = resolve(recipe, overrides)
    from mmssl.config import build as parts

    data = parts.data(tree)
    return parts.module(tree, data.facts()), data


def load(path: str | Path, trust: bool = False) -> Any:
    """The encoder of a run or checkpoint: raw batch of the modality in, `Tokens` out; `.pool()` gives (b, d).

    Args:
        path: a run's directory or a checkpoint of ours.
        trust: whether the checkpoint may name import paths, which can run any code.
    """
    if message := check_trio():
        raise ConfigError(message)
    from mmssl.run.loading import load as read

    return read(path, trust).network


def evaluate(
    source: str, overrides: list[str] | None = None, protocols: list[str] | None = None, trust: bool = False
) -> dict[str, Any]:
    """Scores an encoder, ours or foreign, beside random weights and the raw input, with intervals.

    Args:
        source: a run's directory, a checkpoint, or `timm:NAME`.
        overrides: `key=value`; another `data=...` scores the encoder on other data.
        protocols: names such as `knn` and `linear`; those of the configuration by default.
        trust: whether a checkpoint may name import paths.

    Returns:
        `summary.json`'s object; a run's own file is extended.
    """
    overrides = list(overrides or [])
    if message := check_trio():
        raise ConfigError(message)
    from mmssl.config import build as parts
    from mmssl.run import scoring
    from mmssl.run.loading import load as read

    if source.startswith("timm:"):
        tree = _foreign(source.removeprefix("timm:"), overrides)
        loaded = None
    else:
        loaded = read(source, trust)
        tree = _other_data(loaded.tree, overrides)
    data = parts.data(tree)
    if loaded is not None:
        data.use(loaded.facts)
    tree["evaluation"]["protocols"] = _chosen(tree["evaluation"]["protocols"], protocols)
    facts = data.facts() if loaded is None else loaded.facts
    network = parts.network(tree, facts).eval() if loaded is None else loaded.network
    scores = scoring.score(tree, data, network, partial(parts.fresh_network, tree, facts))
    if loaded is not None:
        print(f"scored {loaded.file}, the {loaded.branch}", file=sys.stderr)
    return _keep(source, loaded, tree, overrides, scores)


def embed(
    source: str, out: str | Path, overrides: list[str] | None = None, what: str = "features", trust: bool = False
) -> dict[str, Any]:
    """Features of all splits of the data by a trained encoder, or the data with missing values filled in, in a file.

    Args:
        source: a run's directory or a checkpoint of ours.
        out: the file: `.npz`, `.parquet` or `.safetensors` for features; what the modality writes for imputed data.
        overrides: `data=...` and `data.*` for other data than the run's own.
        what: `features` or `imputed`.
        trust: whether the checkpoint may name import paths.

    Returns:
        `file`, and how much was written.
    """
    if message := check_trio():
        raise ConfigError(message)
    from mmssl.config import build as parts
    from mmssl.registry import suggest
    from mmssl.run import embedding
    from mmssl.run.loading import load as read
    from mmssl.run.loading import load_module

    if what not in ("features", "imputed"):
        raise ConfigError(f"what={what}: `embed` writes features or imputed{suggest(what, ['features', 'imputed'])}")
    loaded = read(source, trust)
    tree = _other_data(loaded.tree, list(overrides or []))
    data = parts.data(tree)
    data.use(loaded.facts)
    if what == "imputed":
        return embedding.impute(load_module(source, trust), data, Path(out))
    return embedding.embed(loaded, data, tree, Path(out))


def _chosen(configured: dict[str, Any], wanted: list[str] | None) -> dict[str, Any]:
    from mmssl.registry import names, suggest

    if wanted is None:
        return configured
    found = {}
    for name in wanted:
        if f"protocol/{name}" not in names("protocol"):
            known = [full.removeprefix("protocol/") for full in names("protocol")]
            raise ConfigError(f"protocol={name}: there is no such protocol{suggest(name, known)}")
        found[name] = configured.get(name, {"_target_": f"protocol/{name}"})
    return found


def _foreign(name: str, overrides: list[str]) -> dict[str, Any]:
    """A configuration without a recipe around a timm model."""
    from mmssl.config.files import CONF

    said = {override.partition("=")[0] for override in overrides}
    defaults = [f"encoder.name={name}"] + (["encoder.pretrained=true"] if "encoder.pretrained" not in said else [])
    return resolve(str(CONF / "empty.yaml"), ["encoder=timm", *defaults, *overrides])


def _other_data(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A run's configuration with the data section of other overrides; size and views stay those of the run."""
    if not overrides:
        return tree
    from mmssl.config.files import CONF

    wrong = [o for o in overrides if o.split("=")[0].split(".")[0] not in ("data", "evaluation")]
    if wrong:
        raise ConfigError(
            f"{wrong[0]!r}: `evaluate` of a run takes data=..., data.* and evaluation.*, nothing of its past"
        )
    if not any(o.startswith("data=") for o in overrides):
        merged = resolve(str(CONF / "empty.yaml"), [f"modality={tree['modality']}", *overrides])
        keys = [o.partition("=")[0].split(".", 1) for o in overrides]
        for root, rest in keys:
            _set(tree[root], rest, _get(merged[root], rest))
        return tree
    size = tree["data"].get("size")
    other = resolve(str(CONF / "empty.yaml"), [f"modality={tree['modality']}", f"data.size={size}", *overrides])
    return tree | {
        "data": other["data"] | {"view": tree["data"]["view"], "size": size},
        "evaluation": other["evaluation"],
    }


def _get(tree: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def _keep(
    source: str, loaded: Any, tree: dict[str, Any], overrides: list[str], scores: dict[str, Any]
) -> dict[str, Any]:
    """Adds scores to the run they belong to; those of a file or a foreign encoder get a directory of their own."""
    from mmssl.run import directory

    word = next((o.partition("=")[2] for o in overrides if o.startswith("data=")), None)
    named = {f"{word}/{key}" if word and loaded is not None else key: value for key, value in scores.items()}
    if loaded is not None and directory.is_run(Path(source)):
        run = Path(source)
        summary = directory.read_summary(run)
        summary["eval"] = {**summary.get("eval", {}), **named}
        directory.write_json(run / "summary.json", summary)
        from mmssl.report.html import write

        write(run)
        return summary | {"verb": "evaluate"}
    stem = source.replace("timm:", "timm-").replace("/", "-").strip("-.")
    run = directory.create(directory.root(tree["run"]["root"]) / "evaluate" / stem)
    directory.write_config(run / "config.yaml", tree)
    summary = {
        "verb": "evaluate",
        "schema": 1,
        "recipe": None,
        "encoder": source,
        "run": str(run),
        "status": "completed",
        "eval": named,
    }
    directory.write_json(run / "summary.json", summary)
    return summary
