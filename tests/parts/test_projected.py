"""DMJD's branch over visible tokens, and what its two branches answer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mmssl
from mmssl.parts.projected import Projected
from mmssl.types import TokenSpec
from tests.small import tokens


def test_three_layers_and_norms_the_last_without_weights():
    torch.manual_seed(0)
    part = Projected(TokenSpec(5, 2, (4, 4)), 8, 6, (), dims=[12, 10, 7])
    kept = tokens(2, 16, grid=(4, 4)).take(torch.tensor([[1, 4, 6]] * 2)).but(x=torch.randn(2, 3, 8))
    query = tokens(2, 16, grid=(4, 4)).take(torch.tensor([[6, 1]] * 2))
    x = kept.x[:, [2, 0]]
    first, norm1, _, second, norm2, _, third, norm3 = part.layers
    for layer, norm in ((first, norm1), (second, norm2)):
        x = F.linear(x, layer.weight, layer.bias)
        x = F.gelu((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt() * norm.weight)
    x = F.layer_norm(F.linear(x, third.weight), (7,), eps=1e-6)
    assert norm3.weight is None and sum(p.ndim == 2 for p in part.parameters()) == 4
    torch.testing.assert_close(part(kept, query), F.linear(x, part.head.weight))
    with_class = part.with_class(kept.but(prefix=kept.x[:, :1]), query)
    torch.testing.assert_close(with_class[:, 1:], part(kept, query))
    with pytest.raises(ValueError, match=r"predictor\.dims"):
        Projected(TokenSpec(5, 2), 8, 6, (), dims=[])


def test_dmjd_answers_every_patch_once_hidden_and_once_seen():
    part, data = mmssl.build("image/dmjd", ["data=sample", "data.batch_size=4", "encoder.depth=1", "encoder.dim=32"])
    step = part.begin(data.batch([(0, i) for i in range(4)]))
    mask = step["x"].mask
    assert mask.visible.shape == (8, 64) and mask.visible_count == 24  # int(16 * 0.4) of 16 units of 4 patches
    hidden, seen = part.objective["pixels"], part.objective["visible"]
    assert [float(term(step)[1]) for term in (hidden, seen)] == [8 * 40, 8 * 24]
    assert hidden.target.dim == seen.target.dim == 2 * 2 * 9 * data.facts()["channels"]
    both = torch.zeros(4, 64, dtype=torch.bool)
    for (query, _), rows in zip(hidden.predict(step), [mask.row], strict=True):
        both[rows.unsqueeze(1).expand_as(query.index), query.index] = True
    assert both.all()
