"""Runs the jobs whose result file is missing: `python -m benchmarks.reproduce DATA [PATTERN ...]`; `--list` shows them.

A job trains through the public interface, scores by its paper's protocol and writes `docs/results/<job>.json`. One that
is killed starts anew with the next call; one that is done is never run again. `--table` prints what there is, `--grid`
the grid of modalities and families, `--recipes` every recipe beside random weights, `--siblings` methods beside simpler
ones.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results"
MODULES = ("graph", "edges", "tabular", "probes", "grid", "recipes", "siblings")
TABLES = ("grid", "recipes", "siblings")
Job = Callable[[Path, Path], dict]


def jobs() -> dict[str, Job]:
    """All jobs by name: `<recipe with a dash>/<set>/seed<n>`."""
    found: dict[str, Job] = {}
    for name in MODULES:
        found |= importlib.import_module(f"benchmarks.reproduce.{name}").jobs()
    return found


def file_of(name: str) -> Path:
    """Where a job leaves its result."""
    return RESULTS / f"{name}.json"


def run(name: str, job: Job, data: Path, runs: Path) -> None:
    """Runs a job and writes its result atomically."""
    started = time.perf_counter()
    print(f"=== {name}", flush=True)
    result = job(data, runs)
    result |= {
        "job": name,
        "job_s": round(time.perf_counter() - started, 1),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    file = file_of(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    text = json.dumps(result, indent=1)
    for path, word in ((data, "DATA"), (runs, "RUNS")):  # results are read elsewhere, where these folders are not
        text = text.replace(str(path.resolve()), word)
    part.write_text(text + "\n")
    os.replace(part, file)
    print(f"=== {name}: {result.get('metric')} {result.get('value')} in {result['job_s']:.0f} s", flush=True)


def table() -> str:
    """Mean and deviation over the seeds of every (recipe, set), beside what was published."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for file in sorted(RESULTS.glob("*/*/seed*.json")):
        groups.setdefault((file.parent.parent.name, file.parent.name), []).append(json.loads(file.read_text()))
    lines = [
        f"{'recipe':22} {'set':22} {'metric':10} {'mean':>7} {'sd':>6}  {'published':18} {'seeds':5} {'wall':>7}  each"
    ]
    for (recipe, data), found in groups.items():
        values = [one["value"] for one in found]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        wall = sum(one["job_s"] for one in found)
        each = " ".join(f"{value:.4g}" for value in values)
        lines.append(
            f"{recipe:22} {data:22} {found[0]['metric']:10} {statistics.mean(values):7.4f} {spread:6.4f}  "
            f"{found[0].get('published') or '-'!s:18} {len(found):5} {wall:6.0f}s  {each}"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, help="folder of the data sets")
    parser.add_argument("pattern", nargs="*", default=["*"], help="names of jobs, with wildcards")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where runs are kept")
    parser.add_argument("--list", action="store_true", help="show the jobs, done ones marked")
    parser.add_argument("--table", action="store_true", help="show the results there are")
    for word in TABLES:
        parser.add_argument(f"--{word}", action="store_true", help=f"show the table of {word}")
    said = parser.parse_args()
    for word in TABLES:
        if getattr(said, word):
            print(importlib.import_module(f"benchmarks.reproduce.{word}").table(RESULTS))
            return 0
    if said.table:
        print(table())
        return 0
    found = jobs()
    if said.list:
        print("\n".join(f"{'done' if file_of(name).exists() else '    '} {name}" for name in found))
        return 0
    if said.data is None:
        parser.error("the folder of the data sets is missing; --list and --table need none")
    chosen = [name for name in found if any(fnmatch.fnmatch(name, pattern) for pattern in said.pattern)]
    if not chosen:
        parser.error(f"no job is called {' or '.join(said.pattern)}; --list shows them")
    failed = []
    for name in chosen:
        if file_of(name).exists():
            continue
        try:
            run(name, found[name], said.data, said.runs / name)
        except Exception as error:  # one job must not sink the others
            failed.append(name)
            print(f"=== {name}: FAILED: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
