"""Launchers of a sweep's jobs through submitit: a Slurm queue, or processes on this machine.

To Hydra they are `hydra/launcher=submitit_slurm` and `hydra/launcher=submitit_local`. Jobs are submitted as plain
functions of their overrides, so nothing of Hydra's state is pickled, and each job composes its configuration itself.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from mmssl.config.compose import ConfigError
from mmssl.report.sweep import ENDED
from mmssl.sweep.jobs import Job, Record, tell
from mmssl.sweep.queue import states


class _Submitit(Launcher):
    """Submits the jobs of a batch, and keeps the sweep's record true until all have ended.

    Args:
        poll_s: seconds between two looks at the jobs.
        **parameters: of submitit's executor, see the files of `conf/hydra/launcher/`; null leaves one out.
    """

    def __init__(self, poll_s: float, **parameters: Any) -> None:
        self.poll_s = poll_s
        plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in parameters.items()}
        self.parameters: dict[str, Any] = {key: value for key, value in plain.items() if value is not None}

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Takes the sweep's directory; jobs need nothing else of Hydra."""
        self.folder = Path(config.hydra.sweep.dir)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Runs jobs to their ends, whatever these are.

        Returns:
            For each job its score, None for one that did not complete or has none.
        """
        record = Record(self.folder)
        waiting = {initial_job_idx + i: list(overrides) for i, overrides in enumerate(job_overrides)}
        numbers = list(waiting)
        record.write({number: {"overrides": overrides} for number, overrides in waiting.items()})
        running: dict[int, Any] = {}
        try:
            while waiting or running:
                running |= self._submit(waiting, running, record)
                time.sleep(self.poll_s)
                self._look(running, record)
        except KeyboardInterrupt:
            self._left(running)
            raise
        rows = {row["job"]: row for row in record.read()["jobs"]}
        return [_returned(rows[number]) for number in numbers]

    def _submit(self, waiting: dict[int, list[str]], running: dict[int, Any], record: Record) -> dict[int, Any]:
        """Submits what there is room for, taking it out of `waiting`."""
        chosen = list(waiting)[: self._room(len(running))]
        if not chosen:
            return {}
        from submitit.helpers import clean_env

        # a sweep may itself run in a job of Slurm, whose variables say nothing of these jobs
        with clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext():
            arguments = [(self.folder, number, waiting.pop(number)) for number in chosen]
            jobs = dict(zip(chosen, self._submitted(chosen, arguments, running), strict=True))
        noted = {n: {"id": job.job_id, "queue": "PENDING", "log": str(job.paths.stderr)} for n, job in jobs.items()}
        record.write(noted)
        return jobs

    def _look(self, running: dict[int, Any], record: Record) -> None:
        """Notes the states of jobs and takes those that ended out of `running`."""
        found = self._states(running)
        before = {row["job"]: row for row in record.read()["jobs"]}
        changed = {n: s for n, s in found.items() if (before[n].get("queue"), before[n].get("reason")) != s}
        for number, (state, _) in found.items():
            # what a job wrote at its end may take a moment to get here over a network file system: look twice
            if state in ENDED and number not in changed:
                del running[number]
        sweep = record.write({number: {"queue": state, "reason": why} for number, (state, why) in changed.items()})
        for row in sweep["jobs"]:
            if row["job"] in changed and changed[row["job"]][0] in ENDED:
                tell(f"job {row['job']} {row['status']}: {row.get('run') or row.get('why') or row.get('log')}")

    @abstractmethod
    def _room(self, running: int) -> int | None:
        """How many jobs may be submitted now; None for all."""

    @abstractmethod
    def _submitted(self, numbers: list[int], arguments: list[tuple[Any, ...]], running: dict[int, Any]) -> list[Any]:
        """Submits jobs and returns submitit's handles of them."""

    @abstractmethod
    def _states(self, running: dict[int, Any]) -> dict[int, tuple[str, str]]:
        """State and reason of each job that is known."""

    @abstractmethod
    def _left(self, running: dict[int, Any]) -> None:
        """Says or does what an interrupted sweep leaves to its jobs."""


class SlurmLauncher(_Submitit):
    """Jobs in a Slurm queue, as one array."""

    def _room(self, running: int) -> None:
        return None

    def _submitted(self, numbers: list[int], arguments: list[tuple[Any, ...]], running: dict[int, Any]) -> list[Any]:
        general = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "nodes", "mem_gb", "name"}
        named = {key if key in general else f"slurm_{key}": value for key, value in self.parameters.items()}
        import submitit

        try:
            executor = submitit.AutoExecutor(folder=self.folder / "submitit" / "%j", cluster="slurm")
            executor.update_parameters(**named)
            jobs = executor.map_array(Job(), *zip(*arguments, strict=True))
        # submitit's words for: no srun here, an unknown key, a wrong type, what sbatch refuses
        except (RuntimeError, NameError, AssertionError, ValueError) as error:
            raise ConfigError(f"hydra/launcher=submitit_slurm: {error}") from error
        tell(f"submitted {len(jobs)} jobs to Slurm: {jobs[0].job_id} to {jobs[-1].job_id}")
        return jobs

    def _states(self, running: dict[int, Any]) -> dict[int, tuple[str, str]]:
        found = states(job.job_id for job in running.values())
        return {number: found[job.job_id] for number, job in running.items() if job.job_id in found}

    def _left(self, running: dict[int, Any]) -> None:
        ids = sorted({job.job_id.partition("_")[0] for job in running.values()})
        tell(f"the jobs go on in the queue; `scancel {' '.join(ids)}` ends them, `mmssl runs {self.folder}` shows them")


class LocalLauncher(_Submitit):
    """Jobs as processes of this machine, some at a time.

    Args:
        parallel: jobs at once; each has the GPUs of its place to itself.
        poll_s: seconds between two looks at the jobs.
        **parameters: of submitit's local executor.
    """

    def __init__(self, parallel: int, poll_s: float, **parameters: Any) -> None:
        super().__init__(poll_s, **parameters)
        self.parallel = parallel
        self.places: dict[int, int] = {}

    def _room(self, running: int) -> int:
        return self.parallel - running

    def _submitted(self, numbers: list[int], arguments: list[tuple[Any, ...]], running: dict[int, Any]) -> list[Any]:
        import submitit

        gpus = int(self.parameters.get("gpus_per_node", 0))
        self.places = {number: place for number, place in self.places.items() if number in running}
        jobs = []
        for number, given in zip(numbers, arguments, strict=True):
            place = next(i for i in range(self.parallel) if i not in self.places.values())
            self.places[number] = place
            executor = submitit.LocalExecutor(self.folder / "submitit" / "%j")
            visible = [place * gpus + i for i in range(gpus)]
            executor.update_parameters(**self.parameters, visible_gpus=visible)
            jobs.append(executor.submit(Job(), *given))
        return jobs

    def _states(self, running: dict[int, Any]) -> dict[int, tuple[str, str]]:
        return {number: ("COMPLETED" if job.done() else "RUNNING", "None") for number, job in running.items()}

    def _left(self, running: dict[int, Any]) -> None:
        for job in running.values():
            job.cancel()


def _returned(row: dict[str, Any]) -> JobReturn:
    """A failed job is a job without a score: no sweeper may be sunk by it."""
    value = row["value"] if row["status"] == "completed" else None
    return JobReturn(overrides=row["overrides"], status=JobStatus.COMPLETED, _return_value=value)
