"""A tokenizer, its embedding and an encoder: everything from a raw view to features. This is what users take away."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmssl.types import Tokens, TokenSpec, View


class Tokenizer(Protocol):
    """What a tokenizer offers: a parameter-free cut of a view into tokens, and the embedding made for a width."""

    spec: TokenSpec

    def __call__(self, view: View) -> Tokens:
        """Cuts a view into tokens with `raw`, `pos` and `index`."""
        ...

    def embedding(self, dim: int) -> nn.Module:
        """The module that fills `Tokens.x` of this width."""
        ...


class LinearEmbed(nn.Module):
    """One linear map from a token's raw values to the encoder's width; a patch convolution, written as a matrix.

    Initialised Xavier-uniform with zero bias, as MAE does with the flattened convolution.
    """

    def __init__(self, raw: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(raw, dim)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens with `x` of shape (b, n, dim)."""
        return tokens.but(x=self.proj(tokens.raw))


class StemEmbed(nn.Module):
    """A linear map without bias, a layer norm, and a linear map to the encoder's width (BEATs).

    The first is a convolution of patches, drawn as torch draws one.
    """

    def __init__(self, raw: int, stem: int, dim: int) -> None:
        super().__init__()
        self.stem, self.norm, self.proj = nn.Linear(raw, stem, bias=False), nn.LayerNorm(stem), nn.Linear(stem, dim)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens with `x` of shape (b, n, dim)."""
        return tokens.but(x=self.proj(self.norm(self.stem(tokens.raw))))


class Bare(nn.Module):
    """No embedding: encoders on grids and graphs read raw values themselves."""

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens whose `x` is `raw`."""
        return tokens.but(x=tokens.raw)


class Network(nn.Module):
    """Tokenizer, embedding and encoder.

    The three are separate modules, each called through `forward`, so that masks can act between them and every one of
    them can be sharded: cut, [drop], embed, [replace], encode.

    Args:
        tokenizer: cuts a view into tokens.
        encoder: declares `dim` and `accepts`: `sequence` (any subset of tokens), `set`, `full` (a sequence that has to
            be complete), `grid` (a map, whose hidden cells are zeroed) or `graph` (packed tokens with edges). May
            offer `stem()`, weights for the embedding.
    """

    def __init__(self, tokenizer: Tokenizer, encoder: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.embed = Bare() if encoder.accepts in ("grid", "graph") else tokenizer.embedding(encoder.dim)
        self.encoder = encoder
        stem = encoder.stem() if hasattr(encoder, "stem") else None
        if stem is not None and isinstance(self.embed, LinearEmbed):
            self.embed.proj.weight.data.copy_(stem[0])
            self.embed.proj.bias.data.copy_(stem[1])

    @property
    def spec(self) -> TokenSpec:
        """Sizes of the tokens."""
        return self.tokenizer.spec

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.encoder.dim

    def forward(self, view: View | Tensor, taps: tuple[str, ...] = ()) -> Tokens:
        """Features of a whole view: a raw batch of the modality in, tokens out."""
        return self.encode(self.tokenizer(view if isinstance(view, View) else View(view, "")), taps)

    @cached_property
    def joins(self) -> bool:
        """Whether several looks may be encoded as one batch: a batch norm would mix their statistics."""
        return not any(isinstance(part, _BatchNorm) for part in self.encoder.modules())

    def prepare(self, tokens: Tokens) -> Tokens:
        """Whole samples that are cut already, embedded. What is naturally missing is not looked at."""
        tokens = self.embed(tokens)
        if tokens.given is None:
            return tokens
        return tokens.but(valid=tokens.given if tokens.valid is None else tokens.valid & tokens.given)

    def encode(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Features of whole samples that are cut already."""
        return self.encoder(self.prepare(tokens), taps)
