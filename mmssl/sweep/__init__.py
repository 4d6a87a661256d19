"""Sweeps over recipes and values: Hydra's multirun, whose launchers and sweepers all work, around ordinary runs."""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from mmssl.config.compose import ConfigError, check_names, overrides_of, plug_in
from mmssl.config.files import CONF
from mmssl.run.directory import root, write_json


def job(cfg: Any) -> float | None:
    """One job, in the process that sweeps: what Hydra's own launcher calls.

    Args:
        cfg: Hydra's composition, of which only the overrides are used: presets and checks come after them.

    Returns:
        The score, for sweepers that optimise; None where there is none.
    """
    from hydra.core.hydra_config import HydraConfig

    from mmssl.sweep.jobs import Record, run_job

    hydra = HydraConfig.get()
    number, overrides, record = hydra.job.num, list(hydra.overrides.task), Record(Path(hydra.sweep.dir))
    record.write({number: {"overrides": overrides}})
    run_job(record.folder, number, overrides)
    row = next(row for row in record.write()["jobs"] if row["job"] == number)
    if row["status"] == "stopped" and not row.get("why"):  # the run was told to stop, and so was the sweep
        raise KeyboardInterrupt
    return row["value"] if row["status"] == "completed" else None


def sweep(recipe: str | None, overrides: list[str]) -> dict[str, Any]:
    """Runs every combination of `a=1,2` and `RECIPE,RECIPE`, and keeps `sweep.json` true meanwhile.

    Args:
        recipe: recipes separated by commas, or None where the overrides name them.
        overrides: as on the command line; launchers and sweepers are chosen by `hydra/launcher=` and `hydra/sweeper=`.

    Returns:
        What `sweep.json` holds: `path`, `counts`, `best`, and under `jobs` one row per job with its overrides, status,
        run directory and scores.

    Raises:
        ConfigError: when the overrides do not compose, or name a launcher or sweeper that cannot work here.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from mmssl.sweep.jobs import Record, tell

    given = overrides_of(recipe, overrides)
    check_names(given)
    plug_in()
    home = next((o.partition("=")[2] for o in overrides if o.startswith("run.root=")), None)
    folder = (root(home) / "sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}").resolve()
    folder.mkdir(parents=True)
    said = {"verb": "pretrain", "schema": 1, "path": str(folder), "status": "running", "overrides": given, "jobs": []}
    write_json(folder / "sweep.json", said)
    tell(str(folder))
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    places = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=."]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="mmssl"):
            composer = GlobalHydra.instance().hydra
            assert composer is not None
            composer.multirun("run", job, [*given, *quiet, *places])
    except KeyboardInterrupt:
        return Record(folder).write(status="stopped")
    except Exception as error:
        _give_up(folder)
        if isinstance(error, HydraException):
            said = str(error.__cause__ or error).partition("\nConfig search path")[0]
            raise ConfigError(f"the sweep does not compose: {said}") from error
        raise
    return Record(folder).write(status="completed")


def _give_up(folder: Path) -> None:
    """Leaves nothing behind of a sweep that was refused, and a true record of one that had begun."""
    from mmssl.sweep.jobs import Record

    record = Record(folder)
    if any(row["status"] != "pending" or row["run"] for row in record.read()["jobs"]):
        record.write(status="failed")
    else:
        shutil.rmtree(folder)
