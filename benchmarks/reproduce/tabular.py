"""ReMasker's imputation protocol, repeated: cells of UCI tables are hidden, filled in, and compared with the truth.

Features are scaled to [0, 1]; in eight random columns (all where there are fewer) 30 % of the cells are made missing,
at random (MCAR) or depending on others (MAR: half of the eight stay complete, and a logistic model of them with random
weights says how likely a cell of the others is missing). Imputers see the table with its holes, all rows, no label; the
error is the root of the mean squared error over the missing cells. Scikit-learn's imputers fill the same holes.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import mmssl
from mmssl import api

Job = Callable[[Path, Path], dict[str, Any]]

# ReMasker's sizes: width, depth, depth of the decoder; airfoil is not among its configurations and has compression's.
SIZES = {
    "airfoil": (32, 6, 4), "climate": (32, 4, 2), "compression": (32, 6, 4), "credit": (32, 6, 4),
    "obesity": (64, 8, 6), "raisin": (64, 8, 4), "spam": (64, 8, 6), "wine": (64, 8, 6), "yacht": (32, 4, 2),
}  # fmt: skip
SEEDS, MECHANISMS, SHARE, COLUMNS = range(3), ("mcar", "mar"), 0.3, 8
# 600, as ReMasker's; of spam's 57 columns and 4,600 rows that would be hours on one core.
EPOCHS = {"spam": 120}


def jobs() -> dict[str, Job]:
    """Every reproduction by name: a function of (folder of the data, folder of the runs) to a plain record."""
    return {
        f"tabular-remasker/{name}-{mechanism}/seed{seed}": partial(impute, name, mechanism, seed)
        for name in SIZES
        for mechanism in MECHANISMS
        for seed in SEEDS
    }


def impute(
    name: str, mechanism: str, seed: int, data_root: Path, run_root: Path, epochs: int | None = None
) -> dict[str, Any]:
    """Makes holes, trains ReMasker on the table with holes, fills them, and scores all imputers."""
    epochs = epochs or EPOCHS.get(name, 600)
    started = time.perf_counter()
    run_root.mkdir(parents=True, exist_ok=True)
    truth = scaled(read(data_root / "tabular" / "uci_remasker" / f"{name}.csv")[:, :-1])
    missing = holes(truth, mechanism, SHARE, np.random.default_rng(seed))
    table, filled = run_root / "holes.csv", run_root / "filled.csv"
    write(table, np.where(missing, np.nan, truth))
    width, depth, decoder = SIZES[name]
    overrides = [
        "data=table", f"data.root={table}", "data.source.label=false", "data.source.test_share=0", "data.batch_size=64",
        f"seed={seed}", f"encoder.dim={width}", f"encoder.depth={depth}", f"objective.cells.predictor.dim={width}",
        f"objective.cells.predictor.depth={decoder}", f"trainer.max_epochs={epochs}", f"run.root={run_root}",
    ]  # fmt: skip
    run = mmssl.pretrain("tabular/remasker", overrides)
    api.embed(str(run.path), filled, what="imputed")
    scores = {"remasker": rmse(read(filled), truth, missing)}
    times = {"remasker": round(time.perf_counter() - started, 1)}
    for other, imputer in imputers(seed).items():
        since = time.perf_counter()
        scores[other] = rmse(imputer.fit_transform(np.where(missing, np.nan, truth)), truth, missing)
        times[other] = round(time.perf_counter() - since, 1)
    return {
        "recipe": "tabular/remasker", "set": name, "mechanism": mechanism, "seed": seed, "metric": "rmse",
        "value": scores["remasker"], "published": None, "rmse": scores,
        "rank": 1 + sorted(scores.values()).index(scores["remasker"]), "missing": int(missing.sum()),
        "rows": len(truth), "columns": truth.shape[1], "seconds": times,
        "wall_s": round(time.perf_counter() - started, 1),
        "train": json.loads((run.path / "summary.json").read_text())["train"], "run": str(run.path),
        "command": " ".join(["mmssl pretrain tabular/remasker", *overrides]),
        "chosen": {"width": width, "depth": depth, "decoder": decoder, "epochs": epochs, "share": SHARE},
    }  # fmt: skip


def read(file: Path) -> np.ndarray:
    """A CSV of numbers with a header, (rows, columns) float64."""
    with file.open(newline="") as lines:
        rows = list(csv.reader(lines))[1:]
    return np.array([[float(cell) if cell else np.nan for cell in row] for row in rows])


def write(file: Path, values: np.ndarray) -> None:
    """The same, NaN as an empty cell; numbers keep all of their digits."""
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow([f"f{j}" for j in range(values.shape[1])])
        writer.writerows([["" if np.isnan(cell) else repr(float(cell)) for cell in row] for row in values])


def scaled(values: np.ndarray) -> np.ndarray:
    """Each column scaled to [0, 1]; a constant one becomes 0."""
    low, span = values.min(0), np.ptp(values, 0)
    return (values - low) / np.where(span > 0, span, 1.0)


def holes(values: np.ndarray, mechanism: str, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which cells are made missing, (rows, columns) bool."""
    chosen = rng.choice(values.shape[1], min(COLUMNS, values.shape[1]), replace=False)
    made = mar(values[:, chosen], share, rng) if mechanism == "mar" else rng.random((len(values), len(chosen))) < share
    missing = np.zeros(values.shape, dtype=bool)
    missing[:, chosen] = made
    return missing


def mar(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Missing at random: half of the columns are complete and decide, by a logistic model, over the others' cells.

    Weights are uniform in [0, 1), scaled so that their sum has unit variance; intercepts are such that `share` is met.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    count = values.shape[1]
    complete = rng.choice(count, max(1, count // 2), replace=False)
    others = np.setdiff1d(np.arange(count), complete)
    weights = rng.random((len(complete), len(others)))
    score = values[:, complete] @ weights
    spread = score.std(0)
    score = score / np.where(spread > 0, spread, 1.0)
    missing = np.zeros(values.shape, dtype=bool)
    for place, column in enumerate(others):
        own = score[:, place]
        intercept = brentq(lambda b, own=own: float(expit(own + b).mean()) - share, -50.0, 50.0)
        missing[:, column] = rng.random(len(values)) < expit(own + intercept)
    return missing


def rmse(found: np.ndarray, truth: np.ndarray, missing: np.ndarray) -> float:
    """Root of the mean squared error over the missing cells."""
    return float(np.sqrt(np.mean((found - truth)[missing] ** 2)))


def imputers(seed: int) -> dict[str, Any]:
    """Scikit-learn's imputers by name; `forest` is missForest's idea, random forests in turn."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # pyright: ignore
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

    forest = RandomForestRegressor(100, max_features="sqrt", random_state=seed)
    # a column that is missing altogether would be left out, and the table would have another shape
    kept = {"keep_empty_features": True}
    return {
        "mean": SimpleImputer(**kept),
        "knn": KNNImputer(n_neighbors=5, **kept),
        "iterative": IterativeImputer(random_state=seed, max_iter=30, min_value=0, max_value=1, **kept),
        "forest": IterativeImputer(forest, random_state=seed, max_iter=5, min_value=0, max_value=1, **kept),
    }
