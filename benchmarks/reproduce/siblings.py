"""Methods beside the simpler ones they claim to better, at equal steps, three seeds, small and on real sets.

All methods of a group have the same set, encoder, batch, steps and rates; the processor time of each stands in its
result. Bandana beside MaskGAE is measured by their own protocols instead: see `edges.py`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scipy.stats import t

from benchmarks.reproduce.grid import PLAIN, SETS, small_run

# group: (modality, overrides of all, the simpler recipe, {recipe: what it claims beyond the simpler one})
GROUPS: dict[str, tuple[str, list[str], str, dict[str, str]]] = {
    "masked": (
        "image",
        ["tokenizer.patch=4", "trainer.max_epochs=null", "trainer.max_steps=800"],
        "image/mae",
        {
            "image/colormae": "masks cut out of filtered noise teach more than random ones",
            "image/hpm": "hiding what is hard to predict teaches more than hiding at random",
            "image/crossmae": "cross-attention alone decodes as well as self-attention, at less cost",
        },
    ),
    "clouds": (
        "pointcloud",
        [],
        "pointcloud/point_mae",
        {"pointcloud/point_cmae": "two masks, and a contrast of what both hide, teach more than one"},
    ),
    "redundancy": (
        "image",
        [*PLAIN, "trainer.max_epochs=null", "trainer.max_steps=500"],
        "image/barlow",
        {"image/mixed_barlow": "mixtures of samples regularise Barlow Twins"},
    ),
}
SEEDS = range(3)


def jobs() -> dict[str, Callable[[Path, Path], dict]]:
    """Three seeds of every method, by `sibling-<group>-<recipe>/<set>/seed<n>`, seed by seed."""
    return {
        _name(group, recipe, seed): partial(_run, group, recipe, seed)
        for seed in SEEDS
        for group, (_, _, simpler, others) in GROUPS.items()
        for recipe in (simpler, *others)
    }


def _name(group: str, recipe: str, seed: int | str) -> str:
    return f"sibling-{group}-{recipe.split('/')[1]}/{SETS[GROUPS[group][0]][0]}/seed{seed}"


def _run(group: str, recipe: str, seed: int, data: Path, runs: Path) -> dict:
    kind, said, _, _ = GROUPS[group]
    return small_run(recipe, kind, said, seed, data, runs)


def _found(results: Path, group: str, recipe: str) -> dict[str, dict[str, Any]]:
    """Results by seed."""
    return {
        file.stem: json.loads(file.read_text()) for file in sorted(results.glob(_name(group, recipe, "*") + ".json"))
    }


def _said(found: dict[str, dict[str, Any]]) -> str:
    values = [one["value"] for one in found.values()]
    if not values:
        return ""
    spread = f" \u00b1 {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread} ({len(values)})"


def table(results: Path) -> str:
    """Linear probes of both, mean and deviation over seeds, differences, and the ratio of times, in Markdown.

    The interval is Student's over the seeds, paired; "overlap" where the 95 % intervals of the two probes of a seed do.
    """
    head = ("claim", "set", "simpler", "claimed to be better", "difference, 95 %", "by seed", "CPU time")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for group, (kind, _, simpler, others) in GROUPS.items():
        first = _found(results, group, simpler)
        for recipe, claim in others.items():
            second = _found(results, group, recipe)
            both = sorted(first.keys() & second.keys())
            apart = ", ".join(_apart(first[seed], second[seed]) for seed in both)
            spent = [sum(found[seed]["cpu_s"] for seed in both) for found in (first, second)]
            lines.append(
                f"| {claim} | {SETS[kind][0]} | `{simpler}` {_said(first)} | `{recipe}` {_said(second)} "
                f"| {_difference([second[seed]['value'] - first[seed]['value'] for seed in both])} | {apart} "
                f"| {f'{spent[1] / spent[0]:.2f}' if both else ''} |"
            )
    return "\n".join(lines)


def _difference(values: list[float]) -> str:
    """The mean, with its interval where there are several."""
    if len(values) < 2:
        return f"{values[0]:+.3f}" if values else ""
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def _apart(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The difference, and whether the intervals of the two probes lie apart."""
    (low, high), (least, most) = (run["eval"]["linear"]["ci95"] for run in (one, other))
    word = "" if least > high or most < low else " (overlap)"
    return f"{other['value'] - one['value']:+.3f}{word}"
