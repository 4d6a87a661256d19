"""The encoder that a word names, with the configuration around it: a run's, with other data, or a foreign one's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from mmssl.api.training import resolve
from mmssl.config.compose import ConfigError, flat
from mmssl.config.words import word
from mmssl.registry import names, suggest

FOREIGN = ("timm:", "hf:")  # what the words of encoders begin with that need no recipe


@dataclass
class Source:
    """An encoder with the data that it is scored on.

    Args:
        name: as the user wrote it.
        tree: the configuration.
        data: the data.
        network: the encoder, in evaluation mode.
        fresh: the same architecture with the weights of a seed, or why there is none.
        loaded: a run or checkpoint of ours; None for a foreign encoder.
        module: gives the whole module of a run, predictors included.
    """

    name: str
    tree: dict[str, Any]
    data: Any
    network: Any
    fresh: Callable[[int], Any] | str
    loaded: Any = None
    module: Callable[[], Any] | None = None

    @property
    def stem(self) -> str:
        """A name for a directory."""
        return self.name.replace("timm:", "timm-").replace(":", "-").replace("/", "-").strip("-.")

    @property
    def short(self) -> str:
        """The recipe of one of ours, else what the user wrote."""
        return str(self.tree.get("recipe") or self.name) if self.loaded is not None else self.name

    @property
    def long(self) -> str:
        """The short name with the file it was read from."""
        return f"{self.short} {Path(self.name).name}" if self.loaded is not None else self.name

    @property
    def where(self) -> str:
        """The data and how much of them is read, for people."""
        data, limit = self.tree["data"], self.tree["evaluation"]["limit"]
        root = f" {data['root']}" if data.get("root") else ""
        return f"{data['source']['_target_']}{root}{f', evaluation.limit={limit}' if limit else ''}"

    @property
    def said(self) -> str:
        """What was scored, for people."""
        return f"{self.loaded.file}, the {self.loaded.branch}" if self.loaded is not None else self.name


def opened(name: str, overrides: list[str], trust: bool = False, data_of: Source | None = None) -> Source:
    """The encoder that a word names, ready to be scored.

    Args:
        name: a run's directory, a checkpoint of ours, `timm:NAME`, `hf:DIR`, or beside `recipe=...` in the overrides an
            official file, `FORMAT:FILE` or one that the recipe's method says the format of.
        overrides: `key=value` of the data and the evaluation.
        trust: whether a checkpoint may name import paths.
        data_of: whose data a foreign encoder takes where the overrides name none.

    Raises:
        ConfigError: for what is none of these, or data that do not go with it.
    """
    from mmssl.config import build as parts
    from mmssl.run.loading import load as read
    from mmssl.run.loading import load_module

    if not name.startswith(FOREIGN) and any(o.startswith("recipe=") for o in overrides):
        return _official(name, overrides, data_of)
    if name.startswith("hf:"):
        return _hugging_face(name, overrides, data_of)
    if name.startswith("timm:"):
        tree = borrowed(partial(foreign, name.removeprefix("timm:")), overrides, data_of)
        data = parts.data(tree)
        facts = data.facts()
        network = parts.network(tree, facts).eval()
        return Source(name, tree, data, network, partial(parts.fresh_network, tree, facts))
    loaded = read(name, trust)
    tree = other_data(loaded.tree, overrides)
    data = parts.data(tree)
    data.use(loaded.facts)
    fresh = partial(parts.fresh_network, tree, loaded.facts)
    return Source(name, tree, data, loaded.network, fresh, loaded, cache(lambda: load_module(name, trust)))


def _official(name: str, overrides: list[str], data_of: Source | None) -> Source:
    """A file of other people on the architecture that a recipe says."""
    from mmssl.config import build as parts
    from mmssl.run.foreign import official, with_format

    def make(more: list[str]) -> dict[str, Any]:
        return resolve(None, [o for o in more if not o.startswith("modality=")])  # the recipe says it

    tree = borrowed(make, overrides, data_of)
    data = parts.data(tree)
    facts = data.facts()
    network = official(tree, facts, with_format(name, str(tree["recipe"])))
    return Source(name, tree, data, network, partial(parts.fresh_network, tree, facts))


def _hugging_face(name: str, overrides: list[str], data_of: Source | None) -> Source:
    """A vision transformer in a Hugging Face directory, read through timm."""
    from mmssl.config import build as parts
    from mmssl.config.files import CONF
    from mmssl.run.foreign import HuggingFace

    found = HuggingFace.read(name.removeprefix("hf:"))
    said = {override.partition("=")[0] for override in overrides}
    own = [f"{key}={value}" for key, value in found.overrides.items() if key not in said]
    tree = borrowed(lambda more: resolve(str(CONF / "empty.yaml"), ["encoder=timm", *own, *more]), overrides, data_of)
    tree["encoder"] = tree["encoder"] | {"name": name}  # what the configuration that is written down says of it
    data = parts.data(tree)
    facts = data.facts()
    return Source(name, tree, data, found.network(tree, facts), lambda seed: found.network(tree, facts, seed))


def borrowed(
    make: Callable[[list[str]], dict[str, Any]], overrides: list[str], data_of: Source | None
) -> dict[str, Any]:
    """The configuration of a foreign encoder; its size and views are its own, its data may be another's."""
    if data_of is None or any(o.startswith("data=") for o in overrides):
        return make(overrides)
    tree = make([f"modality={data_of.tree['modality']}", "data=folder", "data.root=.", *overrides])
    data = data_of.tree["data"]
    own = {key: tree["data"].get(key) for key in ("view", "views", "size") if key in tree["data"]}
    return tree | {"data": data | own, "evaluation": data_of.tree["evaluation"] | {}}


def foreign(name: str, overrides: list[str]) -> dict[str, Any]:
    """A configuration without a recipe around a timm model."""
    from mmssl.config.files import CONF

    return resolve(str(CONF / "empty.yaml"), [*timm_encoder(name, overrides), *overrides])


def timm_encoder(name: str, overrides: list[str]) -> list[str]:
    """Overrides that choose a timm model, with its weights unless the others say."""
    said = {override.partition("=")[0] for override in overrides}
    weights = [] if "encoder.pretrained" in said else ["encoder.pretrained=true"]
    return ["encoder=timm", f"encoder.name={name}", *weights]


def check_protocol(name: str) -> None:
    """Refuses a protocol that there is not.

    Raises:
        ConfigError: naming what was probably meant.
    """
    known = [full.removeprefix("protocol/") for full in names("protocol")]
    if name not in known:
        raise ConfigError(f"protocol={name}: there is no such protocol{suggest(name, known)}")


def chosen_protocols(configured: dict[str, Any] | None, wanted: list[str]) -> dict[str, Any]:
    """The protocols of some names, as a configuration has them or with their defaults."""
    return {name: (configured or {}).get(name) or {"_target_": f"protocol/{name}"} for name in wanted}


def other_data(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
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
        own = _own_source(tree) if any(o.startswith("data.source.") for o in overrides) else []
        merged = resolve(str(CONF / "empty.yaml"), [f"modality={tree['modality']}", *own, *overrides])
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


def _own_source(tree: dict[str, Any]) -> list[str]:
    """Overrides that name the source of a run and what it has to be told, so that its keys are known."""
    said = flat({"data": {"source": tree["data"]["source"]}})
    return [f"{key}={word(value)}" for key, value in said.items()]


def _get(tree: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
    tree[last] = value
