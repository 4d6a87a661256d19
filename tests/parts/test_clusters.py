"""CAPI: a rectangle on a torus, positionwise shares, a clustering head of its own, rotary places and pure reading."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

import mmssl
from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.nn.rope import Rope, RopeBlock, edge, with_registers
from mmssl.parts.clusters import Clusters
from mmssl.parts.encoders.rope import RopeEncoder
from mmssl.parts.rolled import RolledBlock
from mmssl.parts.rope_predictor import RopeCross, UnitLinear
from mmssl.types import TokenSpec
from tests.small import batch, gradients, module, tokens

SPEC = TokenSpec(5, 2, (4, 4))
ROPE = {"_target_": "encoder/rope", "dim": 32, "depth": 2, "heads": 2, "registers": 4}
CAPI = {
    "encoder": ROPE,
    "masker": {"_target_": "masker/rolled_block", "predict": 0.3},
    "heads": {"clusters": {"_target_": "head/clusters", "count": 12}},
    "teacher": {"_target_": "teacher/ema", "momentum": 0.9},
    "objective": {
        "clusters": {"_target_": "term/cluster", "head": "clusters"},
        "latent": {
            "_target_": "term/predict",
            "predictor": {"_target_": "predictor/rope_cross", "dim": 16, "depth": 2, "heads": 2, "unit": True},
            "target": {"_target_": "target/clusters", "head": "clusters"},
            "loss": {"_target_": "loss/soft_ce", "temperature": 0.12},
        },
    },
}


def draws(b):
    return Draws.of(0, 0, torch.arange(b))


@pytest.mark.parametrize(("side", "ratio", "keep", "ask"), [(16, 0.65, 90, 8), (8, 0.65, 23, 2), (14, 0.9, 20, 8)])
def test_the_kept_tokens_are_one_rectangle_on_a_torus(side, ratio, keep, ask):
    n = side * side
    mask = RolledBlock(ratio=ratio, predict=0.05)(tokens(40, n, grid=(side, side)), draws(40), 0.0, None)
    assert (mask.visible.sum(1) == keep).all() and (mask.targets.sum((1, 2)) == ask).all()
    assert (mask.visible_count, mask.target_count) == (keep, ask) and not (mask.visible & mask.targets[:, 0]).any()
    shapes = set()
    for kept in mask.visible.reshape(-1, side, side):
        # of all moves around the torus one puts a raster prefix of an h x w rectangle into the corner
        found = [
            (int(rows), int(columns))
            for dy in range(side) for dx in range(side)
            if (moved := kept.roll((dy, dx), (0, 1)))[0, 0]
            and (rows := moved.any(1).sum()) * (columns := moved.any(0).sum()) - keep < columns
            and moved[: rows - 1, :columns].all() and int(moved[rows - 1, :columns].int().diff().abs().sum()) <= 1
            and moved[:rows, :columns].sum() == keep
        ]  # fmt: skip
        assert found
        shapes.add(found[0])
    assert len(shapes) > 1 and all(0.3 < h / w < 3 for h, w in shapes)
    share = mask.visible.float().mean(0)
    assert float((share - keep / n).abs().max()) < 0.4  # rolled: no place is favoured


def test_without_rolling_rectangles_lie_inside():
    mask = RolledBlock(roll=False)(tokens(50, 64, grid=(8, 8)), draws(50), 0.0, None)
    assert torch.equal(mask.targets[:, 0], ~mask.visible) and mask.target_count == 41
    for kept in mask.visible.reshape(-1, 8, 8):
        rows, columns = kept.any(1).nonzero().flatten(), kept.any(0).nonzero().flatten()
        assert int(rows[-1] - rows[0]) + 1 == len(rows) and int(columns[-1] - columns[0]) + 1 == len(columns)
    assert float(mask.visible.float().mean(0).reshape(8, 8)[3, 3]) > 0.6  # else the middle would not be favoured


def test_bad_shares_and_grids_are_refused():
    with pytest.raises(ValueError, match=r"masker\.predict is a share of the hidden tokens"):
        RolledBlock(predict=0.0)
    with pytest.raises(ValueError, match=r"masker\.aspect has to be two ascending"):
        RolledBlock(aspect=(2.0, 0.5))
    with pytest.raises(ValueError, match="masker/rolled_block needs whole tokens on a grid of two axes"):
        RolledBlock()(tokens(2, 10), draws(2), 0.0, None)


def test_shares_are_sinkhorns_at_each_place_alone():
    torch.manual_seed(0)
    head = Clusters(6, count=5)
    x = torch.randn(7, 3, 6)
    logits = head(x)
    unit = x / x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(logits, unit @ head.centres.weight.T + head.centres.bias)
    shares = head.assign(logits)
    torch.testing.assert_close(shares.sum(-1), torch.ones(7, 3))
    for place in range(3):
        m = logits[:, place].double() / 0.06
        m = torch.exp(m - m.max(0).values + 50)
        for _ in range(3):
            m = m / (m.sum(0) + 1e-8)
            m = m / (m.sum(1, keepdim=True) + 1e-8)
        torch.testing.assert_close(shares[:, place], m.float(), rtol=1e-4, atol=1e-6)


def test_a_cluster_cannot_be_a_place():
    """Tokens that know nothing but their place: with one clustering over all of them each place would be a cluster."""
    head = Clusters(4, count=4, iterations=20)
    with torch.no_grad():
        head.centres.weight.copy_(torch.eye(4))
    shares = head.assign(head(torch.eye(4).expand(8, 4, 4)))
    torch.testing.assert_close(shares, torch.full((8, 4, 4), 0.25), rtol=1e-4, atol=1e-4)


def test_each_loss_trains_its_own_side_alone():
    part, given = module(**CAPI), batch()
    part.train()
    terms = part.objective
    head = part.heads["clusters"]
    step = part.begin(given)
    (total, weight), look = terms["clusters"](step), step["x"]
    assert float(weight) == float(terms["clusters"].count(step)) == 4 * 16
    logits = head(look.taught.x)
    shares = head.assign(logits)
    wanted = -(shares * (logits / 0.12).log_softmax(-1)).sum()
    torch.testing.assert_close(total, wanted)
    total.backward()
    found = {name for name, g in gradients(part).items() if g is not None}
    assert found == {"heads.clusters.centres.weight", "heads.clusters.centres.bias"}

    part.zero_grad()
    for order in (("latent",), ("latent", "clusters")):  # targets may ask first: the head learns all the same
        step = part.begin(given)
        losses = [terms[name](step)[0] for name in order]
        torch.stack(losses).sum().backward()
        assert (head.centres.weight.grad is None) == (order == ("latent",))
    ((query, answer),) = terms["latent"].predict(step)
    target = terms["latent"].target(step["x"], query)
    at = torch.stack([shares[i, query.index[i]] for i in range(4)])
    torch.testing.assert_close(target, at)
    assert query.index.shape == (4, int(10 * 0.3)) and answer.shape == (4, 3, 12)
    torch.testing.assert_close(losses[0], -(at * (answer / 0.12).log_softmax(-1)).sum())


def test_the_clusters_have_no_twin_and_a_rate_of_their_own():
    rules = {"heads.clusters.*": {"lr": 0.5, "weight_decay": 0.01}, "*norm*.weight": {"weight_decay": 0.01}}
    part = module(**CAPI, optim={"_target_": "optim/adamw", "lr": 1e-3, "weight_decay": 0.1, "rules": rules})
    assert set(part.teacher.twins) == {"main"}
    optimizer = part.configure_optimizers()
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, p in part.named_parameters():
        if p.requires_grad:
            own, norm = name.startswith("heads.clusters."), "norm" in name and name.endswith("weight")
            group = groups[id(p)]
            assert group["lr"] == (5e-4 if own else 1e-3), name
            assert group["weight_decay"] == (0.01 if own or norm else 0.0 if name.endswith("bias") else 0.1), name


def test_uniform_shares_cost_the_logarithm_of_the_number_of_clusters():
    logits, shares = torch.zeros(2, 16384), torch.full((2, 16384), 1 / 16384)
    assert float(-(shares * logits.log_softmax(-1)).sum(-1)[0]) == pytest.approx(math.log(16384), abs=1e-4)
    assert math.log(16384) == pytest.approx(9.7041, abs=1e-4)


def test_bad_heads_are_refused():
    heads = {"clusters": {"_target_": "head/feedforward", "dim": 12}}
    with pytest.raises(ConfigError, match=r"heads\.clusters is .* which has no clusters; make it head/clusters"):
        module(**CAPI | {"heads": heads})
    with pytest.raises(ValueError, match="count has to be at least 2"):
        Clusters(4, count=1)
    with pytest.raises(ConfigError, match=r"encoder\.heads=3 has to divide encoder\.dim=32 into multiples of 4"):
        module(**CAPI | {"encoder": ROPE | {"heads": 3}})
    with pytest.raises(ConfigError, match=r"predictor\.heads=8 has to divide predictor\.dim=16"):
        latent = CAPI["objective"]["latent"] | {
            "predictor": {"_target_": "predictor/rope_cross", "dim": 16, "heads": 8}
        }
        module(**CAPI | {"objective": CAPI["objective"] | {"latent": latent}})
    with pytest.raises(ValueError, match="need tokens on a grid of two axes"):
        RopeEncoder(SPEC, dim=8, depth=1, heads=1)(tokens(2, 4).but(x=torch.randn(2, 4, 8)))


def test_places_turn_pairs_of_channels_of_one_axis():
    part = Rope(8, fastest=7.0, slowest=7e-4)
    x, places = torch.randn(1, 2, 3, 8), torch.rand(1, 3, 2)
    found = part(x, places)
    for axis in range(2):
        for pair, turns in enumerate((7.0, 7e-4)):
            angle = 2 * math.pi * turns * places[:, :, axis]
            z = torch.complex(x[..., 4 * axis + pair], x[..., 4 * axis + 2 + pair]) * torch.exp(1j * angle).unsqueeze(1)
            torch.testing.assert_close(found[..., 4 * axis + pair], z.real)
            torch.testing.assert_close(found[..., 4 * axis + 2 + pair], z.imag)
    # products depend on differences of places alone
    moved = part(x, places + 0.3)
    torch.testing.assert_close(moved @ moved.mT, found @ found.mT, rtol=1e-4, atol=1e-4)


def test_pairs_across_the_axes():
    """The released code: half of a head moved past the other, signs changed, each half with its own axis's angles."""
    part, x, places = Rope(8, pairs="across"), torch.randn(1, 2, 3, 8), torch.rand(1, 3, 2)
    angle = (places.unsqueeze(-1) * part.speed.repeat(2)).flatten(2).unsqueeze(1)
    moved = torch.cat([-x[..., 4:], x[..., :4]], -1)
    torch.testing.assert_close(part(x, places), x * angle.cos() + moved * angle.sin())
    assert not torch.allclose(part(x, places), Rope(8)(x, places))
    with pytest.raises(ValueError, match="pairs='both'"):
        Rope(8, pairs="both")


def test_registers_lie_on_the_edge_of_what_is_seen():
    assert edge(8).tolist() == [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5]]
    whole = tokens(1, 16, grid=(4, 4))
    seen = whole.take(torch.tensor([[5, 6, 9, 15]]))  # rows 1 to 3, columns 1 to 3
    places = with_registers(seen, 4)
    torch.testing.assert_close(places[0, :4], torch.tensor([[1, 1], [3, 1], [3, 3], [1, 3]]) / 3)
    torch.testing.assert_close(places[0, 4:], seen.pos[0] / 3)
    valid = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(with_registers(seen.but(valid=valid), 4)[0, 2], torch.tensor([2.0, 2.0]) / 3)


def test_the_encoder_is_blocks_between_registers_and_a_bare_norm():
    torch.manual_seed(0)
    part = RopeEncoder(SPEC, dim=16, depth=2, heads=2, registers=4)
    assert not [name for name, _ in part.named_parameters() if name.endswith("bias")] and part.norm.weight is None
    seen = tokens(2, 16, grid=(4, 4)).take(torch.tensor([[0, 3, 5]] * 2)).but(x=torch.randn(2, 3, 16))
    found = part(seen, ("embed", "block.1"))
    places = with_registers(seen, 4)
    x = torch.cat([part.registers.expand(2, -1, -1), seen.x], 1)
    for block in part.blocks:
        own = F.rms_norm(x, (16,), block.norm1.weight, 1e-5)
        q, k, v = (f(own).reshape(2, 7, 2, 8).transpose(1, 2) for f in (block.q, block.k, block.v))
        q, k = block.rope(q, places), block.rope(k, places)
        x = x + block.proj(((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 7, 16))
        x = x + block.fc2(F.gelu(block.fc1(F.rms_norm(x, (16,), block.norm2.weight, 1e-5))))
    torch.testing.assert_close(found.taps["block.1"], x)
    x = F.rms_norm(x, (16,), None, 1e-5)
    torch.testing.assert_close(torch.cat([found.prefix, found.x], 1), x)
    valid = torch.tensor([[True, True, False]] * 2)
    short = seen.take(torch.tensor([[0, 1]] * 2))
    torch.testing.assert_close(part(seen.but(valid=valid)).x[:, :2], part(short).x)
    assert isinstance(part.blocks[0], RopeBlock)


def test_answers_do_not_depend_on_what_else_is_asked():
    torch.manual_seed(0)
    part = RopeCross(SPEC, 8, 6, (), dim=16, depth=2, heads=2, unit=True)
    whole = tokens(2, 16, grid=(4, 4))
    seen = whole.take(torch.tensor([[0, 3, 5]] * 2)).but(x=torch.randn(2, 3, 8), prefix=torch.randn(2, 4, 8))
    both = part(seen, whole.take(torch.tensor([[7, 12]] * 2)))
    alone = part(seen, whole.take(torch.tensor([[12]] * 2)))
    torch.testing.assert_close(both[:, 1:], alone)
    assert not torch.allclose(both[:, 0], both[:, 1])
    bare = part(seen.but(prefix=None), whole.take(torch.tensor([[12]] * 2)))
    assert not torch.allclose(bare, alone)
    valid = torch.tensor([[True, True, False]] * 2)
    short = seen.take(torch.tensor([[0, 1]] * 2)).but(prefix=seen.prefix)
    query = whole.take(torch.tensor([[12]] * 2))
    torch.testing.assert_close(part(seen.but(valid=valid), query), part(short, query))


def test_the_last_map_takes_and_has_directions():
    part = UnitLinear(4, 3)
    x = torch.randn(5, 4)
    cosines = F.cosine_similarity(x[:, None], part.direction[None], dim=-1)
    torch.testing.assert_close(part(x), cosines)
    torch.testing.assert_close(part(3 * x), cosines)
    with torch.no_grad():
        part.length.fill_(2.0)
    torch.testing.assert_close(part(x), 2 * cosines)


def test_the_recipe_at_its_own_size():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part, data = mmssl.build(
            "image/capi", ["data=sample", "data.batch_size=4", "encoder.depth=1", "encoder.dim=32"]
        )
    step = part.begin(data.batch([(0, i) for i in range(4)]))
    assert step["x"].mask.visible_count == 23 and step["x"].mask.target_count == 2
    assert part.objective["latent"].predictor.head.length.shape == (256, 1)
