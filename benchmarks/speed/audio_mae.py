"""Audio-MAE (Huang et al. 2022), ViT-S on ten seconds of 128 bins, the paper's decoder of windows, batch 2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.harness import Given, Script, Work, adamw, asked, built, plain_step, sizes
from benchmarks.speed.parts import Cut, joined, shuffled, standard
from mmssl.types import View

GOAL = 0.97
WHAT = "Audio-MAE ViT-S, 1024 frames of 128 bins, batch 2: step"
SAME = "timm blocks, weights, batch, AdamW, filter banks (ours on both sides); windows are written out as Swin V2's"


def windows(x: Tensor, side: int) -> Tensor:
    """A grid (b, h, w, d) as windows (b windows, side * side, d)."""
    b, h, w, d = x.shape
    x = x.view(b, h // side, side, w // side, side, d)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side * side, d)


def together(x: Tensor, side: int, h: int, w: int) -> Tensor:
    """The inverse of `windows`."""
    x = x.view(-1, h // side, w // side, side, side, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, h, w, x.shape[-1])


class Block(nn.Module):
    """A block of Swin V2 as its authors compute it: attention is written out, and every token takes part."""

    def __init__(self, taken: Any) -> None:
        super().__init__()
        self.attn, self.mlp, self.norm1, self.norm2 = taken.attn, taken.mlp, taken.norm1, taken.norm2
        self.grid, self.side, self.shift = taken.grid, taken.window[0], taken.shift
        self.register_buffer("apart", taken.apart)

    def attend(self, x: Tensor) -> Tensor:
        attn, (rows, n, d) = self.attn, x.shape
        qkv = attn.qkv(x).view(rows, n, 3, attn.heads, d // attn.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        scores = scores / attn.tau.clamp(min=0.01)[:, None, None]
        scores = scores + attn.meta_mlp(attn.offsets).permute(2, 0, 1).unsqueeze(0)
        if self.apart is not None:
            count = len(self.apart)
            scores = scores.view(rows // count, count, attn.heads, n, n) + self.apart.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, attn.heads, n, n)
        return attn.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, n, d))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        h, w = self.grid
        short, x = x, x.view(b, h, w, d)
        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        x = together(self.attend(windows(x, self.side)), self.side, h, w)
        if any(self.shift):
            x = torch.roll(x, self.shift, (1, 2))
        x = short + self.norm1(x.view(b, n, d))
        return x + self.norm2(self.mlp(x))


class Reference(nn.Module):
    """Every patch is embedded, and the decoder answers at all of them."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        main, decoder = module.networks["main"], module.objective["patches"].predictor
        self.tokenizer, self.cut = main.tokenizer, Cut(main)
        self.embed = self.cut.convolution(main.embed.proj)
        self.cls, self.blocks, self.norm = main.encoder.prefix, main.encoder.blocks, main.encoder.norm
        self.register_buffer("pos", main.encoder.position.table[None].clone())
        self.dec_embed, self.token = decoder.embed, decoder.mask_token
        self.dec_blocks = nn.ModuleList(Block(block) for block in decoder.blocks)
        self.dec_norm, self.head = decoder.norm, decoder.head
        self.register_buffer("dec_pos", decoder.position.table[None].clone())

    def forward(self, waves: Tensor, ratio: float = 0.8, noise: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            counts = [waves.shape[-1]] * len(waves)
            values = self.tokenizer.filters(waves.unsqueeze(1), counts, self.tokenizer.frames)
            values = F.pad(values, (0, 0, 0, self.tokenizer.frames - values.shape[2]))
            values = (values - self.tokenizer.mean) / (2 * self.tokenizer.std)
        x = self.embed(values).flatten(2).transpose(1, 2) + self.pos
        kept, restore, mask = shuffled(x, ratio, noise)
        z = torch.cat([self.cls.expand(len(x), -1, -1), joined(x, kept)], 1)
        for block in self.blocks:
            z = block(z)
        z = self.dec_embed(self.norm(z))
        hidden = self.token.expand(len(x), x.shape[1] - kept.shape[1], -1)
        z = joined(torch.cat([z[:, 1:], hidden], 1), restore) + self.dec_pos
        for block in self.dec_blocks:
            z = block(z)
        prediction = self.head(self.dec_norm(z))
        loss = (prediction - standard(self.cut.patches(values))).square().mean(-1)
        return (loss * mask).sum() / mask.sum()


def make(batch: int = 2, encoder: tuple[int, int, int] = (384, 12, 6), dropout: float = 0.1) -> Work:
    """The work at these sizes (dim, depth, heads)."""
    said = [*sizes("encoder", *encoder), f"data.batch_size={batch}"]
    said += [f"objective.patches.predictor.dropout={dropout}"]
    module = built("audio/audio_mae", said, {"channels": 1, "mean": -4.0, "std": 4.0})
    ids, draw = torch.arange(batch), torch.Generator().manual_seed(0)
    waves = 0.1 * torch.randn(batch, 163840, generator=draw)
    given = {"x": View(waves, "audio"), "id": ids, "epoch": torch.zeros_like(ids)}

    def script(taken: Any) -> Script:
        reference = Reference(taken)
        optimizer = adamw(reference, betas=(0.9, 0.95))

        def losses() -> tuple[Tensor, Tensor]:
            module.eval(), reference.eval()  # without the dropout of the position bias
            loss, step = asked(module, given)
            found = loss, reference(waves, noise=step["x"].mask.hidden.float())
            module.train(), reference.train()
            return found

        return Script(lambda: plain_step(reference, optimizer, waves), losses, reference, optimizer)

    return Work(
        module, Given(given), script, facts={"batch": batch, "encoder": list(encoder), "decoder": [512, 16, 16]}
    )
