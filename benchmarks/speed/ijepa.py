"""I-JEPA (Assran et al. 2023), ViT-S/16 at 224 pixels, a predictor of 6 blocks, batch 4."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.harness import Given, Script, Work, adamw, asked, built, plain_step, sizes
from benchmarks.speed.parts import Cut, image_batch, joined

GOAL = 0.97
WHAT = "I-JEPA ViT-S/16, 224 pixels, batch 4: step with the teacher"
SAME = "timm blocks, weights, batch, masks of one size, AdamW; the reference is given its masks"


class Encoder(nn.Module):
    """Patches are embedded first and chosen then."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.cut = Cut(network)
        self.embed = self.cut.convolution(network.embed.proj)
        self.blocks, self.norm = network.encoder.blocks, network.encoder.norm
        self.register_buffer("pos", network.encoder.position.table[None].clone())

    def forward(self, image: Tensor, index: Tensor | None = None) -> Tensor:
        x = self.embed(self.cut.normalised(image)).flatten(2).transpose(1, 2) + self.pos
        x = x if index is None else joined(x, index)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Reference(nn.Module):
    """Each target block is predicted from its own copy of the context."""

    def __init__(self, module: Any, context: Tensor, blocks: list[Tensor]) -> None:
        super().__init__()
        main, decoder = module.networks["main"], module.objective["latent"].predictor
        self.encoder, self.teacher = Encoder(main), Encoder(module.teacher.of(main)).requires_grad_(False)
        self.dec_embed, self.token, self.dec_blocks = decoder.embed, decoder.mask_token, decoder.blocks
        self.dec_norm, self.head = decoder.norm, decoder.head
        self.register_buffer("dec_pos", decoder.position.table[None].clone())
        self.context, self.targets = context, blocks

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            whole = self.teacher(image)
            whole = F.layer_norm(whole, (whole.shape[-1],))
            target = torch.cat([joined(whole, block) for block in self.targets])
        x = self.dec_embed(self.encoder(image, self.context))
        place = self.dec_pos.expand(len(x), -1, -1)
        x = x + joined(place, self.context)
        wanted = torch.cat([joined(place, block) for block in self.targets]) + self.token
        x = torch.cat([x.repeat(len(self.targets), 1, 1), wanted], 1)
        for block in self.dec_blocks:
            x = block(x)
        prediction = self.head(self.dec_norm(x)[:, self.context.shape[1] :])
        return F.smooth_l1_loss(prediction, target)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        for theirs, ours in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            theirs.data.mul_(momentum).add_((1.0 - momentum) * ours.detach().data)


def make(
    batch: int = 4, size: int = 224, encoder: tuple[int, int, int] = (384, 12, 6),
    predictor: tuple[int, int, int] = (384, 6, 6),
) -> Work:  # fmt: skip
    """The work at these sizes (dim, depth, heads); blocks have one size, so that all steps are equally long."""
    said = [*sizes("encoder", *encoder), *sizes("objective.latent.predictor", *predictor)]
    said += ["masker.scale=[0.175,0.175]", "masker.aspect=[1.0,1.0]", "masker.context=[0.925,0.925]"]
    said += [f"data.size={size}", f"data.batch_size={batch}", "tokenizer.patch=16"]
    module = built("image/ijepa", said, {"channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3})
    given = image_batch(batch, size)
    mask = module.begin(given)["x"].mask
    context, blocks = mask.visible_index[0], list(mask.target_index[0].unbind(1))

    def script(taken: Any) -> Script:
        reference = Reference(copy.copy(taken), context, blocks)
        optimizer = adamw(reference)

        def step() -> None:
            plain_step(reference, optimizer, given["x"].data)
            reference.follow(0.996)

        return Script(step, lambda: (asked(module, given)[0], reference(given["x"].data)), reference, optimizer)

    facts = {
        "batch": batch, "size": size, "encoder": list(encoder), "predictor": list(predictor),
        "context": context.shape[1], "targets": [block.shape[1] for block in blocks],
    }  # fmt: skip
    return Work(module, Given(given), script, facts=facts)
