"""Terms and targets about edges: which pairs of nodes have one, and how many are hidden from a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.modalities.graph.edge_maskers import BandMask
from mmssl.registry import register, suggest
from mmssl.step import Look, Plan, Step
from mmssl.types import Tokens


class Vacant:
    """Ordered pairs of different nodes of one graph without an edge from the first to the second.

    Every pair of nodes has a number, ascending by graph; the k-th that has no edge is found among the sorted numbers of
    those that have one, so that nothing is drawn in vain.

    Args:
        edges: (2, e) places over the nodes of all graphs.
        sample: owner of each node, ascending, (n,).
        samples: number of graphs.
    """

    def __init__(self, edges: Tensor, sample: Tensor, samples: int) -> None:
        self.size = torch.bincount(sample, minlength=samples)
        self.first = torch.cumsum(self.size, 0) - self.size
        self.base = torch.cumsum(self.size**2, 0) - self.size**2
        loops = torch.arange(len(sample), device=sample.device).expand(2, -1)
        source, target = torch.cat([edges, loops], 1)
        owner = sample[source]
        here = (source - self.first[owner]) * self.size[owner] + target - self.first[owner]
        self.known, place = torch.unique(self.base[owner] + here, return_inverse=True)
        graph = torch.empty_like(self.known).index_copy(0, place, owner)
        self.free = self.size**2 - torch.bincount(graph, minlength=samples)

    def count(self, wanted: Tensor) -> Tensor:
        """How many pairs of each graph are drawn where so many are wanted, (b,): none where all have an edge."""
        return wanted.where(self.free > 0, 0)

    def draw(self, wanted: Tensor, draws: Draws) -> Tensor:
        """Pairs drawn uniformly with repetition, (2, sum of `count`) int64, graph by graph."""
        count = self.count(wanted)
        row = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        if not len(row):
            return torch.stack([row, row])
        place = torch.arange(len(row), device=row.device) - (torch.cumsum(count, 0) - count)[row]
        luck = draws.integers(0, 1 << 53, int(count.max()))[row, place]
        rank = (torch.cumsum(self.free, 0) - self.free)[row] + luck % self.free[row]
        before = self.known - torch.arange(len(self.known), device=row.device)  # of those that have no edge
        code = rank + torch.searchsorted(before, rank, right=True) - self.base[row]
        return torch.stack([code // self.size[row], code % self.size[row]]) + self.first[row]


@register("term/links")
class Links(nn.Module):
    """Tells edges that the masker asks for from pairs of nodes without one (MaskGAE, Li et al. 2023; Bandana).

    A head answers the product of both nodes' features with the logit of an edge, or with those of "edge" and "none".
    The loss is the mean of -log p(edge) over the edges asked for plus the mean of -log p(none) over as many pairs
    without an edge in the whole graph, drawn anew in each step. Edges that weigh more or less in a layer
    (`masker/bandwidths`) are counted with the weight they had in that layer.

    Args:
        plan: sizes of features.
        head: called as (width), gives one or two logits, for instance `head/mlp`.
        layers: layers whose features answer, each on its own, their losses averaged; null for the last.
        look: which look; its masker has to hide or weigh edges.
        aligned: whether an edge counts with its own weight; else with that of another edge, which is what the released
            code of Bandana comes to, where weights and edges are in different orders.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look or layer, layers of different widths, or a head of more than two answers; when
            called, for a masker of anything else than edges.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        head: Callable[[int], nn.Module],
        layers: Sequence[str] | None = None,
        look: str = "x",
        aligned: bool = True,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.look = plan.named([look])[0]
        spec, known = plan.ask(self.look, "seen"), plan.taps[self.look]
        self.layers = [known[-1]] if layers is None else list(layers)
        for name in self.layers:
            if name not in known:
                raise ValueError(f"a term's `layers` names {name!r}{suggest(name, known)}")
        self.places = [known.index(name) for name in self.layers]
        encoder = plan.networks[self.look].encoder
        widths: dict[str, int] = getattr(encoder, "tap_dims", {})
        width = {widths.get(name, plan.dims[self.look]) for name in self.layers}
        if len(width) > 1:
            raise ValueError(f"a term's `layers` have {sorted(width)} features, but one head answers all; name some")
        spec.taps |= set(self.layers)
        self.head, self.aligned, self.weight = head(width.pop()), aligned, weight
        if int(self.head.dim) not in (1, 2):  # pyright: ignore[reportArgumentType]  # heads declare `dim`
            raise ValueError(f"a term's `head` has to end in 1 or 2 logits of an edge (got {self.head.dim})")
        self.signals: dict[str, Tensor] = {}

    @torch.no_grad()
    def count(self, step: Step) -> Tensor:
        """Edges asked for, and pairs without an edge."""
        asked, wanted, vacant = self._asked(step[self.look])
        return torch.stack([wanted.new_tensor(len(asked)), vacant.count(wanted).sum()])

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sums over edges asked for and over pairs without one, (2,), and their numbers."""
        look = step[self.look]
        asked, wanted, vacant = self._asked(look)
        none = vacant.draw(wanted, look.draws.named("absent"))
        assert look.tokens.edges is not None
        pairs = torch.cat([look.tokens.edges[:, asked], none], 1)
        total, weight = [], look.mask.weight if isinstance(look.mask, BandMask) else None
        for name, place in zip(self.layers, self.places, strict=True):
            logits = self.logits(look.seen.taps[name], pairs)
            there = F.softplus(-logits[: len(asked)])
            if weight is not None:
                own = weight[place, asked].to(there.dtype)
                there = there * (own if self.aligned else own.flip(0))
            total.append(torch.stack([there.sum(), F.softplus(logits[len(asked) :]).sum()]))
        return torch.stack(total).mean(0), total[0].new_tensor([float(len(asked)), float(none.shape[1])])

    def logits(self, z: Tensor, pairs: Tensor) -> Tensor:
        """Logit of an edge between nodes (2, p) with features (n, d), (p,)."""
        answers = self.head(z[pairs[0]] * z[pairs[1]])
        return answers[:, 0] if answers.shape[1] == 1 else answers[:, 0] - answers[:, 1]

    def _asked(self, look: Look) -> tuple[Tensor, Tensor, Vacant]:
        """Places of the edges asked for, how many those are in each graph, and pairs without an edge."""
        mask, tokens = look.mask, look.tokens
        assert tokens.edges is not None and tokens.sample is not None and tokens.samples is not None
        if mask.visible.shape[1] != tokens.edges.shape[1]:
            raise ValueError(
                f"look {look.spec.name!r}: a term asks for edges, but the mask has {mask.visible.shape[1]} places for "
                f"{tokens.edges.shape[1]} edges; set masker._target_=masker/paths, masker/edges or masker/bandwidths"
            )
        asked = mask.targets[0, 0].nonzero().squeeze(1)
        count = torch.bincount(tokens.sample[tokens.edges[0, asked]], minlength=tokens.samples)
        return asked, count, Vacant(tokens.edges, tokens.sample, tokens.samples)


@register("target/hidden_degree")
class HiddenDegree(nn.Module):
    """How many edges that are asked for lead to each node (MaskGAE's degree regression); goes with a masker of edges.

    Args:
        plan: sizes.
        look: the look whose edges are masked.
    """

    dim = 1

    def __init__(self, plan: Plan, look: str) -> None:
        super().__init__()

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Degrees in the graph of the masked edges, (n, 1), at the nodes asked for."""
        edges = look.tokens.edges
        assert edges is not None
        hidden = look.mask.targets[0, 0].nonzero().squeeze(1)
        degree = torch.bincount(edges[1, hidden], minlength=len(look.tokens.index))
        return look.tokens.at(query, degree.to(query.raw.dtype).unsqueeze(1))
