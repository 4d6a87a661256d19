"""Point-MAE (Pang et al. 2022) as in the paper, 1024 points in 64 groups of 32, batch 16."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.harness import Given, Script, Work, adamw, asked, built, plain_step
from benchmarks.speed.points import chamfer_plainly, gathered, sampled
from mmssl.types import View

GOAL, GOAL_SAID = 1.0, "faster"
WHAT = "Point-MAE, 1024 points, batch 16: whole step"
SAME = (
    "timm blocks, weights, batch, AdamW; the reference groups and measures in plain torch, and joins maxima to points"
)


class Reference(nn.Module):
    """Groups, a PointNet over each, an encoder of the visible ones and a decoder of all."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        main, decoder = module.networks["main"], module.objective["points"].predictor
        self.first, self.second = main.embed.first, main.embed.second
        self.blocks, self.norm, self.place = main.encoder.blocks, main.encoder.norm, main.encoder.position.layers
        self.token, self.dec_blocks = decoder.mask_token, decoder.blocks
        self.dec_place, self.dec_norm, self.head = decoder.position.layers, decoder.norm, decoder.head

    def embed(self, groups: Tensor) -> Tensor:
        b, g, k, _ = groups.shape
        inner, norm, outer = self.first
        x = outer(F.relu(norm(inner(groups.view(-1, 3))))).view(b * g, k, -1)
        x = torch.cat([x.max(1, keepdim=True).values.expand(-1, k, -1), x], -1)
        inner, norm, outer = self.second
        x = outer(F.relu(norm(inner(x.flatten(0, 1))))).view(b * g, k, -1)
        return x.max(1).values.view(b, g, -1)

    def forward(self, points: Tensor, hidden: Tensor | None = None) -> Tensor:
        every = torch.arange(len(points)).unsqueeze(1)
        centres = points[every, sampled(points, 64)]
        groups = points[every.unsqueeze(2), gathered(centres, points)] - centres.unsqueeze(2)
        if hidden is None:
            order = torch.rand(len(points), 64).argsort(1)
            hidden = torch.zeros(len(points), 64, dtype=torch.bool).scatter_(1, order[:, :38], True)
        b, x = len(points), self.embed(groups)
        x, seen, asked_for = x[~hidden].view(b, -1, x.shape[-1]), centres[~hidden], centres[hidden]
        place = self.place(seen.view(b, -1, 3))
        for block in self.blocks:
            x = block(x + place)
        x = self.norm(x)
        place = self.dec_place(torch.cat([seen.view(b, -1, 3), asked_for.view(b, -1, 3)], 1))
        count = 38
        x = torch.cat([x, self.token.expand(b, count, -1)], 1)
        for block in self.dec_blocks:
            x = block(x + place)
        made = self.head(self.dec_norm(x[:, -count:])).view(b * count, -1, 3)
        return chamfer_plainly(made, groups[hidden]).mean()


def make(batch: int = 16, points: int = 1024) -> Work:
    """The work at these sizes."""
    module = built("pointcloud/point_mae", [f"data.batch_size={batch}", f"data.size={points}"], {"points": points})
    ids = torch.arange(batch)
    clouds = torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(0))
    clouds = F.normalize(clouds, dim=-1)
    given = {"x": View(clouds, "pointcloud"), "id": ids, "epoch": torch.zeros_like(ids)}

    def script(taken: Any) -> Script:
        reference = Reference(taken)
        optimizer = adamw(reference)

        def losses() -> tuple[Tensor, Tensor]:
            module.eval(), reference.eval()  # without drop path
            loss, step = asked(module, given)
            found = loss, reference(clouds, step["x"].mask.hidden)
            module.train(), reference.train()
            return found

        return Script(lambda: plain_step(reference, optimizer, clouds), losses, reference, optimizer)

    return Work(module, Given(given), script, facts={"batch": batch, "points": points})
