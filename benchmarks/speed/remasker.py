"""ReMasker (Du et al. 2024) on the wine table with the authors' sizes, 30 % of eight columns missing: an epoch."""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mmssl
from benchmarks.reproduce import tabular
from benchmarks.speed.harness import Script, Work, asked, found_below, plain_step, sizes
from benchmarks.speed.parts import joined
from mmssl.types import View

GOAL, DATA = 0.60, True
WHAT = "ReMasker on wine, 1599 rows, batch 64: epoch"
SAME = (
    "timm blocks, weights, rows, AdamW; the reference reads row by row, decodes densely and asks for the loss each step"
)


class Reference(nn.Module):
    """Every cell is embedded, the decoder puts tokens back in place, and two losses are added."""

    def __init__(self, module: Any, columns: int) -> None:
        super().__init__()
        main, decoder = module.networks["main"], module.objective["cells"].predictor
        self.embed, self.cls = main.embed.proj, main.encoder.prefix
        self.blocks, self.norm = main.encoder.blocks, main.encoder.norm
        self.dec_embed, self.token, self.dec_blocks = decoder.embed, decoder.mask_token, decoder.blocks
        self.dec_norm, self.head = decoder.norm, decoder.head
        row = main.tokenizer(View(torch.zeros(1, columns), "tabular"))
        self.places, self.dec_places = main.encoder.position(row), decoder.position(row)

    def forward(self, values: Tensor, given: Tensor, noise: Tensor | None = None) -> Tensor:
        b, n = values.shape
        keep = int(n * 0.5)
        noise = torch.rand(b, n) if noise is None else noise
        order = noise.masked_fill(given < 0.5, 1.0).argsort(1)
        restore, kept = order.argsort(1), order[:, :keep]
        dropped = torch.ones(b, n)
        dropped[:, :keep] = 0
        dropped = dropped.gather(1, restore)
        hidden, shown = dropped * given, (1 - dropped)
        z = joined(self.embed(values.unsqueeze(-1)) + self.places, kept)
        z = torch.cat([self.cls.expand(b, -1, -1), z], 1)
        for block in self.blocks:
            z = block(z)
        z = self.dec_embed(self.norm(z))
        z_, token = z[:, 1:], self.token.expand(b, n - keep, -1)
        z = torch.cat([z[:, :1], joined(torch.cat([z_, token], 1), restore) + self.dec_places], 1)
        for block in self.dec_blocks:
            z = block(z)
        made = self.head(self.dec_norm(z))[:, 1:, 0].tanh() / 2 + 0.5
        error = (made - values) ** 2
        return (error * hidden).sum() / hidden.sum() + (error * shown).sum() / shown.sum()


def make(folder: Path | None) -> Work:
    """The work on the table below this folder."""
    truth = tabular.scaled(tabular.read(found_below(folder, "wine.csv") / "wine.csv")[:, :-1])
    missing = tabular.holes(truth, "mcar", tabular.SHARE, np.random.default_rng(0))
    held = tempfile.TemporaryDirectory()
    atexit.register(held.cleanup)
    table = Path(held.name) / "holes.csv"
    tabular.write(table, np.where(missing, np.nan, truth))
    width, depth, decoder = tabular.SIZES["wine"]
    said = [*sizes("encoder", width, depth, 4), *sizes("objective.cells.predictor", width, decoder, 4)]
    module, data = mmssl.build("tabular/remasker", [
        "data=table", f"data.root={table}", "data.source.label=false", "data.source.test_share=0", "data.batch_size=64",
        *said,
    ])  # fmt: skip
    data.set_share(rank=0, world=1, accumulate=1)
    rows = data.batch([(0, i) for i in range(len(truth))])["x"].data
    values, given = rows.values, rows.given.float()

    def script(taken: Any) -> Script:
        reference = Reference(taken, values.shape[1])
        optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.95))
        loader = DataLoader(TensorDataset(values, given), batch_size=64, shuffle=True)

        def epoch() -> None:
            for batch in loader:
                plain_step(reference, optimizer, *batch).item()

        def losses() -> tuple[Tensor, Tensor]:
            enough = (given.sum(1) >= values.shape[1] // 2).nonzero().squeeze(1)[:64]
            loss, step = asked(module, data.batch([(0, int(i)) for i in enough]))
            noise = step["x"].mask.hidden.float() * 0.5
            return loss, reference(values[enough], given[enough], noise)

        def once() -> Tensor:
            return plain_step(reference, optimizer, values[:64], given[:64])

        return Script(epoch, losses, reference, optimizer, once)

    loader = data.train_dataloader()
    facts = {"rows": len(truth), "columns": truth.shape[1], "sizes": [width, depth, decoder]}
    return Work(module, loader, script, turn=len(loader), facts=facts)
