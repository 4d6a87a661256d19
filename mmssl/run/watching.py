"""A process apart from training that scores each checkpoint of a run as it lands."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.evaluation.score import say
from mmssl.evaluation.supervised import answered
from mmssl.run import checkpoints, directory, scoring
from mmssl.run.best import block, stand_for
from mmssl.run.best_criteria import criterion
from mmssl.run.loading import load_module
from mmssl.run.metrics import Table

ENDED = ("completed", "stopped", "failed", "diverged")
_WHERE = ("step", "epoch", "n")


class Watcher:
    """Scores checkpoints of one run, each step once, on the rows that probes are validated on, never on the test split.

    A checkpoint is given a second name before it is read, so that training may replace it meanwhile. What was scored
    stands in `scores.csv`, a row a checkpoint, columns as in metrics.csv; a watcher that starts again goes on there.

    Args:
        run: the run's directory.
        tree: its configuration, perhaps with other keys under `evaluation`.
        protocols: probes by name; None for kNN and a quick linear probe.
        best: the criterion that `best.ckpt` is chosen by; None to leave that to training.

    Raises:
        ConfigError: for a criterion that training chooses by already, or that is not measured here.
    """

    def __init__(
        self, run: Path, tree: dict[str, Any], protocols: Mapping[str, Any] | None = None, best: str | None = None
    ) -> None:
        if best is not None and tree["trainer"].get("best"):
            raise ConfigError(
                f"best={best}: {run} chooses its best checkpoint itself, by trainer.best={tree['trainer']['best']}; "
                "leave best=... out"
            )
        if best == "loss":
            raise ConfigError("best=loss: a checkpoint does not tell its loss; set trainer.best=loss when training")
        self.run, self.tree, self.protocols = run, tree, protocols
        self.criterion = None if best is None else criterion(best, "best")
        self.file, self.folder = run / "scores.csv", run / "checkpoints"
        self.rows: list[dict[str, Any]] = []
        if self.file.exists():
            self.rows = [{k: float(v) for k, v in row.items() if k} for row in Table.read(self.file)]
        self._data: Any = None
        self._online: Any = None

    def go(self, seconds: float = 20.0, minutes: float | None = None) -> dict[str, Any]:
        """Looks again and again until the run has ended, and once more then.

        Args:
            seconds: between two looks.
            minutes: without a new checkpoint after which to give up; None for never.

        Returns:
            `status` of the run, `scores` by row, and `best` where a criterion was given.
        """
        with _alone(self.run):
            news = time.monotonic()
            while True:
                status = directory.read_summary(self.run)["status"]  # first, so that the last checkpoint is not missed
                if self.look():
                    news = time.monotonic()
                if status in ENDED:
                    break
                if minutes is not None and time.monotonic() - news > 60 * minutes:
                    say(f"watch: no new checkpoint for {minutes:g} minutes, though the run says it is {status}")
                    break
                time.sleep(seconds)
            self._tell(status)
        return {"status": status, "scores": self.rows} | ({} if self.criterion is None else {"best": self.best()})

    def look(self) -> dict[str, Any] | None:
        """Scores the newest checkpoint; None where there is none, or its step was scored already."""
        taken = self.folder / ".watched.ckpt"
        try:
            stand_for(self.folder / "last.ckpt", taken)
        except FileNotFoundError:
            return None
        try:
            content = checkpoints.read(taken, lazy=True)
            step = int(content["global_step"])
            if any(row["step"] == step for row in self.rows):
                return None
            say(f"watch: step {step}")
            row = {"step": step, "epoch": int(content["epoch"]), **self._values(taken, content["mmssl"]["facts"])}
            before = self.best()
            self.rows.append(row)
            if (now := self.best()) is not None and now != before:
                os.replace(taken, self.folder / "best.ckpt")
                say(f"watch: best.ckpt is step {now['step']}, {now['criterion']} {now['value']:.4g}")
            self._write()
            return row
        finally:
            taken.unlink(missing_ok=True)

    def best(self) -> dict[str, Any] | None:
        """The best row by the criterion, as summary.json has it; None without one, or before the first."""
        if self.criterion is None:
            return None
        name, merit = f"val/{self.criterion.name}", self.criterion.merit
        found = max(self.rows, key=lambda row: merit(row.get(name)), default=None)
        if found is None or name not in found:
            return None
        return block(self.criterion.name, found[name], int(found["step"]))

    def _values(self, file: Path, facts: dict[str, Any]) -> dict[str, float]:
        """Monitors and probes of a checkpoint's encoder; of a fine-tuned one what its head answers."""
        module = load_module(file)
        if build.make(self.tree["trainer"], "trainer").gpus:
            module.to("cuda")
        if self._data is None:
            self._data = build.data(self.tree)
            self._data.use(facts)
            self._online = scoring.online(self.tree, self._data, module)
            if self.protocols is not None:
                self._online.protocols = self.protocols
        values, n = self._online.values(module.kept, self._data)
        values |= answered(module, self._data)
        if self.criterion is not None and self.criterion.name not in values:
            raise ConfigError(
                f"best={self.criterion.name}: it is not measured here; there is {', '.join(values)}. Probes need "
                "labels and protocol=..., LiDAR and alignment a training view that draws something."
            )
        return {"n": n} | {f"val/{name}": value for name, value in values.items()}

    def _write(self) -> None:
        """Writes scores.csv, whole."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({k: int(v) if k in _WHERE else v for k, v in row.items()})
        directory.write(self.file, text.getvalue())

    def _tell(self, status: str) -> None:
        """Names the best checkpoint in the summary of a run that has ended, and draws the report anew."""
        if status not in ENDED:
            return
        if (found := self.best()) is not None:
            directory.write_json(self.run / "summary.json", directory.read_summary(self.run) | {"best": found})
        from mmssl.report.html import write

        write(self.run)


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """One watcher a run: two would write one file.

    Raises:
        ConfigError: where there is another.
    """
    with (run / ".watch.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{run} is watched by another process already; stop it first") from error
        except OSError:  # file systems without locks
            pass
        print(f"watching {run}", file=sys.stderr)
        yield
