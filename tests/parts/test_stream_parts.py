"""MultiMAE's parts: one budget over streams, patches and embeddings of each, a decoder of one, rows that ask for none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl.draws import Draws
from mmssl.modalities.image.stacked import Palette, Stack, StackedTokenizer
from mmssl.modalities.image.views import Gradients
from mmssl.parts.stream_parts import Cells, Dirichlet, StreamDecoder
from mmssl.types import Mask, TokenSpec, View
from tests.small import FACTS, batch, images, module, tokens

EXTRA = [{"channels": 2, "mean": [0.5, 0.5], "std": [0.1, 0.1]}, {"channels": 8, "mean": [0.0] * 8, "std": [1.0] * 8}]
MADE = Stack(streams=[Gradients(), Palette(cell=4)])


def draws(count):
    return Draws.of(2, 0, torch.arange(count))


def streams(b=64, each=(16, 16, 16)):
    stream = torch.cat([torch.full((n,), i) for i, n in enumerate(each)]).expand(b, -1)
    return tokens(b, sum(each), stream=stream)


def stacked(count=3):
    pixels = (images(count) * 255).to(torch.uint8)
    return torch.stack([MADE(image, draws(1)) for image in pixels]), pixels


def test_exactly_the_budget_is_visible():
    whole = streams(200)
    for alpha in (1.0, 0.3):
        mask = Dirichlet(ratio=0.75, alpha=alpha)(whole, draws(200), 0.0, None)
        assert mask.visible.sum(1).tolist() == [12] * 200 and mask.visible_count == 12
        assert torch.equal(mask.targets[:, 0], ~mask.visible)
    per = F.one_hot(whole.stream, 3).mul(mask.visible.unsqueeze(-1)).sum(1)
    assert float(per.float().mean()) == pytest.approx(4.0)
    most = Dirichlet(ratio=0.75, alpha=1e-3)(whole, draws(200), 0.0, None)
    per = F.one_hot(whole.stream, 3).mul(most.visible.unsqueeze(-1)).sum(1)
    assert float((per.amax(1) == 12).float().mean()) > 0.95  # nearly all of one stream
    even = Dirichlet(ratio=0.75, alpha=1e6)(whole, draws(200), 0.0, None)
    per = F.one_hot(whole.stream, 3).mul(even.visible.unsqueeze(-1)).sum(1)
    assert bool((per == 4).all())
    shares = -torch.log1p(-draws(200).named("shares").uniform(3).double())
    shares = shares / shares.sum(1, keepdim=True)
    wanted = (shares * 12).round()
    plain = Dirichlet(ratio=0.75)(whole, draws(200), 0.0, None)
    per = F.one_hot(whole.stream, 3).mul(plain.visible.unsqueeze(-1)).sum(1)
    exact = wanted.sum(1) == 12
    assert bool(exact.any()) and torch.equal(per[exact].double(), wanted[exact])  # nothing to repair
    with pytest.raises(ValueError, match="of one; use masker/random"):
        Dirichlet()(tokens(2, 4), draws(2), 0.0, None)
    with pytest.raises(ValueError, match=r"masker\.alpha"):
        Dirichlet(alpha=0)


def test_a_palette_names_the_nearest_of_eight_colours():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[0, :4] = 250
    image[2, :, 4:] = 200
    made = Palette(cell=4)(image, draws(1))
    wanted = torch.tensor([[1, 5], [0, 4]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(made.argmax(0), wanted) and bool((made.sum(0) == 255).all())
    assert Palette(cell=3)(image, draws(1)).shape == (8, 8, 8)


def test_patches_and_embeddings_of_every_stream():
    whole, pixels = stacked()
    cut = StackedTokenizer(FACTS, streams=EXTRA, size=32, patch=8)
    made = cut(View(whole, "image"))
    assert made.raw.shape == (3, 48, 8 * 64) and cut.widths == [192, 128, 512] and made.length == 48
    assert torch.equal(made.stream[0], torch.arange(3).repeat_interleave(16)) and torch.equal(
        made.pos[:, :16], made.pos[:, 32:]
    )
    alone = cut.parts[1](View(whole[:, 3:5], "image"))
    torch.testing.assert_close(made.raw[:, 16:32, :128], alone.raw)
    assert not made.raw[:, :16, 192:].any()
    assert torch.equal(cut.restore(made, None), pixels)
    embed = cut.embedding(6)
    x = embed(made).x
    torch.testing.assert_close(x[:, 32:], embed.parts[2](made.but(raw=made.raw[:, 32:])).x)
    torch.testing.assert_close(x[:, :16], embed.parts[0](made.but(raw=made.raw[:, :16, :192])).x)
    with pytest.raises(ValueError, match="end in view/stack"):
        cut(View(whole[:, :3], "image"))


def test_a_decoder_answers_one_stream_out_of_all():
    torch.manual_seed(0)
    part = StreamDecoder(TokenSpec(5, 1), 8, 4, (), stream=1, streams=2, dim=8, heads=2).eval()
    whole = streams(2, (4, 4))
    seen = whole.take(torch.tensor([[0, 2, 5], [1, 4, 6]])).but(x=torch.randn(2, 3, 8))
    query = whole.take(torch.tensor([[4, 6], [5, 7]]))
    found = part(seen, query)
    other = seen.x.clone()
    other[0, 0] += 1.0  # of the other stream: read through the cross-attention
    assert not torch.allclose(part(seen.but(x=other), query)[0], found[0])
    padded = whole.take(torch.tensor([[4, 6, 0], [5, 7, 0]]), None, torch.tensor([[True, True, False]] * 2))
    torch.testing.assert_close(part(seen, padded)[:, :2], found)
    assert part(seen, query.take(torch.zeros(2, 0, dtype=torch.int64))).shape == (2, 0, 4)
    with pytest.raises(ValueError, match="one of 2 streams"):
        StreamDecoder(TokenSpec(5, 1), 8, 4, (), stream=2, streams=2, dim=8, heads=2)


def test_a_stream_that_is_fully_visible_is_in_no_mean():
    term = {"_target_": "term/predict", "at": "hidden.1", "reduce": "asked", "loss": {"_target_": "loss/mse"}}
    part = module(
        tokenizer={"_target_": "tokenizer/stacked", "size": 32, "patch": 8, "streams": EXTRA},
        objective={
            "gradients": term
            | {"target": {"_target_": "target/stream", "stream": 1}}
            | {"predictor": {"_target_": "predictor/stream", "stream": 1, "streams": 3, "dim": 16, "heads": 2}}
        },
    ).eval()
    whole, _ = stacked(3)
    step = part.begin(batch(3) | {"x": View(whole, "image")})
    visible = torch.zeros(3, 48, dtype=torch.bool)
    visible[0, 16:32] = True  # all of the second stream
    visible[1, :16] = True
    visible[2, 10:26] = True
    step["x"].__dict__["mask"] = Mask(visible, ~visible.unsqueeze(1), None, 16, 32)
    total, number = part.objective["gradients"](step)
    assert int(number) == int(part.objective["gradients"].count(step)) == 2 and bool(torch.isfinite(total))
    (query, losses), *_ = step.losses["gradients", "x"]
    assert not query.valid[0].any()
    mean = [losses[row][query.valid[row]].mean() for row in (1, 2)]
    torch.testing.assert_close(total.detach(), sum(mean))


def test_cross_entropy_of_cells():
    logits, classes = torch.randn(2, 3, 4 * 5), torch.randint(0, 5, (2, 3, 4))
    shares = F.one_hot(classes, 5).float().flatten(2)
    wanted = F.cross_entropy(logits.view(-1, 5), classes.flatten(), reduction="none").view(2, 3, 4).mean(-1)
    torch.testing.assert_close(Cells(classes=5)(logits, shares), wanted)
    with pytest.raises(ValueError, match="at least 2"):
        Cells(classes=1)
