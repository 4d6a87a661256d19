"""What is shared out among ranks (FSDP2): each block, then each module that a step calls; students and twins alike.

One rule. An element of an `nn.ModuleList` called `blocks` is a *block*: whoever owns it calls it through `forward` and
reads none of its weights. A *root* is the first module on the way down from the top that has a `forward` of its own; a
`Network` is opened, since its embedding and its encoder are called apart. So embeddings, encoders, heads, corruptors
and terms are roots, and so are their twins. Inside the `forward` of a root its weights are whole, but not its blocks'.

Parameters are cut along their first axis, so that a module and its twin lie on the ranks in the same pieces: an average
of both is taken piece by piece and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mmssl.nn.network import Network
from mmssl.types import Tokens


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a module that have parameters, the innermost first."""
    lists = [part for name, part in module.named_modules() if name.split(".")[-1] == "blocks"]
    found = [block for part in reversed(lists) if isinstance(part, nn.ModuleList) for block in part]
    return [block for block in dict.fromkeys(found) if _owns(block)]


def roots(module: nn.Module) -> list[nn.Module]:
    """The modules below this one that a step calls, each once; those without parameters are left out."""
    return [part for part in dict.fromkeys(_called(module)) if _owns(part)]


def _called(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        holds = isinstance(child, Network) or type(child).forward is nn.Module.forward
        yield from _called(child) if holds else (child,)


def _owns(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def shard(module: nn.Module, mesh: Any) -> None:
    """Shares the parameters of a module out among the ranks of a mesh, in place; nothing where that was done.

    All modules and all twins have to be there. Afterwards the module cannot be copied, and parameters are DTensors
    outside of `forward`. What is frozen and hidden from `parameters()` stays whole on every rank: it has neither
    gradients nor optimizer state. Gradients are averaged over ranks in float32 at least.

    Args:
        module: holds the roots; is never called through `forward` itself.
        mesh: a `DeviceMesh` with one axis.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if any(isinstance(part, FSDPModule) for part in module.modules()):
        return
    _open_tokens()
    policy = MixedPrecisionPolicy(reduce_dtype=_wide(module), cast_forward_inputs=False)
    for part in (*blocks(module), *roots(module)):
        # else the weights of a root stay whole behind its forward pass, those of a teacher for ever
        unit = fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        unit.set_force_sum_reduction_for_comms(mesh.device_type == "cpu")  # gloo does not average
    left = [name for name, parameter in module.named_parameters() if not hasattr(parameter, "to_local")]
    assert not left, f"no root owns {left}"


def warm(module: nn.Module) -> None:
    """Gathers each unit of a shared module once, so that no weight is first made whole in inference mode.

    Tensors that are made there can never be trained, and torch keeps those of the first forward pass.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.unshard()
            part.reshard()


def _wide(module: nn.Module) -> torch.dtype | None:
    """The precision that gradients are averaged in, None for their own."""
    narrow = any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters())
    return torch.float32 if narrow else None


def _open_tokens() -> None:
    """Lets torch find the tensors inside of tokens: hooks on them gather weights for the backward pass."""
    kinds = [Tokens]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind not in pytree.SUPPORTED_NODES:
            names = [field.name for field in fields(kind)]
            pytree.register_pytree_node(
                kind,
                lambda tokens, names=names: ([getattr(tokens, name) for name in names], None),
                lambda values, _, kind=kind, names=names: kind(**dict(zip(names, values, strict=True))),
            )


def whole(tree: Any, keep: bool = True) -> Any:
    """Tensors of a tree of dicts and lists, each whole and on the CPU; all ranks call it together.

    Args:
        tree: of tensors, shared out or not, and anything else, which stays as it is.
        keep: whether this rank wants them; else it helps the others, and gets None in their place.
    """
    if isinstance(tree, dict):
        return {key: whole(value, keep) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value, keep) for value in tree]
    if not isinstance(tree, torch.Tensor):
        return tree
    gather: Any = getattr(tree, "full_tensor", None)
    value = tree if gather is None else gather()
    return value.detach().cpu() if keep else None


def like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on all ranks, cut and placed as another of its shape is; nothing is sent."""
    mesh: Any = getattr(other, "device_mesh", None)
    if mesh is None or value.shape != other.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    placements: Any = getattr(other, "placements", None)
    return distribute_tensor(value.to(other.device), mesh, placements, src_data_rank=None)
