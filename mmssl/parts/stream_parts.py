"""Tokens of several streams in one sequence: one mask budget, a decoder for each, their values and classes."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.nn.init import xavier_
from mmssl.nn.positions import SinCos
from mmssl.parts.maskers import check_ratio, fewest
from mmssl.parts.targets import standardised
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Look
from mmssl.types import Mask, Tokens, TokenSpec


@register("masker/dirichlet")
class Dirichlet:
    """Shares one budget of visible tokens among the streams of each sample at random (MultiMAE, Bachmann et al. 2022).

    Shares are drawn from a symmetric Dirichlet distribution; of each stream round(share * budget) random tokens are
    visible, as far as it has them. Then tokens are ordered by whether they are hidden, at random within, and exactly
    the budget of int(n (1 - ratio)) stays visible.

    Args:
        ratio: share of the tokens of all streams together that is hidden, in [0, 1); 5/6 in the paper.
        alpha: of the distribution, above 0: 1 is even over all shares, near 0 one stream has nearly all.

    Raises:
        ValueError: for a ratio outside [0, 1), or alpha not above 0; when called, for tokens of no streams.
    """

    def __init__(self, *, ratio: float = 0.8333333, alpha: float = 1.0) -> None:
        check_ratio(ratio)
        if alpha <= 0:
            raise ValueError(f"masker.alpha has to be above 0, usually 1 (got {alpha:g})")
        self.ratio, self.alpha = ratio, alpha

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        if tokens.stream is None or tokens.valid is not None:
            raise ValueError(
                "masker/dirichlet shares a budget among streams, but these tokens are of one; use masker/random"
            )
        n, stream = tokens.index.shape[1], tokens.stream
        keep, count = int(n * (1 - self.ratio)), int(stream[0, -1]) + 1
        shares = self._shares(draws.named("shares").uniform(count).double())
        budget = (shares * keep).round().long()
        luck = draws.named("tokens").uniform(n)
        # the rank of each token within its stream: streams lie one behind the other
        order = ordinal(stream + luck.double())
        size = F.one_hot(stream[0], count).sum(0)
        place = order - (torch.cumsum(size, 0) - size)[stream]
        hidden = place >= budget.gather(1, stream)
        visible = fewest(hidden.double() + draws.named("repair").uniform(n), keep)
        return Mask(visible, ~visible.unsqueeze(1), None, keep, n - keep)

    def _shares(self, u: Tensor) -> Tensor:
        """Dirichlet shares out of uniform numbers, (b, k): gamma numbers over their sum."""
        if self.alpha == 1.0:
            gamma = -torch.log1p(-u)
            return gamma / gamma.sum(1, keepdim=True).clamp(min=1e-30)
        from scipy.special import gammaincinv

        gamma = torch.from_numpy(gammaincinv(self.alpha, u.cpu().numpy())).to(u.device)
        # with a small alpha most numbers are below what can be written: their logarithms are known all the same
        small = (u.clamp(min=2.0**-25).log() + math.lgamma(self.alpha + 1.0)) / self.alpha
        return torch.softmax(torch.where(gamma > 1e-200, gamma.log(), small), 1)


@register("predictor/stream")
class StreamDecoder(nn.Module):
    """A decoder of one stream: its tokens read those of all streams, then one another (MultiMAE).

    Queries are the visible tokens of the stream and mask tokens at the places asked for, with positions and an
    embedding of their stream. One cross-attention without a residual reads all that was seen, class tokens included;
    an MLP and blocks of self-attention among the stream's own tokens follow.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        stream: which stream is asked for, from 0 on.
        streams: number of streams.
        dim: width of the decoder.
        depth: blocks of self-attention.
        heads: attention heads; they have to divide the width.
        mlp_ratio: hidden width of the MLPs over the width.

    Raises:
        ValueError: when heads do not divide the width, or for a stream that there is not.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        stream: int,
        streams: int,
        dim: int = 256,
        depth: int = 2,
        heads: int = 8,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"predictor.heads={heads} does not divide predictor.dim={dim}; choose a divisor of {dim}")
        if not 0 <= stream < streams:
            raise ValueError(f"predictor.stream is one of {streams} streams, from 0 on (got {stream})")
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.stream, self.embed, self.position = stream, nn.Linear(width, dim), SinCos(spec, dim)
        self.of_stream = nn.Parameter(torch.randn(streams, dim) * 0.02)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.query_norm, self.context_norm, self.norm = norm(dim), norm(dim), norm(dim)
        self.cross = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=norm)  # pyright: ignore[reportArgumentType]
            for _ in range(depth)
        )
        self.head = nn.Linear(dim, out)
        for part in (self.embed, self.mlp, self.blocks, self.head):
            xavier_(part)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query, all of this decoder's stream."""
        assert seen.x is not None and seen.stream is not None
        known = self.embed(seen.x) + self.position(seen).to(seen.x.dtype) + self.of_stream[seen.stream]
        context = known if seen.prefix is None else torch.cat([self.embed(seen.prefix), known], 1)
        asked = self.mask_token + self.position(query).to(known.dtype) + self.of_stream[self.stream]
        x, padding = torch.cat([known, asked], 1), None
        if seen.valid is not None:
            padding = F.pad(~seen.valid, (context.shape[1] - seen.valid.shape[1], 0), value=False)
        memory = self.context_norm(context)
        x, _ = self.cross(self.query_norm(x), memory, memory, key_padding_mask=padding, need_weights=False)
        x = x + self.mlp(self.norm(x))
        own = seen.stream == self.stream if seen.valid is None else (seen.stream == self.stream) & seen.valid
        there = torch.ones_like(query.index, dtype=torch.bool) if query.valid is None else query.valid
        # a row that neither shows nor is asked for anything of this stream reads itself, so that nothing is undefined
        keys = torch.cat([own, there], 1)
        keys = keys | ~keys.any(1, keepdim=True)
        for block in self.blocks:
            x = block(x, attn_mask=keys[:, None, None, :])
        return self.head(x[:, seen.index.shape[1] :])


@register("target/stream")
class StreamValues(nn.Module):
    """The raw values of the tokens of one stream, without the padding to the widest (MultiMAE).

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        stream: which stream, from 0 on.
        normalize: whether each token is standardised by its own mean and unbiased variance.

    Raises:
        ValueError: for a tokenizer of one stream, or a stream that there is not.
    """

    def __init__(self, plan: Plan, look: str, *, stream: int, normalize: bool = False) -> None:
        super().__init__()
        widths = getattr(plan.networks[look].tokenizer, "widths", [])
        if not 0 <= stream < len(widths):
            raise ValueError(
                f"target.stream={stream}, but the tokenizer cuts {len(widths)} streams; see tokenizer/stacked"
            )
        self.dim, self.normalize = int(widths[stream]), normalize

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Values of the tokens asked for, (r, t, v)."""
        raw = query.raw[..., : self.dim]
        return standardised(raw) if self.normalize else raw


@register("loss/cells")
class Cells:
    """Cross entropy of the classes of the pixels or cells of a token, averaged over them (MultiMAE's segmentation).

    Args:
        classes: number of classes; values are those of all classes of a cell, cell by cell.
    """

    def __init__(self, *, classes: int) -> None:
        if classes < 2:
            raise ValueError(f"loss/cells: classes has to be at least 2 (got {classes})")
        self.classes = classes

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number per token of logits and shares (..., cells * classes)."""
        logits, shares = (x.unflatten(-1, (-1, self.classes)) for x in (prediction.to(target.dtype), target))
        return -(shares * logits.log_softmax(-1)).sum(-1).mean(-1)
