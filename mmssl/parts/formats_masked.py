"""Official checkpoints of masked image modeling: dBOT, HPM, LocalMIM, MFM, MaskAlign and DMAE.

Called as (content, module). The encoder is filled whole or the file is refused (formats_vit.py says how).
Fixed sine-cosine tables are not loaded but compared with what the run computes. A predictor is filled whole; where the
file's has another size than the run's it starts anew, and a warning names what differs. Attention heads cannot be seen
in sizes: those that the authors' decoders have are required. Teachers that are never trained are not in these files.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from mmssl.parts.formats import channels_last, joined_biases, rename
from mmssl.parts.formats_vit import Layout, State, branches, compare, transformer
from mmssl.parts.frozen_layers import MixedLayers
from mmssl.parts.hardness import Rank
from mmssl.parts.predictors import Linear, Transformer
from mmssl.parts.scaled_predictor import Scaled
from mmssl.parts.seen_targets import Tap
from mmssl.registry import register

_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {256: 8, 512: 16}  # LocalMIM; MAE and what follows it
_DBOT, _LOCALMIM, _MASKALIGN, _DMAE = (
    Layout(name, _HEADS, "position/sincos") for name in ("dbot", "localmim", "maskalign", "dmae")
)
_MFM = Layout("mfm", _HEADS)
_HPM = Layout("hpm", _HEADS, "position/sincos", "state_dict", "ema_state_dict", evaluated="student")
_DECODER = [
    (r"mask_token", "mask_token"),
    (r"decoder_embed\.(.+)", r"embed.\1"),
    (r"decoder_blocks\.(.+)", r"blocks.\1"),
    (r"decoder_norm\.(.+)", r"norm.\1"),
    (r"decoder_predp?\.(.+)", r"head.\1"),
]
_FORETOLD = [
    (r"mask_token", "mask_token"),
    (r"decoder_embed\.(.+)", r"embed.\1"),
    (r"decoder_blocks_losspred\.(.+)", r"blocks.\1"),
    (r"decoder_norm_losspred\.(.+)", r"norm.\1"),
    (r"decoder_pred_losspred\.(.+)", r"head.\1"),
]


class Place(NamedTuple):
    """A predictor of the run, and the name that is put in front of its tensors."""

    term: str
    part: Any
    base: str


def places(module: Any, kind: type[nn.Module], terms: type = object) -> list[Place]:
    """The predictors of a kind, of terms of a kind."""
    found = {name: (term, getattr(term, "predictor", None)) for name, term in module.objective.items()}
    return [
        Place(name, part, f"objective.{name}.predictor")
        for name, (term, part) in found.items() if type(part) is kind and isinstance(term, terms)
    ]  # fmt: skip


def only(content: Any, module: Any, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file that holds one network."""
    return branches(content, module, layout)[0][0]


def split(state: State, *fronts: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors whose names begin with one of these, and the others."""
    chosen = {name: value for name, value in state.items() if name.startswith(fronts)}
    return chosen, {name: value for name, value in state.items() if name not in chosen}


def placed(chosen: Iterable[Place], found: State, layout: Layout, table: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of the first of some predictors if they fill all of it; otherwise nothing, and a warning.

    Raises:
        ValueError: for another number of attention heads, or other positions than the table's.
    """
    place = next(iter(chosen), None)
    if place is None or not found:
        return {}
    own = place.part.state_dict()
    apart = sorted(set(own) ^ set(found)) or [name for name in own if own[name].shape != found[name].shape]
    if apart:
        name = apart[0]
        theirs, ours = (str(tuple(of[name].shape)) if name in of else "absent" for of in (found, own))
        warnings.warn(
            f"init_from: official/{layout.name}: objective.{place.term}.predictor starts anew, because {len(apart)} of "
            f"its tensors differ from the file's: {name} is {theirs} there and {ours} here, for one. Set its depth and "
            "widths as the file's to go on with it.",
            stacklevel=2,
        )
        return {}
    if isinstance(place.part, Transformer):
        block: Any = place.part.blocks[0]
        wide, used = own["mask_token"].shape[-1], block.attn.num_heads
        if _DECODER_HEADS.get(wide, used) != used:
            raise ValueError(
                f"init_from: official/{layout.name}: a decoder of width {wide} was trained with {_DECODER_HEADS[wide]} "
                f"attention heads (got {used}); set objective.{place.term}.predictor.heads={_DECODER_HEADS[wide]}."
            )
        if table is not None:
            compare(table[0, 1:], place.part.position, f"objective.{place.term}.predictor", layout)
    return {f"{place.base}.{name}": value for name, value in found.items()}


@register("format/official/dbot")
def dbot(content: Any, module: Any) -> dict[str, Tensor]:
    """The checkpoints of liuxingbin/dbot: encoder and decoder of the student (`checkpoint-*.pth`, the released files).

    A stage's teacher has a file of its own, `checkpoint-teacher-*.pth`, an encoder without decoder: it fills the
    encoder too. As the run's teacher comes from its stage, neither file touches it. The networks that learned from CLIP
    are BEiTs of the branch `beit`, and are refused.
    """
    decoder, encoder = split(only(content, module, _DBOT), "decoder_", "mask_token")
    table = decoder.get("decoder_pos_embed")
    found = transformer(encoder, module, _DBOT, False)
    return found | placed(places(module, Transformer), rename(decoder, _DECODER), _DBOT, table)


@register("format/official/hpm")
def hpm(content: Any, module: Any) -> dict[str, Tensor]:
    """The checkpoints of Haochen-Wang409/HPM: the student's `state_dict` and the teacher's `ema_state_dict`.

    Both decoders are filled, and of the teacher that of losses, which is all that guides. The file's two decoders share
    map, mask token and positions: each of ours gets a copy. `vis_mask_token` is left out, the run hides no seen patch.
    """
    found: dict[str, Tensor] = {}
    for state, twin in branches(content, module, _HPM):
        decoder, encoder = split(state, "decoder_", "mask_token", "vis_mask_token")
        found |= transformer(encoder, module, _HPM, twin)
        foretold = rename(decoder, _FORETOLD) if any("_losspred" in name for name in decoder) else {}
        table, ranks = decoder.get("decoder_pos_embed"), places(module, Transformer, Rank)
        if twin:
            ranks = [place._replace(base=f"teacher.twins.term_{place.term}") for place in ranks]
        else:
            others = [place for place in places(module, Transformer) if place not in ranks]
            found |= placed(others, rename(decoder, _DECODER), _HPM, table)
        found |= placed(ranks, foretold, _HPM, table)
    return found


@register("format/official/localmim")
def localmim(content: Any, module: Any) -> dict[str, Tensor]:
    """The ViT checkpoints of Haoqing-Wang/LocalMIM (huawei-noah): encoder, and the decoders of four scales.

    The norm behind the last block is the encoder's, the others are those before the decoders. Fixed kernels of the
    histograms (`hog_enc`) are left out: target/hog computes them.

    Raises:
        ValueError: where a decoder of the run reads another block than the file's.
    """
    state = only(content, module, _LOCALMIM)
    decoders, encoder = split(state, "decoder.", "hog_enc.", "norm.")
    norms, decoders = split(decoders, "norm.")
    depth = 1 + max((int(name.split(".")[1]) for name in encoder if name.startswith("blocks.")), default=-1)
    found = transformer(encoder | rename(norms, [(r"norm\.3\.(.+)", r"norm.\1")]), module, _LOCALMIM, False)
    for i, (scale, block) in enumerate(((4, 1), (2, 3), (1, depth - 3), (0.5, depth - 1))):
        own, _ = split(decoders, f"decoder.{i}.")
        own = {name.removeprefix(f"decoder.{i}."): value for name, value in own.items()}
        # an average stands in front of the last convolution
        first = [(r"pred\.1\.(.+)", r"head.0.\1")] if scale < 1 else []
        answers = rename(own, [*first, (r"pred\.(.+)", r"head.\1"), (r"(mask_token|(?:embed|blocks|norm)\..+)", r"\1")])
        for place in places(module, Scaled):
            if answers and _scale(place.part) == scale:
                before = rename(norms, [(rf"norm\.{i}\.(.+)", r"before.\1")]) if place.part.taps else {}
                if place.part.taps not in ((), (f"block.{block}",)) or (not place.part.taps and scale >= 1):
                    raise ValueError(
                        f"init_from: official/localmim: the file's decoder of scale {scale:g} reads block {block}; "
                        f"set objective.{place.term}.predictor.layer=block.{block}."
                    )
                found |= placed([place], answers | before, _LOCALMIM, own.get("pos_embed"))
    return found


def _scale(part: Scaled) -> float:
    """Places per token and axis that a decoder answers."""
    return 0.5 if part.down else {1: 1, 2: 2, 5: 4}[len(part.head)]


@register("format/official/mfm")
def mfm(content: Any, module: Any) -> dict[str, Tensor]:
    """The ViT checkpoints of Jiahao000/MFM: encoder, and the linear head, whose order of pixels becomes ours.

    Keys have no bias there: ours is zero. The class token's position becomes part of the token. A file of its
    `save_checkpoint` holds its configuration as an object, which is not read: keep `model` of it alone.
    """
    state = {name.removeprefix("encoder."): value for name, value in only(content, module, _MFM).items()}
    decoder, encoder = split(state, "decoder.")
    found = transformer(joined_biases(encoder), module, _MFM, False)
    network = module.networks["main"]
    head = {name: value.flatten(1) if value.dim() == 4 else value for name, value in decoder.items()}
    head = {re.sub(r"^decoder\.0\.", "head.", name): value for name, value in head.items()}
    if {len(value) for value in head.values()} == {network.spec.raw}:
        head = {name: channels_last(value, network) for name, value in head.items()}
    return found | placed(places(module, Linear), head, _MFM)


@register("format/official/maskalign")
def maskalign(content: Any, module: Any) -> dict[str, Tensor]:
    """The checkpoints of OpenDriveLab/maskalign with linear heads: encoder, heads, and the weights that mix layers.

    Of the heads and rows those of the last layers are taken, as many as the run has. The teacher (`clip_model`,
    `dino_model`) is left out, the run has its own; and the final norm where the run has none, as no loss reads it.
    """
    state = only(content, module, _MASKALIGN)
    heads, rest = split(state, "distill_", "clip_model.", "dino_model.")
    norm, encoder = split(rest, "norm.")
    silent = isinstance(module.networks["main"].encoder.norm, nn.Identity)
    found = transformer(encoder | ({} if silent else norm), module, _MASKALIGN, False)
    mixed = places(module, MixedLayers)
    rows = {int(name.split(".")[1]) for name in heads if name.startswith("distill_heads.")}
    if not mixed or not rows:
        return found
    last = len(mixed[0].part.heads)
    first = max(rows) + 1 - last
    answers = {} if "distill_weights" not in heads else {"mix": heads["distill_weights"][-last:]}
    for i in range(last):
        own, _ = split(heads, f"distill_heads.{first + i}.")
        answers |= {name.replace(f"distill_heads.{first + i}.", f"heads.{i}."): value for name, value in own.items()}
    return found | placed(mixed, answers, _MASKALIGN)


@register("format/official/dmae")
def dmae(content: Any, module: Any) -> dict[str, Tensor]:
    """The checkpoints of UCSC-VLAA/DMAE: encoder and decoder of the student, and the maps to the teacher's width.

    Which block a map reads is not in the file (`predictor.layer`). The teacher has a file of its own.
    """
    state = only(content, module, _DMAE)
    maps, state = split(state, "aligned_feature_projection_heads.")
    decoder, encoder = split(state, "decoder_", "mask_token")
    found = transformer(encoder, module, _DMAE, False)
    found |= placed(places(module, Transformer), rename(decoder, _DECODER), _DMAE, decoder.get("decoder_pos_embed"))
    for i, place in enumerate(places(module, Tap)):
        own, _ = split(maps, f"aligned_feature_projection_heads.{i}.")
        found |= placed([place], {"head." + name.split(".", 2)[2]: value for name, value in own.items()}, _DMAE)
    return found
