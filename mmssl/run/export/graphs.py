"""Encoders as graphs of operations, ONNX and torch.export, for any modality whose samples are of one length."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.nn.network import Network
from mmssl.run.export.twins import Unfit
from mmssl.types import Tokens, View


def join(tokens: Tokens) -> Tensor:
    """Tokens with those in front before them, (b, q + n, d)."""
    assert tokens.x is not None
    return tokens.x if tokens.prefix is None else torch.cat([tokens.prefix, tokens.x], 1)


class Features(nn.Module):
    """A network as a function of tensors: of the raw batch, or, where that is no tensor, of what the tokenizer cut.

    Args:
        network: the encoder with its tokenizer.
        pool: `evaluation.pool`, or `token`.
        tokens: an example of what the tokenizer cuts, where the graph begins behind it; None for raw batches.
        names: which fields of the tokens are inputs; the others are the example's, the same for every sample.
    """

    def __init__(self, network: Network, pool: str, tokens: Tokens | None, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.pool, self.names = network, pool, names
        self.example = tokens
        if tokens is not None:
            self.register_buffer("pos", tokens.pos[:1].clone(), persistent=False)
            self.register_buffer("index", tokens.index[:1].clone(), persistent=False)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """All tokens (b, q + n, d), and one vector per sample (b, d) unless rows belong to tokens."""
        if self.example is None:
            tokens = self.network(View(given[0], ""))
        else:
            fields: dict[str, Any] = dict(zip(self.names, given, strict=True))
            for name in ("pos", "index"):  # `len` would make the size of the batch a constant
                fields.setdefault(name, getattr(self, name).expand(given[0].shape[0], *getattr(self, name).shape[1:]))
            tokens = self.network.encode(Tokens(**fields, grid=self.example.grid, count=self.example.count))
        return (join(tokens),) if self.pool == "token" else (join(tokens), tokens.pool(self.pool))


@dataclass(frozen=True)
class Graph:
    """A function of tensors that can be traced, with its example input.

    Args:
        model: the function.
        inputs: example by name; the first axis of each is the batch.
        outputs: names.
        raw: whether the input is the raw batch, and not what the tokenizer cut.
    """

    model: Features
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    raw: bool


def graphs(network: Network, pool: str, view: View) -> Iterator[Graph]:
    """The functions that a graph format may hold, the widest first, for a batch as evaluation sees it.

    Raises:
        Unfit: for packed batches and for encoders that read edges.
    """
    outputs = ("tokens",) if pool == "token" else ("tokens", "features")
    with torch.no_grad():
        tokens = network.tokenizer(view)
    if tokens.packed or tokens.edges is not None:
        raise Unfit("its samples are of unequal size and joined by edges, where a graph of operations has fixed shapes")
    if isinstance(view.data, Tensor):
        yield Graph(Features(network, pool, None, ()), {"batch": view.data.clone()}, outputs, True)
    names = ["raw", *(name for name in ("valid", "given") if getattr(tokens, name) is not None)]
    names += [name for name in ("pos", "index") if not _constant(getattr(tokens, name))]
    inputs = {name: getattr(tokens, name).contiguous().clone() for name in names}
    yield Graph(Features(network, pool, tokens, tuple(names)), inputs, outputs, False)


def _constant(values: Tensor) -> bool:
    return bool((values == values[:1]).all())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print their progress and warn about themselves; errors still come out."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _shapes(made: Graph) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch", min=1)  # the number of tokens is that of the example
    return tuple({0: batch} for _ in made.inputs)


def _traced(made: Graph) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(made.model.eval(), tuple(made.inputs.values()), dynamic_shapes=(_shapes(made),))


def write_torch(made: Graph, folder: Path) -> str:
    """Writes `model.pt2` for `torch.export.load`.

    Raises:
        Unfit: where the encoder cannot be traced.
    """
    with _quiet(), _named("torch.export"):
        torch.export.save(_traced(made), folder / "model.pt2")
    return "model.pt2"


def write_onnx(made: Graph, folder: Path) -> str:
    """Writes `model.onnx`, with the weights inside where they are below 2 GB.

    Raises:
        Unfit: where the encoder cannot be traced, or an operation has no ONNX counterpart.
    """
    size = sum(tensor.nbytes for tensor in made.model.state_dict().values())
    with _quiet(), _named("torch.onnx"):
        # Traced here: given the module, the exporter would try again in slower ways, and end with a batch of one size.
        torch.onnx.export(
            _traced(made), (), str(folder / "model.onnx"), dynamo=True, verbose=False, external_data=size > 1 << 30,
            input_names=list(made.inputs), output_names=list(made.outputs),
        )  # fmt: skip
    return "model.onnx"


@contextlib.contextmanager
def _named(exporter: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # tracing fails in many ways, none of which a caller can tell apart
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise Unfit(f"{exporter} cannot trace it ({type(error).__name__}: {lines[0] if lines else ''})") from error
