"""What fine-tuning adds: a linear head, the cross entropy, and the term that names the classes of labelled samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.nn.labels import label_at
from mmssl.nn.norm import BatchNorm
from mmssl.parts.sample_terms import check_pool
from mmssl.registry import register
from mmssl.step import Plan, Step

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm, "batch": BatchNorm, "plain": lambda width: BatchNorm(width, affine=False),
}  # fmt: skip


@register("head/linear")
class LinearHead(nn.Module):
    """One linear map to the classes, small at the start, so that fine-tuning begins at even odds (BEiT, MAE).

    Args:
        width: width of the features.
        dim: number of classes.
        std: deviation of the weights at the start; 2e-5 as in MAE. Biases are zero.
        norm: in front of it: `layer`, `batch`, `plain` (batch without weights, MAE's linear probe) or null.
        dropout: of the features, in training.

    Raises:
        ValueError: for fewer than two classes, or an unknown norm.
    """

    def __init__(
        self, width: int, *, dim: int, std: float = 2e-5, norm: str | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(f"dim is the number of classes and has to be at least 2 (got {dim})")
        if norm is not None and norm not in _NORMS:
            raise ValueError(f"norm has to be one of {', '.join(_NORMS)}, or null (got {norm!r})")
        self.dim = dim
        self.norm = nn.Identity() if norm is None else _NORMS[norm](width)
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(width, dim)
        nn.init.trunc_normal_(self.proj.weight, std=std)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, dim) of features (n, width)."""
        return self.proj(self.dropout(self.norm(x)))


@register("loss/cross_entropy")
class CrossEntropy:
    """Cross entropy of logits with classes or distributions over them.

    Args:
        smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2016), in [0, 1).

    Raises:
        ValueError: for another share.
    """

    def __init__(self, *, smoothing: float = 0.0) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"loss/cross_entropy: smoothing has to be at least 0 and below 1 (got {smoothing})")
        self.smoothing = smoothing

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number per row of (..., classes); the target is int64 of one axis less, or (..., classes).

        Several answers to one target stand in front of its axes.
        """
        shape, rows = prediction.shape[:-1], prediction.reshape(-1, prediction.shape[-1])
        if target.dtype == torch.int64:
            goal = target.expand(shape).reshape(-1)
        else:
            goal = target.to(prediction.dtype).expand(prediction.shape).reshape(rows.shape)
        return F.cross_entropy(rows, goal, label_smoothing=self.smoothing, reduction="none").reshape(shape)


@register("term/classify")
class Classify(nn.Module):
    """Names the class of each labelled sample, or token, by a head: supervised fine-tuning as a term like any other.

    Samples without a label (-1) take no part; the sum is divided by the number of labelled ones in the global batch.
    Where the look's corruptor mixes samples (`corruptor/mix`) their labels are mixed alike.

    Args:
        plan: sizes and twins.
        head: name of the head; its width is the number of classes.
        loss: (logits, classes (n,) or distributions (n, classes)) to one number per row.
        look: which look.
        pool: how tokens become features: mean, cls, max, ...; `token` where labels belong to tokens.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look or pool, or tokens of a look that hides some.
    """

    classifies = True

    def __init__(
        self,
        plan: Plan,
        *,
        head: str,
        loss: Callable[[Tensor, Tensor], Tensor],
        look: str = "x",
        pool: str = "mean",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_pool(pool)
        self.look = plan.named([look])[0]
        spec = plan.looks[self.look]
        if pool == "token" and (spec.masker is not None or spec.mask is not None):
            raise ValueError(f"term/classify: pool=token labels whole samples, but look {look!r} hides tokens of them")
        self.head, self.loss, self.pool, self.weight = head, loss, pool, weight
        self.classes = plan.answer(self.look, head, "seen", pool)
        self.signals: dict[str, Tensor] = {}

    def labels(self, step: Step) -> Tensor:
        """The label of every row that the look answers, (r,) int64, -1 where there is none.

        Raises:
            ValueError: where the data have no labels, or those of another unit or of other classes.
        """
        label: Tensor | None = step.batch.get("label")
        if label is None or label.is_floating_point():
            raise ValueError("data: fine-tuning needs classes, and the training split has no labels of that kind")
        look = step[self.look]
        if self.pool == "token":
            at, valid = label_at(label, look.tokens), look.tokens.valid
            return at if look.tokens.packed else at.flatten() if valid is None else at[valid]
        if label.dim() != 1:
            raise ValueError(
                f"data: labels belong to tokens here; set the pool of the term to token (it is {self.pool})"
            )
        return label if look.row is None else label[look.row]

    def _targets(self, step: Step) -> tuple[Tensor, Tensor]:
        """Which rows count, (r,) bool, and the targets of all rows: (r,) classes, or (r, classes) where they mix."""
        y, look = self.labels(step), step[self.look]
        known = y >= 0
        mixer: Any = getattr(look.spec.corruptor, "mixed", None)
        if mixer is None or not self.training:
            return known, y
        partner, share = mixer(look.views[0], look.draws.named("corrupt"))
        pure = F.one_hot(y.clamp(min=0), self.classes).to(share.dtype)
        return known & known[partner], share.unsqueeze(1) * pure + (1 - share).unsqueeze(1) * pure[partner]

    @torch.no_grad()
    def count(self, step: Step) -> Tensor:
        """What `forward` divides by, without encoding anything."""
        return self._targets(step)[0].sum()

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over labelled rows, and their number."""
        keep, target = self._targets(step)
        said = step[self.look].answer(self.head, "seen", self.pool)
        said, target = said[keep], target[keep]
        # a GPU refuses by itself, and to ask it would be to wait for it
        if target.device.type == "cpu" and target.dim() == 1 and len(target) and int(target.max()) >= self.classes:
            raise ValueError(
                f"data: label {int(target.max())} is none of the {self.classes} classes that head {self.head!r} knows; "
                f"set heads.{self.head}.dim to the number of classes"
            )
        with torch.no_grad():
            likely = target if target.dim() == 1 else target.argmax(1)
            right = (said.argmax(1) == likely).to(said.dtype).sum()
            self.signals["top1"] = right / max(len(said), 1)
        losses = self.loss(said, target)
        return losses.sum(), losses.new_tensor(float(len(losses)))
