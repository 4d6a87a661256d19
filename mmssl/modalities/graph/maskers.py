"""Maskers of graphs: nodes, counted over the whole global batch as if it were one graph, and edges, graph by graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.registry import register
from mmssl.types import Mask, Tokens

_NO_TOKENS = (
    "masker._target_=masker/edges hides edges, but a term asks for hidden or visible tokens, which are nodes; set "
    "masker._target_=masker/nodes (with corruptor/replace), or the term's at=all to ask for every node of a graph that "
    "has lost edges"
)


def check_share(key: str, share: float) -> None:
    """Refuses a share outside [0, 1).

    Raises:
        ValueError: naming the key and the remedy.
    """
    if not 0.0 <= share < 1.0:
        hint = f"; did you mean {share / 100:g}?" if 1.0 < share < 100.0 else ""
        raise ValueError(f"{key} is a share and has to be in [0, 1) (got {share:g}){hint}")


def spread(draws: Draws, sample: Tensor, index: Tensor, longest: int) -> Tensor:
    """A uniform number for each element of a packed batch, (n,): a pure function of its sample and place in it."""
    return draws.uniform(longest).to(sample.device)[sample, index]


def placed(score: Tensor) -> Tensor:
    """The rank of each of this process's elements among those of all processes, ascending, (n,) int64."""
    return ordinal(ranks.gather(score))[_own(len(score), score.device)]


def placed_among(rank: Tensor, chosen: Tensor) -> Tensor:
    """The rank of each chosen element among the chosen ones of all processes; past the last of them for others."""
    return placed(rank + torch.where(chosen, 0, 1 << 40))


def _own(count: int, device: torch.device) -> slice:
    """Where this process's elements lie among those of all processes."""
    if ranks.world() == 1:
        return slice(0, count)
    counts = ranks.gather(torch.tensor([count], device=device)).tolist()
    start = sum(counts[: ranks.rank()])
    return slice(start, start + count)


@register("masker/nodes")
class Nodes:
    """Hides a share of all nodes of a batch (GraphMAE, Hou et al. 2022).

    Of N nodes in the global batch, m = int(ratio N) are hidden: the first int((1 - noise) m) of a random order are
    replaced by the token, the last int(noise m) by the features of as many distinct random nodes. At most two are left
    between them: they keep their own features and are asked for all the same, as in the released code.

    Args:
        ratio: share of nodes that are hidden, in [0, 1).
        noise: share of the hidden nodes that get another node's features, in [0, 1).

    Raises:
        ValueError: for a share outside [0, 1).
    """

    def __init__(self, *, ratio: float = 0.5, noise: float = 0.0) -> None:
        check_share("masker.ratio", ratio)
        check_share("masker.noise", noise)
        self.ratio, self.noise = ratio, noise

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks a packed batch as one row."""
        assert tokens.sample is not None, "masker/nodes hides nodes of packed graphs"
        longest = int(tokens.index.max()) + 1 if len(tokens.index) else 0

        def order(name: str) -> Tensor:
            return placed(spread(draws.named(name), tokens.sample, tokens.index, longest))  # pyright: ignore[reportArgumentType]

        count, device = len(tokens.index), tokens.index.device
        total = count if ranks.world() == 1 else int(ranks.gather(torch.tensor([count], device=device)).sum())
        hide = int(self.ratio * total)
        hidden = order("hide") < hide
        alone = ranks.world() == 1
        return Mask(
            ~hidden.unsqueeze(0), hidden.view(1, 1, -1), None, count - hide if alone else None, hide if alone else None,
            source=self._source(hidden, hide, order) if self.noise > 0 else None,
        )  # fmt: skip

    def _source(self, hidden: Tensor, hide: int, order: Callable[[str], Tensor]) -> Tensor:
        """Where noise nodes take their features from, (1, n); nodes that are left take their own."""
        tokens, noise = int((1 - self.noise) * hide), int(self.noise * hide)
        kind = placed_among(order("kind"), hidden)
        giver = torch.argsort(ranks.gather(order("giver")))  # places in the global batch, in random order
        source = torch.full_like(kind, -1)
        noisy = hidden & (kind >= hide - noise)
        source[noisy] = giver[kind[noisy] - (hide - noise)]
        left = hidden & (kind >= tokens) & ~noisy
        own = torch.arange(len(giver), device=giver.device)[_own(len(hidden), hidden.device)]
        return torch.where(left, own, source).unsqueeze(0)


class EdgeMask(Mask):
    """A mask over edges: its flags belong to `tokens.edges`, and it has no places of tokens."""

    @cached_property
    def visible_index(self) -> tuple[Tensor, Tensor | None]:
        """Refuses: what is visible are edges.

        Raises:
            ValueError: always, with the masker to use.
        """
        raise ValueError(_NO_TOKENS)

    @cached_property
    def target_index(self) -> tuple[Tensor, Tensor | None]:
        """Refuses: what is asked for are edges.

        Raises:
            ValueError: always, with the masker to use.
        """
        raise ValueError(_NO_TOKENS)


def either_way(chosen: Tensor, edges: Tensor, nodes: int) -> Tensor:
    """Which edges (2, e) are chosen in their own or in the other direction, (e,) bool."""
    code = edges.amin(0) * nodes + edges.amax(0)
    return torch.isin(code, code[chosen])


@register("masker/edges")
class Edges:
    """Hides a share of the edges of each graph (MaskGAE, Li et al. 2023); the mask's places are those of the edges.

    What the mask says belongs to `tokens.edges` in their order: `visible` (1, e), `targets` (1, 1, e); a term that asks
    it for nodes is refused. Self loops are always visible and never asked for. Which edges are hidden is a function of
    the graph and its draws alone, whatever else is in the batch. Goes with `corruptor/drop_edges`.

    Args:
        ratio: share of edges that are hidden, in [0, 1); 0.7 in the paper.
        exact: whether int(ratio * edges) of each graph are hidden; else each edge by itself with this probability, as
            in the paper.
        symmetric: whether both directions of an edge are hidden together, and counted as one. Else each direction is
            drawn by itself and asked for, but shows wherever the other is kept, as in the released code.

    Raises:
        ValueError: for a share outside [0, 1).
    """

    def __init__(self, *, ratio: float = 0.7, exact: bool = False, symmetric: bool = True) -> None:
        check_share("masker.ratio", ratio)
        self.ratio, self.exact, self.symmetric = ratio, exact, symmetric

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks the edges of a packed batch as one row."""
        assert tokens.sample is not None and tokens.edges is not None, "masker/edges hides edges of packed graphs"
        edges = tokens.edges
        apart = (edges[0] != edges[1]).nonzero().squeeze(1)
        unit, owner = self._units(edges[:, apart], tokens.sample)
        hidden = torch.zeros(edges.shape[1], dtype=torch.bool, device=edges.device)
        if len(owner):
            hidden[apart] = self._chosen(owner, draws)[unit]
        shown = ~hidden if self.symmetric else either_way(~hidden, edges, len(tokens.index))
        return EdgeMask(shown.unsqueeze(0), hidden.view(1, 1, -1))

    def _units(self, edges: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """What is hidden as one: the unit of each edge, and the graph of each unit, ascending."""
        if self.symmetric:
            low, high = edges.amin(0), edges.amax(0)
            pairs, unit = torch.unique(low * len(sample) + high, return_inverse=True)
            return unit, sample[pairs // len(sample)]
        owner = sample[edges[0]]
        order = torch.argsort(owner, stable=True)
        unit = torch.empty_like(order)
        unit[order] = torch.arange(len(order), device=order.device)
        return unit, owner[order]

    def _chosen(self, owner: Tensor, draws: Draws) -> Tensor:
        """Which units are hidden, (u,) bool."""
        count = torch.bincount(owner, minlength=len(draws.keys))
        start = torch.cumsum(count, 0) - count
        place = torch.arange(len(owner), device=owner.device) - start[owner]
        luck = spread(draws.named("edges"), owner, place, int(count.max()))
        if not self.exact:
            return luck < self.ratio
        order = torch.argsort(luck, stable=True)
        order = order[torch.argsort(owner[order], stable=True)]
        chosen = torch.empty_like(luck, dtype=torch.bool)
        chosen[order] = place < (self.ratio * count.double()).long()[owner]
        return chosen


@register("masker/neighbourhoods")
class Neighbourhoods:
    """Hides balls of nodes around random centres of each graph: blocks, as those of I-JEPA are on a grid.

    The nodes of a graph are centres in a random order. A ball is all that lies within `radius` steps of its centre,
    whichever way edges lead, and is not in a ball before; balls are taken until int(ratio * nodes) are hidden. Of the
    last ball the nodes next to its centre are taken first. What is hidden is a function of the graph and its draws
    alone, whatever else is in the batch.

    Args:
        ratio: share of the nodes of each graph that are hidden, in [0, 1).
        radius: steps from the centre to the rim of a ball; 0 hides single nodes.

    Raises:
        ValueError: for a ratio outside [0, 1), or a negative radius.
    """

    def __init__(self, *, ratio: float = 0.4, radius: int = 2) -> None:
        check_share("masker.ratio", ratio)
        if radius < 0:
            raise ValueError(f"masker.radius is a number of steps along edges, from 0 on (got {radius})")
        self.ratio, self.radius = ratio, radius

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks a packed batch as one row."""
        sample, index = tokens.sample, tokens.index
        assert sample is not None and tokens.edges is not None, "masker/neighbourhoods hides nodes of packed graphs"
        longest = int(index.max()) + 1 if len(index) else 0
        centre, steps = self._balls(_ordinal([spread(draws.named("centres"), sample, index, longest)]), tokens.edges)
        luck = spread(draws.named("rim"), sample, index, longest)
        count = torch.bincount(sample, minlength=len(draws.keys))
        place = _ordinal([luck, steps, centre, sample]) - (torch.cumsum(count, 0) - count)[sample]
        # a table, not arithmetic on the device: a graph hides as many as int(ratio * nodes) says
        table = torch.tensor([int(self.ratio * n) for n in range(longest + 1)], device=sample.device)
        hidden = place < table[count[sample]]
        return Mask(~hidden.unsqueeze(0), hidden.view(1, 1, -1))

    def _balls(self, first: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Of each node the foremost centre within reach, and how many steps away that lies.

        The foremost centre within d steps of a node is the foremost within d - 1 steps of it or its neighbours; the
        step at which it is first heard of is its distance.
        """
        source, target = torch.cat([edges, edges.flip(0)], 1)
        centre, steps = first, torch.zeros_like(first)
        for step in range(1, self.radius + 1):
            heard = centre.scatter_reduce(0, target, centre[source], "amin")
            steps = torch.where(heard < centre, step, steps)
            centre = heard
        return centre, steps


def _ordinal(keys: Sequence[Tensor]) -> Tensor:
    """The rank of each element, (n,): by the last of the keys, then by the one before it."""
    order = torch.argsort(keys[0], stable=True)
    for key in keys[1:]:
        order = order[torch.argsort(key[order], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank
