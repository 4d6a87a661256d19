"""Which features a deep linear JEPA and a deep linear autoencoder learn first (Littwin et al. 2024, arXiv:2407.03475).

How JEPA Avoids Noisy Features. Pairs (x, y) whose moments are diagonal: E[x_i y_i] = lambda_i, E[x_i^2] = lambda_i /
rho_i. The encoder is a product of L matrices, the predictor (or decoder) v one; all begin balanced and small. Plain
gradient descent: `jepa` answers the encoding of y without gradient, `mae` answers y. The time at which half of a
feature's final value is reached orders features by lambda for `mae`, and the deeper the encoder, by rho for `jepa`.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.measurements import told

PAPER = "Littwin et al. 2024, How JEPA Avoids Noisy Features, arXiv:2407.03475"
LAMBDA, RHO = np.array([1.0, 1.15, 1.3]), np.array([1.0, 0.8, 0.6])
RATES = {"jepa": 0.05, "mae": 0.002}


def times(kind: str, depth: int, start: float = 1e-2, rate: float | None = None) -> tuple[np.ndarray, float]:
    """When each feature reaches half of its final value, and how far layers ever drift apart in balance.

    Args:
        kind: `jepa` or `mae`.
        depth: L.
        start: the encoder's product at the start.
        rate: of gradient descent; null for a small one.
    """
    rate = RATES[kind] if rate is None else rate
    layers, v = np.full((depth, 3), start ** (1 / depth)), np.full(3, start ** (1 / depth))
    goal = RHO**depth if kind == "jepa" else RHO ** (depth / (depth + 1))
    reached, drift, step = np.full(3, np.nan), 0.0, 0
    while np.isnan(reached).any():
        w = layers.prod(0)
        reached = np.where(np.isnan(reached) & (w >= goal / 2), rate * step, reached)
        # gradients of E|v w x - y|^2 / 2, and of the same with w y, held fixed, in place of y
        error = v * w * LAMBDA / RHO - (LAMBDA * w if kind == "jepa" else LAMBDA)
        slope = v * error * (w / layers)
        layers, v, step = layers - rate * slope, v - rate * w * error, step + 1
        drift = max(drift, float(np.abs(v**2 - layers**2).max()))
    return reached, drift


def main(depths: tuple[int, ...] = (1, 2, 3, 4, 5)) -> int:
    """The table of all depths."""
    rows = []
    for kind in ("mae", "jepa"):
        for depth in depths:
            found, drift = times(kind, depth)
            order = np.argsort(found, kind="stable").tolist()
            rows.append(
                {"kind": kind, "depth": depth}
                | {f"rho={rho:g}": round(float(t), 3) for rho, t in zip(RHO, found, strict=True)}
                | {"first": f"rho={RHO[order[0]]:g}", "drift": drift}
            )
    told(
        "deep_linear",
        PAPER,
        rows,
        features=[{"lambda": float(a), "rho": float(b)} for a, b in zip(LAMBDA, RHO, strict=True)],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
