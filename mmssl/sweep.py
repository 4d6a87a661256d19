"""Sweeps over recipes and values: Hydra's multirun, whose launchers and sweepers all work, around ordinary runs."""

from __future__ import annotations

import json
import secrets
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mmssl.config.compose import check_names, overrides_of, plug_in
from mmssl.config.files import CONF
from mmssl.run.directory import root, write_json


def job(cfg: Any) -> float | None:
    """One job of a sweep: an ordinary run in a directory of its own. A failure is recorded and sinks nothing else.

    Args:
        cfg: Hydra's composition, of which only the overrides are used: presets and checks come after them.

    Returns:
        The value of the configured score, for sweepers that optimise; None where there is none.
    """
    from hydra.core.hydra_config import HydraConfig

    from mmssl.api import pretrain

    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    folder = Path(hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"job": str(hydra.job.num), "overrides": overrides, "status": "failed", "run": None}
    try:
        recipe = next(o for o in overrides if o.startswith("recipe="))
        run = pretrain(recipe.partition("=")[2], [o for o in overrides if not o.startswith("recipe=")])
        row |= {"status": run.summary["status"], "run": str(run.path), "train": run.summary["train"]}
        row |= {"eval": {name: score["value"] for name, score in run.summary["eval"].items()}}
    except Exception as error:
        row["why"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    write_json(folder / f"job-{hydra.job.num}.json", row)
    scores = row.get("eval") or {}
    return next(iter(scores.values()), None)


def sweep(recipe: str | None, overrides: list[str]) -> dict[str, Any]:
    """Runs every combination of `a=1,2` and `RECIPE,RECIPE`, and writes `sweep.json`.

    Args:
        recipe: recipes separated by commas, or None where the overrides name them.
        overrides: as on the command line; launchers and sweepers are chosen by `hydra/launcher=` and `hydra/sweeper=`.

    Returns:
        `path`, and under `jobs` one row per job with its overrides, status, run directory and scores.
    """
    import hydra

    given = overrides_of(recipe, overrides)
    check_names(given)
    plug_in()
    home = next((o.partition("=")[2] for o in overrides if o.startswith("run.root=")), None)
    folder = (root(home) / "sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}").resolve()
    folder.mkdir(parents=True)
    write_json(folder / "sweep.json", {"path": str(folder), "status": "running", "overrides": given, "jobs": []})
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    before = sys.argv
    sys.argv = ["mmssl", "--multirun", *given, *quiet, f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=."]
    try:
        hydra.main(config_path=str(CONF), config_name="run", version_base="1.3")(job)()
    finally:
        sys.argv = before
    files = sorted(folder.glob("job-*.json"), key=lambda file: int(file.stem.split("-")[1]))
    jobs = [json.loads(file.read_text()) for file in files]
    result = {"path": str(folder), "status": "completed", "overrides": given, "jobs": jobs}
    write_json(folder / "sweep.json", result)
    return {"verb": "pretrain", "schema": 1} | result
