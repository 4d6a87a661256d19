"""Terms over samples: pairs of looks, and the set of all answers of the global batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ranks
from mmssl.parts.regions import request
from mmssl.parts.targets import layer_name
from mmssl.registry import register
from mmssl.step import Look, Plan, Step

TOKEN_POOLS = ("mean", "sum", "max", "meanmax", "cls", "token")


def check_pool(pool: str) -> None:
    """Refuses an unknown pool.

    Raises:
        ValueError: naming the key.
    """
    if pool not in TOKEN_POOLS:
        raise ValueError(f"a term's `pool` has to be one of {', '.join(TOKEN_POOLS)} (got {pool!r})")


def heads_of(looks: Sequence[str], head: str | Mapping[str, str] | None) -> dict[str, str | None]:
    """The head of each look, out of one name for all of them or a name for each.

    Raises:
        ValueError: naming the look, where names and looks are not the same.
    """
    if not isinstance(head, Mapping):
        return dict.fromkeys(looks, head)
    for name in (*head, *looks):
        if (name in head) != (name in looks):
            raise ValueError(
                f"a term's `head` names a head for looks {sorted(head)}, but its looks are {sorted(set(looks))}"
            )
    return {name: head[name] for name in looks}


@torch.no_grad()
def rows(look: Look, pool: str) -> Tensor:
    """How many answers a look will give: one per sample or mask, or per token that its encoder sees."""
    tokens = look.tokens
    if pool == "token" and look.masked and getattr(look.spec.corruptor, "drops", False):
        index, valid = look.mask.visible_index
    elif pool == "token":
        index, valid = tokens.index, tokens.valid
    else:
        n = tokens.samples if tokens.packed else len(tokens.index if look.row is None else look.row)
        return tokens.index.new_tensor(n)
    return index.new_tensor(index.numel()) if valid is None else valid.sum()


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """How far apart the answers of this rank's samples are: 0 is collapse, 1 is evenly over the sphere.

    The deviation of each dimension of the normalised answers, over what even ones have.
    """
    z = z.detach().float().flatten(0, -2)
    return F.normalize(z, dim=-1).std(0).mean() * z.shape[-1] ** 0.5 if len(z) > 1 else z.new_tensor(torch.nan)


@torch.no_grad()
def entropies(p: Tensor) -> tuple[Tensor, Tensor]:
    """Of distributions (..., k): the mean entropy, and the entropy of the mean, both over log k."""
    p = p.detach().float().flatten(0, -2)
    scale = torch.tensor(float(p.shape[-1]), device=p.device).log()
    mean = p.mean(0)
    return torch.special.entr(p).sum(-1).mean() / scale, torch.special.entr(mean).sum() / scale


@register("term/match")
class Match(nn.Module):
    """Answers of looks should match targets of looks (BYOL, SimSiam, MoCo v3, DINO, SwAV, BGRL; distillation).

    The target is what the teacher's twin of the head answers, or the student's own answer without gradient where the
    run has no teacher; or the features of `target`. The mean over pairs of looks and samples of the global batch.

    Args:
        plan: sizes and twins.
        loss: (answer, target) to one number per sample.
        looks: looks that answer, by name or pattern (`s*`).
        targets: looks that are the target; null for the same.
        pairs: which looks go with which targets: `cross` (all but themselves), `same` or `all`.
        head: name of the head of both, or of each look by its name (CLIP, CROMA: a head for each stream); null for
            features as they are.
        predictor: a head of the answers alone, called as (width); null for none.
        target: what gives features to match in place of the teacher, for instance `target/frozen`; null for none.
        normalize: applied to targets, called as (width); null for none.
        pool: how tokens become answers: mean, max, cls, ...; `token` for one answer per token.
        layer: the encoders' layer whose tokens answer: a name such as `block.3`, or the share of blocks below it
            (HiCMAE); null for the output.
        detach: whether targets carry no gradient; else the target is the other look's own answer, and both move (CLIP).
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look, pool or word, looks without a partner or a head, or widths that differ.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        looks: Sequence[str] = ("a", "b"),
        targets: Sequence[str] | None = None,
        pairs: str = "cross",
        head: str | Mapping[str, str] | None = None,
        predictor: Callable[[int], nn.Module] | None = None,
        target: Callable[..., nn.Module] | None = None,
        normalize: Callable[[int], nn.Module] | None = None,
        pool: str = "mean",
        layer: str | float | None = None,
        detach: bool = True,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_pool(pool)
        if target is not None and not detach:
            raise ValueError("a term's `detach: false` trains the targets too, but a `target` is never trained")
        self.loss, self.pool, self.detach, self.weight = loss, pool, detach, weight
        self.looks, self.targets = plan.named(looks), plan.named(looks if targets is None else targets)
        everyone = [*self.looks, *(self.targets if target is None else ())]
        self.heads = heads_of(everyone, head)
        if pairs not in ("cross", "same", "all"):
            raise ValueError(f"a term's `pairs` has to be cross, same or all (got {pairs!r})")
        keep: dict[str, Callable[[str, str], bool]] = {
            "cross": lambda q, v: q != v, "same": lambda q, v: q == v, "all": lambda q, v: True,
        }  # fmt: skip
        self.pairs = [(q, v) for v in self.looks for q in self.targets if keep[pairs](q, v)]
        if not self.pairs:
            raise ValueError(f"pairs={pairs} leaves no pair of looks {self.looks} and targets {self.targets}")
        self.layers = {name: None if layer is None else layer_name(layer, plan.taps[name]) for name in everyone}
        widths = {plan.answer(name, self.heads[name], "seen", pool, self.layers[name]) for name in self.looks}
        if target is None:
            what, self.target = "taught" if detach else "seen", None
            goals = {plan.answer(name, self.heads[name], what, pool, self.layers[name]) for name in self.targets}
        else:
            self.target = target(plan, self.targets[0])
            request(plan, self.targets, self.target)
            goals = {int(self.target.dim) * (2 if pool == "meanmax" else 1)}  # pyright: ignore[reportArgumentType]
        self.predictor = None if predictor is None else predictor(widths.pop())
        width = widths.pop() if predictor is None else int(self.predictor.dim)  # pyright: ignore
        goal = goals.pop()
        if width != goal or widths or goals:
            raise ValueError(
                f"answers are {width} wide and targets {goal}; give the term a predictor that ends in {goal}, such as "
                f"predictor: {{_target_: head/mlp, dims: [{goal}]}}"
            )
        self.normalize = None if normalize is None else normalize(goal)
        self.compares = hasattr(loss, "chance")  # such a loss finds the target among those of all samples
        self.signals: dict[str, Tensor] = {}

    def _answer(self, step: Step, name: str, what: str) -> Tensor:
        return step[name].answer(self.heads[name], what, self.pool, self.layers[name])

    def _answers(self, step: Step) -> dict[str, Tensor]:
        """The answers of every look, (r, o)."""
        found = {name: self._answer(step, name, "seen") for name in self.looks}
        if self.predictor is None:
            return found
        return {name: self.predictor(answer) for name, answer in found.items()}

    def _targets(self, step: Step) -> dict[str, Tensor]:
        """The targets of every look, (b, o), normalised."""
        if self.target is None:
            raw = [self._answer(step, name, "taught" if self.detach else "seen") for name in self.targets]
        else:
            raw = [self.target.pooled(step[name], self.pool) for name in self.targets]  # pyright: ignore[reportCallIssue]
        if self.normalize is None:
            return dict(zip(self.targets, raw, strict=True))
        normed = self.normalize(raw, step.progress)
        if self.training and hasattr(self.normalize, "follow"):
            self.normalize.follow(raw)  # pyright: ignore[reportCallIssue]  # a method of some normalisers
        if getattr(self.normalize, "probabilities", False):
            self.signals["entropy"], self.signals["usage"] = entropies(torch.cat(normed))
        return dict(zip(self.targets, normed, strict=True))

    def count(self, step: Step) -> Tensor:
        """What `forward` divides by, without encoding anything."""
        return torch.stack([rows(step[v], self.pool) for _, v in self.pairs]).sum()

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over samples, the mean over pairs; and the number of samples."""
        answers = self._answers(step)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            targets = self._targets(step)
        total, n = 0.0, 0
        for q, v in self.pairs:
            goal = targets[q]
            if self.detach and step[v].row is not None and self.pool != "token":
                goal = goal[step[v].row]
            losses = self.loss(answers[v], goal)
            total, n = total + losses.sum(), n + len(losses)
        assert isinstance(total, Tensor)
        if "entropy" not in self.signals:  # else answers are logits
            self.signals["spread"] = torch.stack([spread(answers[name]) for name in self.looks]).mean()
        chance: Any = getattr(self.loss, "chance", None)
        if chance is not None:
            everyone = n // len(self.pairs) * ranks.world()
            self.signals["chance"] = total.new_tensor(chance(everyone, answers[self.looks[0]].shape[-1]))
        return total, total.new_tensor(float(n))


@register("term/set")
class Set(nn.Module):
    """A loss over all answers of all looks in the global batch, with gradient everywhere.

    SimCLR, Barlow Twins, VICReg, LeJEPA, DINOv2's KoLeo, GRACE, SCARF.

    Args:
        plan: sizes and twins.
        loss: (answers (views, n, d), draws of the step) to a number; n counts the samples of all ranks.
        looks: looks that answer.
        head: name of their head; null for features as they are (KoLeo).
        pool: how tokens become answers: mean, max, cls, ...; `token` for one answer per token.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look or pool.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        loss: Callable[..., Tensor],
        looks: Sequence[str] = ("a", "b"),
        head: str | None = None,
        pool: str = "mean",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_pool(pool)
        self.loss, self.looks, self.head, self.pool, self.weight = loss, plan.named(looks), head, pool, weight
        self.compares = True
        for name in self.looks:
            plan.answer(name, head, "seen", pool)
        self.signals: dict[str, Tensor] = {}

    def count(self, step: Step) -> Tensor:
        """What `forward` divides by."""
        return step.draws.keys.new_ones(())

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """The loss, and 1: every rank gives the same value of the global batch."""
        own = [step[name].answer(self.head, "seen", self.pool) for name in self.looks]
        z = torch.stack([ranks.gather(answer) for answer in own])
        value = self.loss(z, step.draws.named("set").batch())
        self.signals["spread"] = spread(z)
        if getattr(self.loss, "scaled", False) and z.shape[1] > 1:  # such a loss can also shrink answers to a point
            self.signals["deviation"] = z.detach().float().std(1).mean()
        chance = getattr(self.loss, "chance", None)
        if chance is not None:
            self.signals["chance"] = value.new_tensor(chance(*z.shape))
        return value, value.new_ones(())
