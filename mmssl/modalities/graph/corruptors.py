"""Corruptors of graphs: how nodes or edges are hidden while every node stays where it is."""

from __future__ import annotations

import torch
from torch import nn

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.modalities.graph.tokens import GraphTokens, links
from mmssl.registry import register
from mmssl.types import Mask, Tokens, TokenSpec


@register("corruptor/replace")
class Replace(nn.Module):
    """Puts one learned vector, or another node's features, in place of the features of hidden nodes (GraphMAE).

    Hidden nodes with a `Mask.source` take the features of that node, all others the learned vector, which starts at
    zero (GraphMAE) or is Xavier-normal (GraphMAE2).

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts: `graph`.
        dim: the encoder's width.
        init: how the learned vector begins: `zero` or `xavier`.
        shown_only: whether the encoder may leave hidden nodes out of its last layer, for predictors that mask them once
            more anyway (`predictor/graph`); a saving, not another result. Not where a term asks for the features of
            hidden nodes themselves, or the predictor masks others (`predictor.remask`).

    Raises:
        ValueError: for another word than `zero` or `xavier`.
    """

    on = "tokens"
    needs = ("graph",)

    def __init__(
        self, spec: TokenSpec, accepts: str, dim: int, *, init: str = "zero", shown_only: bool = False
    ) -> None:
        super().__init__()
        if init not in ("zero", "xavier"):
            raise ValueError(f"corruptor.init has to be 'zero' or 'xavier' (got {init!r})")
        self.shown_only = shown_only
        token = torch.zeros(1, spec.raw)
        self.mask_token = nn.Parameter((nn.init.xavier_normal_(token) if init == "xavier" else token)[0])

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """The same nodes and edges, with other features."""
        hidden = mask.hidden[0]
        source = torch.full_like(hidden, -1, dtype=torch.int64) if mask.source is None else mask.source[0]
        learned = hidden & (source < 0)
        rows = torch.where(source >= 0, source, torch.arange(len(source), device=source.device))
        replaced, borrowed = learned.nonzero().squeeze(1), (source >= 0).nonzero().squeeze(1)
        raw = tokens.raw.clone()
        if mask.source is not None:
            raw[borrowed] = ranks.gather(tokens.raw)[source[borrowed]]
        raw[replaced] = self.mask_token.to(raw.dtype)
        if not isinstance(tokens, GraphTokens):
            return tokens.but(raw=raw)
        wanted = (~hidden).nonzero().squeeze(1) if self.shown_only else None
        features = None
        if tokens.features is not None and ranks.world() == 1:
            features = tokens.features.pick(torch.where(learned, -1, rows))
        token = self.mask_token.clone()  # the parameter itself may be gone when the encoder reads it (FSDP)
        return tokens.but(
            raw=raw, features=features, token=token, replaced=replaced, wanted=wanted, draws=draws
        )  # fmt: skip


@register("corruptor/drop_edges")
class DropEdges(nn.Module):
    """Takes hidden edges away before the encoder (MaskGAE, Li et al. 2023); self loops stay.

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts: `graph`.
        dim: the encoder's width.
    """

    on = "tokens"
    needs = ("graph",)

    def __init__(self, spec: TokenSpec, accepts: str, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """The same nodes, with the visible edges and their attributes and weights.

        Raises:
            ValueError: for a mask over anything else than edges.
        """
        edges, weight = tokens.edges, tokens.edge_weight
        assert edges is not None
        if mask.visible.shape[1] != edges.shape[1]:
            raise ValueError(
                f"corruptor/drop_edges: the mask has {mask.visible.shape[1]} places, but there are {edges.shape[1]} "
                "edges; it goes with a masker of edges: set masker._target_=masker/edges"
            )
        kept = (mask.visible[0] | (edges[0] == edges[1])).nonzero().squeeze(1)
        changed = tokens.but(
            edges=edges[:, kept],
            edge_attr=None if tokens.edge_attr is None else tokens.edge_attr[kept],
            edge_weight=None if weight is None else weight[..., kept],
        )
        if not isinstance(changed, GraphTokens):
            return changed
        bare = changed.but(links=None)
        return bare.but(links=links(bare))
