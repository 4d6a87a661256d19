"""Rows of a table to tokens, one for each column, and their embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.modalities.tabular.encoding import Cells, Encoding, restored
from mmssl.modalities.tabular.table import Row
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec, View

_EMBEDDINGS = ("shared", "sine", "per_column")


@register("tokenizer/table")
class TableTokenizer(nn.Module):
    """One token per column; its raw value is the cell, scaled to [0, 1] by the range of the training data (ReMasker).

    Numbers are scaled by (x - min) / (max - min + 1e-8), categories likewise by their place in the sorted list. A
    missing cell has the value 0 and is not `given`. Positions are the columns' numbers, from 0 on.

    Args:
        facts: the data's facts: `columns`, see `mmssl.modalities.tabular.encoding.fit`.
        embedding: `shared`, one linear map of the value for all columns, told apart by their positions (ReMasker);
            `sine`, the sine of that (its `active` variant); `per_column`, for each column of numbers a weight and a
            bias, for each category a vector of its own (FT-Transformer, T-JEPA).
        standardize: whether `per_column` multiplies its weights with numbers of mean 0 and deviation 1 over the
            training data (SCARF), and not with those in [0, 1]; raw values stay in [0, 1].

    Raises:
        ValueError: for an unknown embedding, or one that does not standardise.
    """

    index: Tensor
    pos: Tensor

    def __init__(self, facts: Mapping[str, Any], *, embedding: str = "shared", standardize: bool = False) -> None:
        super().__init__()
        if embedding not in _EMBEDDINGS:
            raise ValueError(f"tokenizer.embedding has to be one of {', '.join(_EMBEDDINGS)} (got {embedding!r})")
        if standardize and embedding != "per_column":
            raise ValueError(
                f"tokenizer.standardize goes with tokenizer.embedding=per_column only (got embedding={embedding!r}), "
                "because the others treat all columns alike"
            )
        self.standardize = standardize
        self.kind, self.encoding = embedding, Encoding(facts)
        count = len(self.encoding.fitted)
        self.spec = TokenSpec(1, 1, (count,))
        self.register_buffer("index", torch.arange(count), persistent=False)
        self.register_buffer("pos", torch.arange(count, dtype=torch.float32).unsqueeze(-1), persistent=False)

    def embedding(self, dim: int) -> nn.Module:
        """The embedding of the kind that was chosen."""
        if self.kind == "per_column":
            counts, fitted = [len(column.categories) for column in self.encoding.columns], self.encoding.fitted
            if not self.standardize:
                return ColumnEmbed(counts, dim)
            mean = torch.tensor([column["mean"] for column in fitted]).double() - torch.from_numpy(self.encoding.low)
            std = torch.tensor([column["std"] for column in fitted]).double()
            scale = torch.from_numpy(self.encoding.scale)
            return ColumnEmbed(counts, dim, (mean / scale).float(), (std / scale).float())
        return ValueEmbed(dim, periodic=self.kind == "sine")

    def forward(self, view: View) -> Tokens:
        """Tokens of a batch of rows.

        Args:
            view: `Cells`; or rows (b, c) of numbers in the units of the table, categories as their places in the sorted
                list, NaN where missing, for those who use a trained encoder without the data classes.

        Returns:
            Tokens with raw (b, c, 1), without embeddings.
        """
        cells = view.data if isinstance(view.data, Cells) else self._scaled(view.data)
        b, c = cells.values.shape
        return Tokens(
            raw=cells.values.unsqueeze(-1), pos=self.pos.expand(b, c, 1), index=self.index.expand(b, c),
            given=cells.given, grid=self.spec.grid,
        )  # fmt: skip

    def _scaled(self, rows: Tensor) -> Cells:
        names = self.encoding.names
        if rows.dim() != 2 or rows.shape[1] != len(names):
            raise ValueError(
                f"a batch of rows has to be (rows, {len(names)}), one number for each of the columns "
                f"{', '.join(names)} (got {tuple(rows.shape)})"
            )
        given = ~torch.isnan(rows)
        # on the CPU in double precision: float32 cannot tell apart the days of a date, and not every device has more
        scaled = torch.from_numpy((rows.double().cpu().numpy() - self.encoding.low) / self.encoding.scale)
        values = torch.where(given, scaled.float().to(rows.device), 0.0)
        return Cells(values, None if bool(given.all()) else given)

    def restore(self, tokens: Tokens, shown: Tensor | None = None) -> list[Row]:
        """Rows in the units of the table, of all tokens' raw values: numbers, and the nearest category.

        Args:
            tokens: all tokens of each row, in the order of the columns.
            shown: (b, c) bool, False for cells that are drawn as hidden.
        """
        return restored(self.encoding, tokens.raw[..., 0], tokens.given, shown)


class ValueEmbed(nn.Module):
    """One linear map from a cell's value to a vector, the same for all columns (ReMasker).

    The weight is Xavier-uniform. The bias stays as torch draws that of a convolution from one channel, uniform in
    [-1, 1], as in the authors' code: it is as large as the weight, and no detail here.

    Args:
        dim: width.
        periodic: whether the sine is taken.
    """

    def __init__(self, dim: int, periodic: bool = False) -> None:
        super().__init__()
        self.proj, self.periodic = nn.Linear(1, dim), periodic
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.uniform_(self.proj.bias, -1.0, 1.0)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens with `x` of shape (b, n, dim)."""
        x = self.proj(tokens.raw)
        return tokens.but(x=x.sin() if self.periodic else x)


class ColumnEmbed(nn.Module):
    """Weights of each column's own (FT-Transformer, T-JEPA): number times weight, or a category's row, plus bias.

    Weights of numbers and biases are uniform in +-1/sqrt(dim), categories truncated normal of deviation 0.02.

    Args:
        categories: for each column how many categories it has, 0 for numbers.
        dim: width.
        mean: of each column of numbers, in the units of values, taken off them; None for nothing.
        std: its deviation, by which they are divided.
    """

    first: Tensor
    last: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, categories: list[int], dim: int, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        count = len(categories)
        self.register_buffer("mean", torch.zeros(count) if mean is None else mean, persistent=False)
        self.register_buffer("std", torch.ones(count) if std is None else std, persistent=False)
        rows = torch.tensor([max(1, count) for count in categories])
        self.rows = nn.Parameter(torch.empty(int(rows.sum()), dim))
        self.bias = nn.Parameter(torch.empty(len(categories), dim))
        self.register_buffer("first", torch.cumsum(rows, 0) - rows, persistent=False)
        self.register_buffer("last", rows - 1, persistent=False)
        self.register_buffer("numeric", torch.tensor(categories) == 0, persistent=False)
        bound = 1 / math.sqrt(dim)
        nn.init.uniform_(self.rows, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        own = self.numeric.repeat_interleave(rows)
        with torch.no_grad():
            self.rows[~own] = nn.init.trunc_normal_(torch.empty(int((~own).sum()), dim), std=0.02)

    numeric: Tensor

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens with `x` of shape (b, n, dim); tokens may be any subset of the columns."""
        column, value = tokens.index, tokens.raw[..., 0]
        code = torch.round(value * self.last[column]).long()
        row = self.rows[self.first[column] + code.clamp(min=0).minimum(self.last[column])]
        standard = (value - self.mean[column]) / self.std[column]
        factor = torch.where(self.numeric[column], standard, 1.0).unsqueeze(-1)
        return tokens.but(x=row * factor + self.bias[column])
