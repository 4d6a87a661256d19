"""Methods beside the simpler ones they claim to better, at equal steps, three seeds, small and on real sets.

Both arms of a pair have the same set, encoder, batch, steps and rates; the processor time of each stands in its result.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reproduce.grid import PLAIN, SETS, small_run

IMAGES = ["tokenizer.patch=4", "trainer.max_epochs=null", "trainer.max_steps=1200"]
# pair: (claim, modality, overrides of both, {arm: (recipe, its overrides)}), the simpler one first
PAIRS: dict[str, tuple[str, str, list[str], dict[str, tuple[str, list[str]]]]] = {
    "noise": (
        "masks cut out of filtered noise teach more than random ones (ColorMAE)",
        "image", IMAGES, {"random": ("image/mae", []), "green": ("image/colormae", [])},
    ),
    "hard": (
        "hiding what is hard to predict teaches more than hiding at random (HPM)",
        "image", IMAGES, {"random": ("image/mae", []), "hard": ("image/hpm", [])},
    ),
    "cross": (
        "cross-attention alone decodes as well as self-attention, at less cost (CrossMAE)",
        "image", IMAGES, {"self": ("image/mae", []), "cross": ("image/crossmae", [])},
    ),
    "contrast": (
        "two masks and a contrast of what both hide teach more than one (Point-CMAE)",
        "pointcloud", [], {"one": ("pointcloud/point_mae", []), "two": ("pointcloud/point_cmae", [])},
    ),
    "bandwidth": (
        "bandwidths instead of hidden edges (Bandana)",
        "graph", ["trainer.max_epochs=300"], {"hidden": ("graph/maskgae", []), "bandwidth": ("graph/bandana", [])},
    ),
    "mixed": (
        "mixtures of samples regularise Barlow Twins (Mixed Barlow Twins)",
        "image", [*PLAIN, "trainer.max_epochs=null", "trainer.max_steps=800"],
        {"plain": ("image/barlow", []), "mixed": ("image/mixed_barlow", [])},
    ),
}  # fmt: skip
SEEDS = range(3)


def jobs() -> dict[str, Callable[[Path, Path], dict]]:
    """Three seeds of both arms, by `sibling-<pair>-<arm>/<set>/seed<n>`, seed by seed."""
    return {
        f"sibling-{pair}-{arm}/{SETS[kind][0]}/seed{seed}": partial(_run, pair, arm, seed)
        for seed in SEEDS
        for pair, (_, kind, _, arms) in PAIRS.items()
        for arm in arms
    }


def _run(pair: str, arm: str, seed: int, data: Path, runs: Path) -> dict:
    _, kind, both, arms = PAIRS[pair]
    recipe, own = arms[arm]
    return small_run(recipe, kind, [*both, *own], seed, data, runs)


def _said(found: list[dict[str, Any]]) -> str:
    values = [one["eval"]["linear"]["value"] for one in found]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    time = statistics.mean(one["cpu_s"] for one in found)
    return f"{statistics.mean(values):.3f}{spread} ({len(values)}), {time:.0f} s"


def table(results: Path) -> str:
    """Mean and deviation over seeds of the linear probe of both arms, and the difference seed by seed, in Markdown."""
    lines = ["| claim | set | simpler | claimed to be better | difference by seed |", "|---" * 5 + "|"]
    for pair, (claim, kind, _, arms) in PAIRS.items():
        name = SETS[kind][0]
        found = {
            arm: {
                file.stem: json.loads(file.read_text())
                for file in (results / f"sibling-{pair}-{arm}" / name).glob("seed*.json")
            }
            for arm in arms
        }
        one, other = found.values()
        score = {
            arm: {seed: run["eval"]["linear"]["value"] for seed, run in each.items()} for arm, each in found.items()
        }
        first, second = score.values()
        apart = " ".join(f"{second[seed] - first[seed]:+.3f}" for seed in sorted(first.keys() & second.keys()))
        told = [_said(list(each.values())) if each else "" for each in (one, other)]
        lines.append(f"| {claim} | {name} | {told[0]} | {told[1]} | {apart} |")
    return "\n".join(lines)
