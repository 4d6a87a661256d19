"""Two steps of each recipe on its sample data, through the command line: `python benchmarks/smoke.py [MMSSL]`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time


def main(mmssl: str = "mmssl") -> int:
    """Runs every recipe that `mmssl list recipes` names.

    Args:
        mmssl: the command.

    Returns:
        1 where a recipe failed, else 0.
    """
    listed = subprocess.run([mmssl, "list", "recipes", "--json"], check=True, stdout=subprocess.PIPE, text=True)
    recipes = [recipe["name"] for recipe in json.loads(listed.stdout)["recipes"]]
    failed = []
    for recipe in recipes:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as root:
            short = ["data=sample", "trainer.max_steps=2", "evaluation.limit=200", f"run.root={root}"]
            command = [mmssl, "pretrain", recipe, *short, "--json"]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        good = done.returncode == 0 and json.loads(done.stdout)["steps"] == 2
        print(f"{'ok' if good else 'FAILED':8}{time.perf_counter() - start:6.1f} s  {recipe}", flush=True)
        if not good:
            failed.append(recipe)
            print(done.stderr, file=sys.stderr, flush=True)
    print(f"{len(recipes) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed or not recipes else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
