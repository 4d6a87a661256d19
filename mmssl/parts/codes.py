"""Codes: features to the number of the code that is nearest. How they are found, and the target that gives them.

A codes part is built as (width of the features) and called as (features (..., d)), giving numbers (...) int64; `count`
is how many there are. `fit/...` parts make them, in a run of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.parts.regions import counted, request
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Look, Step
from mmssl.types import Tokens

# Distances that are held at once.
_AT_ONCE = 2**25


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """The number of the centroid (k, d) with the smallest Euclidean distance to each row (..., d), (...) int64."""
    middle = centroids.mean(0)  # what all have in common costs digits
    rows, centroids = values.reshape(-1, values.shape[-1]).to(centroids.dtype) - middle, centroids - middle
    with torch.autocast(rows.device.type, enabled=False):
        half = centroids.square().sum(-1) / 2
        # |x|^2 is the same for all of them; a part at a time, since (rows, k) may not fit into memory
        parts = rows.split(max(1, _AT_ONCE // len(centroids)))
        found = [torch.addmm(half, part, centroids.T, alpha=-1).argmin(-1) for part in parts]
    return torch.cat(found).reshape(values.shape[:-1])


@register("codes/nearest")
class Nearest(nn.Module):
    """The nearest of the centroids that a run has fitted (HuBERT, CCViT).

    They are no part of a checkpoint: they are read again from their file.

    Args:
        width: width of the features.
        path: the run, a stage's `${stage:NAME}`, or its `codes.safetensors`.

    Raises:
        ValueError: for a path without codes, or codes of another width.
    """

    centroids: Tensor

    def __init__(self, width: int, *, path: str) -> None:
        super().__init__()
        centroids = read(path)
        if centroids.shape[1] != width:
            raise ValueError(
                f"codes/nearest: the codes of {path} are {centroids.shape[1]} wide, what they are to be found for "
                f"{width}; fit them with the same target, tokenizer and data.size"
            )
        self.count = len(centroids)
        self.register_buffer("centroids", centroids, persistent=False)

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        """Numbers of codes (...) of features (..., d)."""
        return nearest(values, self.centroids)


def read(path: str) -> Tensor:
    """The centroids (k, d) in the directory of a run that fitted them, or in its file.

    Raises:
        ValueError: where there are none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path).expanduser()
    file = file / "codes.safetensors" if file.is_dir() else file
    try:
        return load_file(file)["centroids"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"there are no codes in {path} ({error!r}); a run with `fit` leaves codes.safetensors in its directory"
        ) from error


@register("codes/random_projection")
class RandomProjection(nn.Module):
    """The nearest of random codes to a random projection of the features: BEATs' first tokenizer (Chen et al. 2022).

    A Xavier-normal matrix, a layer norm without weights, and codes from a standard normal: all of them functions of the
    seed, so that they are no part of a checkpoint.

    Args:
        width: width of the features.
        count: number of codes.
        dim: width of the codes.
        seed: of matrix and codes.
    """

    matrix: Tensor
    centroids: Tensor

    def __init__(self, width: int, *, count: int = 1024, dim: int = 256, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        matrix = nn.init.xavier_normal_(torch.empty(dim, width), generator=generator)
        self.count = count
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("centroids", torch.randn(count, dim, generator=generator), persistent=False)

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        """Numbers of codes (...) of features (..., d)."""
        with torch.autocast(values.device.type, enabled=False):
            projected = values.to(self.matrix.dtype) @ self.matrix.T
            return nearest(nn.functional.layer_norm(projected, projected.shape[-1:]), self.centroids)


@register("target/codes")
class Codes(nn.Module):
    """The number of the code that is nearest to what another target says, for `loss/cross_entropy`.

    BEiT, BEiT v2, CCViT, HuBERT and BEATs differ in the two arguments.

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        of: the target whose values are looked up, for instance `target/raw` or `target/frozen`.
        codes: how, for instance `codes/nearest` or `codes/random_projection`; called as (width).
    """

    def __init__(
        self, plan: Plan, look: str, *, of: Callable[..., nn.Module], codes: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.of: Any = of(plan, look)
        self.codes: Any = codes(int(self.of.dim))
        self.dim = int(self.codes.count)
        self.asks, self.taps = tuple(getattr(self.of, "asks", ())), tuple(getattr(self.of, "taps", ()))

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Codes of the tokens asked for, (r, t) int64."""
        return self.codes(self.of(look, query))


@register("fit/kmeans")
class KMeans(nn.Module):
    """Centroids of what a target says of the tokens of the training data, by scikit-learn's MiniBatchKMeans.

    The run reads the training data once, by the view of evaluation. The defaults are HuBERT's (Hsu et al. 2021).

    Args:
        plan: sizes.
        target: whose values are clustered, called as (plan, look).
        clusters: number of centroids.
        tokens: at most so many tokens are used, drawn from those of all samples.
        look: the look that the target is asked of.
        batch: rows of a mini-batch.
        passes: most passes over the tokens.
        restarts: k-means++ starts, of which the best is taken.
        patience: mini-batches without progress after which it ends.
        seed: of the starts and the mini-batches.

    Raises:
        ValueError: for fewer than two clusters; when fitted, for fewer tokens than clusters.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        target: Callable[..., nn.Module],
        clusters: int = 500,
        tokens: int = 1_000_000,
        look: str = "x",
        batch: int = 10_000,
        passes: int = 100,
        restarts: int = 20,
        patience: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 2 <= clusters <= tokens:
            raise ValueError(f"fit.clusters has to lie between 2 and fit.tokens={tokens} (got {clusters})")
        self.look = plan.named([look])[0]
        self.target: Any = target(plan, self.look)
        request(plan, [self.look], self.target)
        self.dim, self.clusters, self.tokens = int(self.target.dim), clusters, tokens
        self.said: dict[str, Any] = {
            "batch_size": batch, "max_iter": passes, "n_init": restarts, "max_no_improvement": patience,
            "random_state": seed, "tol": 0.0, "reassignment_ratio": 0.0,
        }  # fmt: skip

    @torch.no_grad()
    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Of all tokens that are there: a random key each (m,) int64, and what the target says, (m, d)."""
        look = step[self.look]
        tokens, flags = look.tokens, counted(look.tokens)
        values = self.target(look, tokens)
        place = tokens.index
        if tokens.sample is not None:
            keys = step.draws.named("fit").bits(int(place.max()) + 1).to(place.device)[tokens.sample, place]
        else:
            keys = step.draws.named("fit").bits(place.shape[1]).to(place.device)
        if flags is not None:
            return keys[flags], values[flags]
        return keys.flatten(), values.reshape(-1, self.dim)

    def fit(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors that the run leaves, and what its summary says of them.

        Raises:
            ValueError: for fewer rows than clusters.
        """
        from sklearn.cluster import MiniBatchKMeans

        if len(rows) < self.clusters:
            raise ValueError(
                f"fit.clusters={self.clusters}, but the training data hold {len(rows)} tokens; lower fit.clusters, or "
                "raise fit.tokens where that is less"
            )
        found = MiniBatchKMeans(self.clusters, init="k-means++", compute_labels=False, **self.said)
        centroids = torch.from_numpy(found.fit(rows.float().numpy()).cluster_centers_).float()
        labels = nearest(rows.float(), centroids)
        counts = torch.bincount(labels, minlength=self.clusters)
        inertia = float((rows.float() - centroids[labels]).square().sum(-1).mean())
        told = {
            "clusters": self.clusters, "tokens": len(rows), "inertia": inertia,
            "empty": int((counts == 0).sum()), "largest": int(counts.max()),
        }  # fmt: skip
        return {"centroids": centroids, "counts": counts}, told
