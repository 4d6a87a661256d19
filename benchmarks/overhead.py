"""What the framework costs: `image/mae` through mmssl's module and Lightning's loop, against the same step by hand.

Both use the same timm blocks, the same initial weights, the same batch and optimizer, and alternate step by step
(A B A B) on the same threads. By hand means: no framework, the official dense decoder written out over all tokens.

    python benchmarks/overhead.py [dim=384 depth=12 heads=6 batch=16 size=224 patch=16 steps=15]
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import lightning
import torch
from torch import nn

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import compose
from mmssl.run.training import quiet
from mmssl.types import View


class ByHand(nn.Module):
    """A masked autoencoder in plain torch over the blocks of an mmssl module, computed as the official code does."""

    def __init__(self, module):
        super().__init__()
        main, decoder = module.networks["main"], module.objective["pixels"].predictor
        self.patch, self.mean, self.std = main.tokenizer.patch, main.tokenizer.mean, main.tokenizer.std
        self.embed, self.cls, self.blocks, self.norm = (
            main.embed.proj, main.encoder.prefix, main.encoder.blocks, main.encoder.norm,
        )  # fmt: skip
        self.register_buffer("pos", main.encoder.position.table[None].clone())
        self.dec_embed, self.token, self.dec_blocks = decoder.embed, decoder.mask_token, decoder.blocks
        self.dec_norm, self.head = decoder.norm, decoder.head
        self.register_buffer("dec_pos", decoder.position.table[None].clone())

    def forward(self, image, ratio=0.75):
        p, (b, c, h, w) = self.patch, image.shape
        x = (image.float() - self.mean) / self.std
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)
        n = x.shape[1]
        keep = int(n * (1 - ratio))
        shuffle = torch.rand(b, n, device=x.device).argsort(1)
        restore, kept = shuffle.argsort(1), shuffle[:, :keep]
        z = (self.embed(x) + self.pos).gather(1, kept[..., None].expand(-1, -1, self.pos.shape[-1]))
        z = torch.cat([self.cls.expand(b, -1, -1), z], 1)
        for block in self.blocks:
            z = block(z)
        z = self.dec_embed(self.norm(z))
        full = torch.cat([z[:, 1:], self.token.expand(b, n - keep, -1)], 1)
        full = full.gather(1, restore[..., None].expand(-1, -1, full.shape[-1])) + self.dec_pos
        z = torch.cat([z[:, :1], full], 1)
        for block in self.dec_blocks:
            z = block(z)
        prediction = self.head(self.dec_norm(z))[:, 1:]
        target = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
        mask = torch.ones(b, n, device=x.device).scatter_(1, kept, 0.0)
        return (((prediction - target) ** 2).mean(-1) * mask).sum() / mask.sum()


class Alternate(lightning.Callback):
    """Times every step of the framework, and takes a step by hand between two of them."""

    def __init__(self, by_hand, optimizer, image):
        self.by_hand, self.optimizer, self.image = by_hand, optimizer, image
        self.ours, self.theirs = [], []
        self.mark = None

    def step_by_hand(self):
        start = time.perf_counter()
        loss = self.by_hand(self.image)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.theirs.append(time.perf_counter() - start)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # From the end of the step before to the end of this one: all that Lightning and mmssl do between, is in.
        if self.mark is not None:
            self.ours.append(time.perf_counter() - self.mark)
        self.step_by_hand()
        self.mark = time.perf_counter()


def main() -> None:
    said = dict(word.split("=") for word in sys.argv[1:])
    given = {"dim": 384, "depth": 12, "heads": 6, "batch": 16, "size": 224, "patch": 16, "steps": 15}
    given |= {key: int(value) for key, value in said.items()}
    tree = compose(
        "image/mae",
        ["data=folder", "data.root=.", *(f"encoder.{k}={given[k]}" for k in ("dim", "depth", "heads")),
         f"data.size={given['size']}", f"data.batch_size={given['batch']}", f"tokenizer.patch={given['patch']}"],
    )  # fmt: skip
    check(tree)
    facts = {"channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    ours, copy = build.module(tree, facts), build.module(tree, facts)
    image = torch.randint(0, 256, (given["batch"], 3, given["size"], given["size"]), dtype=torch.uint8)
    ids = torch.arange(given["batch"])
    batch = {"x": View(image, "image"), "id": ids, "epoch": torch.zeros_like(ids)}
    by_hand = ByHand(copy)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    watch = Alternate(by_hand, optimizer, image)
    ours.steps = given["steps"] + 3
    with quiet():
        trainer = lightning.Trainer(
            max_steps=ours.steps, callbacks=[watch], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="auto", devices=1,
        )  # fmt: skip
        trainer.fit(ours, torch.utils.data.DataLoader([batch] * ours.steps, batch_size=None))
    a, b = watch.ours[2:], watch.theirs[3:]
    ours_ms, theirs_ms = 1000 * statistics.median(a), 1000 * statistics.median(b)
    print(json.dumps({
        **given, "threads": torch.get_num_threads(), "mmssl_ms": round(ours_ms, 2), "by_hand_ms": round(theirs_ms, 2),
        "overhead_ms": round(ours_ms - theirs_ms, 2), "overhead": round(ours_ms / theirs_ms - 1, 4),
        "mmssl_all_ms": [round(1000 * t, 1) for t in a], "by_hand_all_ms": [round(1000 * t, 1) for t in b],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
