"""MAE (He et al. 2021), ViT-S/16 at 224 pixels with the decoder of the paper, batch 16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.harness import Given, Script, Work, adamw, asked, built, plain_step, sizes
from benchmarks.speed.parts import Cut, image_batch, joined, shuffled, standard

GOAL, MEMORY = 0.97, 0.80
WHAT = "MAE ViT-S/16, 224 pixels, batch 16: step"
SAME = "timm blocks, weights, batch, AdamW; the reference's decoder is dense and embeds every patch"


class Reference(nn.Module):
    """Every patch is embedded, the decoder answers at every token, and the loss is masked."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        main, decoder = module.networks["main"], module.objective["pixels"].predictor
        self.cut = Cut(main)
        self.embed = self.cut.convolution(main.embed.proj)
        self.cls, self.blocks, self.norm = main.encoder.prefix, main.encoder.blocks, main.encoder.norm
        self.register_buffer("pos", main.encoder.position.table[None].clone())
        self.dec_embed, self.token, self.dec_blocks = decoder.embed, decoder.mask_token, decoder.blocks
        self.dec_norm, self.head = decoder.norm, decoder.head
        self.register_buffer("dec_pos", decoder.position.table[None].clone())

    def forward(self, image: Tensor, ratio: float = 0.75, noise: Tensor | None = None) -> Tensor:
        image = self.cut.normalised(image)
        x = self.embed(image).flatten(2).transpose(1, 2) + self.pos
        kept, restore, mask = shuffled(x, ratio, noise)
        z = joined(x, kept)
        z = torch.cat([self.cls.expand(len(x), -1, -1), z], 1)
        for block in self.blocks:
            z = block(z)
        z = self.dec_embed(self.norm(z))
        hidden = self.token.expand(len(x), x.shape[1] - kept.shape[1], -1)
        full = joined(torch.cat([z[:, 1:], hidden], 1), restore) + self.dec_pos
        z = torch.cat([z[:, :1], full], 1)
        for block in self.dec_blocks:
            z = block(z)
        prediction = self.head(self.dec_norm(z))[:, 1:]
        loss = (prediction - standard(self.cut.patches(image))).square().mean(-1)
        return (loss * mask).sum() / mask.sum()


def make(
    size: int = 224, patch: int = 16, batch: int = 16, encoder: tuple[int, int, int] = (384, 12, 6),
    decoder: tuple[int, int, int] = (512, 8, 16), fused: bool = False,
) -> Work:  # fmt: skip
    """The work at these sizes (dim, depth, heads); `fused` gives the reference the optimizer's quick kernel too."""
    said = [*sizes("encoder", *encoder), *sizes("objective.pixels.predictor", *decoder)]
    said += [f"data.size={size}", f"data.batch_size={batch}", f"tokenizer.patch={patch}"]
    module = built("image/mae", said, {"channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3})
    given = image_batch(batch, size)

    def script(taken: Any) -> Script:
        reference = Reference(taken)
        optimizer = adamw(reference, betas=(0.9, 0.95), fused=fused or None)

        def losses() -> tuple[Tensor, Tensor]:
            loss, step = asked(module, given)
            return loss, reference(given["x"].data, noise=step["x"].mask.hidden.float())

        return Script(lambda: plain_step(reference, optimizer, given["x"].data), losses, reference, optimizer)

    facts = {"batch": batch, "size": size, "patch": patch, "encoder": list(encoder), "decoder": list(decoder)}
    return Work(module, Given(given), script, facts=facts)
