"""Do subspaces that explain most of the pixels' variance tell most about classes? (Balestriero and LeCun 2024).

Learning by Reconstruction Produces Uninformative Features for Perception, arXiv:2402.11337. The digits that
scikit-learn ships (1,797 images of 8 x 8 pixels) are projected on the principal directions of greatest variance that
explain a share of it, or on those of least, and a perceptron is trained on either. Beside it linear denoisers: with
Gaussian noise they keep the principal subspace whatever its strength, with masked pixels they do not. And the error of
an autoencoder over its training, by bands of directions: what varies least is learned last.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import subspace_angles
from torch import nn

from benchmarks.measurements import told

PAPER = "Balestriero and LeCun 2024, Learning by Reconstruction Produces Uninformative Features, arXiv:2402.11337"


def directions(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal variances, falling, and their directions as columns."""
    variance, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    return variance[::-1].clip(min=0), vectors[:, ::-1]


def subspace(variance: np.ndarray, share: float, top: bool) -> slice:
    """The fewest greatest directions that explain a share of the variance, or the most of the least within it."""
    if top:
        return slice(0, int(np.searchsorted(variance.cumsum(), share * variance.sum())) + 1)
    rest = variance[::-1].cumsum()
    return slice(len(variance) - int((rest <= share * variance.sum()).sum()), len(variance))


def denoiser(sigma: np.ndarray, rank: int, noise: float = 0.0, kept: float = 1.0) -> np.ndarray:
    """What the best linear denoiser of a rank answers with, (d, rank): of Gaussian noise and pixels kept by chance."""
    c = kept * sigma
    s = kept**2 * sigma + kept * (1 - kept) * np.diag(np.diag(sigma)) + noise**2 * np.eye(len(sigma))
    return np.linalg.eigh(c @ np.linalg.solve(s, c.T))[1][:, ::-1][:, :rank]


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """The largest principal angle between two subspaces."""
    return float(subspace_angles(a, b).max())


def errors(x: np.ndarray, vectors: np.ndarray, bands: Sequence[slice]) -> np.ndarray:
    """Of x (n, d), differences to the samples, the mean square in each band of directions; together that of x."""
    return np.array([np.square(x @ vectors[:, band]).sum(1).mean() for band in bands])


def learned(train: np.ndarray, bands: Sequence[slice], epochs: int, width: int = 48) -> list[float]:
    """The first epoch at which an autoencoder's error in each band is below half of the band's variance.

    Three layers of GELU with `width` numbers between, AdamW at 1e-3, batches of 64; `inf` where it never is.
    """
    torch.manual_seed(0)
    variance, vectors = directions(train)
    x = torch.from_numpy(train - train.mean(0)).float()
    sides = [nn.Linear(64, 128), nn.GELU(), nn.Linear(128, width), nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 64)]
    network = nn.Sequential(*sides)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    whole, first = np.array([variance[band].sum() for band in bands]), np.full(len(bands), np.inf)
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x)).split(64):
            loss = (network(x[rows]) - x[rows]).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            left = errors((network(x) - x).double().numpy(), vectors, bands)
        first = np.where((left < whole / 2) & np.isinf(first), epoch, first)
    return first.tolist()


def main(shares: tuple[float, ...] = (0.2, 0.5, 0.75, 0.9), epochs: int = 200) -> int:
    """The table of both ends and all shares."""
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    x, y = (np.asarray(part) for part in load_digits(return_X_y=True))
    split = train_test_split(x / 16.0, y, test_size=0.3, random_state=0, stratify=y)
    train, test, known, asked = (np.asarray(part) for part in split)
    mean = train.mean(0)
    variance, vectors = directions(train)
    rows = []
    for top in (True, False):
        for share in shares:
            basis = vectors[:, subspace(variance, share, top)]
            seen, other = ((part - mean) @ basis @ basis.T for part in (train, test))
            scale = max(float(seen.std()), 1e-12)  # so that a small share is not also a small input
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # so many epochs are meant
                network = MLPClassifier((128,), max_iter=epochs, random_state=0).fit(seen / scale, known)
            rows.append(
                {"subspace": "top" if top else "bottom", "variance": share, "directions": basis.shape[1],
                 "accuracy": round(float(network.score(other / scale, asked)), 4)}
            )  # fmt: skip
    sigma, rank = np.cov(train.T, bias=True) + 1e-6 * np.eye(64), 10
    pca = directions(train)[1][:, :rank]
    angles = {f"noise {s:g}": angle(denoiser(sigma, rank, noise=s), pca) for s in (0.1, 0.5, 2.0)}
    angles |= {f"mask {1 - q:g}": angle(denoiser(sigma, rank, kept=q), pca) for q in (0.75, 0.5, 0.25)}
    bands = [slice(i, i + 8) for i in range(0, 48, 8)]  # the last sixteen hardly vary
    half = dict(
        zip((f"directions {b.start + 1} to {b.stop}" for b in bands), learned(train, bands, epochs), strict=True)
    )
    told("reconstruction_features", PAPER, rows, largest_angle_to_pca=angles, epoch_of_half_the_error=half)
    return 0


if __name__ == "__main__":
    sys.exit(main())
