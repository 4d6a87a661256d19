"""Random generators of a training process: seeded by rank, saved in checkpoints, put back on resume.

Only draws inside networks (dropout, drop path) use them; all else is a pure function of (seed, epoch, sample, name).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from mmssl.draws import Draws


def seed_all(seed: int, rank: int, step: int) -> None:
    """Seeds Python's, NumPy's and torch's generators as a function of the run's seed, the rank and the step."""
    key = int(Draws.of(seed, step, torch.tensor([rank])).named("generators").integers(0, 2**48)[0])
    random.seed(key)
    np.random.seed(key % 2**32)
    torch.manual_seed(key)


def state() -> dict[str, Any]:
    """The states of all generators, in plain containers and tensors."""
    kind, keys, place, gauss, cached = np.random.get_state()
    found = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), place, gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore(found: dict[str, Any]) -> None:
    """Puts states back."""
    random.setstate(found["python"])
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(found["torch"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
