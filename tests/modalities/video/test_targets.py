from types import SimpleNamespace

import pytest
import torch

from mmssl.modalities.video.targets import Frames, chosen_frames
from mmssl.modalities.video.tokenizer import TubeletTokenizer
from mmssl.step import Plan
from mmssl.types import TokenSpec, View

FACTS = {"channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def clips(b=2, t=8, size=16, seed=0):
    return torch.randint(
        0, 256, (b, t, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def target(tokenizer, **said):
    plan = Plan({}, {"x": tokenizer.spec}, {}, {}, {}, lambda name, width: torch.nn.Identity())
    return Frames(plan, "x", **said)


def look(tokenizer):
    return SimpleNamespace(network=SimpleNamespace(tokenizer=tokenizer))


def patches(video, u, p):
    """(b, t, c, h, w) to (b, tokens, u * p * p * c) by loops over time, rows and columns."""
    b, t, _, h, w = video.shape
    made = []
    for start in range(0, t, u):
        for y in range(0, h, p):
            for x in range(0, w, p):
                part = video[:, start : start + u, :, y : y + p, x : x + p]
                made.append(part.permute(0, 1, 3, 4, 2).reshape(b, -1))
    return torch.stack(made, 1)


def test_the_papers_frames():
    assert chosen_frames(16, 8) == [0, 2, 4, 6, 8, 10, 12, 15]


@pytest.mark.parametrize(
    ("frames", "tubelet", "count"), [(16, 2, 8), (8, 2, 4), (16, 4, 8), (16, 4, 4), (12, 3, 8), (8, 2, 8)]
)
def test_joint_targets_are_mae_sts(frames, tubelet, count):
    """As there: choose frames of the normalised clip, cut them, standardise each token over all its values."""
    tokenizer = TubeletTokenizer(FACTS, size=16, frames=frames, tubelet=tubelet, patch=8)
    video = clips(2, frames)
    tokens = tokenizer(View(video, "video"))
    made = target(tokenizer, per_tubelet=count * tubelet // frames)(look(tokenizer), tokens)
    normal = (video / 255 - torch.tensor(FACTS["mean"]).view(3, 1, 1)) / torch.tensor(FACTS["std"]).view(3, 1, 1)
    subset = normal[:, torch.linspace(0, frames - 1, count).long()]
    wanted = patches(subset, tubelet * count // frames, 8)
    wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6) ** 0.5
    torch.testing.assert_close(made, wanted, atol=2e-5, rtol=2e-5)


def test_channel_targets_are_videomaes():
    """As there: back to [0, 1], then per token and colour, with the epsilon added to the deviation."""
    tokenizer = TubeletTokenizer(FACTS, size=16, frames=8, patch=8)
    video = clips()
    video[0, :2, 1, :8, :8] = 77  # a flat colour: only the epsilon keeps it finite
    made = target(tokenizer, normalize="channel")(look(tokenizer), tokenizer(View(video, "video")))
    pixels = patches(video / 255, 2, 8).reshape(2, 16, 128, 3)
    wanted = (pixels - pixels.mean(-2, keepdim=True)) / (pixels.var(-2, unbiased=True, keepdim=True).sqrt() + 1e-6)
    torch.testing.assert_close(made.reshape(2, 16, 128, 3)[1:], wanted[1:], atol=2e-5, rtol=2e-5)
    assert made.isfinite().all() and made.reshape(2, 16, 128, 3)[0, 0, :, 1].abs().max() < 1


@pytest.mark.parametrize(("said", "value"), [({"normalize": "channel"}, 511 / 512), ({"per_tubelet": 1}, 767 / 768)])
def test_loss_of_a_zero_prediction(said, value):
    """The published golden numbers: the mean of n standardised squares is (n - 1) / n."""
    tokenizer = TubeletTokenizer(FACTS, size=32, frames=16)
    made = target(tokenizer, **said)(look(tokenizer), tokenizer(View(clips(1, 16, 32), "video")))
    assert made.shape == (1, 32, 1536 if "normalize" in said else 768)
    assert float(made.square().mean()) == pytest.approx(value, abs=2e-5)
    assert made.square().mean(-1) == pytest.approx(torch.full((1, 32), value), abs=1e-4)


@pytest.mark.parametrize("normalize", ["joint", "channel", "none"])
@pytest.mark.parametrize("own", [None, 1])
def test_restore_undoes_it(normalize, own):
    tokenizer = TubeletTokenizer(FACTS, size=16, frames=8, patch=8)
    tokens = tokenizer(View(clips(), "video"))
    query = tokens.take(torch.tensor([[3, 15, 8], [0, 14, 7]]))
    part = target(tokenizer, normalize=normalize, per_tubelet=own)
    raw = part.restore(query, part(look(tokenizer), query))
    frames, true = raw.unflatten(-1, (2, -1)), query.raw.unflatten(-1, (2, -1))
    if own is None:
        torch.testing.assert_close(raw, query.raw, atol=1e-4, rtol=1e-3)
        return
    last = query.index >= 12  # frames 0, 2, 4 and 7: the last tubelet owns its second one
    own = torch.where(last[..., None], true[:, :, 1], true[:, :, 0])
    torch.testing.assert_close(frames, own.unsqueeze(2).expand_as(frames), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("normalize", ["joint", "channel", "none"])
@pytest.mark.parametrize("tubelet", [2, 4])
def test_frames_as_what_differs_from_the_first(normalize, tubelet):
    """HiCMAE's: of the normalised clip, put together again, every frame less the first one of its tubelet."""
    tokenizer = TubeletTokenizer(FACTS, size=16, frames=8, tubelet=tubelet, patch=8)
    tokens = tokenizer(View(clips(), "video"))
    plain, part = target(tokenizer, normalize=normalize), target(tokenizer, normalize=normalize, changes=True)
    values, made = plain(look(tokenizer), tokens), part(look(tokenizer), tokens)
    video = (
        values.reshape(2, 8 // tubelet, 2, 2, tubelet, 8, 8, 3).permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(2, 8, 3, 16, 16)
    )
    wanted = video.clone()
    for i in range(8):
        if i % tubelet:
            wanted[:, i] = video[:, i] - video[:, i - i % tubelet]
    torch.testing.assert_close(made, patches(wanted, tubelet, 8), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(part.restore(tokens, made), tokens.raw, atol=1e-4, rtol=1e-3)


def test_a_still_clip_predicted_as_nothing():
    tokenizer = TubeletTokenizer(FACTS, size=32, frames=16)
    still = clips(1, 1, 32).expand(-1, 16, -1, -1, -1)
    made = target(tokenizer, normalize="channel", changes=True)(look(tokenizer), tokenizer(View(still, "video")))
    assert float(made.square().mean()) == pytest.approx(511 / 512 / 2, abs=2e-5)


def test_no_gradient():
    tokenizer = TubeletTokenizer(FACTS, size=16, frames=8, patch=8)
    tokens = tokenizer(View(clips(), "video"))
    tokens = tokens.but(raw=tokens.raw.requires_grad_())
    assert not target(tokenizer)(look(tokenizer), tokens).requires_grad


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"per_tubelet": 3}, r"target\.per_tubelet=3: a tubelet has 2 frames \(tokenizer\.tubelet\), so choose 1 to 2"),
        ({"per_tubelet": 0}, "choose 1 to 2"),
        ({"normalize": "pixel"}, "has to be 'joint', 'channel' or 'none'"),
    ],
)
def test_arguments_are_checked(said, message):
    with pytest.raises(ValueError, match=message):
        target(TubeletTokenizer(FACTS, size=16, frames=8, patch=8), **said)


def test_other_tokens_are_refused():
    with pytest.raises(ValueError, match="needs tubelets"):
        Frames(
            Plan({}, {"x": TokenSpec(48, 2, (4, 4), (4, 4), 3)}, {}, {}, {}, lambda name, width: torch.nn.Identity()),
            "x",
        )
