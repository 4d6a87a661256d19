"""What the temperature of a contrastive loss does to features (Wang and Liu 2021, arXiv:2012.09740).

Understanding the Behaviour of Contrastive Loss. A perceptron is trained by NT-Xent (`set/ntxent`) on the digits that
scikit-learn ships, two views of each: shifted by up to a pixel, with noise and pixels left out. The paper finds that
the larger the temperature, the less evenly features lie on the sphere, and the nearer those of one class: uniformity (0
is worst) and tolerance rise together. Accuracy is that of the nearest neighbours' classes.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measurements import told
from mmssl.draws import Draws
from mmssl.evaluation.monitors import uniformity
from mmssl.parts.set_losses import NTXent

PAPER = "Wang and Liu 2021, Understanding the Behaviour of Contrastive Loss, arXiv:2012.09740"


class Digits(NamedTuple):
    """Images (n, 64) in [0, 1] and classes (n,)."""

    x: Tensor
    y: Tensor


def digits() -> tuple[Digits, Digits]:
    """Training and test images: every fourth is held out."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float() / 16, torch.from_numpy(classes).long()
    held = torch.arange(len(x)) % 4 == 0
    return Digits(x[~held], y[~held]), Digits(x[held], y[held])


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each image: shifted by up to a pixel, noisy, a tenth of its pixels left out."""
    grid = F.pad(x.view(-1, 8, 8), (1, 1, 1, 1))
    shift = torch.randint(0, 3, (len(x), 2), generator=generator)
    rows = shift[:, :1] + torch.arange(8)
    columns = shift[:, 1:] + torch.arange(8)
    moved = grid[torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]].flatten(1)
    noise = 0.1 * torch.randn(x.shape, generator=generator)
    return (moved + noise) * (torch.rand(x.shape, generator=generator) >= 0.1)


def trained(train: Digits, temperature: float, steps: int) -> nn.Module:
    """An encoder trained at a temperature."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 32))
    loss, optimizer = NTXent(temperature=temperature), torch.optim.Adam(encoder.parameters(), lr=1e-3)
    for step in range(steps):
        some = train.x[torch.randint(0, len(train.x), (256,), generator=generator)]
        z = torch.stack([encoder(view(some, generator)) for _ in range(2)])
        optimizer.zero_grad()
        loss(z, Draws.of(0, 0, torch.tensor([step]))).backward()
        optimizer.step()
    return encoder


@torch.no_grad()
def measured(encoder: nn.Module, train: Digits, test: Digits) -> dict[str, float]:
    """Uniformity and tolerance of test features, and the accuracy of five nearest neighbours."""
    known, asked = (F.normalize(encoder(part.x), dim=1) for part in (train, test))
    same = (test.y[:, None] == test.y) & ~torch.eye(len(test.y), dtype=torch.bool)
    near = train.y[(asked @ known.T).topk(5).indices]
    right = near.mode(1).values == test.y
    return {
        "uniformity": uniformity(asked), "tolerance": float((asked @ asked.T)[same].mean()),
        "accuracy": round(float(right.float().mean()), 4),
    }  # fmt: skip


def main(temperatures: tuple[float, ...] = (0.07, 0.2, 0.3, 0.5, 1.0), steps: int = 1000) -> int:
    """The table of all temperatures."""
    train, test = digits()
    rows = [{"temperature": t} | measured(trained(train, t, steps), train, test) for t in temperatures]
    told("contrastive_temperature", PAPER, rows, steps=steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
