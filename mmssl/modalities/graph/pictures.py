"""Small drawings of graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_SIDE, _SCALE, _MOST = 160, 3, 60
_GREY, _LINE = (205, 205, 210), (165, 170, 178)


def draw(sample: Any, side: int = _SIDE) -> np.ndarray:
    """A graph as a drawing, (side, side, 3) uint8.

    Nodes of like features have like colours, hidden nodes (`sample.hidden`) are grey. Of a graph of more than 60 nodes
    the neighbourhood of its best connected node is shown.

    Args:
        sample: torch-geometric's `Data`.
        side: of the drawing in pixels.
    """
    from PIL import Image, ImageDraw

    nodes, edges = neighbourhood(sample.edge_index, int(sample.num_nodes))
    place = layout(edges, len(nodes))
    colours = tints(sample, nodes)
    hidden = sample.get("hidden")
    size = side * _SCALE
    sheet = Image.new("RGB", (size, size), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    points = (size * (0.06 + 0.88 * place)).tolist()
    for a, b in edges.t().tolist():
        if a < b:
            pen.line([*points[a], *points[b]], fill=_LINE, width=_SCALE)
    radius = size * float(np.clip(0.18 / len(nodes) ** 0.5, 0.016, 0.045))
    for i, (x, y) in enumerate(points):
        grey = hidden is not None and bool(hidden[nodes[i]])
        box = [x - radius, y - radius, x + radius, y + radius]
        pen.ellipse(box, fill=_GREY if grey else colours[i], outline=(90, 95, 105), width=max(1, _SCALE // 2))
    return np.asarray(sheet.resize((side, side), Image.Resampling.LANCZOS))


def neighbourhood(edges: Tensor, n: int, most: int = _MOST) -> tuple[Tensor, Tensor]:
    """Places of at most `most` nodes, found by walking outwards from a well connected one, and the edges among them."""
    if n <= most:
        return torch.arange(n), edges
    apart = edges[:, edges[0] != edges[1]]
    degree = torch.bincount(apart[1], minlength=n)
    # a hub would fill the drawing with a star: leave hubs out, and begin where there is room for others
    calm = degree <= most // 5
    apart, degree = apart[:, calm[apart].all(0)], torch.where(calm, degree, 0)
    found, seen = [int(degree.argmax())], torch.zeros(n, dtype=torch.bool)
    seen[found[0]] = True
    front = torch.tensor(found)
    while len(found) < most and len(front):
        inside = torch.zeros(n, dtype=torch.bool)
        inside[front] = True
        near = apart[1, inside[apart[0]]].unique()
        front = near[~seen[near]][: most - len(found)]
        seen[front] = True
        found += front.tolist()
    nodes = torch.tensor(found)
    number = torch.full((n,), -1)
    number[nodes] = torch.arange(len(nodes))
    own = number[apart]
    return nodes, own[:, (own >= 0).all(0)]


def layout(edges: Tensor, n: int, rounds: int = 120) -> Tensor:
    """Places of nodes in the unit square, (n, 2): springs along edges, all nodes push (Fruchterman and Reingold 1991).

    Begins on a spiral, so that nothing is drawn at random.
    """
    turn = torch.arange(n) * 2.399963
    place = torch.stack([torch.cos(turn), torch.sin(turn)], 1) * ((torch.arange(n) + 0.5) / n).sqrt().unsqueeze(1)
    joined = torch.zeros(n, n)
    joined[edges[0], edges[1]] = 1.0
    joined = ((joined + joined.t()) > 0).float()
    ideal = 1.6 / max(n, 1) ** 0.5
    for step in range(rounds):
        apart = place[:, None] - place[None]
        distance = apart.norm(dim=-1).clamp(min=1e-3)
        force = ideal**2 / distance - joined * distance**2 / ideal
        move = (apart / distance.unsqueeze(-1) * force.unsqueeze(-1)).sum(1) - 0.4 * place * ideal
        length = move.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        place = place + move / length * length.clamp(max=0.12 * (1 - step / rounds))
    place = place - place.min(0).values
    return place / place.max().clamp(min=1e-6)


def tints(sample: Any, nodes: Tensor) -> list[tuple[int, int, int]]:
    """A colour per node: its features along three fixed directions; degrees where it has none."""
    if sample.get("x") is None:
        values = torch.bincount(sample.edge_index[1], minlength=int(sample.num_nodes)).float()[nodes].unsqueeze(1)
        x = values == torch.arange(12)
    else:
        x = sample.x[nodes]
    x = x.float()
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    angle = torch.arange(x.shape[1]) * 2.399963  # neighbouring columns lie far apart on the colour circle
    directions = torch.stack([torch.cos(angle + shift) for shift in (0.0, 2.0944, 4.18879)], 1)
    values = torch.sigmoid(2.5 * x @ directions)
    return [tuple(int(60 + 180 * value) for value in row) for row in values.tolist()]  # pyright: ignore[reportReturnType]
