"""A whole run: GraphMAE on Cora for 100 epochs, from the command to the last weights on disk, beside a plain script."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.harness import found_below
from benchmarks.speed.startup import seconds

GOAL, DATA = 0.6, True
EPOCHS = 100
WHAT = f"GraphMAE on Cora, {EPOCHS} epochs: from the command to the end of the process"
SAME = "sizes, epochs; ours also writes metrics, checkpoints, monitors and a report; no probes on either side"
SILENT = ["evaluation.protocols.knn=null", "evaluation.protocols.linear=null"]

# The authors' algorithm as one file: torch-geometric's reader and layers, dense features, every node decoded.
BARE = """
import sys, torch, torch.nn.functional as F
from torch import nn
from torch_geometric.io import read_planetoid_data
from torch_geometric.nn import GATConv

folder, out, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
graph = read_planetoid_data(folder, "cora")
x = graph.x / graph.x.sum(1, keepdim=True).clamp(min=1)
n, width = x.shape
edges = torch.cat([graph.edge_index, torch.arange(n).expand(2, -1)], 1)

class GraphMAE(nn.Module):
    def __init__(self, dim=512, heads=4):
        super().__init__()
        made = lambda i, o, h: GATConv(i, o, h, dropout=0.1, add_self_loops=False)
        self.convs = nn.ModuleList([made(width, dim // heads, heads), made(dim, dim // heads, heads)])
        self.activations = nn.ModuleList([nn.PReLU(), nn.PReLU()])
        self.bridge, self.decoder = nn.Linear(dim, dim, bias=False), made(dim, width, 1)
        self.token = nn.Parameter(torch.zeros(1, width))
    def forward(self):
        masked = torch.randperm(n)[: n // 2]
        noise = int(0.05 * len(masked))
        mixed = masked[torch.randperm(len(masked))]
        learned, noisy = mixed[: len(masked) - noise], mixed[len(masked) - noise :]
        h = x.clone()
        h[learned] = 0.0
        h[noisy] = x[torch.randperm(n)[:noise]]
        h[learned] = h[learned] + self.token
        for conv, activation in zip(self.convs, self.activations):
            h = activation(conv(F.dropout(h, 0.2, self.training), edges))
        h = self.bridge(h)
        h[masked] = 0.0
        made = self.decoder(F.dropout(h, 0.2, self.training), edges)
        cosine = (F.normalize(made[masked], dim=-1) * F.normalize(x[masked], dim=-1)).sum(-1)
        return (1 - cosine).pow(3).mean()

model = GraphMAE()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=2e-4)
for epoch in range(epochs):
    loss = model()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
torch.save(model.state_dict(), out)
"""


def measure(pairs: int, data: Path | None) -> dict[str, Any]:
    """Processes that alternate; three pairs are enough for so long a work."""
    root = found_below(data, "ind.cora.x")
    times: list[tuple[float, float]] = []
    for _ in range(min(pairs, 3)):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            words = ["graph/graphmae", "data=cora", f"data.root={root}", f"trainer.max_epochs={EPOCHS}"]
            words += [f"run.root={place}", "evaluation.online=false", *SILENT]
            one = seconds([sys.executable, "-m", "mmssl.cli", "pretrain", *words])
            (place / "bare.py").write_text(BARE)
            raw = next(root.rglob("ind.cora.x")).parent
            other = seconds([sys.executable, str(place / "bare.py"), str(raw), str(place / "end.pt"), str(EPOCHS)])
            times.append((one, other))
    a, b = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    return {
        "pairs": len(times), "ours_ms": round(a), "reference_ms": round(b), "ratio": round(a / b, 4),
        "all_ms": [[round(1000 * x) for x in pair] for pair in times],
    }  # fmt: skip
