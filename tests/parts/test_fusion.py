"""Fusion of two streams and what is predicted from it, against CROMA's definition written out densely."""

from __future__ import annotations

import pytest
import torch

from mmssl.parts.encoders.alibi import DistanceBias
from mmssl.parts.fusion import Alibi
from mmssl.types import Mask, View
from tests.small import batch, images, module, tokens

ENCODER = {"_target_": "encoder/alibi", "dim": 32, "depth": 1, "heads": 4}
TOKENIZER = {"_target_": "tokenizer/image", "size": 32, "patch": 8}
FUSE = {
    "_target_": "term/fuse", "looks": ["radar", "optical"], "fusion": {"_target_": "fusion/alibi", "depth": 2, "heads": 4},
    "predictor": {"_target_": "predictor/transformer", "dim": 16, "depth": 1, "heads": 4, "qkv_bias": False},
    "normalize": {"_target_": "norm/standard"}, "loss": {"_target_": "loss/mse"},
}  # fmt: skip
SECOND = {"tokenizer": TOKENIZER, "encoder": ENCODER, "facts": {"channels": 2, "mean": [0.5, 0.5], "std": [0.1, 0.2]}}


def two(**changes):
    base = {
        "views": {"optical": [], "radar": []}, "looks": {"optical": {}, "radar": {"network": "radar"}},
        "streams": {"radar": SECOND}, "encoder": ENCODER, "objective": {"joint": FUSE},
    }  # fmt: skip
    torch.manual_seed(0)
    return module(**(base | changes))


def pair(count=4):
    given = batch(count, names=("optical", "radar"))
    return given | {"radar": View(images(count, seed=9)[:, :2], "image")}


def test_fusion_is_its_definition():
    torch.manual_seed(0)
    fusion = Alibi(16, depth=2, heads=4).eval()
    first, second = (tokens(2, 16, grid=(4, 4), x=torch.randn(2, 16, 16)) for _ in range(2))
    first, second = first.take(torch.tensor([[3, 7, 1], [0, 5, 9]])), second.take(torch.tensor([[2, 15], [6, 1]]))
    bias, x = DistanceBias(4), first.x

    def read(q, k, v, bias):
        q, k, v = (y.reshape(2, -1, 4, 4).transpose(1, 2) for y in (q, k, v))
        return (torch.softmax(q @ k.transpose(-1, -2) / 2.0 + bias, -1) @ v).transpose(1, 2).reshape(2, -1, 16)

    for block in fusion.blocks:
        y = block.norm1(x)
        x = x + block.attn.proj(read(*(y @ block.attn.qkv.weight.T).chunk(3, -1), bias(first, first, x.dtype)))
        memory = block.norm2(second.x) @ block.memory.weight.T
        x = x + block.proj(
            read(block.norm2(x) @ block.query.weight.T, *memory.chunk(2, -1), bias(first, second, x.dtype))
        )
        x = x + block.mlp(block.norm3(x))
    found = fusion(first, second)
    torch.testing.assert_close(found.x, fusion.norm(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.index, first.index) and found.prefix is None
    moved = fusion(first, second.but(pos=second.pos + 2))
    assert (moved.x - found.x).abs().max() > 1e-3  # it matters how far the other stream's tokens are


def test_fusion_keeps_off_padding():
    torch.manual_seed(0)
    fusion = Alibi(16, depth=2, heads=4).eval()
    first, second = (tokens(2, 16, grid=(4, 4), x=torch.randn(2, 16, 16)) for _ in range(2))
    valid = torch.arange(16) < torch.tensor([[16], [5]])
    found = fusion(first.but(valid=valid), second.but(valid=valid))
    short = torch.arange(5).expand(2, 5)
    expected = fusion(first.take(short), second.take(short))
    torch.testing.assert_close(found.x[1, :5], expected.x[1], rtol=1e-4, atol=1e-5)


def dense(part, given):
    """CROMA's loss over whole sequences: mask tokens put in place, both streams normalised together."""
    step, term = part.begin(given), part.objective["joint"]
    radar, optical = step["radar"], step["optical"]
    decoder, b, n = term.predictor, 4, 16
    fused = term.fusion(radar.seen, optical.seen)
    x = decoder.mask_token.expand(b, n, -1).clone()
    for i in range(b):
        for j, place in enumerate(radar.mask.visible[i].nonzero()[:, 0].tolist()):
            x[i, place] = decoder.embed(fused.x[i, j])
    x = x + decoder.position.table
    for block in decoder.blocks:
        x = block(x)
    answer = decoder.head(decoder.norm(x))
    goal = torch.cat([radar.tokens.raw, optical.tokens.raw], -1)
    goal = (goal - goal.mean(-1, keepdim=True)) / (goal.var(-1, keepdim=True) + 1e-6).sqrt()
    total = 0.0
    for look, part_of in ((radar, slice(0, 128)), (optical, slice(128, 320))):
        error = (answer[..., part_of] - goal[..., part_of]).square().mean(-1)
        total = total + (error * look.mask.hidden).sum() / look.mask.hidden.sum()
    return total


def test_term_is_the_dense_decoder_with_a_mask_for_each_stream():
    part, given = two(), pair()
    sums, counts = part.objective["joint"](part.begin(given))
    assert counts.tolist() == [48.0, 48.0]
    expected = dense(part, given)
    torch.testing.assert_close((sums / counts).sum(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(part.training_step(given), expected, rtol=1e-5, atol=1e-6)
    (sums / counts).sum().backward()
    for name in ("main", "radar"):
        assert part.networks[name].embed.proj.weight.grad.abs().max() > 0


def test_targets_are_normalised_together():
    part, given = two(), pair()
    goal = part.objective["joint"].target(part.begin(given))
    assert goal.shape == (4, 16, 128 + 192)
    torch.testing.assert_close(goal.mean(-1), torch.zeros(4, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(goal.var(-1), torch.ones(4, 16), rtol=1e-4, atol=1e-5)
    assert goal[..., :128].mean(-1).abs().mean() > 0.05  # a stream alone is not
    plain = two(objective={"joint": FUSE | {"normalize": None}})
    step = plain.begin(given)
    assert torch.equal(plain.objective["joint"].target(step)[..., :128], step["radar"].tokens.raw)


@pytest.mark.parametrize("part_of", ["radar", "optical"])
def test_only_hidden_tokens_of_each_stream_count(part_of):
    """Seen places of a stream may hold anything in the target: the loss does not change."""
    part, given = two(objective={"joint": FUSE | {"normalize": None}}), pair()
    step = part.begin(given)
    term, visible = part.objective["joint"], step[part_of].mask.visible
    before = term(step)[0]
    own = slice(0, 128) if part_of == "radar" else slice(128, 320)
    goal, changes = term.target(step), torch.zeros(4, 16, 320)
    changes[..., own] = 7.0
    term.target = lambda step: goal + changes * visible.unsqueeze(-1)
    assert torch.equal(term(step)[0], before)
    term.target = lambda step: goal + changes * ~visible.unsqueeze(-1)
    assert ((term(step)[0] - before).abs() > 1).tolist() == [part_of == "radar", part_of == "optical"]


def test_masks_of_unequal_length_overwrite_nothing():
    """Rows padded to the longest give what rows alone give."""
    part = two()

    class Uneven(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def forward(self, seen, draws, progress, score):
            hidden = torch.arange(16) >= ((draws.keys % 4).unsqueeze(1) + 3 + self.shift)
            return Mask(~hidden, hidden.unsqueeze(1))

    for i, spec in enumerate(part.looks.values()):
        spec.masker = Uneven(2 * i)
    part.eval()
    given = pair()
    step = part.begin(given)
    assert step["radar"].mask.visible.sum(1).unique().numel() > 1
    whole = part.objective["joint"].predict(step)
    for i in range(4):
        one = {
            key: View(value.data[i : i + 1], "image") if isinstance(value, View) else value[i : i + 1]
            for key, value in given.items()
        }
        torch.testing.assert_close(part.objective["joint"].predict(part.begin(one))[0], whole[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"joint": FUSE | {"looks": ["radar"]}}}, r"term/fuse brings two looks together"),
        ({"objective": {"joint": FUSE | {"looks": ["radar", "optcal"]}}}, r"names look 'optcal'"),
        ({"corruptor": {"_target_": "corruptor/token"}}, r"look 'radar' has to hide tokens by dropping"),
        ({"streams": {"radar": SECOND | {"tokenizer": TOKENIZER | {"patch": 16}}}}, r"on grids \(2, 2\) and \(4, 4\)"),
        ({"streams": {"radar": SECOND | {"encoder": ENCODER | {"dim": 16}}}}, r"encoders are 16 and 32 wide"),
        (
            {"objective": {"joint": FUSE | {"predictor": {"_target_": "predictor/linear"}}}},
            r"take predictor/transformer",
        ),
        ({"objective": {"joint": FUSE | {"fusion": {"_target_": "fusion/alibi", "heads": 5}}}}, r"fusion\.heads=5"),
    ],
)
def test_streams_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        two(**changes)


def test_looks_with_different_numbers_of_masks_are_refused():
    several = {"_target_": "masker/several", "count": 2, "masker": {"_target_": "masker/random"}}
    part = two(looks={"optical": {"masker": several}, "radar": {"network": "radar"}})
    with pytest.raises(ValueError, match="different numbers of masks"):
        part.training_step(pair())


def test_several_masks_of_each_sample():
    several = {"_target_": "masker/several", "count": 2, "masker": {"_target_": "masker/random"}}
    part, given = two(masker=several), pair()
    sums, counts = part.objective["joint"](part.begin(given))
    assert counts.tolist() == [96.0, 96.0]
    step = part.begin(given)
    assert torch.equal(part.objective["joint"].target(step)[::2], part.objective["joint"].target(step)[1::2])
    loss = part.objective["joint"].loss(
        part.objective["joint"].predict(step)[..., 128:], part.objective["joint"].target(step)[..., 128:]
    )
    torch.testing.assert_close(sums[1], (loss * step["optical"].mask.hidden).sum())
