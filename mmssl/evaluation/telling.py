"""Scores as plain text: one table for an encoder, one for several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LEGEND = (
    "95 % intervals: > encoder better, < encoder worse, ~ within noise, by the paired difference over the same test "
    "samples"
)


def table(block: Mapping[str, Mapping[str, Any]]) -> str:
    """The `eval` block as aligned plain text, one line per metric, with what the reader should conclude marked.

    `>` stands before a baseline that the encoder clearly beats, `<` before one that clearly beats the encoder, `~`
    where the difference is within noise: where the interval of the paired difference holds 0. Entries without such an
    interval are compared by whether both intervals overlap.
    """
    rows = list(_rows(block))
    names = list(dict.fromkeys(["random_init", "raw_input", *(name for _, entry in rows for name in baselines(entry))]))
    lines = [("protocol", "metric", "encoder", *(f"  {name.replace('_', ' ')}" for name in names))]
    for name, entry in rows:
        cells = [_cell(entry, baseline) for baseline in names]
        lines.append((name, entry["metric"], number(entry["value"], entry["ci95"]), *cells))
    text = [*aligned(lines), LEGEND]
    reasons = {f"{name}: {why}" for entry in block.values() for name, why in entry.get("why", {}).items()}
    return "\n".join([*text, *sorted(reasons)])


def compared(encoders: Sequence[Mapping[str, Any]], differences: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Several encoders as aligned plain text: their scores, each above its baselines, then every pair.

    Args:
        encoders: `name` and `eval` of each.
        differences: of each protocol the pairs: `a`, `b`, `difference`, `ci95`, `within_noise`.
    """
    names = list(dict.fromkeys(name for one in encoders for name, _ in _rows(one["eval"])))
    metrics = {name: entry["metric"] for one in encoders for name, entry in _rows(one["eval"])}
    lines = [("encoder", *(f"  {name} ({metrics[name]})" for name in names))]
    for one in encoders:
        known = dict(_rows(one["eval"]))
        scores = (f"  {number(known[n]['value'], known[n]['ci95'])}" if n in known else "  -" for n in names)
        lines.append((one["name"], *scores))
        for base in dict.fromkeys(name for entry in known.values() for name in baselines(entry)):
            beside = (_cell(known[n], base) if n in known else "" for n in names)
            lines.append((f"  {base.replace('_', ' ')}", *beside))
    text = ["\n".join(aligned(lines)), f"{LEGEND}. Pairs, likewise:"]
    for name, pairs in differences.items():
        for pair in pairs:
            said = "within noise" if pair["within_noise"] else f"{pair['better']} is better"
            low, high = pair["ci95"]
            text.append(
                f"  {name}: {pair['a']} - {pair['b']} = {pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}]: {said}"
            )
    return "\n".join(text)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of equal columns, the first underlined."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [text[0], "  ".join("-" * width for width in widths), *text[1:]]


def baselines(entry: Mapping[str, Any]) -> list[str]:
    """The baselines that an entry has keys for, by name."""
    found = (key.removesuffix("_ci95") for key in entry if key.endswith("_ci95"))
    return [name for name in found if not name.endswith("_difference")]


def verdict(entry: Mapping[str, Any], name: str) -> str:
    """How an encoder compares with a baseline: `better`, `worse` or `noise`."""
    span = entry.get(f"{name}_difference_ci95")
    if span is None:
        low, high = entry[f"{name}_ci95"]
        span = (entry["ci95"][0] - high, entry["ci95"][1] - low)
    if span[0] <= 0 <= span[1]:
        return "noise"
    return "better" if (span[0] > 0) != (entry.get("better") == "lower") else "worse"


def number(value: float, ci95: Sequence[float]) -> str:
    """A score and its interval."""
    return f"{value:.3f} [{ci95[0]:.3f}, {ci95[1]:.3f}]"


def _rows(block: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every protocol, and below it its further metrics and the points of its curve."""
    for name, entry in block.items():
        yield name, entry
        yield from ((f"{name} {key}", more) for key, more in entry.get("also", {}).items())
        yield from ((f"{name} at {point['at']:g}", point) for point in entry.get("curve", []))


def _cell(entry: Mapping[str, Any], name: str) -> str:
    """A baseline's score behind the mark of how the encoder compares."""
    if entry.get(name) is None:
        return "  none" if name in entry else ""
    mark = {"better": ">", "worse": "<", "noise": "~"}[verdict(entry, name)]
    return f"{mark} {number(entry[name], entry[f'{name}_ci95'])}"
