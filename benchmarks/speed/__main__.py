"""The command line of the suite, see the package."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[2] / "docs" / "results" / "speed"
NAMES = (
    "mae", "videomae", "ijepa", "audio_mae", "points", "point_mae", "graphmae", "remasker", "small", "startup",
    "jpeg_folder", "multicrop", "wav_folder", "clips", "whole_run", "scaling",
)  # fmt: skip


def work(name: str) -> Any:
    """The module of a work."""
    return importlib.import_module(f"benchmarks.speed.{name}")


def machine(threads: int) -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    load = round(os.getloadavg()[0], 2)
    return {"processor": model or platform.processor(), "cores": os.cpu_count(), "threads": threads, "load": load}


def versions() -> dict[str, str]:
    """Of Python and of the libraries that compute."""
    from importlib.metadata import version

    names = ("torch", "lightning", "timm", "torch-geometric", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def one(name: str, given: argparse.Namespace) -> dict[str, Any] | None:
    """The result of a work; None where it needs data that are not there."""
    from benchmarks.speed.harness import measured

    part = work(name)
    said = {"work": name, "what": part.WHAT, "same": part.SAME, "goal": part.GOAL}
    try:
        arguments = [given.data] if getattr(part, "DATA", False) else []
        if hasattr(part, "measure"):
            found = part.measure(given.pairs, *arguments)
        else:
            made = part.make(*arguments)
            with tempfile.TemporaryDirectory() as folder:
                found = measured(made, given.pairs, Path(folder))
    except FileNotFoundError as missing:
        print(f"{name}: skipped, {missing}", file=sys.stderr)
        return None
    if (most := getattr(part, "MEMORY", None)) is not None:
        found["memory"]["goal"] = most
    found |= {"goal_said": part.GOAL_SAID} if hasattr(part, "GOAL_SAID") else {}
    if hasattr(part, "reached"):
        found["reached"] = part.reached(found)
    else:
        found["reached"] = found["ratio"] <= part.GOAL if "ratio" in found else all(row[-1] for row in found["rows"])
    command = f"python -m benchmarks.speed {name} --threads {given.threads} --pairs {given.pairs}"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return said | found | {
        "command": command, "date": date, "machine": machine(given.threads), "versions": versions(),
    }  # fmt: skip


def table() -> str:
    """What is kept, as Markdown."""
    lines = ["| work | goal | floor | measured | reached |", "|---|---|---|---|---|"]
    for name in NAMES:
        path = OUT / f"{name}.json"
        if not path.exists():
            lines.append(f"| {work(name).WHAT} | {work(name).GOAL} | | not measured | |")
            continue
        for what, goal, floor, value, good in rows(json.loads(path.read_text())):
            lines.append(f"| {what} | {goal} | {floor} | {value} | {'yes' if good else 'no'} |")
    return "\n".join(lines)


def rows(found: dict[str, Any]) -> list[tuple[str, str, str, str, bool]]:
    """The lines of a result: what, goal, floor, value, reached."""
    if isinstance(found.get("rows"), list):  # one work counts its samples under this word
        return [tuple(row) for row in found["rows"]]
    counted = found.get("operations")
    value = f"{found['ratio']:.3f} ({found['ours_ms']:.0f} / {found['reference_ms']:.0f} ms)"
    if found["ours_ms"] < 100:
        value = f"{found['ratio']:.3f} ({found['ours_ms']:.2f} / {found['reference_ms']:.2f} ms)"
    goal = found.get("goal_said", str(found["goal"]))
    lines = [(found["what"], goal, f"{counted['floor']:.3f}" if counted else "", value, found["reached"])]
    if counted:
        share = counted["share_of_rate"]["ours"]
        lines.append(("... share of the matrix rate", "0.90", "", f"{share:.2f}", share >= 0.9))
    if "goal" in (kept := found.get("memory", {})):
        value = f"{kept['ratio']:.3f} ({kept['ours_mb']:.0f} / {kept['reference_mb']:.0f} MiB)"
        lines.append(("... peak memory", str(kept["goal"]), "", value, kept["ratio"] <= kept["goal"]))
    return lines


def main() -> int:
    """Measures what is named, by default all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--data", type=Path, help="folder of the data of graphmae, remasker and whole_run")
    parser.add_argument("--write", action="store_true", help="keep the results in docs/results/speed/")
    parser.add_argument("--again", action="store_true", help="measure what is kept already, too")
    parser.add_argument(
        "--table", action="store_true", help="print what is kept, in the end; alone, nothing is measured"
    )
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"there is no work {unknown.pop()!r}; there are {', '.join(NAMES)}")
    if given.table and not (given.names or given.write):
        print(table())
        return 0
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import torch

    torch.set_num_threads(given.threads)
    for name in given.names or NAMES:
        path = OUT / f"{name}.json"
        if given.write and path.exists() and not given.again:
            continue
        found = one(name, given)
        if found is None:
            continue
        print(json.dumps(found, indent=1), flush=True)
        if given.write:
            OUT.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
            kept = ("work", "date", "ratio", "times", "ours_ms", "reference_ms", "machine", "versions")
            told = {key: found[key] for key in kept if key in found}
            with (OUT / "history.jsonl").open("a") as file:  # every measurement, also those that are done again
                file.write(json.dumps(told) + "\n")
    if given.write:
        from benchmarks.speed.plot import write

        write(OUT)
    if given.table:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
