"""What a run writes while it trains: metrics.csv, timing.csv and the progress bar."""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from mmssl.run.directory import write


class Table:
    """A CSV file that grows by rows; a new column rewrites it, whole.

    Args:
        path: the file.
        columns: names of the columns.
        keep: rows of the file there is that stay, the first ones; all others are cut off.
    """

    def __init__(self, path: Path, columns: list[str], keep: int = 0) -> None:
        self.path, self.columns = path, columns
        self.rows: list[dict[str, Any]] = self.read(path)[:keep] if keep else []
        self._rewrite()

    @staticmethod
    def read(path: Path) -> list[dict[str, str]]:
        """The rows of a file, without empty cells."""
        with path.open(newline="") as file:
            return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row. Values are written with every digit, so that equal runs give equal files."""
        new = [name for name in row if name not in self.columns]
        self.rows.append(row)
        if new:
            self.columns = self.columns + new
            self._rewrite()
            return
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([row.get(name, "") for name in self.columns])

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow([row.get(name, "") for name in self.columns])
        write(self.path, text.getvalue())


class Metrics(lightning.Callback):
    """Writes metrics.csv (deterministic columns) and timing.csv, and hands the metrics to the loggers.

    Losses are means over the steps since the last row; they stay on the device until a row is written.

    Args:
        run: the run's directory.
        every: optimizer steps between rows.
        batch_size: samples of a step.
        online: whose history of scores gets rows of its own; None for none.
    """

    def __init__(self, run: Path, every: int, batch_size: int, online: Any = None) -> None:
        self.run, self.every, self.batch_size, self.online = run, every, batch_size, online
        self.first: float | None = None
        self.last: float | None = None
        self.history: list[tuple[int, float]] = []
        self.signals: dict[str, float] = {}
        self.norms: dict[str, Tensor] = {}  # of the gradient of the step whose row comes next, by column
        self.timings: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._written = self._scored = 0
        self._waited = self._busy = 0.0
        self._mark = time.perf_counter()
        self._found: dict[str, Any] | None = None
        self.metrics: Table | None = None  # on the first rank
        self.timing: Table | None = None

    def state_dict(self) -> dict[str, Any]:
        """How far the files were written, and what waits for the next row."""
        if self.metrics is None or self.timing is None:
            return {}
        return {
            "columns": list(self.metrics.columns),
            "rows": len(self.metrics.rows),
            "timings": len(self.timing.rows),
            "sums": {name: value.cpu() for name, value in self._sums.items()},
            "written": self._written,
            "scored": self._scored,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint, with what the files held by then."""
        self._found = found = state_dict
        self._sums, self._written, self._scored = dict(found["sums"]), found["written"], found["scored"]
        for row in Table.read(self.run / "metrics.csv")[: found["rows"]]:
            if "train/loss" in row:
                values = {k.removeprefix("train/"): float(v) for k, v in row.items() if k.startswith("train/")}
                self._take(int(row["step"]), values)
        timings = Table.read(self.run / "timing.csv")[: found["timings"]]
        self.timings = [{k: float(v) for k, v in row.items()} for row in timings]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Opens the files, cut back to what they held at the checkpoint."""
        columns = ["step", "epoch", "lr", *(f"train/{name}" for name in ("loss", *pl_module.objective))]
        found = self._found or {"columns": columns, "rows": 0, "timings": 0}
        self._sums = {name: value.to(pl_module.device) for name, value in self._sums.items()}
        if trainer.is_global_zero:
            self.metrics = Table(self.run / "metrics.csv", list(found["columns"]), found["rows"])
            timed = ["step", "step_ms", "data_ms", "samples_per_s"]
            self.timing = Table(self.run / "timing.csv", timed, found["timings"])
        self._mark = time.perf_counter()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Everything since the clock was last set was waiting for data."""
        now = time.perf_counter()
        self._waited += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds up, and writes a row when it is time."""
        now = time.perf_counter()
        self._busy += now - self._mark
        for name, value in pl_module.latest.items():
            share = value / trainer.accumulate_grad_batches
            self._sums[name] = self._sums[name] + share if name in self._sums else share
        step = trainer.global_step
        if step > self._written and self.due(step, trainer.max_steps):
            self._row(trainer, pl_module, step)
        self._mark = time.perf_counter()

    def due(self, step: int, last: int) -> bool:
        """Whether a row is written after so many steps; `last` is how many there will be."""
        return (self.first is None and step >= 1) or step % self.every == 0 or step >= last

    def _take(self, step: int, values: dict[str, float]) -> None:
        """Remembers what a row says."""
        loss = values["loss"]
        self.first = loss if self.first is None else self.first
        self.last = loss
        self.history.append((step, loss))
        self.signals = {name: value for name, value in values.items() if "/" in name}
        # a loss with a chance value is compared with it
        for name in [key.rpartition("/")[0] for key in self.signals if key.endswith("/chance")]:
            self.signals[f"{name}/loss"] = values[name]

    def _row(self, trainer: lightning.Trainer, pl_module: Any, step: int) -> None:
        done = step - self._written
        means = {f"train/{name}": value.float() / done for name, value in self._sums.items()}
        told = means | {name: norm.float() for name, norm in self.norms.items()}
        values = dict(zip(told, torch.stack(list(told.values())).tolist(), strict=True))  # the one wait for the device
        self._take(step, {name: values[f"train/{name}"] for name in self._sums})
        timing = {
            "step": step,
            "step_ms": round(1000 * (self._busy + self._waited) / done, 3),
            "data_ms": round(1000 * self._waited / done, 3),
            "samples_per_s": round(self.batch_size * done / max(self._busy + self._waited, 1e-9), 1),
        }
        self.timings.append(timing)
        row = {"step": step, "epoch": trainer.current_epoch, "lr": pl_module.lr}
        row |= values
        if self.metrics is not None and self.timing is not None:
            self.metrics.add(row)
            self.timing.add(timing)
            for logger in trainer.loggers:
                logger.log_metrics(row | {f"time/{k}": v for k, v in timing.items() if k != "step"}, step)
        self._sums, self.norms, self._written = {}, {}, step
        self._busy = self._waited = 0.0

    def resume(self) -> None:
        """Writes new online scores, and starts the clock again: what other callbacks did was no waiting for data."""
        if self.online is not None and self.metrics is not None:
            for row in self.online.history[self._scored :]:
                named = {f"val/{key}": value for key, value in row.items() if key not in ("step", "epoch", "n")}
                self.metrics.add({"step": row["step"], "epoch": row["epoch"], **named})
            self._scored = len(self.online.history)
        self._mark = time.perf_counter()

    def throughput(self) -> dict[str, Any]:
        """Median speed after the first row, which holds start-up."""
        rows = self.timings[1:] or self.timings
        if not rows:
            return {"samples_per_s": None, "step_ms": None, "data_wait": None}
        middle = sorted(rows, key=lambda row: row["step_ms"])[len(rows) // 2]
        return {
            "samples_per_s": middle["samples_per_s"],
            "step_ms": middle["step_ms"],
            "data_wait": round(middle["data_ms"] / max(middle["step_ms"], 1e-9), 4),
        }


class Clock(lightning.Callback):
    """Comes last and tells `Metrics` that all other callbacks are done."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Before the first batch is fetched."""
        self.metrics.resume()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Before the next batch is fetched."""
        self.metrics.resume()


class Progress(lightning.Callback):
    """A bar on standard error with loss, samples per second and time left."""

    def __init__(self, metrics: Metrics, batch_size: int) -> None:
        self.metrics, self.batch_size = metrics, batch_size
        self.bar: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Opens the bar."""
        if trainer.is_global_zero:
            from tqdm import tqdm

            plain = not sys.stderr.isatty()
            self.bar = tqdm(
                total=trainer.max_steps, initial=trainer.global_step, unit="step", file=sys.stderr, dynamic_ncols=True,
                desc="training", mininterval=10.0 if plain else 0.5,
            )  # fmt: skip

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar; its loss is that of the last row of metrics.csv, so nothing waits for the device."""
        if self.bar is None or trainer.global_step == self.bar.n:
            return
        if self.metrics.last is not None:
            speed = self.metrics.timings[-1]["samples_per_s"]
            self.bar.set_postfix_str(f"loss {self.metrics.last:.4f}, {speed:.0f} samples/s", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Closes the bar, so that messages stand on lines of their own."""
        if self.bar is not None:
            self.bar.close()
