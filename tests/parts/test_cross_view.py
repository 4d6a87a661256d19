"""The decoder that reads another view: CroCo's blocks and SiamMAE's, and what CropMAE's views promise."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

import mmssl
from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.parts.cross_view import CrossView
from mmssl.parts.maskers import Random
from mmssl.parts.views import RandomResizedCrop
from mmssl.types import TokenSpec
from tests.small import PIXELS, batch, module, tokens

SPEC = TokenSpec(5, 2, (4, 4))
SIAM = {"first": "cross", "norm": "post", "memory_position": False, "mlp_ratio": 2.0}
CROCO = {"first": "own", "norm": "pre", "memory_position": True}
VIEW = {"_target_": "predictor/cross_view", "dim": 16, "depth": 2, "heads": 2}
SECOND = {"views": {"x": [], "y": []}, "looks": {"y": {"masker": None, "corruptor": None}}}


def made(**said):
    torch.manual_seed(0)
    part = CrossView(SPEC, 8, 6, (), **({"dim": 16, "depth": 2, "heads": 2} | said)).eval()
    for name, p in part.named_parameters():  # norms that are no identity
        if "norm" in name:
            torch.nn.init.normal_(p, mean=1.0, std=0.2)
    whole = tokens(2, 16, grid=(4, 4))
    seen = whole.take(torch.tensor([[0, 3, 5, 9]] * 2))
    seen = seen.but(x=torch.randn(2, 4, 8), prefix=torch.randn(2, 1, 8))
    query = whole.take(torch.tensor([[1, 2, 4, 6, 7, 8, 10, 11, 12, 13, 14, 15]] * 2))
    memory = whole.but(x=torch.randn(2, 16, 8), prefix=torch.randn(2, 1, 8))
    return part, seen, query, memory


def attention(part, q, kv, heads):
    """Multi-head attention, written out."""
    d = q.shape[-1]
    w, b = part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w[i], b[i]).unflatten(-1, (heads, -1)).transpose(1, 2) for i, x in enumerate((q, kv, kv)))
    weights = (q @ k.mT / (d / heads) ** 0.5).softmax(-1)
    return part.out_proj((weights @ v).transpose(1, 2).flatten(2))


def norm(x, part):
    return F.layer_norm(x, x.shape[-1:], part.weight, part.bias, part.eps)


@pytest.mark.parametrize("said", [SIAM, CROCO], ids=["siammae", "croco"])
def test_the_decoder_is_the_papers_over_the_whole_grid(said):
    part, seen, query, memory = made(**said)
    table = F.pad(part.position(memory), (0, 0, 1, 0))  # zeros for the class token
    x = part.mask_token.expand(2, 17, -1).clone()
    x[:, 0], x[:, 1 + seen.index[0]] = part.embed(seen.prefix[:, 0]), part.embed(seen.x)
    x = x + table
    y = part.embed(torch.cat([memory.prefix, memory.x], 1))
    if said["memory_position"]:
        y = y + table
    for block in part.blocks:
        n = block.norms
        if said is SIAM:
            x = norm(x + attention(block.cross, x, y, 2), n["cross"])
            x = norm(x + block.mlp(x), n["mlp"])
            x = norm(x + attention(block.own, x, x, 2), n["own"])
        else:
            read = norm(x, n["own"])
            x = x + attention(block.own, read, read, 2)
            x = x + attention(block.cross, norm(x, n["cross"]), norm(y, block.norm_memory), 2)
            x = x + block.mlp(norm(x, n["mlp"]))
    dense = part.head(norm(x, part.norm))[:, 1:]
    torch.testing.assert_close(part(seen, query, memory), dense[:, query.index[0]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("said", "same"), [(SIAM, True), (CROCO | {"memory_position": False}, True), (CROCO, False)])
def test_a_memory_without_positions_is_a_set(said, same):
    part, seen, query, memory = made(**said)
    other = memory.but(x=memory.x[:, torch.randperm(16)])
    assert torch.allclose(part(seen, query, memory), part(seen, query, other), atol=1e-5) == same
    changed = memory.but(x=memory.x + 1)
    assert not torch.allclose(part(seen, query, memory), part(seen, query, changed), atol=1e-3)


def test_padding_is_not_read():
    part, seen, query, memory = made(**CROCO)
    flags = torch.ones(2, 16, dtype=torch.bool)
    flags[:, 12:] = False
    padded = part(seen, query, memory.but(valid=flags))
    short = part(seen, query, memory.take(memory.index[:, :12]).but(prefix=memory.prefix))
    torch.testing.assert_close(padded, short, rtol=1e-5, atol=1e-6)
    flags = torch.ones_like(seen.index, dtype=torch.bool)
    flags[:, 3:] = False
    short = part(seen.take(torch.tensor([[0, 1, 2]] * 2)).but(prefix=seen.prefix), query, memory)
    torch.testing.assert_close(part(seen.but(valid=flags), query, memory), short, rtol=1e-5, atol=1e-6)


def test_dropout_is_in_training_alone():
    part, seen, query, memory = made(**SIAM, dropout=0.5)
    assert torch.equal(part(seen, query, memory), part(seen, query, memory))
    part.train()
    assert not torch.allclose(part(seen, query, memory), part(seen, query, memory))


@pytest.mark.parametrize(("masker", "rows"), [(None, 4), ({"_target_": "masker/several", "count": 3}, 12)])
def test_both_views_are_in_the_loss_and_each_mask_has_its_samples_memory(masker, rows):
    masker = {"_target_": "masker/random", "ratio": 0.9} if masker is None else masker | {
        "masker": {"_target_": "masker/random", "ratio": 0.9}
    }  # fmt: skip
    part = module(**SECOND, masker=masker, objective={"pixels": PIXELS | {"predictor": VIEW, "memory": "y"}})
    given = batch(names=("x", "y"))
    term, step = part.objective["pixels"], part.begin(given)
    total, weight = term(step)
    assert float(weight) == float(term.count(step)) == rows * 15  # 1 of 16 is seen
    step["y"].seen.x.retain_grad()
    part.training_step(given).backward()
    ((query, answer),) = term.predict(step)
    for row in range(rows):
        one = step["x"].seen.take(torch.arange(1).expand(rows, 1)[row : row + 1], torch.tensor([row]))
        memory = step["y"].seen
        place = torch.tensor([row * 4 // rows])
        alone = term.predictor(
            one.but(prefix=step["x"].seen.prefix[row : row + 1]),
            query.take(torch.arange(15)[None], torch.tensor([row])),
            memory.take(memory.index[place], place).but(prefix=memory.prefix[place]),
        )
        torch.testing.assert_close(alone[0], answer[row], rtol=1e-5, atol=1e-5)
    other = part.begin(given | {"y": given["x"]})
    assert not torch.isclose(part.objective["pixels"](other)[0], total)


def test_bad_input_is_refused():
    part = module(objective={"pixels": PIXELS | {"predictor": VIEW}})
    with pytest.raises(ValueError, match=r"predictor/cross_view reads a second look.*memory: LOOK"):
        part.objective["pixels"](part.begin(batch()))
    with pytest.raises(ConfigError, match=r"predictor\.first has to be 'own', 'cross' or 'both'.*'self'"):
        module(**SECOND, objective={"pixels": PIXELS | {"predictor": VIEW | {"first": "self"}, "memory": "y"}})
    with pytest.raises(ConfigError, match=r"predictor\.heads=3 does not divide predictor\.dim=16"):
        module(**SECOND, objective={"pixels": PIXELS | {"predictor": VIEW | {"heads": 3}, "memory": "y"}})


@pytest.mark.parametrize(
    ("said", "seen", "asked"),
    [({"ratio": 0.985}, 2, 194), ({"ratio": 0.9, "floor": "hidden"}, 20, 176)],
    ids=["cropmae", "croco"],
)
def test_counts_at_the_papers_size(said, seen, asked):
    mask = Random(**said)(tokens(2, 196, grid=(14, 14)), Draws.of(0, 0, torch.arange(2)), 0.0, None)
    assert (mask.visible_count, mask.target_count) == (seen, asked)


def test_the_first_try_of_a_crop_is_taken_and_cut_off():
    """BYOL's rule, step by step, on a wide image where many tries leave the image."""
    view, height, width = RandomResizedCrop(size=8, scale=(0.3, 1.0), once=True), 40, 160
    cut = 0
    for i in range(200):
        draws = Draws.of(0, 0, torch.tensor([i]))
        top, left, h, w = view.box(height, width, draws)
        area, ratio = draws.named("crop").uniform(10, 4)[0, 0, :2].tolist()
        area, ratio = height * width * (0.3 + 0.7 * area), (3 / 4) ** (1 - 2 * ratio)
        whole = (round((area / ratio) ** 0.5), round((area * ratio) ** 0.5))
        cut += whole[0] > height
        assert (h, w) == (min(whole[0], height), min(whole[1], width))
        assert 0 <= top <= height - h and 0 <= left <= width - w
    assert cut > 50


def test_cropmae_nests_its_crops_and_flips_them_apart():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, data = mmssl.build("image/cropmae", ["data=sample", "data.batch_size=2", "encoder.depth=1"])
    outer, inner = data.views["global"], data.views["local"]
    assert type(inner[0]).__name__ == "Of" and inner[0].other == "global"
    flipped = []
    for i in range(200):
        stream = Draws.of(0, 0, torch.tensor([i]))
        picture = torch.arange(64, dtype=torch.uint8).expand(1, 8, 64)
        moved = [
            view[-1](picture, stream.named(f"view/{name}/{len(view) - 1}"))[0, 0, 0]
            for name, view in (("global", outer), ("local", inner))
        ]
        flipped.append([int(x) != 0 for x in moved])  # the local crop is cut from the flipped one, and flipped again
    both = torch.tensor(flipped)
    same = (~both[:, 1]).sum()  # of one orientation where the local one is not flipped again
    assert 70 < int(same) < 130 and 70 < int(both[:, 0].sum()) < 130
    assert abs(float((both[:, 0].float() * both[:, 1].float()).mean()) - 0.25) < 0.12
