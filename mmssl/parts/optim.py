"""Optimizers as recipes name them: parameter groups, rates and schedules, with one torch optimizer behind."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from mmssl import ranks
from mmssl.nn.lars import LARS
from mmssl.registry import register

Schedule = Callable[[float], float]


def peak_rate(lr: float | None, base_lr: float | None, base_batch: int, batch_size: int) -> float:
    """The peak learning rate really used: `lr`, or `base_lr * batch_size / base_batch`.

    Args:
        lr: the rate itself, or None.
        base_lr: the rate per `base_batch` samples, or None.
        base_batch: 256 unless the paper differs.
        batch_size: samples of a step, over all ranks and accumulation steps.

    Raises:
        ValueError: when both or neither are given.
    """
    if (lr is None) == (base_lr is None):
        got = f"optim.lr={lr} and optim.base_lr={base_lr}"
        raise ValueError(
            f"Exactly one of optim.lr (the peak rate itself) and optim.base_lr (the rate for {base_batch} samples, "
            f"scaled with data.batch_size) has to be given (got {got}). Set the other to null, for instance "
            "optim.base_lr=null."
        )
    if lr is not None:
        return lr
    assert base_lr is not None
    return base_lr * batch_size / base_batch


class Optim:
    """How to optimise: makes the optimizer of a module, and sets its rates as a function of progress.

    Args:
        make: torch optimizer class, called as make(groups, lr=...).
        lr: peak rate, or None.
        base_lr: peak rate per `base_batch` samples, or None.
        base_batch: see `base_lr`.
        weight_decay: decay of matrices, or a schedule of it over progress.
        schedule: factor of the rate over progress, None for constant.
        layer_decay: factor of the rate per block (BEiT, MAE): what follows the blocks has the rate itself, the last
            block this factor of it, the embedding the smallest. Encoders of other names have `depths()`. 1 for none.
        clip: largest norm of all gradients together, None for none.
        clip_each: whether `clip` bounds the gradient of each parameter on its own (DINO).
        no_decay: patterns of parameter names that have no decay, besides every norm and bias.
        decay_all: whether norms and biases decay too.
        rules: pattern of parameter names to {lr: factor, weight_decay: value, fixed: true (the rate keeps its peak:
            SimSiam's predictor), freeze: share of the run without a gradient (the last layer of DINO and SwAV)}; the
            first match counts. `|` stands between patterns of which any may match: `*norm*|*bn*`.
    """

    def __init__(
        self,
        make: Callable[..., torch.optim.Optimizer],
        lr: float | None,
        base_lr: float | None,
        base_batch: int,
        weight_decay: float | Schedule,
        schedule: Schedule | None,
        layer_decay: float,
        clip: float | None,
        no_decay: Sequence[str],
        rules: Mapping[str, Mapping[str, float]],
        decay_all: bool = False,
        clip_each: bool = False,
    ) -> None:
        peak_rate(lr, base_lr, base_batch, base_batch)  # refuses nonsense before anything is built
        self.make, self.lr, self.base_lr, self.base_batch = make, lr, base_lr, base_batch
        self.weight_decay, self.schedule, self.layer_decay, self.clip = weight_decay, schedule, layer_decay, clip
        self.no_decay, self.rules, self.decay_all = tuple(no_decay), rules, decay_all
        self.clip_each = clip_each
        for pattern, rule in rules.items():
            if unknown := set(rule) - {"lr", "weight_decay", "fixed", "freeze"}:
                known = "lr, weight_decay, fixed and freeze"
                raise ValueError(f"optim.rules.{pattern}: there is no {unknown.pop()!r}; there are {known}")

    def build(self, module: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        """The optimizer over a module's trainable parameters, in groups of equal treatment.

        Raises:
            ValueError: when a pattern matches no parameter.
        """
        lr = peak_rate(self.lr, self.base_lr, self.base_batch, batch_size)
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        for pattern in (*self.no_decay, *self.rules):
            if not any(_fits(name, pattern) for name, _ in named):
                raise ValueError(f"optim: the pattern {pattern!r} matches no trainable parameter, e.g. {named[0][0]!r}")
        blocks = block_of(module, [name for name, _ in named])
        depth = 1 + max((block or 0 for block in blocks.values()), default=0)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name, parameter in named:
            treatment = self._treatment(name, parameter, blocks[name], depth)
            group = groups.setdefault(tuple(treatment.values()), {"params": [], **treatment})
            group["params"].append(parameter)
        optimizer = self.make(list(groups.values()), lr=lr)
        self.peak = lr
        self.set(optimizer, 0.0)
        for part in module.modules():
            if hasattr(part, "after_step"):  # weights that are kept in bounds (SwAV's prototypes)
                optimizer.register_step_post_hook(partial(_settle, part))
        return optimizer

    def _treatment(self, name: str, parameter: torch.Tensor, block: int | None, depth: int) -> dict[str, Any]:
        """How one parameter is treated; a decay of None means the common one."""
        factor, decay, fixed, freeze = 1.0, None, False, 0.0
        small = (parameter.ndim <= 1 or name.endswith(".bias")) and not self.decay_all
        if small or any(_fits(name, p) for p in self.no_decay):
            decay = 0.0
        if self.layer_decay != 1.0 and block is not None:
            factor = self.layer_decay ** (depth - block)
        for pattern, rule in self.rules.items():
            if _fits(name, pattern):
                factor *= rule.get("lr", 1.0)
                decay = rule.get("weight_decay", decay)
                fixed, freeze = bool(rule.get("fixed", False)), rule.get("freeze", 0.0)
                break
        return {"factor": factor, "decay": decay, "fixed": fixed, "frozen": freeze}

    def set(self, optimizer: torch.optim.Optimizer, progress: float) -> float:
        """Sets the rate and the decay of every group for this share of training done; returns the common rate."""
        scheduled = self.peak * (self.schedule(progress) if self.schedule else 1.0)
        decay = self.weight_decay(progress) if callable(self.weight_decay) else self.weight_decay
        for group in optimizer.param_groups:
            group["lr"] = (self.peak if group["fixed"] else scheduled) * group["factor"]
            group["weight_decay"] = decay if group["decay"] is None else group["decay"]
        return scheduled

    def freeze(self, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Takes the gradients of parameters away that do not train yet."""
        for group in optimizer.param_groups:
            if progress < group["frozen"]:
                for parameter in group["params"]:
                    parameter.grad = None

    def clip_apart(self, optimizer: torch.optim.Optimizer) -> None:
        """Cuts the gradient of each parameter to a length of at most `clip`, whole gradients where ranks share them."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not grads or self.clip is None:
            return
        factors = (self.clip / (ranks.lengths(grads) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([ranks.own(grad) for grad in grads], list(factors.unbind()))  # pyright: ignore[reportPrivateImportUsage]


def _fits(name: str, pattern: str) -> bool:
    """Whether a name matches a pattern, or one of several with `|` between them."""
    return any(fnmatch.fnmatch(name, one.strip()) for one in pattern.split("|"))


def _settle(part: Any, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """A hook behind an optimizer's step, for one part."""
    part.after_step()


def block_of(module: nn.Module, names: Sequence[str]) -> dict[str, int | None]:
    """Depth of parameters for layer decay: 0 for the embedding, i + 1 for block i, None for what follows the blocks.

    Blocks are those of an encoder's `blocks` or `layers`; an encoder of other names has `depths()`, which gives the
    depth of each of its parameters by name.
    """
    told: dict[str, int] = {}
    for prefix, part in module.named_modules():
        depths: Callable[[], Mapping[str, int]] | None = getattr(part, "depths", None)
        if depths is not None:
            told |= {f"{prefix}.{name}": depth for name, depth in depths().items()}
    return {name: told.get(name, _block(name)) for name in names}


def _block(name: str) -> int | None:
    """The depth that a parameter's name tells."""
    if match := re.search(r"\.encoder\.(?:(?:.*\.)?blocks|layers|norms|activations|shortcuts)\.(\d+)\.", name):
        return int(match.group(1)) + 1
    first = r"\.embed\.proj|^networks\.\w+\.embed\.|\.encoder\.(prefix|position|pos_embed|bias|norm_pre)"
    return 0 if re.search(first, name) else None


def _fused(
    make: Callable[..., torch.optim.Optimizer], groups: list[dict[str, Any]], **said: Any
) -> torch.optim.Optimizer:
    """One kernel for all of a step on the CPU, a sixth of the time; on a GPU it would forbid clipping with a scaler."""
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    return make(groups, fused=True, **said) if on_cpu else make(groups, **said)


@register("optim/adamw")
def adamw(
    *,
    lr: float | None = None,
    base_lr: float | None = None,
    base_batch: int = 256,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Schedule = 0.05,
    schedule: Schedule | None = None,
    layer_decay: float = 1.0,
    clip: float | None = None,
    clip_each: bool = False,
    no_decay: Sequence[str] = (),
    decay_all: bool = False,
    rules: Mapping[str, Mapping[str, float]] | None = None,
) -> Optim:
    """AdamW (Loshchilov and Hutter 2019): decay apart from the gradient. See `Optim` for the arguments."""
    first, second = betas
    make = partial(_fused, torch.optim.AdamW, betas=(first, second), eps=eps)
    given = (lr, base_lr, base_batch, weight_decay, schedule, layer_decay, clip, no_decay, rules or {}, decay_all)
    return Optim(make, *given, clip_each=clip_each)


@register("optim/adam")
def adam(
    *,
    lr: float | None = None,
    base_lr: float | None = None,
    base_batch: int = 256,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Schedule = 0.0,
    schedule: Schedule | None = None,
    layer_decay: float = 1.0,
    clip: float | None = None,
    no_decay: Sequence[str] = (),
    decay_all: bool = True,
    rules: Mapping[str, Mapping[str, float]] | None = None,
) -> Optim:
    """Adam (Kingma and Ba 2015): decay is added to the gradient. See `Optim` for the arguments."""
    first, second = betas
    make = partial(_fused, torch.optim.Adam, betas=(first, second), eps=eps)
    given = (lr, base_lr, base_batch, weight_decay, schedule, layer_decay, clip, no_decay, rules or {}, decay_all)
    return Optim(make, *given)


@register("optim/lars")
def lars(
    *,
    lr: float | None = None,
    base_lr: float | None = None,
    base_batch: int = 256,
    momentum: float = 0.9,
    trust: float = 0.001,
    weight_decay: float | Schedule = 1e-6,
    schedule: Schedule | None = None,
    layer_decay: float = 1.0,
    clip: float | None = None,
    no_decay: Sequence[str] = (),
    rules: Mapping[str, Mapping[str, float]] | None = None,
) -> Optim:
    """LARS (You et al. 2017), neither decay nor adaptation on norms and biases. See `Optim` for the arguments."""
    make = partial(LARS, momentum=momentum, trust=trust)
    return Optim(make, lr, base_lr, base_batch, weight_decay, schedule, layer_decay, clip, no_decay, rules or {})


@register("optim/sgd")
def sgd(
    *,
    lr: float | None = None,
    base_lr: float | None = None,
    base_batch: int = 256,
    momentum: float = 0.9,
    weight_decay: float | Schedule = 1e-4,
    schedule: Schedule | None = None,
    layer_decay: float = 1.0,
    clip: float | None = None,
    no_decay: Sequence[str] = (),
    rules: Mapping[str, Mapping[str, float]] | None = None,
) -> Optim:
    """Stochastic gradient descent with momentum, no decay on norms and biases. See `Optim` for the arguments."""
    make = partial(torch.optim.SGD, momentum=momentum)
    return Optim(make, lr, base_lr, base_batch, weight_decay, schedule, layer_decay, clip, no_decay, rules or {})
