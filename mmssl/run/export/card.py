"""The model card, written from the run: Hugging Face's front matter, then what a reader has to know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmssl.report.intervals import rounded
from mmssl.report.markup import duration, number
from mmssl.report.reading import Run, Score, read
from mmssl.report.scores import label, words
from mmssl.run.export.formats import Source, Written

# Facts of more entries than these (columns, classes) are counted.
_LONG = 6


def card(told: Mapping[str, Any], source: Source, written: Written, run: Path | None, name: str) -> str:
    """README.md of an export.

    Args:
        told: what `export.json` says.
        source: what was exported.
        written: how it is loaded.
        run: the directory of the run it comes from, None for a file alone.
        name: the folder's name, for the lines that load it.
    """
    known = read(run) if run is not None else None
    parts = [
        _front(told, source, written),
        f"# {told['recipe'] or 'encoder'}, pre-trained without labels\n",
        _about(told, source),
        "## Use\n\n```python\n" + written.usage.replace("DIR", name) + "\n```\n\n" + _shapes(told),
        _preprocessing(told, "pixels" in written.inputs),
        _trained(told, source, known),
        _scores(known),
        _health(known),
        _check(told),
        _limits(source, known),
    ]
    return "\n".join(part for part in parts if part)


def _front(told: Mapping[str, Any], source: Source, written: Written) -> str:
    modality = str(source.tree["modality"])
    tags = ["self-supervised-learning", "feature-extraction", "mmssl", modality]
    said: dict[str, Any] = {"license": told["licence"], "library_name": written.library, "tags": tags}
    if told["preprocessing"]:
        said["pipeline_tag"] = "image-feature-extraction"
    return "---\n" + yaml.safe_dump(said, sort_keys=False) + "---\n"


def _about(told: Mapping[str, Any], source: Source) -> str:
    meta = source.tree.get("meta") or {}
    paper = f" after: {meta['paper']}" if meta.get("paper") else ""
    return (
        f"The {told['branch']}'s encoder of a self-supervised run on {source.tree['modality']} data{paper}. It gives "
        f"features, no classes. Written by mmssl {told['mmssl']} as `format={told['format']}`.\n"
    )


def _shapes(told: Mapping[str, Any]) -> str:
    lines = [f"- in: {told['takes']}"]
    lines += [f"- out, `{name}`: {what}" for name, what in told["gives"].items()]
    return "\n".join(lines) + "\n"


def _preprocessing(told: Mapping[str, Any], outside: bool) -> str:
    said = told["preprocessing"]
    if not said:
        return ""
    steps = []
    if said["resize"]:
        steps.append(f"- the short side is resized to {said['resize']} pixels ({said['interpolation']}, antialiased)")
    if said["crop"]:
        steps.append(f"- the central square of {said['crop']} pixels is taken")
    steps += [f"- also {op}, which no preprocessing file of other libraries can say" for op in said["other"]]
    mean, std = (", ".join(f"{value:.4f}" for value in said[key]) for key in ("mean", "std"))
    who = "values in [0, 1] are normalised" if outside else "what is exported normalises values in [0, 1] itself,"
    steps.append(f"- {who} with mean {mean} and deviation {std}, the data's own")
    return "## Preprocessing\n\n" + "\n".join(steps) + "\n"


def _trained(told: Mapping[str, Any], source: Source, known: Run | None) -> str:
    tree, facts = source.tree, source.facts
    rows = {"recipe": told["recipe"], "checkpoint": told["checkpoint"], "branch": told["branch"]}
    for key in ("tokenizer", "encoder", "masker", "corruptor", "teacher", "optim"):
        if isinstance(tree.get(key), Mapping):
            rows[key] = f"`{_flat(tree[key])}`"
    objective = tree.get("objective") or {}
    rows["objective"] = "; ".join(f"{name}: `{_flat(term)}`" for name, term in objective.items())
    if known is not None:
        done, planned = known.summary.get("steps"), known.summary.get("planned_steps")
        rows["steps"] = f"{number(done)} of {number(planned)}, {duration(known.summary.get('wall_s'))}"
        rows["command"] = f"`{' '.join(map(str, known.environment.get('command') or [])) or 'unknown'}`"
        versions = known.environment.get("versions") or {}
        rows["versions"] = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
    rows["data"] = _facts(facts)
    rows["fingerprint of the data"] = f"`{facts.get('fingerprint', 'unknown')}`"
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items() if value]
    return "\n".join(["## Training\n", "| | |", "|---|---|", *lines, ""])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _flat(node: Any) -> str:
    """A part and its settings on one line."""
    if isinstance(node, Mapping):
        inner = ", ".join(f"{key}={_flat(value)}" for key, value in node.items() if key != "_target_")
        return f"{node['_target_']}({inner})" if "_target_" in node else f"{{{inner}}}"
    if isinstance(node, list):
        return "[" + ", ".join(map(_flat, node)) + "]"
    return str(node)


def _facts(facts: Mapping[str, Any]) -> str:
    """The data's facts in a line; what is long or nested is counted."""
    found = []
    for key, value in facts.items():
        if key in ("fingerprint", "mean", "std") or value is None:
            continue
        if isinstance(value, Mapping) and key == "splits":
            shown = ", ".join(f"{name} {count}" for name, count in value.items())
        elif isinstance(value, (list, tuple, Mapping)):
            plain = len(value) <= _LONG and not any(isinstance(item, (list, tuple, Mapping)) for item in value)
            shown = ", ".join(map(str, value)) if plain else f"{len(value)} of them"
        else:
            shown = str(value)
        found.append(f"{key}: {shown}")
    return "; ".join(found)


def _scores(known: Run | None) -> str:
    title = "## Scores\n\n"
    scores = known.scores if known is not None else []
    if not scores:
        return title + "None were taken: the data have no labels, or the file came without its run.\n"
    names = list(dict.fromkeys(name for score in scores for name in score.baselines))
    lines = [
        "| protocol | metric | this encoder | " + " | ".join(map(label, names)) + " |",
        "|---" * (len(names) + 3) + "|",
    ]
    for score in scores:
        cells = [_value(score.value, score.interval)]
        cells += [_value(*score.baselines.get(name, (None, None))) for name in names]
        lines.append(f"| {score.protocol} | {_metric(score)} | " + " | ".join(cells) + " |")
    said = [f"- {score.protocol}: {words(score)}" for score in scores]
    note = "Values with 95 % intervals; random init is the same architecture, untrained.\n"
    return title + "\n".join([*lines, "", note, *said, ""])


def _value(value: float | None, span: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    shown, interval = rounded(value, span)
    return f"{shown} ({interval})"


def _metric(score: Score) -> str:
    return score.metric + ("" if score.higher_is_better else " (lower is better)")


def _health(known: Run | None) -> str:
    health = known.health if known is not None else {}
    if not health:
        return "## Health\n\nUnknown: the file came without its run.\n"
    monitors = [f"{key} {number(health[key])}" for key in ("rankme", "feature_std", "uniformity") if key in health]
    causes = "".join(f"\n- {cause}" for cause in health.get("causes") or [])
    return f"## Health\n\nVerdict: **{health.get('verdict', 'unknown')}** ({', '.join(monitors)}).{causes}\n"


def _check(told: Mapping[str, Any]) -> str:
    checked = told["checked"]
    if checked is None:
        return f"## Check\n\nNot checked: {told['why']}\n"
    by = ", ".join(f"{name} {version}" for name, version in checked["by"].items())
    lines = [
        f"- {name}: at most {entry['max_abs']:.2g} apart, {entry['max_rel']:.2g} of the largest value"
        for name, entry in checked["differences"].items()
        if "." not in name
    ]
    head = f"Loaded back in a clean process by {by}, on {checked['rows']} samples of the {checked['split']} split:\n\n"
    return "## Check\n\n" + head + "\n".join(lines) + "\n"


def _limits(source: Source, known: Run | None) -> str:
    lines = [
        "- Features are those of the data above; on other data their use has to be measured (`mmssl evaluate`).",
        "- Nothing was done about biases of the data, which features take over.",
    ]
    if known is not None and known.status != "completed":
        lines.append(f"- The run's status is {known.status}: it did not reach its planned end.")
    grid = source.network.spec.grid
    if grid is not None:
        lines.append(f"- It was trained on a grid of {' x '.join(map(str, grid))} tokens.")
    if differs := (source.tree.get("meta") or {}).get("differs"):
        lines.append(f"- Where the recipe departs from the paper: {' '.join(str(differs).split())}")
    return "## Limits\n\n" + "\n".join(lines) + "\n"
