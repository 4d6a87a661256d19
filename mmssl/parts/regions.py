"""Which tokens a term asks for, and which of them count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.masks import places
from mmssl.registry import suggest
from mmssl.step import Look, Plan
from mmssl.types import Tokens


def named_regions(at: str | Sequence[str]) -> list[str]:
    """The regions that a term asks at, of one or a list.

    Raises:
        ValueError: for an unknown one, none, or one twice.
    """
    found = [at] if isinstance(at, str) else list(at)
    known = {"hidden" if re.fullmatch(r"hidden\.\d+", name) else name for name in found}
    if not found or len(set(found)) < len(found) or not known <= {"hidden", "visible", "all", "kept"}:
        raise ValueError(
            f"a term's `at` has to be 'hidden', 'visible', 'all' or 'kept', or a list of them (got {at!r})"
        )
    return found


def regions(look: Look, at: str) -> tuple[Tensor, Tensor | None]:
    """Places (r, k, t) and validity of the tokens a loss is taken over: `hidden`, `visible`, `all` or `kept`.

    `hidden.1` are the hidden tokens of the second stream of several.
    """
    if at.startswith("hidden."):
        stream = look.tokens.stream
        if stream is None:
            raise ValueError(f"a term's `at` is {at!r}, but the tokens are of one stream; say hidden")
        own = stream == int(at.removeprefix("hidden."))
        return places(look.mask.targets & (own if look.row is None else own[look.row]).unsqueeze(1), None)
    if at == "hidden":
        return look.mask.target_index
    if at == "kept":
        kept, valid = look.seen.index, look.seen.valid
        return kept.unsqueeze(1), None if valid is None else valid.unsqueeze(1)
    if at == "visible":
        index, valid = look.mask.visible_index
        return index.unsqueeze(1), None if valid is None else valid.unsqueeze(1)
    if look.tokens.packed:
        return torch.arange(len(look.tokens.index), device=look.tokens.index.device)[None, None], None
    index = look.tokens.index if look.row is None else look.tokens.index[look.row]
    return index.unsqueeze(1), None


def foreseen(look: Look, at: str) -> tuple[Tensor, Tensor | None]:
    """As `regions`, without encoding anything: of what an encoder will keep the number is known, and not the places."""
    if at != "kept":
        return regions(look, at)
    index, valid = regions(look, "visible" if getattr(look.spec.corruptor, "drops", False) else "all")
    left = getattr(look.network.encoder, "left", None)
    return (index, valid) if left is None else (index[..., : left(index.shape[-1])], valid)


def asked(look: Look, at: str, index: Tensor, valid: Tensor | None, bare: bool = False) -> Tokens:
    """The clean tokens at places (r, k, t) of a region, (r k, t); what is asked for but in no loss is not `given`.

    Args:
        look: the look.
        at: the region.
        index: places, from `regions`.
        valid: their validity.
        bare: whether raw values and positions are left out.
    """
    row, every = look.row, blocks_of(index)
    if every is not None:
        row = every if row is None else row[every]
    flat, places = None if valid is None else valid.flatten(0, 1), index.flatten(0, 1)
    query = (look.tokens.but(raw=None, pos=None) if bare else look.tokens).take(places, row, flat)
    loss = look.mask.loss if at == "hidden" else None
    if loss is None:
        return query
    flags = loss.flatten(0, 1).gather(1, places)
    flags = flags[0] if query.packed else flags
    return query.but(given=flags if query.given is None else query.given & flags)


def from_end(layer: str, taps: Sequence[str]) -> str:
    """The name of a layer that may be counted from the last: `qkv.-1` is `qkv.11` of 12 blocks; others as they are."""
    kind, _, number = layer.partition(".")
    if not number.startswith("-"):
        return layer
    alike = [name for name in taps if name.startswith(f"{kind}.")]
    return alike[int(number)] if 0 < -int(number) <= len(alike) else layer


def check_borrowed(plan: Plan, of: str | None, predictor: nn.Module | None) -> None:
    """Refuses to borrow the predictor of a term that is not there, or beside one of its own.

    Raises:
        ValueError: naming the term.
    """
    if of is not None and predictor is not None:
        raise ValueError(
            f"a term has a predictor of its own, and `of` takes that of term {of!r}; leave one of them out"
        )
    if of is not None and of not in plan.before:
        raise ValueError(
            f"a term's `of` names an earlier term whose predictor it takes, and there is no term {of!r} before it"
            f"{suggest(of, plan.before)}"
        )


def request(plan: Plan, looks: Sequence[str], target: Any) -> None:
    """Tells looks what a target will ask them: it declares `asks` (`taught`) and `taps` (layers, see `from_end`)."""
    for name in looks:
        for what in getattr(target, "asks", ()):
            plan.ask(name, what)
        wanted = {from_end(layer, plan.taps[name]) for layer in getattr(target, "taps", ())}
        if missing := wanted - set(plan.taps[name]):
            raise ValueError(f"the target reads layers {sorted(missing)}, but the encoder has {plan.taps[name]}")
        plan.looks[name].taught_taps |= wanted


def counted(query: Tokens) -> Tensor | None:
    """Which of the tokens asked for are in the loss: neither padding nor naturally missing; None for all."""
    if query.given is None:
        return query.valid
    return query.given if query.valid is None else query.valid & query.given


def blocks_of(index: Tensor) -> Tensor | None:
    """Of places (r, k, t) the row of each of the r k blocks; None where rows have one block each."""
    r, k = index.shape[:2]
    return torch.arange(r, device=index.device).repeat_interleave(k) if k > 1 else None


def marked(query: Tokens, flags: Tensor | None, elements: Tensor) -> Tensor:
    """Which values (r, t, e) of the tokens asked for are in the loss, of those that are in it at all."""
    repeats = query.index.shape[0] // elements.shape[0]
    place = query.index.unsqueeze(-1).expand(-1, -1, elements.shape[-1])
    marked = elements.repeat_interleave(repeats, 0).gather(1, place)
    return marked if flags is None else marked & flags.unsqueeze(-1)


def everywhere(tokens: Tokens) -> Tensor:
    """Places 0 .. n - 1 of these tokens themselves, (b, n)."""
    return torch.arange(tokens.index.shape[1], device=tokens.index.device).expand_as(tokens.index)


def beside(memory: Tokens, look: Look, query: Tokens) -> Tokens:
    """Features of another look, a row for each of a query's: its sample's, or its own where both have as many."""
    rows, known = len(query.index), len(memory.index)
    if memory.packed or rows == known:
        return memory
    samples, owner = len(look.tokens.index), look.row
    masks = samples if owner is None else len(owner)
    each = torch.arange(masks, device=query.index.device).repeat_interleave(rows // masks)
    row = each if owner is None or known == masks else owner[each]
    prefix = None if memory.prefix is None else memory.prefix[row]
    return memory.take(everywhere(memory)[row], row).but(prefix=prefix)
