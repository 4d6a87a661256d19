"""CAE's regressor, decoder and term against their formulas; targets that see part of a view (CAE, DMAE, data2vec 2.0)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmssl.draws import Draws
from mmssl.parts.maskers import Random
from mmssl.parts.regressors import Blocks, Regressor
from mmssl.parts.seen_targets import FrozenSeen, Tap, layer_name
from mmssl.parts.targets import Frozen
from mmssl.plan import Plan
from mmssl.types import TokenSpec, View
from tests.small import PIXELS, batch, gradients, images, module, tokens

SPEC = TokenSpec(5, 2, (4, 4))
CAE = {
    "_target_": "term/regress",
    "regressor": {"_target_": "predictor/regressor", "depth": 2, "heads": 4},
    "predictor": {"_target_": "predictor/blocks", "depth": 1, "heads": 4},
    "target": {"_target_": "target/raw", "normalize": True}, "loss": {"_target_": "loss/mse"},
    "latent": {"_target_": "target/seen", "other": "rest"}, "latent_loss": {"_target_": "loss/mse"},
}  # fmt: skip


def cae(**said):
    return module(
        objective={"context": CAE | said}, masker={"_target_": "masker/random", "ratio": 0.5},
        looks={"x": {}, "rest": {"views": ["x"], "mask": "~x"}},
    )  # fmt: skip


def noisy(given, flags, seed=7):
    """The batch with noise in the patches of 8 pixels that are flagged, (b, 16)."""
    there = F.interpolate(flags.reshape(-1, 1, 4, 4).float(), scale_factor=8) > 0
    return given | {"x": View(torch.where(there, images(len(flags), seed=seed), given["x"].data), "image")}


def seen(width=16, places=(0, 3, 5, 9), b=2):
    torch.manual_seed(0)
    whole = tokens(b, 16, grid=(4, 4))
    kept = whole.take(torch.tensor([list(places)] * b))
    return whole, kept.but(x=torch.randn(b, len(places), width), prefix=torch.randn(b, 1, width))


def asked(whole, *places):
    return whole.take(torch.tensor([list(places)] * len(whole.index)))


def unlike(part):
    """Random weights everywhere, so that nothing is hidden by an initialisation."""
    for p in part.parameters():
        nn.init.normal_(p, std=0.3)
    return part.eval()


def norm(x, layer):
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, keepdim=True, correction=0) + 1e-6
    ).sqrt() * layer.weight + layer.bias


def mlp(x, part):
    return F.gelu(x @ part.fc1.weight.T + part.fc1.bias) @ part.fc2.weight.T + part.fc2.bias


def test_regressor_equals_its_formula():
    """Of every head on its own; keys are the visible tokens and the queries as they are before the block."""
    net = unlike(Regressor(SPEC, 16, 16, (), depth=2, heads=4))
    whole, kept = seen()
    query = asked(whole, 1, 7, 15)
    x = net.mask_token.expand(2, 3, -1)
    place, known = net.position.table[query.index], net.position.table[kept.index]
    for block in net.blocks:
        every = torch.cat([kept.x, x], 1)
        q = norm(x + place, block.norm_q) @ block.q.weight.T + block.q.bias
        k = norm(every + torch.cat([known, place], 1), block.norm_k) @ block.k.weight.T
        v = norm(every, block.norm_v) @ block.v.weight.T + block.v.bias
        heads = []
        for h in range(4):
            part = slice(4 * h, 4 * h + 4)
            heads.append((q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1) @ v[..., part])
        x = x + block.gamma1 * (torch.cat(heads, -1) @ block.proj.weight.T + block.proj.bias)
        x = norm(x, block.norm)
        x = x + block.gamma2 * mlp(x, block.mlp)
    torch.testing.assert_close(net(kept, query), norm(x, net.norm), rtol=1e-4, atol=1e-5)
    assert isinstance(net.head, nn.Identity) and Regressor(SPEC, 16, 5, (), heads=4)(kept, query).shape == (2, 3, 5)


def test_decoder_equals_its_formula_and_sees_its_tokens_alone():
    net = unlike(Blocks(SPEC, 16, 5, (), depth=2, heads=4))
    whole, kept = seen()
    x = kept.x + net.position.table[kept.index]
    for block in net.blocks:
        read, _ = (
            F.multi_head_attention_forward(
                norm(x, block.norm1).transpose(0, 1), norm(x, block.norm1).transpose(0, 1),
                norm(x, block.norm1).transpose(0, 1), 16, 4, block.attn.qkv.weight, block.attn.qkv.bias, None, None,
                False, 0.0, block.attn.proj.weight, block.attn.proj.bias,
            )
        )  # fmt: skip
        x = x + block.ls1.gamma * read.transpose(0, 1)
        x = x + block.ls2.gamma * mlp(norm(x, block.norm2), block.mlp)
    expected = norm(x, net.norm) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(kept, kept), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(kept, asked(whole, 9, 0)), expected[:, [3, 0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [Regressor, Blocks])
def test_padding_is_not_read(make):
    net = unlike(make(SPEC, 16, 5, (), depth=2, heads=4))
    whole, kept = seen()
    padded = kept.but(valid=torch.tensor([[True, True, True, False]] * 2))
    short = kept.take(torch.tensor([[0, 1, 2]] * 2))
    places = (0, 5) if make is Blocks else (1, 2)
    torch.testing.assert_close(net(padded, asked(whole, *places)), net(short, asked(whole, *places)))
    if make is Regressor:
        query = asked(whole, 1, 2, 7).but(valid=torch.tensor([[True, True, False]] * 2))
        torch.testing.assert_close(net(padded, query)[:, :2], net(short, asked(whole, 1, 2)))
    with pytest.raises(ValueError, match=r"heads=5 does not divide the encoder's width 16"):
        make(SPEC, 16, 5, (), heads=5)


# CAE as a whole


def test_the_loss_of_cae_is_the_sum_of_its_two_means():
    part = cae(latent_weight=3.0)
    step, term = part.begin(batch()), part.objective["context"]
    sums, counts = term(step)
    mask, net = step["x"].mask, part.networks["main"]
    hidden, visible = mask.target_index[0][:, 0], mask.visible_index[0]
    whole = step["x"].tokens
    query = whole.take(hidden)
    latent = term.predictor.regressor(net.encoder(net.embed(whole.take(visible))), query)
    goal = net.encoder(net.embed(query)).x
    pixels = term.predictor.decoder(query.but(x=latent), query)
    raw = query.raw
    target = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, keepdim=True) + 1e-6).sqrt()
    assert counts.tolist() == [32.0, 32.0]
    expected = torch.stack([(pixels - target).square().mean(), 3.0 * (latent - goal).square().mean()])
    torch.testing.assert_close(sums / counts, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(term.signals["latent"] * 3.0, expected[1].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.training_step(batch()), expected.sum(), rtol=1e-4, atol=1e-5)


def test_latents_see_visible_pixels_and_their_targets_hidden_ones():
    """Check (b) of CAE."""
    part, given = cae().eval(), batch()
    term, first = part.objective["context"], part.begin(given)
    mask = first["x"].mask

    def answers(step):
        query, kept = term.query(step["x"], "hidden")
        return term.predictor.regressor(kept, query), term.latent(step["x"], query), term.predict(step)[0][1]

    latent, goal, pixels = answers(first)
    for flags, changed in ((mask.visible, (True, False, True)), (mask.hidden, (False, True, False))):
        others = answers(part.begin(noisy(given, flags)))
        for old, new, moves in zip((latent, goal, pixels), others, changed, strict=True):
            assert torch.equal(old, new) != moves and (not moves or not torch.isclose(old, new).all(-1).any())


def test_no_gradient_comes_through_the_target():
    part, pixels = cae(), images(4).requires_grad_()
    step, term = part.begin(batch() | {"x": View(pixels, "image")}), part.objective["context"]
    sums, _ = term(step)
    sums[1].backward()
    cut = part.networks["main"].tokenizer
    moved = (cut(View(pixels.grad, "image")).raw - cut(View(torch.zeros_like(pixels), "image")).raw).abs().amax(-1)
    assert (moved[step["x"].mask.visible] > 0).all() and not moved[step["x"].mask.hidden].any()
    touched = {name for name, g in gradients(part).items() if g is not None and g.any()}
    assert any("predictor.regressor" in name for name in touched) and not any("decoder" in name for name in touched)
    query, _ = term.query(step["x"], "hidden")
    assert not term.latent(step["x"], query).requires_grad


def test_the_target_of_latents_is_the_encoder_as_it_is():
    part, given = cae(), batch()
    before = part.begin(given)
    query, _ = part.objective["context"].query(before["x"], "hidden")
    old = part.objective["context"].latent(before["x"], query)
    with torch.no_grad():
        for p in part.networks["main"].parameters():
            p.mul_(1.1)
    assert not torch.isclose(part.objective["context"].latent(part.begin(given)["x"], query), old).all()
    assert not [name for name, _ in part.named_parameters() if "latent" in name]


def test_mistakes_of_cae_are_answered():
    with pytest.raises(ValueError, match=r"target/seen names look 'res', but the run has rest, x"):
        cae(latent={"_target_": "target/seen", "other": "res"})
    with pytest.raises(ValueError, match=r"latents are 32 wide, as the encoder is, but their target is 192"):
        cae(latent={"_target_": "target/raw"})


# layers, DMAE


def test_layers_are_named_or_shares():
    def names(depth):
        return ("embed", *(f"block.{i}" for i in range(depth)))

    assert layer_name(0.75, names(12)) == "block.8" and layer_name(0.75, names(24)) == "block.17"
    assert layer_name(1.0, names(4)) == "block.3" and layer_name(0.01, names(4)) == "block.0"
    assert layer_name("block.1", names(4)) == "block.1"
    for wrong in ("block.4", 1.5, 0.0):
        with pytest.raises(ValueError, match=r"there is no layer 'block\.4'|a share of the blocks in \(0, 1\]"):
            layer_name(wrong, names(4))


def test_tap_is_linear_at_an_inner_layer():
    torch.manual_seed(0)
    whole, kept = seen()
    kept = kept.but(taps={"block.2": torch.randn(2, 5, 16)})
    part = Tap(SPEC, 16, 6, ("embed", *(f"block.{i}" for i in range(4))))
    assert part.taps == ("block.2",)
    expected = (kept.taps["block.2"][:, 1:] @ part.head.weight.T + part.head.bias)[:, [3, 0]]
    torch.testing.assert_close(part(kept, asked(whole, 9, 0)), expected)
    part.unit = True
    torch.testing.assert_close(part(kept, asked(whole, 9, 0)), expected / expected.norm(dim=-1, keepdim=True))


def frozen(layer=None, seed=3):
    """A target that is a random network of another width than the student's."""
    other = module(encoder={"_target_": "encoder/vit", "dim": 48, "depth": 4, "heads": 4}, seed=seed).networks["main"]

    def make(plan, look):
        return FrozenSeen(plan, look, network=lambda spec: other, layer=layer)

    return other, make


def plan_of(part):
    net = part.networks["main"]
    return Plan(part.looks, {"x": net.spec}, {"x": net.dim}, {"x": net.encoder.tap_names}, {"x": net}, lambda *a: net)


@pytest.mark.parametrize("layer", [None, 0.75])
def test_a_frozen_network_sees_what_the_student_sees(layer):
    part, given = module(), batch()
    other, make = frozen(layer)
    target, step = make(plan_of(part), "x"), part.begin(given)
    mask = step["x"].mask
    index = mask.visible_index[0]
    query = step["x"].tokens.take(index)
    found = target(step["x"], query)
    alone = other.encoder(other.embed(other.tokenizer(given["x"]).take(index)), ("block.2",))
    expected = alone.x if layer is None else alone.taps["block.2"][:, 1:]
    torch.testing.assert_close(found, expected)
    assert found.shape == (4, 4, 48) and target.dim == 48 and not found.requires_grad and not list(target.parameters())
    again = target(part.begin(noisy(given, mask.hidden))["x"], query)
    assert torch.equal(found, again)  # hidden pixels do not reach it, though they do reach target/frozen
    whole = Frozen(plan_of(part), "x", network=lambda spec: other)
    assert not torch.isclose(whole(step["x"], query), found).all(-1).any()


def test_feature_loss_of_dmae():
    """Equal features cost nothing; opposite ones at most 2 / sqrt(width), as unit vectors' mean differences do."""
    x = F.normalize(torch.randn(50, 1024, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert float((x - x).abs().mean()) == 0.0 and float((x + x).abs().mean(-1).max()) <= 2 / math.sqrt(1024) == 0.0625
    for ratio, kept in ((0.75, 49), (0.95, 9), (0.98, 3)):  # the paper's ten and four count the class token
        mask = Random(ratio=ratio)(tokens(2, 196), Draws.of(0, 0, torch.arange(2)), 0.0, None)
        assert mask.visible_count == kept


def test_a_network_of_whole_images_cannot_see_parts():
    part = module()
    grid = module(
        encoder={"_target_": "encoder/timm", "name": "test_resnet"}, objective={"pixels": PIXELS | {"at": "all"}}
    ).networks["main"]
    with pytest.raises(ValueError, match=r"target/frozen_seen needs a network that runs on visible tokens alone"):
        FrozenSeen(plan_of(part), "x", network=lambda spec: grid)


# data2vec 2.0 and I-JEPA as a whole

LAYERS = {"layers": ["ffn.1", "ffn.2"], "layer_norm": "instance"}
EMA = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.5}}


def data2vec():
    mean = {
        "_target_": "term/match", "looks": ["x"], "pairs": "same", "pool": "cls", "loss": {"_target_": "loss/mse"},
        "target": {"_target_": "target/teacher_mean"} | LAYERS,
    }  # fmt: skip
    layers = {
        "_target_": "term/predict", "predictor": {"_target_": "predictor/conv", "depth": 2, "groups": 4},
        "target": {"_target_": "target/teacher"} | LAYERS, "normalize": {"_target_": "norm/layer"},
        "loss": {"_target_": "loss/mse"}, "weight": math.sqrt(32),
    }  # fmt: skip
    return module(
        encoder={"_target_": "encoder/postnorm", "dim": 32, "depth": 3, "heads": 4, "dropout": 0.0, "class_token": True},
        masker={"_target_": "masker/several", "count": 3, "masker": {"_target_": "masker/inverse_blocks", "keep": 0.25}},
        objective={"layers": layers, "mean": mean}, teacher=EMA,
    )  # fmt: skip


def goals(part, given):
    """Instance-normalised outputs of the last two MLPs, their mean, and LayerNorm of it, written out."""
    twin = part.teacher.of(part.networks["main"])
    found = twin(given["x"], ("ffn.1", "ffn.2"))
    total = 0.0
    for name in ("ffn.1", "ffn.2"):
        layer = found.taps[name][:, 1:]
        total = total + (layer - layer.mean(1, keepdim=True)) / (layer.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    total = total / 2
    return (total - total.mean(-1, keepdim=True)) / (total.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()


def test_targets_of_data2vec_are_those_of_the_whole_view_whatever_the_mask():
    part, given = data2vec(), batch()
    with torch.no_grad():  # so that the teacher is another than the student
        for p in part.networks["main"].parameters():
            p.add_(0.05 * torch.randn_like(p))
    step, term = part.begin(given), part.objective["layers"]
    query, _ = term.query(step["x"], "hidden")
    assert query.index.shape == (12, 12) and step["x"].mask.visible.sum(1).tolist() == [4] * 12
    found = term.normalize([term.target(step["x"], query)], 0.0)[0]
    expected = goals(part, given)
    for row in range(12):
        torch.testing.assert_close(found[row], expected[row // 3][query.index[row]], rtol=1e-3, atol=1e-4)
    mean = part.objective["mean"].target.pooled(step["x"], "cls")
    torch.testing.assert_close(mean, expected.mean(1), rtol=1e-3, atol=1e-4)


def test_losses_of_data2vec():
    part, given = data2vec(), batch()
    step, term, mean = part.begin(given), part.objective["layers"], part.objective["mean"]
    found = [one(step) for one in (term, mean)]
    assert [float(weight) for _, weight in found] == [144.0, 12.0]
    classes = step["x"].seen.prefix[:, 0]
    target = goals(part, given).mean(1).repeat_interleave(3, 0)
    torch.testing.assert_close(found[1][0] / 12, (classes - target).square().mean(), rtol=1e-3, atol=1e-4)
    assert term.weight == pytest.approx(math.sqrt(32)) and math.sqrt(768) == pytest.approx(27.71, abs=0.005)
    sum(total for total, _ in found).backward()
    assert not any(p.grad is not None for p in part.teacher.parameters())
    touched = {name for name, g in gradients(part).items() if g is not None and g.any()}
    assert "networks.main.encoder.prefix" in touched and "objective.layers.predictor.layers.0.weight" in touched


def ijepa():
    term = {
        "_target_": "term/predict", "predictor": {"_target_": "predictor/transformer", "dim": 16, "depth": 1, "heads": 4},
        "target": {"_target_": "target/teacher"}, "normalize": {"_target_": "norm/layer"},
        "loss": {"_target_": "loss/smooth_l1"},
    }  # fmt: skip
    encoder = {"_target_": "encoder/vit", "dim": 32, "depth": 2, "heads": 4, "class_token": False}
    masker = {"_target_": "masker/multiblock", "min_keep": 2}
    return module(encoder=encoder, masker=masker, objective={"latent": term}, teacher=EMA, keep="teacher")


def test_ijepa_predicts_every_block_on_its_own_from_the_context():
    part, given = ijepa(), batch()
    step, term = part.begin(given), part.objective["latent"]
    mask = step["x"].mask
    query, prediction = term.predict(step)[0]
    t = mask.target_count
    assert query.index.shape == (16, t) and mask.targets.shape == (4, 4, 16)
    context = step["x"].seen
    for row in range(16):
        sample, block = divmod(row, 4)
        places = mask.targets[sample, block].nonzero().flatten()
        assert query.index[row].tolist() == places.tolist()
        one = context.take(torch.arange(mask.visible_count)[None], torch.tensor([sample]))
        alone = term.predictor(one, step["x"].tokens.take(places[None], torch.tensor([sample])))
        torch.testing.assert_close(prediction[row], alone[0], rtol=1e-4, atol=1e-5)


def test_targets_of_ijepa_are_the_teachers_normalised_features():
    part, given = ijepa(), batch()
    twin = part.teacher.of(part.networks["main"])
    step, term = part.begin(given), part.objective["latent"]
    total, weight = term(step)
    query, prediction = term.predict(step)[0]
    whole = twin(given["x"]).x
    assert not whole.requires_grad
    normed = (whole - whole.mean(-1, keepdim=True)) / (whole.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(normed.mean(-1), torch.zeros(4, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.var(-1, correction=0), torch.ones(4, 16), rtol=0, atol=1e-3)
    target = torch.stack([normed[row // 4][query.index[row]] for row in range(16)])
    far = (prediction - target).abs()
    expected = torch.where(far < 1, 0.5 * far**2, far - 0.5).mean()
    torch.testing.assert_close(total / weight, expected, rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(twin.state_dict())
    (total / weight).backward()
    assert all(p.grad is None for p in twin.parameters())
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())


def test_the_scale_of_a_frozen_teacher_does_not_matter_to_maskdistill():
    other, _ = frozen()

    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.dim, self.factor = 48, factor

        def forward(self, view):
            features = other(view)
            return features.but(x=features.x * self.factor)

    losses = []
    for factor in (1.0, 50.0):
        part = module(
            encoder={"_target_": "encoder/beit", "dim": 32, "depth": 2, "heads": 4, "drop_path": 0.0},
            masker={"_target_": "masker/beit_blocks", "smallest": 2}, corruptor={"_target_": "corruptor/token"},
            objective={"features": {
                "_target_": "term/predict", "predictor": {"_target_": "predictor/linear"},
                "target": {"_target_": "target/frozen", "network": lambda spec, factor=factor: Scaled(factor)},
                "normalize": {"_target_": "norm/layer"}, "loss": {"_target_": "loss/smooth_l1"},
            }},
        )  # fmt: skip
        total, weight = part.objective["features"](part.begin(batch()))
        assert float(weight) == 4 * 6  # int(16 * 0.4)
        losses.append(float((total / weight).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] > 0.1
