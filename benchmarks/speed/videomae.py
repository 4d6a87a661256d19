"""VideoMAE (Tong et al. 2022), ViT-S on 16 frames of 224 pixels, batch 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.harness import Given, Script, Work, adamw, asked, built, plain_step, sizes
from benchmarks.speed.parts import Cut, image_batch
from mmssl.types import View

GOAL = 0.97
WHAT = "VideoMAE ViT-S, 16 frames of 224 pixels, batch 2: step"
SAME = "timm blocks, weights, batch, AdamW; the reference embeds and normalises every tubelet"


class Reference(nn.Module):
    """Every tubelet is embedded and becomes a target; visible and mask tokens go through the decoder side by side."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        main, decoder = module.networks["main"], module.objective["pixels"].predictor
        self.cut = Cut(main)
        self.embed = self.cut.convolution(main.embed.proj)
        self.blocks, self.norm = main.encoder.blocks, main.encoder.norm
        self.register_buffer("pos", main.encoder.position.table[None].clone())
        self.dec_embed, self.token, self.dec_blocks = decoder.embed, decoder.mask_token, decoder.blocks
        self.dec_norm, self.head = decoder.norm, decoder.head
        self.register_buffer("dec_pos", decoder.position.table[None].clone())

    def target(self, clip: Tensor) -> Tensor:
        """Pixels in [0, 1], each colour of each tubelet by its own mean and deviation."""
        unit = clip * self.cut.std / 255 + self.cut.mean / 255
        cells = self.cut.patches(unit).unflatten(-1, (-1, 3))
        normed = (cells - cells.mean(-2, keepdim=True)) / (cells.var(-2, keepdim=True).sqrt() + 1e-6)
        return normed.flatten(-2)

    def forward(self, clip: Tensor, hidden: Tensor) -> Tensor:
        clip = self.cut.normalised(clip.transpose(1, 2))
        with torch.no_grad():
            target = self.target(clip)
            target = target[hidden].reshape(len(clip), -1, target.shape[-1])
        x = self.embed(clip).flatten(2).transpose(1, 2) + self.pos
        z = x[~hidden].reshape(len(x), -1, x.shape[-1])
        for block in self.blocks:
            z = block(z)
        z = self.dec_embed(self.norm(z))
        place = self.dec_pos.expand(len(x), -1, -1)
        of_visible = place[~hidden].reshape(len(x), -1, place.shape[-1])
        of_hidden = place[hidden].reshape(len(x), -1, place.shape[-1])
        z = torch.cat([z + of_visible, self.token + of_hidden], 1)
        for block in self.dec_blocks:
            z = block(z)
        prediction = self.head(self.dec_norm(z[:, -of_hidden.shape[1] :]))
        return nn.functional.mse_loss(prediction, target)


def tubes(batch: int, slices: int, places: int, ratio: float = 0.9) -> Tensor:
    """A random choice of places per clip, the same in all slices."""
    rows = [torch.randperm(places) < int(ratio * places) for _ in range(batch)]
    return torch.stack(rows).repeat(1, slices)


def make(
    batch: int = 2, size: int = 224, frames: int = 16, encoder: tuple[int, int, int] = (384, 12, 6),
    decoder: tuple[int, int, int] = (192, 4, 3),
) -> Work:  # fmt: skip
    """The work at these sizes (dim, depth, heads)."""
    said = [*sizes("encoder", *encoder), *sizes("objective.pixels.predictor", *decoder)]
    said += [f"data.size={size}", f"data.batch_size={batch}", f"tokenizer.frames={frames}"]
    module = built("video/videomae", said, {"channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3})
    given = image_batch(batch, size, frames)
    given["x"] = View(given["x"].data.transpose(1, 2).contiguous(), "video")
    slices, *grid = module.kept.spec.grid

    def script(taken: Any) -> Script:
        reference = Reference(taken)
        optimizer = adamw(reference, betas=(0.9, 0.95))

        def step() -> Tensor:
            return plain_step(reference, optimizer, given["x"].data, tubes(batch, slices, grid[0] * grid[1]))

        def losses() -> tuple[Tensor, Tensor]:
            loss, ours = asked(module, given)
            return loss, reference(given["x"].data, ours["x"].mask.hidden)

        return Script(step, losses, reference, optimizer)

    facts = {"batch": batch, "size": size, "frames": frames, "encoder": list(encoder), "decoder": list(decoder)}
    return Work(module, Given(given), script, facts=facts)
