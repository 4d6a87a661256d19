"""What the specifications of MAE, CrossMAE, SimMIM and MR-MAE ask of predictor and term."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.parts.predictors import Cross, Linear, Transformer
from mmssl.types import TokenSpec, View
from tests.small import CROSS, PIXELS, VIT, batch, gradients, images, module, tokens

SPEC = TokenSpec(5, 2, (4, 4))
TAPS = ("embed", "block.0", "block.1")
FIXED = {"_target_": "target/teacher"}
MIMIC = PIXELS | {"at": "visible", "predictor": {"_target_": "predictor/linear"}, "target": FIXED}
NETWORKS = {
    "mae": {},
    "crossmae": {"encoder": VIT | {"final_norm": False}, "objective": {"pixels": PIXELS | {"predictor": CROSS}}},
    "crossmae part": {
        "encoder": VIT | {"final_norm": False}, "objective": {"pixels": PIXELS | {"predictor": CROSS}},
        "masker": {"_target_": "masker/random", "predict": 0.25},
    },
    "simmim": {
        "encoder": {"_target_": "encoder/beit", "dim": 32, "depth": 2, "heads": 4, "drop_path": 0.0},
        "masker": {"_target_": "masker/units"}, "corruptor": {"_target_": "corruptor/token"},
        "objective": {"pixels": PIXELS | {"predictor": {"_target_": "predictor/linear"}, "loss": {"_target_": "loss/l1"}}},
    },
}  # fmt: skip


def seen(count=2, places=(0, 3, 5, 9), width=8, taps=False, **more):
    """Encoder output at some places of a 4 x 4 grid, with a class token."""
    torch.manual_seed(0)
    whole = tokens(count, 16, grid=(4, 4))
    kept = whole.take(torch.tensor([list(places)] * count))
    n = len(places)
    layers = {name: torch.randn(count, n + 1, width) for name in TAPS} if taps else {}
    return whole, kept.but(x=torch.randn(count, n, width), prefix=torch.randn(count, 1, width), taps=layers, **more)


def asked(whole, *places):
    return whole.take(torch.tensor([list(places)] * whole.index.shape[0]))


def noisy(given, mask, seed):
    """The batch with noise in every patch of 8 pixels that the mask hides."""
    hidden = mask.hidden.reshape(-1, 1, 4, 4).float()
    hidden = nn.functional.interpolate(hidden, scale_factor=8) > 0
    noise = images(len(hidden), seed=seed)
    return given | {"x": View(torch.where(hidden, noise, given["x"].data), "image")}


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_pixels_change_the_target_and_nothing_else(name):
    """Check (b) of MAE: masked pixels replaced by noise leave predictions bit-identical."""
    part = module(**NETWORKS[name])
    given = batch()
    term, first = part.objective["pixels"], part.begin(given)
    second = part.begin(noisy(given, first["x"].mask, 77))
    query, prediction = term.predict(first)[0]
    other_query, other = term.predict(second)[0]
    assert torch.equal(prediction, other)
    assert torch.equal(query.index, other_query.index)
    targets = term.target(first["x"], query), term.target(second["x"], other_query)
    assert not torch.isclose(*targets).all(-1).any()  # every token asked for has another target
    losses = [t.detach() for t in (term(first)[0], term(second)[0])]
    assert not torch.equal(*losses)


@pytest.mark.parametrize("name", NETWORKS)
def test_visible_pixels_do_change_predictions(name):
    """Else the test above would hold for a predictor that reads nothing."""
    part = module(**NETWORKS[name])
    given = batch()
    first = part.begin(given)
    second = part.begin(noisy(given, first["x"].mask.invert(), 77))
    assert not torch.isclose(
        part.objective["pixels"].predict(first)[0][1], part.objective["pixels"].predict(second)[0][1]
    ).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_of_hidden_pixels_is_zero(name):
    part = module(**NETWORKS[name])
    pixels = images(4).requires_grad_()
    step = part.begin(batch() | {"x": View(pixels, "image")})
    part.objective["pixels"].predict(step)[0][1].square().sum().backward()
    step_tokens = part.networks["main"].tokenizer(View(pixels.grad.detach(), "image"))
    mean = part.networks["main"].tokenizer(View(torch.zeros_like(pixels), "image"))
    by_patch = (step_tokens.raw - mean.raw).abs().amax(-1)  # the tokenizer is affine: this is the scaled gradient
    mask = step["x"].mask
    assert not by_patch[mask.hidden].any() and (by_patch[mask.visible] > 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_ignores_predictions_at_visible_places(name, monkeypatch):
    """Check (c): with a predictor that answers everywhere, only the answers at hidden places count."""
    part = module(**NETWORKS[name])
    step, term = part.begin(batch()), part.objective["pixels"]
    mask = step["x"].mask
    everywhere = torch.randn(4, 16, 192)

    class Answers(nn.Module):
        def forward(self, seen, query):
            return everywhere.gather(1, query.index.unsqueeze(-1).expand(-1, -1, 192))

    monkeypatch.setattr(term, "predictor", Answers())
    base = term(step)[0]
    everywhere = torch.where(mask.targets[:, 0].unsqueeze(-1), everywhere, everywhere + 100.0)
    assert torch.equal(term(step)[0], base)
    for row, place in mask.targets[:, 0].nonzero()[::7].tolist():
        kept = everywhere
        everywhere = kept.clone()
        everywhere[row, place] += 1.0
        assert not torch.equal(term(step)[0], base)
        everywhere = kept


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_is_the_mean_over_what_is_asked(name):
    """The dense formula of MAE: per token a mean over features, then one division over the batch."""
    part = module(**NETWORKS[name])
    step, term = part.begin(batch()), part.objective["pixels"]
    query, prediction = term.predict(step)[0]
    raw, dense = step["x"].tokens.raw, torch.zeros(4, 16, 192)
    dense.scatter_(1, query.index.unsqueeze(-1).expand(-1, -1, 192), prediction.detach())
    target = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, keepdim=True) + 1e-6) ** 0.5
    error = (dense - target).abs() if name == "simmim" else (dense - target) ** 2
    mask = step["x"].mask.targets[:, 0]
    expected = (error.mean(-1) * mask).sum() / mask.sum()
    total, weight = term(step)
    assert float(weight) == float(mask.sum())
    torch.testing.assert_close((total / weight).detach(), expected)


def test_a_constant_error_gives_that_l1_loss(monkeypatch):
    """Check (d) of SimMIM."""
    part = module(
        objective={"pixels": PIXELS | {"loss": {"_target_": "loss/l1"}, "target": {"_target_": "target/raw"}}}
    )
    step, term = part.begin(batch()), part.objective["pixels"]

    class Shifted(nn.Module):
        def forward(self, seen, query):
            return query.raw + 0.375

    monkeypatch.setattr(term, "predictor", Shifted())
    total, weight = term(step)
    assert float(total / weight) == pytest.approx(0.375, abs=1e-6)


# MR-MAE


def test_mimic_never_touches_decoder_or_mask_token():
    part = module(objective={"pixels": PIXELS, "mimic": MIMIC})
    total, weight = part.objective["mimic"](part.begin(batch()))
    (total / weight).backward()
    touched = {name for name, g in gradients(part).items() if g is not None and g.any()}
    assert not any(name.startswith("objective.pixels") for name in touched)
    assert any(name.startswith("networks.main.encoder.blocks.0") for name in touched)
    assert {name for name in touched if "objective" in name} == {
        "objective.mimic.predictor.head.weight", "objective.mimic.predictor.head.bias",
    }  # fmt: skip


def test_mimic_of_weight_zero_is_mae_bit_for_bit():
    mae, both = module(), module(objective={"pixels": PIXELS, "mimic": MIMIC | {"weight": 0.0}})
    losses = [part.training_step(batch()) for part in (mae, both)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    mimic = gradients(both)
    for name, gradient in gradients(mae).items():
        assert gradient is not None and torch.equal(gradient, mimic[name]), name


def test_mimic_looks_at_visible_tokens_alone():
    part = module(objective={"pixels": PIXELS, "mimic": MIMIC})
    step = part.begin(batch())
    query, prediction = part.objective["mimic"].predict(step)[0]
    assert prediction.shape == (4, 4, 32)
    assert torch.equal(query.index, step["x"].mask.visible_index[0])


# CrossMAE


def test_cross_answers_do_not_depend_on_what_else_is_asked():
    """Check (a) of CrossMAE: a subset and a superset give the same rows."""
    torch.manual_seed(0)
    part = Cross(SPEC, 8, 6, TAPS, dim=16, depth=2, heads=4)
    whole, kept = seen(taps=True)
    few, many = part(kept, asked(whole, 7, 2)), part(kept, asked(whole, 1, 2, 4, 7, 15))
    torch.testing.assert_close(few[:, 0], many[:, 3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(few[:, 1], many[:, 1], rtol=1e-5, atol=1e-6)
    assert not torch.isclose(few[:, 0], few[:, 1]).all()


def test_self_attention_answers_do_depend_on_what_else_is_asked():
    torch.manual_seed(0)
    part = Transformer(SPEC, 8, 6, (), dim=16, depth=2, heads=4)
    whole, kept = seen()
    few, many = part(kept, asked(whole, 7, 2)), part(kept, asked(whole, 1, 2, 4, 7, 15))
    assert not torch.isclose(few[:, 0], many[:, 3], rtol=1e-4, atol=1e-5).all()


@pytest.mark.parametrize("layer", range(3))
def test_cross_with_one_hot_weights_reads_one_layer(layer):
    """Check (c) of CrossMAE."""
    torch.manual_seed(0)
    part = Cross(SPEC, 8, 6, TAPS, dim=16, depth=2, heads=4)
    with torch.no_grad():
        part.mix.weight.zero_()[:, layer] = 1.0
    whole, kept = seen(taps=True)
    base = part(kept, asked(whole, 1, 2))
    for i, name in enumerate(TAPS):
        moved = kept.but(taps=kept.taps | {name: kept.taps[name] + torch.randn(2, 5, 8)}, x=torch.randn(2, 4, 8))
        assert torch.equal(part(moved, asked(whole, 1, 2)), base) == (i != layer)


def test_cross_blocks_have_weights_of_their_own():
    part = Cross(SPEC, 8, 6, TAPS, dim=16, depth=2, heads=4)
    assert part.mix.weight.shape == (2, 3) and part.mix.bias is None and len(part.memory_norms) == 2


def test_cross_keeps_off_padding():
    torch.manual_seed(0)
    part = Cross(SPEC, 8, 6, TAPS, dim=16, depth=2, heads=4)
    whole, kept = seen(taps=True)
    valid = torch.tensor([[True, True, True, False]] * 2)
    padded = part(kept.but(valid=valid), asked(whole, 1, 2))
    short = kept.take(torch.tensor([[0, 1, 2]] * 2)).but(
        prefix=kept.prefix, taps={name: tap[:, :4] for name, tap in kept.taps.items()}
    )
    torch.testing.assert_close(padded, part(short, asked(whole, 1, 2)), rtol=1e-5, atol=1e-6)


def test_cross_may_be_as_wide_as_the_encoder():
    part = Cross(SPEC, 16, 6, TAPS, dim=16, depth=1, heads=4)
    whole, kept = seen(width=16, taps=True)
    assert part(kept, asked(whole, 1)).shape == (2, 1, 6)


# MAE's decoder


def test_transformer_equals_the_dense_decoder():
    """Written plainly: mask tokens everywhere, visible ones scattered back, all positions added, all blocks, the head."""
    torch.manual_seed(0)
    part = Transformer(SPEC, 8, 6, (), dim=16, depth=2, heads=4).eval()
    whole, kept = seen()
    hidden = [place for place in range(16) if place not in (0, 3, 5, 9)]
    dense = part.mask_token.expand(2, 16, -1).clone()
    dense[:, [0, 3, 5, 9]] = part.embed(kept.x)
    x = torch.cat([part.embed(kept.prefix), dense + part.position.table], 1)
    for block in part.blocks:
        x = block(x)
    expected = part.head(part.norm(x))[:, 1:][:, hidden]
    torch.testing.assert_close(part(kept, asked(whole, *hidden)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_transformer_takes_any_prefix_and_keeps_off_padding(prefix):
    torch.manual_seed(0)
    part = Transformer(SPEC, 8, 6, (), dim=16, depth=2, heads=4)
    whole, kept = seen()
    kept = kept.but(prefix=torch.randn(2, prefix, 8) if prefix else None)
    short = kept.take(torch.tensor([[0, 1, 2]] * 2)).but(prefix=kept.prefix)
    expected = part(short, asked(whole, 1, 2))
    padded = kept.but(valid=torch.tensor([[True, True, True, False]] * 2))
    query = asked(whole, 1, 2, 7).but(valid=torch.tensor([[True, True, False]] * 2))
    torch.testing.assert_close(part(padded, query)[:, :2], expected, rtol=1e-5, atol=1e-6)


def test_transformer_does_not_mind_the_order():
    torch.manual_seed(0)
    part = Transformer(SPEC, 8, 6, (), dim=16, depth=2, heads=4)
    whole, kept = seen()
    turned = kept.take(torch.tensor([[2, 0, 3, 1]] * 2)).but(prefix=kept.prefix)
    first, second = part(kept, asked(whole, 1, 2)), part(turned, asked(whole, 2, 1))
    torch.testing.assert_close(first, second.flip(1), rtol=1e-5, atol=1e-6)


def test_heads_have_to_divide_the_width():
    with pytest.raises(ValueError, match=r"predictor\.heads=3 does not divide predictor\.dim=16"):
        Transformer(SPEC, 8, 6, (), dim=16, heads=3)


def test_linear_answers_where_the_encoder_saw():
    part = Linear(SPEC, 8, 6, ())
    whole, kept = seen()
    found = part(kept, asked(whole, 9, 0))
    torch.testing.assert_close(found, part.head(kept.x[:, [3, 0]]))
