"""Labels of tokens: which of a sample's labels belongs to which token, and what no label is."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.types import Tokens

UNLABELLED = -1


def counted(tokens: Tokens, label: Tensor | None) -> Tensor:
    """Which tokens get a row of their own, (b, n) or packed (n,): all but padding and places that cannot have a label.

    Of a neighbourhood around a seed node that is the seed alone.
    """
    keep = torch.ones_like(tokens.index, dtype=torch.bool) if tokens.valid is None else tokens.valid
    if label is None or label.dim() != 2 or not tokens.packed:
        return keep
    return keep & (tokens.index < label.shape[1])


def label_at(label: Tensor, tokens: Tokens) -> Tensor:
    """Labels (b, places) at the places of the tokens, (b, n) or packed (n,); -1 at places behind the last.

    Raises:
        ValueError: for labels of samples.
    """
    if label.dim() != 2:
        raise ValueError(
            f"data: pool=token needs a label per token, (samples, tokens), but labels are {tuple(label.shape)}. Use "
            "pool=mean or pool=cls for labels of samples."
        )
    label = torch.nn.functional.pad(label.to(tokens.index.device), (0, 1), value=UNLABELLED)
    place = tokens.index.clamp(max=label.shape[1] - 1)
    return label.gather(1, place) if tokens.sample is None else label[tokens.sample, place]
