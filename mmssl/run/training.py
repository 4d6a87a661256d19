"""From a recipe to a finished run."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmssl.config import build
from mmssl.run import checkpoints, directory, scoring
from mmssl.run.metrics import Clock, Metrics, Progress
from mmssl.run.safety import Checkpoint, Diverged, Guard, Watch
from mmssl.run.trainer import lightning_trainer, planned_steps


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Args:
        path: its directory.
        summary: what `summary.json` holds.
    """

    path: Path
    summary: dict[str, Any]


def home(tree: dict[str, Any]) -> Path:
    """The folder that runs of a recipe share: `runs/<modality>/<method>/`."""
    name = tree["recipe"]
    if name.endswith((".yaml", ".yml")):
        name = f"{tree['modality']}/{Path(name).stem}"
    return directory.root(tree["run"]["root"]) / name


def train(tree: dict[str, Any], command: list[str]) -> Run:
    """Trains a checked configuration to the end and scores it.

    Returns:
        The run; its status is `completed`, or `diverged` where the loss left the numbers.

    Raises:
        ConfigError: for a configuration that does not fit the data or itself; no directory is left behind.
    """
    data = build.data(tree)
    settings = build.make(tree["trainer"], "trainer")
    facts = data.facts()
    module = build.module(tree, facts)
    if tree["init_from"]:
        checkpoints.init_from(module, tree["init_from"], tree["init_share"])
    data.set_share(rank=0, world=settings.world or 1, accumulate=settings.accumulate)
    module.steps = planned_steps(settings, len(data.train_dataloader()))
    # Lightning starts the other processes of a machine with the same command; they join the first one's directory.
    joined = os.environ.get("MMSSL_JOIN") if int(os.environ.get("LOCAL_RANK", "0")) else None
    run = Path(joined) if joined else directory.create(home(tree))
    os.environ["MMSSL_JOIN"] = str(run)
    extra = _record(run, tree, facts, command)
    recorder = _Recorder(run, tree, data, module, settings, extra)
    recorder.write("running")
    print(f"run: {run}", file=sys.stderr)
    return recorder.go()


def _record(run: Path, tree: dict[str, Any], facts: dict[str, Any], command: list[str]) -> dict[str, Any]:
    """Writes what is known before the first step; returns what every checkpoint carries."""
    environment = directory.environment(command)
    directory.write_config(run / "config.yaml", tree)
    directory.write_json(run / "environment.json", environment)
    directory.write_json(run / "data.json", facts)
    return {
        "schema": checkpoints.SCHEMA,
        "config": tree,
        "facts": facts,
        "versions": environment["versions"],
        "fingerprint": facts.get("fingerprint"),
    }


class _Recorder:
    """Runs the trainer and keeps summary.json true at every moment."""

    def __init__(
        self, run: Path, tree: dict[str, Any], data: Any, module: Any, settings: Any, extra: dict[str, Any]
    ) -> None:
        self.run, self.tree, self.data, self.module, self.settings = run, tree, data, module, settings
        self.online = scoring.online(tree, data, module.steps)
        self.metrics = Metrics(run, settings.log_every, module.batch_size, self.online)
        guard = Guard(run)
        self.watch = Watch(self.online, self.health, settings.stop_on)
        self.callbacks = [
            guard,
            self.metrics,
            Progress(self.metrics, module.batch_size),
            self.online,
            self.watch,
            Checkpoint(run, guard, settings.checkpoint_every, extra),
            Clock(self.metrics),
        ]
        self.started = time.perf_counter()
        self.trainer: Any = None
        self.scores: dict[str, Any] = {}

    def go(self) -> Run:
        """Trains, scores, draws, reports."""
        loggers = [build.make(node, f"logger.{name}")(self.run) for name, node in (self.tree["logger"] or {}).items()]
        with quiet():
            self.trainer = lightning_trainer(self.settings, self.module.steps, self.callbacks, loggers)
        try:
            with quiet():
                self.trainer.fit(self.module, datamodule=self.data)
            if self.trainer.interrupted or self.watch.why:
                return self._finish("stopped", why=self.watch.why)
            self.module.to("cpu")
            self.write("running")
            self.scores = scoring.final(self.tree, self.data, self.module)
            self._draw()
            return self._finish("completed")
        except Diverged as error:
            self.write("diverged", why=str(error))
            print(f"mmssl: {error}", file=sys.stderr)
            return self._finish("diverged", why=str(error))
        except (KeyboardInterrupt, SIGTERMException):
            return self._finish("stopped")
        except BaseException as error:
            self.write("failed", why=f"{type(error).__name__}: {error}")
            raise

    def _draw(self) -> None:
        """Draws the run's pictures; weights and scores are there by now, and no picture is worth losing them."""
        try:
            scoring.draw(self.run, self.tree, self.data, self.module)
        except Exception as error:
            warnings.warn(
                f"the pictures of {self.run} could not be drawn ({type(error).__name__}: {error})", stacklevel=2
            )

    def _finish(self, status: str, why: str | None = None) -> Run:
        summary = self.write(status, why)
        from mmssl.report.html import write as report

        report(self.run)
        return Run(self.run, summary)

    def health(self, status: str = "running") -> dict[str, Any]:
        """The verdict as things stand."""
        return scoring.health(self.metrics.history, self.online, self.module, status, self.metrics.signals)

    def write(self, status: str, why: str | None = None) -> dict[str, Any]:
        """Writes summary.json as things stand."""
        steps = 0 if self.trainer is None else int(self.trainer.global_step)
        summary = {
            "verb": "pretrain",
            "schema": 1,
            "recipe": self.tree["recipe"],
            "run": str(self.run),
            "status": status,
            "steps": steps,
            "planned_steps": self.module.steps,
            "wall_s": round(time.perf_counter() - self.started, 1),
            "train": {"loss": self.metrics.last, "first_loss": self.metrics.first},
            "throughput": self.metrics.throughput() | {"mfu": None, "peak_mem_mb": peak_memory()},
            "eval": self.scores,
            "health": self.health(status),
            "skipped": {"count": len(self.data.skipped), "files": list(self.data.skipped)[:1000]},
        }
        if why:
            summary["why"] = why
        directory.write_json(self.run / "summary.json", summary)
        return summary


def peak_memory() -> int:
    """Peak memory in MiB: of the GPU where there is one, else the largest resident size of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back Lightning's notices about loggers, workers and devices; its warnings about the run still come."""
    names = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*`LightningModule.*",
            ".*dataloader.*bottleneck.*",
            ".*LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
