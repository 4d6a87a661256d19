"""A checked tree to objects: parts, networks, the module and its data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from mmssl.config.check import locate
from mmssl.config.compose import ConfigError
from mmssl.config.slots import check_looks, check_streams
from mmssl.module import SSLModule
from mmssl.nn.network import Network
from mmssl.registry import entry
from mmssl.step import LookSpec


def make(node: Any, where: str = "") -> Any:
    """Builds a tree from the leaves up.

    A part whose signature has positional arguments waits for what its parent supplies: it becomes a partial. So does a
    registered function, which is called later.

    Raises:
        ConfigError: a part's own refusal, with the key in front.
    """
    if isinstance(node, list):
        return [make(value, f"{where}[{i}]") for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    built = {key: make(value, f"{where}.{key}" if where else key) for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return built
    name = node["_target_"]
    part = entry(name, where).load() if "/" in name else locate(name, where)
    if _waits(part):
        return partial(_call, where, part, **built)
    return _call(where, part, **built)


def _waits(part: Callable[..., Any]) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in kinds and p.default is p.empty for p in inspect.signature(part).parameters.values())


def _call(where: str, part: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return part(*args, **kwargs)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error) if where.split(".")[0] in str(error) else f"{where}: {error}") from error


def network(tree: Mapping[str, Any], facts: Mapping[str, Any], where: str = "") -> Network:
    """The network of a configuration or of a stream: tokenizer and encoder, sized by the data's facts."""
    tokenizer = make(tree["tokenizer"], f"{where}tokenizer")(facts)
    return Network(tokenizer, make(tree["encoder"], f"{where}encoder")(tokenizer.spec))


def networks(tree: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Network]:
    """All networks of a run: `main`, and one of each stream, whose views may have facts of their own."""
    check_streams(tree)
    found = {"main": network(tree, facts)}
    for name, said in (tree.get("streams") or {}).items():
        found[name] = network(said, dict(facts) | (said.get("facts") or {}), f"streams.{name}.")
    return found


def fresh_network(tree: Mapping[str, Any], facts: Mapping[str, Any], seed: int) -> Network:
    """A network with random weights: the same architecture and facts, nothing loaded."""
    bare = dict(tree) | {"encoder": without_weights(tree["encoder"])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(bare, facts)


def without_weights(node: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder's configuration that begins at random, whatever it fetched or read."""
    known = entry(node["_target_"]).arguments if "/" in node["_target_"] else {}
    off = {"pretrained": False, "weights": None}
    return dict(node) | {key: value for key, value in off.items() if key in known}


def looks(tree: Mapping[str, Any], nets: Mapping[str, Network]) -> dict[str, LookSpec]:
    """The looks of a run: those under `looks:`, and one with the run's masker and corruptor for every other view.

    Raises:
        ConfigError: when masker, corruptor and encoder do not go together, or a name is unknown.
    """
    check_looks(tree)
    named = dict(tree.get("looks") or {})
    read = {view for name, said in named.items() for view in (said or {}).get("views", [name])}
    named |= {view: {} for view in tree["views"] if view not in read}
    found, corruptors = {}, dict[str, Any]()
    for name, said in named.items():
        said = said or {}
        where = f"looks.{name}"
        views = tuple(said.get("views", [name]))
        shared = said.get("mask")
        masker = None if shared else make(said.get("masker", tree.get("masker")), f"{where}.masker")
        net = said.get("network", "main")
        # looks of one network that hide alike share what is learned for it: iBOT has one mask token, not one per crop
        wanted = said.get("corruptor", tree.get("corruptor"))
        key = f"{net} {wanted}"
        if key not in corruptors:
            corruptors[key] = _corruptor(wanted, nets[net])
        corruptor = corruptors[key]
        maskless = corruptor is None or corruptor.on == "view" or getattr(corruptor, "maskless", False)
        if masker is None and shared is None and not maskless:
            raise ConfigError(f"{where}: a corruptor needs a masker that says what is hidden")
        guide = make(said.get("guide", tree.get("guide")), f"{where}.guide")
        guide = None if guide is None else guide(nets[net].spec, nets[net].dim)
        found[name] = LookSpec(name, views, masker, corruptor, net, shared, guide)
    return found


def _corruptor(node: Any, net: Network) -> Any:
    if node is None:
        return None
    built, accepts = make(node, "corruptor"), net.encoder.accepts
    corruptor = built(net.spec, accepts, net.dim) if callable(built) and isinstance(built, partial) else built
    needs = getattr(corruptor, "needs", (accepts,))
    if accepts not in needs:
        raise ConfigError(
            f"corruptor: {node['_target_']} works with encoders that accept {' or '.join(needs)}, and this "
            f"encoder accepts {accepts!r}. Choose corruptor/token with it, or an encoder such as encoder/vit."
        )
    return corruptor


def module(tree: Mapping[str, Any], facts: Mapping[str, Any]) -> SSLModule:
    """The module of a configuration, its weights drawn from the run's seed.

    Raises:
        ConfigError: for parts that do not go together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tree["seed"])
        nets = networks(tree, facts)
        return _call(
            "objective",
            SSLModule,
            nets,
            looks(tree, nets),
            # a stage or an override takes a term of its recipe away by null
            make(tree["objective"], "objective"),
            make(tree["optim"], "optim"),
            facts["samples"] if tree["data"]["batch_size"] == "full" else tree["data"]["batch_size"],
            teacher=make(tree.get("teacher"), "teacher"),
            seed=tree["seed"],
            keep=tree["keep"],
            heads=make(tree.get("heads") or {}, "heads"),
            chunk=(tree.get("trainer") or {}).get("chunk"),
        )


def adapter(tree: Mapping[str, Any], modality: str | None = None) -> Any:
    """The adapter of the run's modality, or of another: all that generic code knows of it."""
    return make({"_target_": f"modality/{modality or tree['modality']}"}, "modality")


def others(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The adapters of views whose stream is of another modality than the run, by the views' names."""
    found = {}
    for name, look in (tree.get("looks") or {}).items():
        stream = (tree.get("streams") or {}).get((look or {}).get("network", "main"))
        modality = (stream or {}).get("modality", tree["modality"])
        for view in (look or {}).get("views", [name]) if modality != tree["modality"] else ():
            found[view] = adapter(tree, modality)
    return found


def data(tree: Mapping[str, Any]) -> Any:
    """The data of a configuration.

    Raises:
        ConfigError: for data that cannot be read.
    """
    made = make(tree["data"], "data")(adapter(tree), tree["seed"])
    if found := others(tree):
        made.others = found
    return made
