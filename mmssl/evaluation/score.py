"""`evaluate`: an encoder beside a random initialisation and the raw input, by the same probes on the same split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmssl.evaluation.bootstrap import interval
from mmssl.evaluation.features import Features, device_of, embed, untouched
from mmssl.evaluation.protocols import Probe, Score

Batches = Callable[[], Iterable[Mapping[str, Any]]]
Pair = tuple[Features, Features]


class NoBaseline(ValueError):
    """A baseline that cannot be; its message says why, and is kept beside the null in the result."""


class NoLabels(ValueError):
    """Data without labels, on which no probe can score."""


def say(line: str) -> None:
    """A line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)


def evaluate(
    encoder: nn.Module,
    fresh: Callable[[int], nn.Module] | str,
    train_batches: Batches,
    test_batches: Batches,
    baselines: Callable[[], Pair] | str,
    protocols: Mapping[str, Probe],
    pool: str = "mean",
    seeds: Sequence[int] = (0, 1, 2),
    progress: Callable[[str], None] = say,
) -> dict[str, dict[str, Any]]:
    """The `eval` block of a run's `summary.json`: for each protocol the encoder's score beside both baselines.

    `random_init` is the mean score over the seeds. Its interval pools the bootstrapped scores of all seeds, so that it
    says where the score of one random initialisation lies, by test noise and by seed. All other intervals are of the
    test noise alone. Rows without a label take no part. No global random state is touched.

    Args:
        encoder: `encoder(view) -> Tokens`.
        fresh: makes the same architecture with the weights of a seed, never loaded; or the reason why none can be made.
        train_batches: each call gives the training split anew, as dicts of `x` and `label`, unshuffled.
        test_batches: the test split, likewise.
        baselines: raw-input features of the training and of the test split; or the reason why there are none.
        protocols: probes by name.
        pool: `mean`, `cls` or `token`; see `embed`.
        seeds: of the random initialisations.
        progress: gets a line before each stage.

    Returns:
        By protocol: `metric, value, ci95, random_init, random_init_ci95, raw_input, raw_input_ci95, n_train, n_test,
        chosen`, plain numbers and lists. A baseline that cannot be (given as a reason, or raising `NoBaseline`) is
        null, and `why` holds its reason by the baseline's name.

    Raises:
        NoLabels: where either split holds no label.
    """

    def both(network: nn.Module) -> Pair:
        train, test = embed(network, train_batches(), pool), embed(network, test_batches(), pool)
        return _labelled(train, "train", protocols), _labelled(test, "test", protocols)

    progress("evaluate: features of the encoder")
    train, test = both(encoder)
    block = {}
    for name, protocol in protocols.items():
        progress(f"evaluate: {name} on {len(train)} + {len(test)} rows of width {train.x.shape[1]}")
        score = protocol(train, test)
        block[name] = {
            "metric": score.metric, "value": score.value, "ci95": list(score.ci95),
            "random_init": None, "random_init_ci95": None, "raw_input": None, "raw_input_ci95": None,
            "n_train": len(train), "n_test": len(test), "chosen": score.chosen,
        }  # fmt: skip
    device = device_of(encoder)
    _baseline(block, "random_init", lambda: _random(fresh, both, protocols, seeds, device, progress))
    _baseline(block, "raw_input", lambda: _raw(baselines, protocols, progress))
    return block


def _labelled(features: Features, split: str, protocols: Mapping[str, Probe]) -> Features:
    """The rows with a label, of which there has to be one."""
    features = features.labelled()
    if len(features) == 0:
        raise NoLabels(
            f"protocol: the {split} split of the data has no labels, which {', '.join(protocols)} need. Give the data "
            "labels, or rely on the label-free monitors (rankme, feature_std, uniformity)."
        )
    return features


def _baseline(block: dict[str, dict[str, Any]], name: str, scores: Callable[[], dict[str, list[Score]]]) -> None:
    """Adds a baseline's mean score and pooled interval to each protocol, or why it is null."""
    try:
        found = scores()
    except NoBaseline as reason:
        for entry in block.values():
            entry.setdefault("why", {})[name] = str(reason)
        return
    for protocol, runs in found.items():
        entry = block[protocol]
        entry[name] = sum(run.value for run in runs) / len(runs)
        entry[f"{name}_ci95"] = list(interval(torch.stack([run.correct for run in runs])))


def _random(
    fresh: Callable[[int], nn.Module] | str,
    both: Callable[[nn.Module], Pair],
    protocols: Mapping[str, Probe],
    seeds: Sequence[int],
    device: torch.device,
    progress: Callable[[str], None],
) -> dict[str, list[Score]]:
    """Scores of each protocol on each seed's random initialisation."""
    if isinstance(fresh, str):
        raise NoBaseline(fresh)
    found: dict[str, list[Score]] = {name: [] for name in protocols}
    for seed in seeds:
        progress(f"evaluate: random initialisation, seed {seed}")
        with untouched():
            network = fresh(seed).to(device)
        train, test = both(network)
        for name, protocol in protocols.items():
            found[name].append(protocol(train, test))
    return found


def _raw(
    baselines: Callable[[], Pair] | str, protocols: Mapping[str, Probe], progress: Callable[[str], None]
) -> dict[str, list[Score]]:
    """Score of each protocol on the raw input."""
    if isinstance(baselines, str):
        raise NoBaseline(baselines)
    progress("evaluate: raw input")
    train, test = (features.labelled() for features in baselines())
    return {name: [protocol(train, test)] for name, protocol in protocols.items()}


def table(block: Mapping[str, Mapping[str, Any]]) -> str:
    """The `eval` block as aligned plain text, one line per protocol, with what the reader should conclude marked.

    `>` stands before a baseline that the encoder clearly beats (disjoint 95 % intervals), `<` before one that clearly
    beats the encoder, `~` where the intervals overlap.
    """
    lines: list[tuple[str, ...]] = [("protocol", "metric", "encoder", "  random init", "  raw input")]
    for name, entry in block.items():
        cells = [_cell(entry, baseline) for baseline in ("random_init", "raw_input")]
        lines.append((name, entry["metric"], _number(entry["value"], entry["ci95"]), *cells))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    text.append("95 % intervals: > encoder above, < encoder below, ~ they overlap")
    reasons = {f"{name}: {why}" for entry in block.values() for name, why in entry.get("why", {}).items()}
    return "\n".join([*text, *sorted(reasons)])


def _number(value: float, ci95: Sequence[float]) -> str:
    return f"{value:.3f} [{ci95[0]:.3f}, {ci95[1]:.3f}]"


def _cell(entry: Mapping[str, Any], name: str) -> str:
    """A baseline's score behind the mark of how the encoder compares."""
    if entry[name] is None:
        return "  none"
    low, high = entry[f"{name}_ci95"]
    mark = ">" if entry["ci95"][0] > high else "<" if entry["ci95"][1] < low else "~"
    return f"{mark} {_number(entry[name], (low, high))}"
