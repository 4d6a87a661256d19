"""From a recipe to a finished run."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.run import best, checkpoints, directory, finetuning, launch, scoring
from mmssl.run.device import Flops, peak_memory
from mmssl.run.gradients import Gradients
from mmssl.run.loading import load_module
from mmssl.run.metrics import Clock, Metrics, Progress
from mmssl.run.resume import alone, newest, remember, remembered, take_over
from mmssl.run.safety import Diverged, Guard, Watch
from mmssl.run.saving import Checkpoint
from mmssl.run.signals import Signals, Stopped, requeue
from mmssl.run.spawning import spawn
from mmssl.run.strategies import prepare, tell_apart
from mmssl.run.trainer import lightning_trainer, planned_steps, quiet
from mmssl.run.watchdog import Watchdog, remedy


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


def train(tree: dict[str, Any], command: list[str], resume: Path | None = None) -> Run:
    """Trains a checked configuration to the end and scores it, in as many processes as it asks for.

    Args:
        tree: the configuration.
        command: what the user said.
        resume: the directory of the run to go on with; None for a new run.

    Returns:
        The run; its status is `completed`, `stopped`, or `diverged` where the loss left the numbers.

    Raises:
        ConfigError: for a configuration that does not fit the data or itself; no directory is left behind.
        RunFailed: when a process of several was lost.
    """
    settings = build.make(tree["trainer"], "trainer")
    if not launch.joined() and (processes := launch.fitted(settings).devices) != 1:
        run = spawn(tree, command, resume, int(processes), settings.restarts)
        return Run(run, directory.read_summary(run))
    return work(tree, command, resume)


def work(tree: dict[str, Any], command: list[str], resume: Path | None = None) -> Run:
    """This process's part of `train`: all of it, or one rank of several."""
    settings = launch.fitted(build.make(tree["trainer"], "trainer"))
    with Signals() as signals, launch.Group(settings) as group:
        found = group.share(resume or (remembered(tree) if launch.rank() == 0 else None))
        if found is not None and directory.read_summary(found)["status"] == "completed" and resume is None:
            return Run(found, directory.read_summary(found))
        data = build.data(tree)
        checkpoint = None if found is None else newest(found)
        if checkpoint is not None:
            take_over(checkpoint, settings.strategy, data, found)
        else:
            finetuning.adopt(tree["init_from"], data)
        module = build.module(tree, data.facts())
        best.check(settings, tree, data, module)
        if tree["init_from"] and checkpoint is None:
            checkpoints.init_from(module, tree["init_from"], tree["init_share"])
        prepare(
            module, checkpoint_activations=settings.checkpoint_activations, compiled=settings.compile,
            sync_batchnorm=settings.sync_batchnorm,
        )  # fmt: skip
        tell_apart(module, settings.accumulate, data.batch_size)
        data.set_share(rank=0, world=settings.world, accumulate=settings.accumulate)
        steps = planned_steps(settings, len(data.train_dataloader()))
        module.steps = steps if checkpoint is None else checkpoint[1]["mmssl"]["horizon"]
        run = found or group.share(directory.create(home(tree)) if launch.rank() == 0 else None)
        with alone(run) if launch.rank() == 0 else contextlib.nullcontext():
            if launch.rank() == 0:
                launch.tell("run", str(run.resolve()))
                remember(tree, run)
                print(f"run: {run}", file=sys.stderr)
            extra = _record(run, tree, data.facts(), command, checkpoint)
            recorder = _Recorder(run, tree, data, module, settings, extra, signals)
            done = recorder.go(steps, checkpoint, group)
        if done.summary["status"] == "stopped" and recorder.again and launch.rank() == 0:
            requeue()
        return done


def _record(
    run: Path, tree: dict[str, Any], facts: dict[str, Any], command: list[str], checkpoint: Any
) -> dict[str, Any]:
    """Writes what is known before the first step; returns what every checkpoint carries."""
    environment = directory.environment(command)
    if launch.rank() == 0:
        file = run / "environment.json"
        now = environment
        if file.exists():
            step = 0 if checkpoint is None else checkpoint[1]["global_step"]
            earlier = json.loads(file.read_text())
            now = earlier | {"resumed": [*earlier.get("resumed", []), environment | {"step": step}]}
        directory.write_config(run / "config.yaml", tree)
        directory.write_json(file, now)
        directory.write_json(run / "data.json", facts)
    return {
        "schema": checkpoints.SCHEMA,
        "config": tree,
        "facts": facts,
        "fingerprint": facts.get("fingerprint"),
        **environment,
    }


class _Recorder:
    """Runs the trainer and keeps summary.json true at every moment."""

    def __init__(
        self, run: Path, tree: dict[str, Any], data: Any, module: Any, settings: Any, extra: dict[str, Any],
        signals: Signals,
    ) -> None:  # fmt: skip
        self.run, self.tree, self.data, self.module, self.settings = run, tree, data, module, settings
        self.online = scoring.online(tree, data, module)
        self.metrics = Metrics(run, settings.log_every, module.batch_size, self.online)
        guard, clock = Guard(run), Clock(self.metrics)
        self.best = best.Best(settings.best, self.online, self.metrics, settings.patience) if settings.best else None
        self.watch = Watch(self.online, self._looked, settings.stop_on)
        self.checkpoint = Checkpoint(
            run / "checkpoints", guard, signals, extra, settings.checkpoint_every, settings.checkpoint_minutes,
            self._saved, settings.sharded_checkpoints, self.best,
        )  # fmt: skip
        self.flops = Flops()
        # the clock before the checkpoint writes what the checkpoint says is written, the one after leaves its time out
        self.callbacks = [
            Watchdog(run / "stacks", settings.timeout_minutes), self.flops, guard, Gradients(self.metrics),
            self.metrics, Progress(self.metrics, module.batch_size), self.online, self.watch, clock,
            *([self.best] if self.best else []), self.checkpoint, clock,
        ]  # fmt: skip
        self.started = time.perf_counter()
        self.steps = module.steps
        self.trainer: Any = None
        self.scores: dict[str, Any] = {}
        self.mfu: float | None = None
        self.distance: dict[str, float] = {}

    @property
    def again(self) -> bool:
        """Whether somebody asked for the job to be queued again."""
        return self.checkpoint.again or self.checkpoint.signals.again

    def go(self, steps: int, checkpoint: tuple[Path, dict[str, Any]] | None, group: launch.Group) -> Run:
        """Trains up to a step, scores, draws, reports."""
        self.steps = steps
        if checkpoint is not None:
            self.started -= checkpoint[1]["mmssl"]["wall_s"]
            if launch.rank() == 0:
                print(f"going on from step {checkpoint[1]['global_step']}: {checkpoint[0]}", file=sys.stderr)
        try:
            self.write("running")
            with quiet():
                self.trainer = lightning_trainer(self.settings, steps, self.callbacks, self._loggers())
                self.trainer.fit(
                    self.module, datamodule=self.data, ckpt_path=checkpoint and checkpoint[0], weights_only=True
                )
            group.leave()
            self._measure()
            if self.settings.strategy == "fsdp" and launch.rank() == 0:  # the pieces are of no use alone
                self.module = load_module(self.run / "checkpoints" / "last.ckpt")
            if self.checkpoint.stopped or self.trainer.interrupted or self.watch.why:
                return self._finish("stopped", why=self.watch.why)
            if launch.rank() == 0:
                self.module.to("cpu")
                if self.best is not None:
                    self.best.restore(self.module, self.run / "checkpoints")
                self.write("running")
                self.scores = scoring.final(self.tree, self.data, self.module)
                self._draw()
            return self._finish("completed", why=self.best and self.best.why)
        except Diverged as error:
            self.write("diverged", why=str(error))
            print(f"mmssl: {error}", file=sys.stderr)
            return self._finish("diverged", why=str(error))
        except (KeyboardInterrupt, SystemExit, Stopped):  # Lightning makes an exit of an interrupt
            return self._finish("stopped")
        except BaseException as error:
            advice = remedy(error)
            why = f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError):  # the disk may be the trouble
                self.write("failed", why=why if advice is None else f"{advice} ({why})")
            if advice is not None:
                raise ConfigError(f"{advice} The error was {why}. `mmssl resume {self.run}` goes on.") from error
            raise

    def _measure(self) -> None:
        """The share of the device's arithmetic that a step used."""
        if launch.rank() == 0:
            dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(str(self.settings.precision).split("-")[0])
            step = self.metrics.throughput()["step_ms"]
            self.mfu = self.flops.mfu(step, self.trainer.strategy.root_device, dtype or torch.float32)

    def _loggers(self) -> list[Any]:
        """The loggers, on the first rank."""
        if launch.rank():
            return []
        return [build.make(node, f"logger.{name}")(self.run) for name, node in (self.tree["logger"] or {}).items()]

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
        if launch.rank() == 0:
            from mmssl.report.html import write as report

            report(self.run)
        return Run(self.run, summary)

    def health(self, status: str = "running") -> dict[str, Any]:
        """The verdict as things stand."""
        signals = self.metrics.signals | self.distance
        return scoring.health(self.metrics.history, self.online, self.module, status, signals)

    def _looked(self) -> dict[str, Any]:
        """The verdict, with a new look at the teacher; all ranks look together, since each may hold a piece of it."""
        if self.module.teacher is not None:
            self.distance = {"teacher/ema_distance": float(self.module.teacher.distance())}
        return self.health()

    def _saved(self) -> None:
        """After a checkpoint the summary is brought up to date."""
        self._looked()
        self.write("running")

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
            "planned_steps": self.steps,
            "wall_s": round(time.perf_counter() - self.started, 1),
            "train": {"loss": self.metrics.last, "first_loss": self.metrics.first},
            "throughput": self.metrics.throughput() | {"mfu": self.mfu, "peak_mem_mb": peak_memory()},
            "eval": self.scores,
            "health": self.health(status),
            "skipped": {"count": len(self.data.skipped), "files": list(self.data.skipped)[:1000]},
        }
        if why:
            summary["why"] = why
        if self.best is not None:
            summary["best"] = self.best.told()
        if launch.rank() == 0:
            directory.write_json(self.run / "summary.json", summary)
        return summary
