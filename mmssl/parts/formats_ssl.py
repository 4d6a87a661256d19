"""Official checkpoints of networks with a teacher: I-JEPA, DINO, iBOT, DINOv2 and MoCo v3. Called as (content, module).

All five are vision transformers; they go into `encoder/vit`, and into a VisionTransformer of `encoder/timm`. A full
training checkpoint fills the student and the teacher's twins; of a file with one branch the student is filled, and the
teacher starts as its copy. A run without teacher takes the branch that the authors evaluate. Heads and predictors are
filled whole; where their sizes differ from the run's they start anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.parts.formats import rename
from mmssl.parts.formats_vit import Layout, State, branch, branches, compare, transformer
from mmssl.parts.heads import MLP, Prototypes
from mmssl.parts.predictors import Transformer
from mmssl.parts.sample_terms import Match
from mmssl.parts.terms import Predict
from mmssl.registry import register

_USUAL = {192: 3, 384: 6, 768: 12, 1024: 16, 1536: 24}
_IJEPA = Layout("ijepa", _USUAL | {1280: 16, 1408: 16}, "position/sincos", "encoder", "target_encoder")
_DINO, _IBOT, _DINOV2 = (Layout(name, _USUAL) for name in ("dino", "ibot", "dinov2"))
_MOCOV3 = Layout(
    "mocov3", {384: 12, 768: 12}, "position/sincos_parts", "base_encoder", "momentum_encoder", evaluated="student"
)


def _whole(found: State, part: nn.Module, base: str) -> dict[str, Tensor]:
    """The tensors of a part with its own name in front, if they fill all of it; otherwise nothing."""
    own = part.state_dict()
    if set(found) != set(own) or any(own[name].shape != value.shape for name, value in found.items()):
        return {}
    return {f"{base}.{name}": value for name, value in found.items()}


def _head_of(module: Any, kind: type[nn.Module]) -> str | None:
    """The name of the first head that terms of a kind have."""
    terms: list[Any] = [term for term in module.objective.values() if isinstance(term, kind)]
    names = [name for term in terms for name in (term.heads.values() if kind is Match else [term.head])]
    return next((name for name in names if name is not None), None)


def _base(name: str, twin: bool) -> str:
    return f"teacher.twins.head_{name}" if twin else f"heads.{name}"


def _prototypes(state: State, module: Any, name: str | None, twin: bool, key: str, last: str) -> dict[str, Tensor]:
    """A head of DINO's kind, from the tensors `KEY.mlp.*` and `KEY.LAST.*`."""
    head = None if name is None else module.heads[name]
    if name is None or not isinstance(head, Prototypes) or f"{key}.{last}.weight_v" not in state:
        return {}
    found = rename(state, [(rf"{key}\.mlp\.(\d+\..+)", r"layers.\1"), (rf"{key}\.mlp\.(weight|bias)", r"layers.0.\1")])
    found["prototypes.weight"], gain = state[f"{key}.{last}.weight_v"], state[f"{key}.{last}.weight_g"]
    if head.gain is not None:
        found["gain"] = gain
    placed = _whole(found, head, _base(name, twin))
    if placed and head.gain is None and not torch.allclose(gain, torch.ones_like(gain), atol=1e-6):
        raise ValueError(
            f"init_from: the file's prototypes have learned gains (norm_last_layer=false); set heads.{name}.rows=free."
        )
    return placed


def _perceptron(state: State, head: Any, base: str) -> dict[str, Tensor]:
    """A head of MoCo v3's kind, from the tensors of an nn.Sequential."""
    if not isinstance(head, MLP):
        return {}
    return _whole({f"layers.{name}": value for name, value in state.items()}, head, base)


def _centers(content: Mapping[str, Any], module: Any, key: str, entries: Mapping[str, type]) -> dict[str, Tensor]:
    """The centres that a loss keeps, each for the terms of a kind."""
    losses, found = content.get(key), {}
    if not isinstance(losses, Mapping):
        return found
    for name, term in module.objective.items():
        own = getattr(getattr(term, "normalize", None), "center", None)
        for entry, kind in entries.items():
            if isinstance(term, kind) and own is not None and entry in losses and losses[entry].numel() == own.numel():
                found[f"objective.{name}.normalize.center"] = losses[entry].reshape(own.shape)
    return found


@register("format/official/ijepa")
def ijepa(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The checkpoints of facebookresearch/ijepa: `encoder`, `target_encoder` and `predictor`, or one encoder alone."""
    found: dict[str, Tensor] = {}
    for state, twin in branches(content, module, _IJEPA):
        found |= transformer(state, module, _IJEPA, twin)
    predictor = branch(content, "predictor") or {}
    for name, term in module.objective.items():
        part = getattr(term, "predictor", None)
        if isinstance(part, Transformer) and predictor:
            rules = [
                (r"mask_token", "mask_token"),
                (r"predictor_embed\.(.+)", r"embed.\1"),
                (r"predictor_proj\.(.+)", r"head.\1"),
                (r"predictor_(blocks|norm)\.(.+)", r"\1.\2"),
            ]
            placed = _whole(rename(predictor, rules), part, f"objective.{name}.predictor")
            if placed:
                compare(predictor["predictor_pos_embed"][0], part.position, f"objective.{name}.predictor", _IJEPA)
            found |= placed
    return found


@register("format/official/dino")
def dino(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The ViT checkpoints of facebookresearch/dino: `student` and `teacher` with heads, or the backbone alone."""
    found = _centers(content, module, "dino_loss", {"center": Match})
    for state, twin in branches(content, module, _DINO):
        found |= transformer(state, module, _DINO, twin)
        found |= _prototypes(state, module, _head_of(module, Match), twin, "head", "last_layer")
    return found


@register("format/official/ibot")
def ibot(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The ViT checkpoints of bytedance/ibot: `student` and `teacher` with heads, or the backbone alone.

    Where the run has one head for class and patch tokens, it takes the class token's; where it has two, each gets the
    file's perceptron, which is common to both, and prototypes of its own.
    """
    found = _centers(content, module, "ibot_loss", {"center": Match, "center2": Predict})
    one, two = _head_of(module, Match), _head_of(module, Predict)
    for state, twin in branches(content, module, _IBOT):
        found |= transformer(state, module, _IBOT, twin)
        found |= _prototypes(state, module, one, twin, "head", "last_layer")
        if two != one:
            found |= _prototypes(state, module, two, twin, "head", "last_layer2")
    return found


@register("format/official/dinov2")
def dinov2(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The checkpoints of facebookresearch/dinov2: released backbones, and a training's teacher with heads.

    A head that the file has for patch tokens alone is passed over where the run has one for both; a common one fills
    two.
    """
    found: dict[str, Tensor] = {}
    one, two = _head_of(module, Match), _head_of(module, Predict)
    for state, twin in branches(content, module, _DINOV2):
        found |= transformer(state, module, _DINOV2, twin)
        found |= _prototypes(state, module, one, twin, "dino_head", "last_layer")
        if two != one:
            key = "ibot_head" if any(name.startswith("ibot_head.") for name in state) else "dino_head"
            found |= _prototypes(state, module, two, twin, key, "last_layer")
    return found


@register("format/official/mocov3")
def mocov3(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The ViT checkpoints of facebookresearch/moco-v3: both encoders with their projectors, and the predictor.

    Its fixed positions put rows before columns: `position/sincos_parts`. Its ViT-S has 12 attention heads.
    """
    found: dict[str, Tensor] = {}
    name = _head_of(module, Match)
    for state, twin in branches(content, module, _MOCOV3):
        found |= transformer(state, module, _MOCOV3, twin)
        projector = {n.removeprefix("head."): value for n, value in state.items() if n.startswith("head.")}
        if name is not None:
            found |= _perceptron(projector, module.heads[name], _base(name, twin))
    predictor = branch(content, "predictor") or {}
    for term_name, term in module.objective.items():
        part = getattr(term, "predictor", None)
        if isinstance(part, MLP) and predictor:
            found |= _perceptron(predictor, part, f"objective.{term_name}.predictor")
    return found
