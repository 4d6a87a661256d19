"""GraphMAE (Hou et al. 2022) on Cora with the authors' sizes: an epoch, which is one step over the whole graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmssl
from benchmarks.speed.harness import Script, Work, asked, found_below, plain_step

GOAL, DATA = 0.50, True
WHAT = "GraphMAE on Cora: epoch"
SAME = "weights, graph, Adam; the reference has torch-geometric's GATConv and dense features, and decodes every node"


class Reference(nn.Module):
    """Features replaced, two layers of attention, a bridge, nodes masked once more, and a layer that decodes."""

    def __init__(self, module: Any, facts: dict[str, int]) -> None:
        from torch_geometric.nn import GATConv

        super().__init__()
        stack, predictor = module.kept.encoder.stack, module.objective["features"].predictor
        width, dim = facts["features"], facts["dim"]
        shapes = [(width, dim // 4, 4), (dim, dim // 4, 4), (dim, width, 1)]
        convs = [GATConv(i, o, heads, dropout=0.1, add_self_loops=False) for i, o, heads in shapes]
        for conv, layer in zip(convs, [*stack.layers, predictor.layer], strict=True):
            conv.load_state_dict(layer.conv.state_dict())
        self.convs, self.decoder = nn.ModuleList(convs[:2]), convs[2]
        self.activations, self.bridge = stack.activations, predictor.bridge
        self.token = nn.Parameter(module.corruptors["x"].mask_token.detach().clone())

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Masked nodes; of them those that take the token, and those that take another's features; the others."""
        masked = torch.randperm(n)[: int(0.5 * n)]
        mixed = masked[torch.randperm(len(masked))]
        noise = int(0.05 * len(masked))
        return masked, mixed[: int(0.95 * len(masked))], mixed[-noise:], torch.randperm(n)[:noise]

    def forward(self, x: Tensor, edges: Tensor, drawn: tuple[Tensor, Tensor, Tensor, Tensor] | None = None) -> Tensor:
        masked, learned, noisy, others = self.draw(len(x)) if drawn is None else drawn
        h = x.clone()
        h[learned] = 0.0
        h[noisy] = x[others]
        h[learned] = h[learned] + self.token
        for conv, activation in zip(self.convs, self.activations, strict=True):
            h = activation(conv(F.dropout(h, 0.2, self.training), edges))
        h = self.bridge(h)
        h[masked] = 0.0
        made = self.decoder(F.dropout(h, 0.2, self.training), edges)
        cosine = (F.normalize(made[masked], dim=-1) * F.normalize(x[masked], dim=-1)).sum(-1)
        return (1 - cosine).pow(3).mean()


def make(folder: Path | None) -> Work:
    """The work on the graph in this folder."""
    root = found_below(folder, "ind.cora.x")
    module, data = mmssl.build("graph/graphmae", ["data=cora", f"data.root={root}"])
    data.set_share(rank=0, world=1, accumulate=1)
    given = data.batch([(0, 0)])

    def script(taken: Any) -> Script:
        graph = given["x"].data
        x = graph.x.float() / graph.x.float().sum(1, keepdim=True).clamp(min=1)
        edges, loops = graph.edge_index, torch.arange(len(x)).expand(2, -1)
        edges = torch.cat([edges[:, edges[0] != edges[1]], loops], 1)
        reference = Reference(taken, {"features": x.shape[1], "dim": taken.kept.dim})
        optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3, weight_decay=2e-4)

        def losses() -> tuple[Tensor, Tensor]:
            module.eval(), reference.eval()  # without dropout
            loss, step = asked(module, given)
            hidden, source = (value[0] for value in (step["x"].mask.hidden, step["x"].mask.source))
            borrowed = (source >= 0).nonzero().squeeze(1)
            drawn = (
                hidden.nonzero().squeeze(1),
                (hidden & (source < 0)).nonzero().squeeze(1),
                borrowed,
                source[borrowed],
            )
            found = loss, reference(x, edges, drawn)
            module.train(), reference.train()
            return found

        return Script(lambda: plain_step(reference, optimizer, x, edges), losses, reference, optimizer)

    facts = {"nodes": given["x"].data.num_nodes, "dim": module.kept.dim}
    return Work(module, data.train_dataloader(), script, facts=facts, countable=False)
