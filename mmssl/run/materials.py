"""What protocols need, made of a run's data; and what does not fit them, told before anything is embedded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.data.segments import mover
from mmssl.data.source import BadSample
from mmssl.evaluation.features import Features, embed
from mmssl.evaluation.links import Pairs, joined
from mmssl.evaluation.material import NEEDS, Material, measured, pooled
from mmssl.evaluation.protocols import Score
from mmssl.evaluation.protocols.imputation import Filled, Imputation
from mmssl.evaluation.segments import RawTokens, embed_segments
from mmssl.evaluation.tokens import embed_tokens, single
from mmssl.evaluation.trees import boosted_trees
from mmssl.registry import entry, names
from mmssl.types import View

# Edges that are hidden to fit a decoder, and to score it, as shares of all.
_HIDDEN = (0.1, 0.1)


def held_out(data: Any, kind: str = "labels") -> str | None:
    """The split that final scores are taken on: test, else val; None without labels (or `targets`)."""
    for name in ("test", "val"):
        if name in data.splits and getattr(data.splits[name], kind, None) is not None:
            return name
    return None


def raw_features(
    data: Any, split: str, limit: int | None, kind: str = "labels", of: Callable[[Any], Tensor] | None = None
) -> Features:
    """The modality's raw-input baseline on a split, no encoder: one vector per sample, or per token of it.

    Args:
        data: the data.
        split: which split.
        limit: samples that are read, as in `eval_loader`.
        kind: what stands beside: `labels` or `targets`.
        of: what else to take of a sample than its raw input.
    """
    labels, found = getattr(data.splits[split], kind), []
    for i, sample in data.plain(split, data.chosen(split, limit).tolist()):
        with contextlib.suppress(BadSample):  # opens, but cannot be decoded: the loader has counted it
            found.append((i, (of or data.adapter.baseline)(sample).float()))
    vectors = [vector for _, vector in found]
    if data.unit == "token":
        return Features(torch.cat(vectors), torch.cat([labels[i, : len(vector)] for i, vector in found]))
    return Features(torch.stack(vectors), labels[torch.tensor([i for i, _ in found])])


def pool_of(tree: Mapping[str, Any], data: Any) -> str:
    """How tokens become rows: one per token where labels belong to tokens, else as the configuration says."""
    return "token" if data.unit == "token" else tree["evaluation"]["pool"]


class Materials:
    """The kinds of material that some data give.

    Args:
        tree: the configuration; of a foreign encoder's only `evaluation` is read.
        data: the data.
        module: gives the whole trained module, predictors included; None for a foreign encoder.
    """

    def __init__(self, tree: Mapping[str, Any], data: Any, module: Callable[[], Any] | None = None) -> None:
        self.tree, self.data, self.pool, self.module = tree, data, pool_of(tree, data), module
        said = tree["evaluation"]
        self.limit, self.memory_mb = said["limit"], said.get("memory_mb", 4096)

    def lacks(self, need: str) -> str | None:
        """Why these data do not give what a protocol needs, with the remedy; None where they do."""
        if need not in NEEDS:
            return f"it needs {need!r}, and there is {', '.join(NEEDS)}"
        return getattr(self, f"_lacks_{need}")()

    def of(self, needs: Iterable[str]) -> dict[str, Material]:
        """The material of each kind."""
        return {need: getattr(self, f"_{need}")() for need in dict.fromkeys(needs)}

    def _lacks_pooled(self) -> str | None:
        if self.data.splits["train"].labels is not None and held_out(self.data) is not None:
            return None
        return "it needs labels in train and in test or val, and the data have none there. Give the data labels"

    def _lacks_tokens(self) -> str | None:
        if self.data.unit == "token":
            return (
                "it pools the tokens of a labelled sample, and here every token has a label of its own; take "
                "protocol=linear, knn or svm, which score tokens"
            )
        return self._lacks_pooled()

    def _lacks_targets(self) -> str | None:
        if self.data.unit == "sample" and held_out(self.data, "targets") is not None:
            return None
        return (
            "it needs a quantity for each sample, and the data have none. Name a column of numbers: data.source.label"
        )

    def _batches(self, split: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
        return lambda: self.data.eval_loader(split, self.limit)

    def _both(self, kind: str = "labels", of: Callable[[Any], Tensor] | None = None) -> tuple[Features, Features]:
        """Raw-input features of both splits."""
        test = held_out(self.data, kind)
        assert test is not None
        train, asked = (raw_features(self.data, split, self.limit, kind, of) for split in ("train", test))
        return train, asked

    def _others(self, kind: str = "labels") -> dict[str, Any]:
        """Baselines that only some modalities have."""
        adapter = self.data.adapter
        if not hasattr(adapter, "cells"):
            return {}
        return {"boosted_trees": boosted_trees(lambda: (*self._both(kind, adapter.cells), adapter.categorical))}

    def _pooled(self) -> Material:
        split = held_out(self.data)
        assert split is not None
        return pooled(self._batches("train"), self._batches(split), self._both, self.pool, others=self._others())

    def _tokens(self) -> Material:
        split = held_out(self.data)
        assert split is not None

        def part(network: Any, name: str) -> Any:
            count = len(self.data.chosen(name, self.limit))
            return embed_tokens(network, self._batches(name)(), self.memory_mb, count)

        def raw() -> tuple[Any, Any]:
            train, test = self._both()
            return single(train), single(test)

        return Material(lambda network: (part(network, "train"), part(network, split)), raw, self._others())

    def _lacks_segments(self) -> str | None:
        if self.data.unit == "token":
            return "here every token has a label of its own; take protocol=linear, knn or svm, which score tokens"
        if getattr(self.data.splits["train"], "segments", None) is None or held_out(self.data, "segments") is None:
            return (
                "it needs a class for each element (pixel, point) of samples in train and in test or val, and the data "
                "have none. Say data.source.segments: with data=folder, the folder of the files that hold them; with "
                "data=clouds, the array"
            )
        try:
            for operation in self.data.view:
                mover(operation)
        except ValueError as error:
            return str(error)
        return None

    def _segments(self) -> Material:
        split = held_out(self.data, "segments")
        assert split is not None
        places = getattr(self.data.adapter, "places", None)

        def both(network: Any) -> tuple[Any, Any]:
            train, test = (
                embed_segments(
                    network, self.data.eval_loader(name, self.limit, segments=True), places, self.memory_mb,
                    len(self.data.chosen(name, self.limit)),
                )
                for name in ("train", split)
            )  # fmt: skip
            return train, test

        return Material(both, "it is cut as the encoder's tokens are", cut=lambda network: both(RawTokens(network)))

    def _targets(self) -> Material:
        split = held_out(self.data, "targets")
        assert split is not None

        def part(network: Any, name: str) -> Features:
            return measured(network, self._batches(name)(), self.data.splits[name].targets, self.pool)

        return Material(
            lambda network: (part(network, "train"), part(network, split)),
            partial(self._both, "targets"),
            self._others("targets"),
        )

    def _lacks_links(self) -> str | None:
        if not hasattr(self.data.adapter, "links"):
            return "it needs graphs, and these data have no edges"
        if not self.data.full and hasattr(self.data.source, "seeds"):
            return "edges are hidden in the whole graph, and samples are neighbourhoods; set data.batch_size=full"
        return None

    def _links(self) -> Material:
        data = self.data
        split = "test" if data.unit == "sample" and "test" in data.splits else "train"
        samples = [sample for _, sample in data.plain(split, data.chosen(split, self.limit).tolist())]
        graphs, pairs, raw = data.adapter.links(samples, _HIDDEN)
        counts = [int(graph.num_nodes) for graph in graphs]

        def both(x: Tensor) -> tuple[Pairs, Pairs]:
            fit, test = (joined(x, counts, [sets[i] for sets in pairs]) for i in range(2))
            return fit, test

        def batches() -> Iterable[Mapping[str, Any]]:
            for graph in graphs:
                yield {"x": View(data.adapter.collate([graph]), data.adapter.name)}

        return Material(lambda network: both(embed(network, batches(), "token").x), lambda: both(raw))

    def _lacks_cells(self) -> str | None:
        if not hasattr(self.data.adapter, "holes"):
            return "it fills in cells of tables"
        if self.module is None:
            return "it asks the decoder of a run, and this encoder comes without one"
        return None if "test" in self.data.splits else "it hides cells of a test split, and the data have none"

    def _cells(self) -> Material:
        data, adapter, test = self.data, self.data.adapter, self.data.splits["test"]
        index = data.chosen("test", self.limit)[~torch.from_numpy(test.unreadable)[data.chosen("test", self.limit)]]

        def filled(parts: Mapping[str, Any]) -> Filled:
            truth, found, hidden = (torch.as_tensor(parts[key]) for key in ("truth", "filled", "hidden"))
            return Filled(truth, found, hidden, adapter.categorical)

        def both(network: Any) -> tuple[Any, Filled]:
            module = network if hasattr(network, "objective") else self.module() if self.module else network
            return data.splits["train"], filled(adapter.holes(module, test, index.numpy()))

        def usual(score: Score) -> Score:
            assert self.module is not None
            parts = adapter.holes(self.module(), test, index.numpy())
            row = torch.from_numpy(adapter.typical(data.splits["train"]))
            return Imputation()(None, filled(parts | {"filled": row.expand(len(index), -1)}))

        return Material(
            both,
            "raw input fills in nothing; mean_imputer stands beside",
            {"mean_imputer": usual},
            lambda seed: build.module(dict(self.tree) | {"seed": seed}, data.facts()).eval(),
        )


def fitting(
    protocols: Mapping[str, Any], materials: Materials, strict: bool, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The protocols that the data fit.

    Args:
        protocols: by name.
        materials: what the data give.
        strict: whether one that does not fit is an error; else it is told and left out.
        tell: gets a line for each one that is left out.

    Raises:
        ConfigError: naming the protocol, what it needs and the remedy.
    """
    found = {}
    for name, protocol in protocols.items():
        reason = materials.lacks(getattr(protocol, "needs", "pooled"))
        if reason is None:
            found[name] = protocol
        elif strict:
            known = {full.removeprefix("protocol/"): entry(full).load() for full in names("protocol")}
            fit = [key for key, part in known.items() if materials.lacks(getattr(part, "needs", "pooled")) is None]
            instead = f"; what fits them is protocol={','.join(fit)}" if fit else ""
            raise ConfigError(f"protocol={name} does not fit these data: {reason}{instead}")
        else:
            tell(f"protocol {name} is left out: {reason}")
    return found
