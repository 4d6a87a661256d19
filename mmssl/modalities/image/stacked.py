"""Several kinds of image of one scene as one sequence of patches: made of the image itself, stacked as its channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.segments import unmoved
from mmssl.draws import Draws
from mmssl.modalities.image.tokenizer import ImageTokenizer
from mmssl.nn.network import LinearEmbed
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec, View


@register("view/palette")
class Palette:
    """A coarse segmentation by colour: which of eight colours each cell of the image is nearest to; draws nothing.

    A cell is the mean of its pixels; each of its first three channels (or its only one, three times) is dark or light,
    which makes eight classes, in place of the classes that a network would find. The last cells may be cut off.

    Args:
        cell: side of a cell in pixels.

    Raises:
        ValueError: for a cell below 1.
    """

    segments = unmoved

    def __init__(self, *, cell: int = 4) -> None:
        if cell < 1:
            raise ValueError(f"view/palette: cell is a number of pixels, from 1 on (got {cell})")
        self.cell = cell

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns uint8 (8, h, w): 255 in the channel of a pixel's class, else 0."""
        h, w = sample.shape[-2:]
        means = F.avg_pool2d(sample[None, :3].float(), self.cell, ceil_mode=True)[0].expand(3, -1, -1)
        code = ((means >= 127.5).long() * torch.tensor([1, 2, 4]).view(3, 1, 1)).sum(0)
        whole = code.repeat_interleave(self.cell, 0).repeat_interleave(self.cell, 1)[:h, :w]
        return F.one_hot(whole, 8).permute(2, 0, 1).to(torch.uint8) * 255


@register("view/stack")
class Stack:
    """Puts what view operations make of an image behind its own channels, for `tokenizer/stacked`.

    Args:
        streams: operations that each make another kind of image of the same size, for instance `view/gradients`.
    """

    segments = unmoved

    def __init__(self, *, streams: Sequence[Callable[[Tensor, Draws], Tensor]]) -> None:
        self.streams = list(streams)

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns uint8 (c, h, w), the image's channels first."""
        return torch.cat([sample, *(made(sample, draws.named(f"stack/{i}")) for i, made in enumerate(self.streams))])


@register("tokenizer/stacked")
class StackedTokenizer(nn.Module):
    """Cuts an image whose channels are of several streams into patches of each stream, one stream behind the other.

    MultiMAE (Bachmann et al. 2022). A token's raw values are its stream's pixels, then zeros up to the widest stream's;
    `Tokens.stream` says whose it is. Patches of one place have the same coordinates, and an embedding for each stream.

    Args:
        facts: the data's facts, of the first stream.
        streams: of each further stream `channels`, `mean` and `std` per channel in units of [0, 1].
        size: side of the image in pixels, one number or (height, width).
        patch: side of a patch in pixels; it has to divide the size.

    Raises:
        ValueError: when the patch does not divide the size; when called, for another number of channels.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        *,
        streams: Sequence[Mapping[str, Any]],
        size: int | list[int] = 224,
        patch: int = 16,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(ImageTokenizer(said, size=size, patch=patch) for said in (facts, *streams))
        specs = [part.spec for part in self.parts]
        self.widths: list[int] = [spec.raw for spec in specs]  # pyright: ignore  # raw values of each stream's tokens
        self.channels: list[int] = [spec.channels for spec in specs]  # pyright: ignore
        first: TokenSpec = specs[0]  # pyright: ignore
        assert first.length is not None
        self.spec = TokenSpec(max(self.widths), 2, None, first.cell, sum(self.channels), first.length * len(specs))

    def embedding(self, dim: int) -> nn.Module:
        """A linear embedding of each stream."""
        return StreamEmbed(self.widths, dim)

    def forward(self, view: View) -> Tokens:
        """Patches of a batch.

        Args:
            view: uint8 images (b, c, h, w), or floats in [0, 1], the channels of all streams.

        Returns:
            Tokens with raw (b, streams * n, v) and `stream`, without embeddings.
        """
        if view.data.shape[1] != sum(self.channels):
            raise ValueError(
                f"tokenizer/stacked was made for {self.channels} channels of its streams, but the view has "
                f"{view.data.shape[1]}; let `views` and `view` end in view/stack with the streams of tokenizer.streams"
            )
        pieces = view.data.split(self.channels, 1)
        cut = [part(View(piece, view.modality)) for part, piece in zip(self.parts, pieces, strict=True)]
        n = cut[0].index.shape[1]
        return Tokens(
            raw=torch.cat([F.pad(one.raw, (0, max(self.widths) - one.raw.shape[-1])) for one in cut], 1),
            pos=torch.cat([one.pos for one in cut], 1),
            index=torch.cat([one.index + n * i for i, one in enumerate(cut)], 1),
            stream=torch.cat([torch.full_like(one.index, i) for i, one in enumerate(cut)], 1),
            count=n * len(cut),
        )

    def restore(self, tokens: Tokens, shown: Tensor | None) -> Tensor:
        """The images of the first stream, for pictures: uint8 (b, c, h, w)."""
        first: ImageTokenizer = self.parts[0]  # pyright: ignore[reportAssignmentType]
        n = tokens.index.shape[1] // len(self.widths)
        own = tokens.but(raw=tokens.raw[:, :n, : self.widths[0]], index=tokens.index[:, :n], grid=first.spec.grid)
        return first.restore(own, None if shown is None else shown[:, :n])


class StreamEmbed(nn.Module):
    """A linear map of the raw values of each stream's tokens to the encoder's width.

    Args:
        widths: raw values of a token of each stream.
        dim: the encoder's width.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(LinearEmbed(width, dim) for width in widths)
        self.widths = list(widths)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens with `x` of shape (b, n, dim)."""
        assert tokens.stream is not None
        stream, x = tokens.stream.unsqueeze(-1), None
        for i, (part, width) in enumerate(zip(self.parts, self.widths, strict=True)):
            made = torch.where(stream == i, part(tokens.but(raw=tokens.raw[..., :width])).x, 0.0)
            x = made if x is None else x + made
        return tokens.but(x=x)
