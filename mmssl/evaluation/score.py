"""`evaluate`: an encoder beside a random initialisation and the raw input, by the same probes on the same split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmssl.evaluation.bootstrap import difference, percentiles
from mmssl.evaluation.features import device_of, untouched
from mmssl.evaluation.material import Material, NoBaseline, Pair, labelled
from mmssl.evaluation.protocols import Probe, Score

BASELINES = ("random_init", "raw_input")


def say(line: str) -> None:
    """A line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class Result:
    """What one protocol found of an encoder and of what stands beside it.

    Args:
        score: the encoder's.
        n_train: rows it was fitted on.
        n_test: rows it was scored on.
        beside: scores of each baseline by its name, one for each random initialisation.
        why: of baselines that cannot be, the reason.
    """

    score: Score
    n_train: int
    n_test: int
    beside: dict[str, list[Score]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """The entry of `summary.json`, plain numbers and lists."""
        made = entry(self.score, {name: [] for name in BASELINES} | self.beside)
        made |= {"n_train": self.n_train, "n_test": self.n_test, "chosen": self.score.chosen}
        return made | ({"why": self.why} if self.why else {})


def entry(score: Score, beside: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """A score beside its baselines, each with the interval of the paired difference, and so for what belongs to it.

    A baseline's value is the mean over its runs. Its interval pools the bootstrapped scores of all runs, so that it
    says where the score of one random initialisation lies, by test noise and by seed; the difference likewise.
    """
    made: dict[str, Any] = {"metric": score.metric, "value": score.value, "ci95": list(score.ci95)}
    if score.lower:
        made["better"] = "lower"
    for name, runs in beside.items():
        keys = (name, f"{name}_ci95", f"{name}_difference_ci95")
        made |= dict.fromkeys(keys)
        if not runs:
            continue
        made[name] = sum(run.value for run in runs) / len(runs)
        made[keys[1]] = list(percentiles(torch.cat([run.resampled for run in runs])))
        if all(run.n == score.n and run.resampled.shape == score.resampled.shape for run in runs):
            made[keys[2]] = list(difference(score.resampled, [run.resampled for run in runs]))
    if score.also:
        made["also"] = {
            key: entry(own, {name: [run.also[key] for run in runs if key in run.also] for name, runs in beside.items()})
            for key, own in score.also.items()
        }
    if score.curve:
        made["curve"] = [
            own.chosen
            | entry(own, {name: [run.curve[i] for run in runs if run.curve] for name, runs in beside.items()})
            for i, own in enumerate(score.curve)
        ]
    return made


def evaluate(
    encoder: nn.Module,
    fresh: Callable[[int], nn.Module] | str,
    material: Mapping[str, Material],
    protocols: Mapping[str, Probe],
    seeds: Sequence[int] = (0, 1, 2),
    progress: Callable[[str], None] = say,
    raw: dict[str, list[Score]] | None = None,
) -> dict[str, Result]:
    """What each protocol finds of an encoder, beside random weights and the raw input; `Result.entry` writes it down.

    All intervals but those of random initialisations are of the test noise alone. Rows without a label take no part.
    No global random state is touched.

    Args:
        encoder: `encoder(view) -> Tokens`.
        fresh: makes the same architecture with the weights of a seed, never loaded; or the reason why none can be made.
        material: what protocols are fitted and scored on, by what they need.
        protocols: probes by name.
        seeds: of the random initialisations.
        progress: gets a line before each stage.
        raw: scores of the raw input by protocol; what is not in there is found and put there, so that encoders on the
            same data share it.

    Raises:
        NoLabels: where either split holds no label.
    """
    progress("evaluate: features of the encoder")
    found: dict[str, Result] = {}
    for need, names in _by_need(protocols).items():
        train, test = _parts(material[need].both(encoder), names)
        for name in names:
            progress(f"evaluate: {name} on {len(train)} + {len(test)} rows")
            found[name] = Result(protocols[name](train, test), len(train), len(test))
    device = device_of(encoder)
    for need, names in _by_need(protocols).items():
        some = {name: protocols[name] for name in names}
        own = material[need].fresh or fresh
        _beside(
            found,
            names,
            "random_init",
            lambda a=own, m=material[need], p=some: _random(a, m, p, seeds, device, progress),
        )
        _beside(found, names, "raw_input", lambda m=material[need], p=some: _raw(encoder, m, p, progress, raw))
        for other, scores in (material[need].others or {}).items():
            for name in names:
                if (score := scores(found[name].score)) is not None:
                    found[name].beside[other] = [score]
    return found


def _by_need(protocols: Mapping[str, Probe]) -> dict[str, list[str]]:
    """Protocols by what they need, which is made once for all of them."""
    found: dict[str, list[str]] = {}
    for name, protocol in protocols.items():
        found.setdefault(getattr(protocol, "needs", "pooled"), []).append(name)
    return found


def _parts(pair: Pair, names: Sequence[str]) -> Pair:
    return labelled(pair[0], "train", names), labelled(pair[1], "test", names)


def _beside(
    found: Mapping[str, Result], names: Sequence[str], baseline: str, scores: Callable[[], dict[str, list[Score]]]
) -> None:
    """Adds a baseline's scores to each protocol, or why there are none."""
    try:
        made = scores()
    except NoBaseline as reason:
        for name in names:
            found[name].why[baseline] = str(reason)
        return
    for name, runs in made.items():
        found[name].beside[baseline] = runs


def _random(
    fresh: Callable[[int], nn.Module] | str,
    material: Material,
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
        train, test = _parts(material.both(network), list(protocols))
        for name, protocol in protocols.items():
            found[name].append(protocol(train, test))
    return found


def _raw(
    encoder: nn.Module,
    material: Material,
    protocols: Mapping[str, Probe],
    progress: Callable[[str], None],
    known: dict[str, list[Score]] | None,
) -> dict[str, list[Score]]:
    """Score of each protocol on the raw input; what depends on the encoder's tokens is not shared between encoders."""
    if material.cut is not None:
        progress("evaluate: raw input")
        train, test = _parts(material.cut(encoder), list(protocols))
        return {name: [protocol(train, test)] for name, protocol in protocols.items()}
    if isinstance(material.raw, str):
        raise NoBaseline(material.raw)
    known = {} if known is None else known
    if missing := [name for name in protocols if name not in known]:
        progress("evaluate: raw input")
        train, test = _parts(material.raw(), missing)
        known |= {name: [protocols[name](train, test)] for name in missing}
    return {name: known[name] for name in protocols}
