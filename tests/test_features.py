"""The table of features: what a row names exists, what can be counted is counted, and a wrong row is caught."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from mmssl.cli import VERBS
from mmssl.config.files import SLOTS, describe, recipes
from mmssl.registry import entries, names

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "features.md"
VERDICTS = ("yes", "part", "no")
ROWS = 115
MODALITIES = {"image", "video", "audio", "pointcloud", "graph", "tabular"}
FAMILIES = {"mae", "jepa", "contrastive", "distillation"}
SHAPES = {"verb": re.compile(r"mmssl [a-z]+"), "key": re.compile(r"[a-z_]+\.[a-z_]+")}


@dataclass(frozen=True)
class Row:
    group: str
    number: str
    feature: str
    verdict: str
    where: str
    missing: str

    @property
    def named(self):
        return re.findall(r"`([^`]+)`", self.where)


def cells(line):
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def parse(text):
    """Rows of the groups, and the table of totals: (yes, part, no) and all, by group."""
    rows, totals, group = [], {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            group = line.removeprefix("## ")
        elif line.startswith("|") and not line.startswith(("|--", "| #", "| group")):
            found = cells(line)
            if group == "Totals":
                totals[found[0]] = tuple(int(cell) for cell in found[1:])
            else:
                rows.append(Row(group, *found))
    return rows, totals


def is_there(word):
    """Whether what a row names exists: a file (and a name in it), a recipe, a part, a verb, a key or a slot."""
    file, _, name = word.partition("::")
    if (ROOT / file).exists():
        if file.startswith("experiments/") and file.endswith(".yaml"):
            return file.removeprefix("experiments/").removesuffix(".yaml") in recipes()
        return not name or bool(
            re.search(rf"^(def|class) {re.escape(name)}\b", (ROOT / file).read_text(), re.MULTILINE)
        )
    if SHAPES["verb"].fullmatch(word):
        return word.split()[1] in VERBS
    if SHAPES["key"].fullmatch(word):
        slot, argument = word.split(".")
        said = yaml.safe_load((ROOT / "conf" / "run.yaml").read_text()).get(slot)
        # a slot takes parts of the kind of its name
        return argument in (said or {}) or any(argument in entries()[one].arguments for one in names(slot))
    return word in entries() or word in SLOTS


@cache
def counted():
    """Rows that can be counted, and whether what they ask for is there in full."""
    rows = [describe(name) for name in recipes()]
    served = {family: {r["modality"] for r in rows if family in r["family"]} for family in FAMILIES}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plugin = tomllib.loads((ROOT / "tests/plugin/pyproject.toml").read_text())["project"]
    tests = sum(len(re.findall(r"^\s*def test_", f.read_text(), re.MULTILINE)) for f in (ROOT / "tests").rglob("*.py"))
    known = {name.removeprefix("modality/") for name in names("modality")}
    options = {word for name in names("encoder") for word in entries()[name].arguments}
    return {
        "7": len(known & MODALITIES) >= 5,
        "8": known >= MODALITIES,
        "20": all(found >= MODALITIES for found in served.values()),
        "32": {"rope", "swiglu", "qk_norm", "registers"} <= options,
        "91": project["scripts"] == {"mmssl": "mmssl.cli:main"},
        "103": tests > 500,
        "111": len(project["dependencies"]) <= 12,
        "115": "mmssl" in plugin["entry-points"],
    }


def faults(text):
    """What is wrong with a page, in words; nothing for a right one."""
    rows, totals = parse(text)
    found = []
    if (numbers := [row.number for row in rows]) != [str(i + 1) for i in range(ROWS)]:
        odd = [n for n, count in Counter(numbers).items() if count > 1]
        found.append(
            f"rows are not 1 to {ROWS} in order (twice: {odd}; lacking: {sorted(set(map(str, range(1, ROWS + 1))) - set(numbers))})"
        )
    for row in rows:
        at = f"row {row.number}"
        if not row.feature or row.verdict not in VERDICTS:
            found.append(f"{at}: {row.verdict!r} is no verdict")
            continue
        if row.verdict != "no" and not row.named:
            found.append(f"{at}: {row.verdict} without a place")
        if (row.verdict == "yes") == bool(row.missing):
            found.append(f"{at}: {row.verdict} with {row.missing!r} missing")
        if re.sub(r"`[^`]+`|[, ]", "", row.where):
            found.append(f"{at}: something between the places of {row.where}")
        found += [f"{at}: there is no {word}" for word in row.named if not is_there(word)]
        if counted().get(row.number, row.verdict == "yes") != (row.verdict == "yes"):
            found.append(f"{at}: {row.verdict} is not what is counted")
    return found + wrong_totals(rows, totals)


def wrong_totals(rows, totals):
    counts = {}
    for group in dict.fromkeys(row.group for row in rows):
        said = Counter(row.verdict for row in rows if row.group == group)
        counts[group] = (*(said[word] for word in VERDICTS), sum(said.values()))
    counts["all"] = tuple(map(sum, zip(*counts.values(), strict=True)))
    keys = [*dict.fromkeys([*counts, *totals])]
    return [
        f"totals of {key}: {totals.get(key)}, counted {counts.get(key)}"
        for key in keys
        if totals.get(key) != counts.get(key)
    ]


def test_the_page_is_true():
    assert faults(PAGE.read_text()) == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("`mmssl/module.py` |", "`mmssl/modul.py` |", "row 21: there is no mmssl/modul.py"),
        ("`experiments/image/ijepa.yaml`", "`experiments/image/jepa.yaml`", "row 11: there is no experiments/image/jepa.yaml"),
        ("`masker/tube`", "`masker/tubes`", "row 23: there is no masker/tubes"),
        ("`mmssl preview`", "`mmssl prevue`", "row 29: there is no mmssl prevue"),
        ("`trainer.chunk`", "`trainer.chunks`", "row 47: there is no trainer.chunks"),
        ("`optim.base_lr`", "`optim.base_rate`", "row 45: there is no optim.base_rate"),
        ("`evaluation.protocols`", "`evaluation.protocol`", "row 70: there is no evaluation.protocol"),
        ("`init_share`", "`init_part`", "row 34: there is no init_part"),
        ("::test_facts`", "::test_fact`", "row 40: there is no tests/data/test_module.py::test_fact"),
        ("`mmssl/run/safety.py::Guard`", "`mmssl/run/safety.py::Guards`", "row 80: there is no mmssl/run/safety.py::Guards"),
        ("| 23 | Tube masking | yes |", "| 23 | Tube masking | maybe |", "row 23: 'maybe' is no verdict"),
        ("| 37 | Augmentation batched on the GPU | no |", "| 37 | Augmentation batched on the GPU | yes |", "row 37: yes without a place"),
        ("`masker/tube` | |", "`masker/tube` | all |", "row 23: yes with 'all' missing"),
        ("| 23 | Tube masking", "| 24 | Tube masking", "rows are not 1 to 115 in order"),
        ("`masker/tube` |", "masker/tube |", "row 23: something between the places"),
        ("| 103 | Over 500 tests | yes | `tests` | |", "| 103 | Over 500 tests | no | | |", "row 103: no is not what is counted"),
        ("| 111 | Twelve or fewer hard dependencies | no |", "| 111 | Twelve or fewer hard dependencies | part |", "totals of M. Developer experience"),
        ("| 23 | Tube masking | yes | `masker/tube` | |", "| 23 | Tube masking | part | `masker/tube` | tubes |", "totals of C. Masking"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_caught(right, wrong, said):
    text = PAGE.read_text()
    assert text.count(right) >= 1
    assert any(one.startswith(said) for one in faults(text.replace(right, wrong, 1)))


@pytest.mark.parametrize("number", counted())
def test_a_verdict_that_is_counted_cannot_be_another(number):
    """The page with the other verdict, its totals changed along: the count alone tells."""
    rows, _ = parse(PAGE.read_text())
    row = rows[int(number) - 1]
    line = f"| {number} | {row.feature} | {row.verdict} | {row.where} | {row.missing} |".replace("|  |", "| |")
    other = f"| {number} | {row.feature} | part | {row.where} | something |" if row.verdict == "yes" else (
        f"| {number} | {row.feature} | yes | {row.where} | |"
    )  # fmt: skip
    text = PAGE.read_text()
    assert text.count(line) == 1
    assert f"row {number}: {'part' if row.verdict == 'yes' else 'yes'} is not what is counted" in faults(
        text.replace(line, other)
    )


def test_only_what_exists_is_there():
    for word in (
        "mmssl/cli.py",
        "masker/tube",
        "mmssl list",
        "trainer.best",
        "evaluation.limit",
        "masker",
        "mmssl/ranks.py::gather",
    ):
        assert is_there(word), word
    for word in (
        "mmssl/clj.py",
        "masker/tub",
        "mmssl lists",
        "trainer.bist",
        "evaluation.limits",
        "maskers",
        "mmssl/ranks.py::gathr",
        "views.x",
    ):
        assert not is_there(word), word
