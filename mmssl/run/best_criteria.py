"""What checkpoints may be chosen by: the names, what is better, and what each one needs. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmssl.registry import suggest


@dataclass(frozen=True)
class Criterion:
    """A value that is measured while a run trains.

    Args:
        name: the column of metrics.csv, without `val/`.
        better: `higher`, `lower`, or a number that values should be near.
        needs: `labels`, `classes` (a term that names classes, as fine-tuning has), `views` (a training view that draws
            something) or an empty word.
    """

    name: str
    better: str | float
    needs: str = ""

    def merit(self, value: float | None) -> float:
        """The value so that more is better; minus infinity where there is none."""
        if value is None or not math.isfinite(value):
            return -math.inf
        if isinstance(self.better, str):
            return value if self.better == "higher" else -value
        return -abs(value - self.better)


CRITERIA = {
    one.name: one
    for one in (
        Criterion("knn", "higher", "labels"),
        Criterion("linear", "higher", "labels"),
        Criterion("top1", "higher", "classes"),
        Criterion("ce", "lower", "classes"),
        Criterion("rankme", "higher"),
        Criterion("lidar", "higher", "views"),
        Criterion("alpha_req", 1.0),
        Criterion("uniformity", "lower"),
        Criterion("alignment", "lower", "views"),
        Criterion("feature_std", "higher"),
        Criterion("loss", "lower"),
    )
}


def criterion(name: str, key: str = "trainer.best") -> Criterion:
    """The criterion of a name.

    Raises:
        ValueError: naming the key and what was probably meant.
    """
    if name not in CRITERIA:
        raise ValueError(f"{key}: there is no criterion {name!r}{suggest(str(name), CRITERIA)}")
    return CRITERIA[name]
