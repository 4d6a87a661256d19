"""Loggers beside the CSV files, by key; called with the run's directory, on the first rank only."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import WandbLogger

from mmssl.registry import register
from mmssl.run.directory import write_json

_BUFFER = 2**15  # bytes that W&B keeps in memory before it writes them


@register("logger/wandb")
def wandb(
    run: Path,
    *,
    project: str = "mmssl",
    offline: bool = False,
    entity: str | None = None,
    tags: list[str] | None = None,
) -> Any:
    """Weights & Biases; `offline: true` needs no account and no network.

    The W&B run belongs to the run's directory: a run that is resumed or queued again goes on in it. Offline each start
    leaves one `wandb/offline-run-*` of the same id, which `wandb sync` puts together.

    Args:
        run: the run's directory, which keeps the id in `wandb.json`.
        project: W&B project.
        offline: whether to write files only, for `wandb sync` later.
        entity: W&B entity.
        tags: W&B tags.
    """
    return _Wandb(
        run,
        name="/".join(run.parts[-3:]),
        project=project,
        entity=entity,
        tags=tags,
        save_dir=run,
        mode="offline" if offline else None,
    )


class _Wandb(WandbLogger):
    """W&B with our step on the x-axis, one W&B run per run directory, and one at a time in a process."""

    def __init__(self, run: Path, **init: Any) -> None:
        self.run, self.file = run, run / "wandb.json"
        if not self.file.exists():
            write_json(self.file, {"id": run.name, "through": -1})
        self.known = json.loads(self.file.read_text())
        super().__init__(**init, id=self.known["id"])
        del self._wandb_init["anonymous"]  # Lightning says it, and W&B warns of it
        self.last, self.fresh = self.known["through"], True
        self.begin: int | None = None  # W&B's own step of the next row, where it does not follow by itself

    @property
    def experiment(self) -> Any:
        """The W&B run, begun or gone on with when it is first asked for."""
        if self._experiment is None:
            import wandb

            file = self.run / "config.yaml"
            config = yaml.safe_load(file.read_text()) if file.exists() else None
            # a sweep's runs in one process would else share the first one's
            live = wandb.init(**self._wandb_init, config=config, reinit="finish_previous")
            # Processes that this one starts would share its W&B service, where a killed one leaves its run "in use".
            os.environ.pop("WANDB_SERVICE", None)
            # After a kill our steps repeat from the checkpoint on. W&B drops rows whose own step falls; ours is a
            # column like any other, and the one that charts are drawn over.
            live.define_metric("step")
            live.define_metric("*", step_metric="step")
            self._experiment = live
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs a row under our step."""
        if self.fresh and step is not None:
            self.fresh = False
            if self.experiment.offline:
                self._catch_up(step)
        self.last = max(self.last, step or 0)
        self._log(dict(metrics) | ({} if step is None else {"step": step}))

    def _log(self, row: dict[str, Any]) -> None:
        self.experiment.log(row, step=self.begin, commit=True)
        self.begin = None

    def _catch_up(self, step: int) -> None:
        """Offline, takes over what an earlier process left off: W&B's own step, and rows that died in its buffer.

        A killed process loses the last 32 KiB of W&B's file, often all of it; metrics.csv has the rows.
        """
        here = Path(self.experiment.dir).parent
        earlier = [file for file in self.run.glob("wandb/offline-run-*/*.wandb") if not file.parent.samefile(here)]
        if not earlier:
            return
        # W&B's own step begins at 0 again; no file has more rows than bytes, so this is beyond those of all files
        self.begin = sum(file.stat().st_size + _BUFFER for file in earlier)
        with (self.run / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if self.known["through"] < int(row["step"]) < step:
                    self._log({name: float(cell) for name, cell in row.items() if cell})

    def finalize(self, status: str) -> None:
        """Closes the W&B run, so that the next run of this process gets its own."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None
            write_json(self.file, self.known | {"through": self.last})


@register("logger/tensorboard")
def tensorboard(run: Path) -> Any:
    """TensorBoard event files under the run's directory.

    Raises:
        ValueError: when the tensorboard package is missing.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(save_dir=run, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise ValueError(
            "logger=tensorboard needs the package tensorboard: pip install 'mmssl[tensorboard]'"
        ) from error
