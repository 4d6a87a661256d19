"""Codes that are learned by a bottleneck, and what a later run makes of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl import api
from mmssl.config.compose import ConfigError
from mmssl.parts.vq import Quantizer
from tests.small import PIXELS, VIT, batch, module

DECODER = VIT | {"dim": 16, "depth": 1}
PREDICTOR = {"_target_": "predictor/quantized", "decoder": DECODER, "count": 12, "dim": 5}
TERM = PIXELS | {"at": "all", "predictor": PREDICTOR, "loss": {"_target_": "loss/cosine"}}
ASIDE = {"_target_": "term/aside", "of": "features", "name": "commitment"}
TOKENIZER = {"objective": {"features": TERM, "commitment": ASIDE}, "masker": None, "corruptor": None}


def placed(count=6, dim=4, decay=0.9, rounds=0):
    part = Quantizer(count, dim, decay, rounds)
    part.placed.fill_(True)
    return part.train()


def test_codes_follow_the_mean_of_their_vectors():
    part = placed()
    before = part.codes.clone()
    z = torch.randn(3, 7, 4, requires_grad=True)
    codes, commitment = part(z, None)
    unit = F.normalize(z.detach(), dim=-1).flatten(0, 1)
    ids = torch.cdist(unit, before).argmin(-1)
    torch.testing.assert_close(codes.detach().flatten(0, 1), before[ids])
    torch.testing.assert_close(commitment.detach().flatten(), (before[ids] - unit).square().mean(-1))
    for k in range(6):
        rows = unit[ids == k]
        expected = before[k]
        if len(rows):
            expected = F.normalize(0.9 * before[k] + 0.1 * F.normalize(rows.mean(0), dim=0), dim=0)
        torch.testing.assert_close(part.codes[k], expected)
    torch.testing.assert_close(part.codes.norm(dim=-1), torch.ones(6))
    unit = F.normalize(z, dim=-1)
    (mine,) = torch.autograd.grad(codes.sum(), z, retain_graph=True)
    (plain,) = torch.autograd.grad(unit.sum(), z)
    torch.testing.assert_close(mine, plain)  # straight through, but for the length


def test_vectors_on_codes_change_nothing():
    part = placed()
    before = part.codes.clone()
    _, commitment = part(before * 3, None)
    assert float(commitment.max()) < 1e-12
    torch.testing.assert_close(part.codes, before)


def test_what_does_not_count_moves_no_code():
    part, other = placed(), placed()
    other.codes.copy_(part.codes)
    z = torch.randn(2, 5, 4)
    flags = torch.tensor([[True] * 5, [True, True, False, False, False]])
    part(z, flags)
    other(z[flags], None)
    assert torch.equal(part.codes, other.codes)
    part.eval()
    kept = part.codes.clone()
    part(z, None)
    assert torch.equal(part.codes, kept)


def test_the_first_batch_places_the_codes():
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(4, 8), dim=-1)
    rows = centres.repeat_interleave(20, 0) + 0.01 * torch.randn(80, 8)
    part = Quantizer(4, 8, 1.0, 10).train()
    part(rows, None)
    # as k-means with cosines does from the same vectors
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))[:4]
    unit = F.normalize(rows, dim=-1)
    means = unit[order]
    for _ in range(10):
        near = (unit @ means.T).argmax(-1)
        means = torch.stack([F.normalize(unit[near == k].mean(0), dim=0) if (near == k).any() else means[k] for k in range(4)])  # fmt: skip
    torch.testing.assert_close(part.codes, means)
    again = Quantizer(4, 8, 1.0, 10).train()
    again.load_state_dict(part.state_dict())
    again(torch.randn(9, 8), None)
    torch.testing.assert_close(again.codes, part.codes)  # they are placed once


def test_a_tokenizer_learns_through_its_codes():
    part = module(**TOKENIZER)
    part.train()
    step = part.begin(batch())
    term, aside = part.objective["features"], part.objective["commitment"]
    total, count = term(step)
    beside, number = aside(step)
    assert int(count) == 4 * 16 == int(number) == int(aside.count(step))
    predictor = term.predictor.eval()
    z = F.normalize(predictor.down(step["x"].seen.x), dim=-1)
    ids = predictor.quantizer.assign(predictor.down(step["x"].seen.x))
    assert torch.equal(ids, torch.cdist(z, predictor.quantizer.codes).argmin(-1))
    (total / count + beside / number).backward()
    assert all(p.grad is not None for p in part.networks["main"].parameters() if p.requires_grad)
    assert not predictor.quantizer.codes.requires_grad


@pytest.mark.filterwarnings("ignore:network/timm")
def test_beit_v2_asks_for_the_codes_of_its_tokenizer():
    given = ["data=sample", "data.batch_size=2", "encoder.depth=2", "objective.ids.predictor.depth=1"]
    part, data = api.build("image/beitv2", given)
    step = part.begin(data.batch([(0, i) for i in range(2)]))
    term, look = part.objective["ids"], step["x"]
    assert look.mask.hidden.sum(1).tolist() == [int(64 * 0.3827)] * 2
    query, _ = term.query(look, "hidden")
    network, codes = term.target.of._network[0], term.target.codes
    z = F.normalize(codes.down(network(look.views[0]).x), dim=-1)
    ids = torch.cdist(z, codes.quantizer.codes).argmin(-1)
    assert torch.equal(term.target(look, query), ids.gather(1, query.index)) and term.target.dim == 64
    assert not any(p.requires_grad for p in codes.parameters())
    with pytest.raises(
        ConfigError, match=r"codes/run: .* has no term 'commitment' with predictor/quantized, it has features"
    ):
        api.build("image/beitv2", [*given, "objective.ids.target.codes.term=commitment"])
