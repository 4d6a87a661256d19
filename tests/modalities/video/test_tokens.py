import math

import numpy as np
import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.video.maskers import Slices, Tube
from mmssl.modalities.video.positions import Separable
from mmssl.modalities.video.tokenizer import TubeletTokenizer
from mmssl.parts.maskers import Random
from mmssl.parts.positions import SinCosFlat
from mmssl.types import Tokens, TokenSpec, View

FACTS = {"channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
GENERATOR = torch.Generator().manual_seed(0)
CLIPS = torch.randint(0, 256, (2, 4, 3, 16, 24), dtype=torch.uint8, generator=GENERATOR)
MEAN, STD = (torch.tensor(FACTS[key]).view(1, 1, 3, 1, 1) for key in ("mean", "std"))


def tokenizer(**said):
    return TubeletTokenizer(FACTS, **({"size": [16, 24], "frames": 4, "patch": 8} | said))


def tokens(grid, b=3):
    n = math.prod(grid)
    index = torch.arange(n).expand(b, n)
    return Tokens(raw=torch.zeros(b, n, 1), pos=torch.zeros(b, n, len(grid)), index=index, grid=grid)


def draws(b=3):
    return Draws.of(0, 0, torch.arange(b))


def test_tubelets_are_those_of_loops():
    made = tokenizer()(View(CLIPS, "video"))
    normal = (CLIPS / 255 - MEAN) / STD
    assert made.grid == (2, 2, 3) and made.raw.shape == (2, 12, 2 * 8 * 8 * 3)
    for place in range(12):
        t, y, x = np.unravel_index(place, (2, 2, 3))
        assert made.pos[0, place].tolist() == [t, y, x] and made.index[1, place] == place
        cut = normal[:, 2 * t : 2 * t + 2, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        torch.testing.assert_close(made.raw[:, place], cut.permute(0, 1, 3, 4, 2).flatten(1), atol=1e-5, rtol=1e-5)


def test_embedding_is_the_papers_convolution():
    cut = tokenizer()
    embed, conv = cut.embedding(20), torch.nn.Conv3d(3, 20, (2, 8, 8), (2, 8, 8))
    embed.proj.weight.data = conv.weight.data.permute(0, 2, 3, 4, 1).flatten(1)
    embed.proj.bias.data = conv.bias.data
    wanted = conv(((CLIPS / 255 - MEAN) / STD).transpose(1, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(cut(View(CLIPS, "video"))).x, wanted, atol=1e-4, rtol=1e-4)


def test_statistics_may_be_said():
    made = tokenizer(mean=0.45, std=0.225)(View(CLIPS, "video"))
    again = tokenizer(mean=[0.45] * 3, std=[0.225] * 3)(View(CLIPS / 255, "video"))
    torch.testing.assert_close(made.raw, again.raw, atol=1e-5, rtol=1e-5)
    assert made.raw[0, 0, 0] == pytest.approx((CLIPS[0, 0, 0, 0, 0].item() / 255 - 0.45) / 0.225, abs=1e-5)
    with pytest.raises(ValueError, match=r"tokenizer\.mean has 2 numbers, but the videos have 3 channels"):
        tokenizer(mean=[0.1, 0.2])


def test_other_sizes_than_the_runs():
    cut = tokenizer()
    longer = torch.cat([CLIPS, CLIPS], 1)
    made = cut(View(longer, "video"))
    assert made.grid == (4, 2, 3) and torch.equal(made.raw[:, :12], cut(View(CLIPS, "video")).raw)
    with pytest.raises(ValueError, match=r"tokenizer\.tubelet=2 does not divide tokenizer\.frames=3"):
        cut(View(CLIPS[:, :3], "video"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"patch": 7}, r"tokenizer\.patch=7 does not divide data\.size=16.*\(near: 14, 21\).*\(1, 2, 4, 8, 16\)"),
        ({"frames": 5}, r"tokenizer\.tubelet=2 does not divide tokenizer\.frames=5.*\(near: 4, 6\)"),
        ({"size": 8, "patch": 16}, r"tokenizer\.patch=16 does not divide data\.size=8.*\(near: 16\)"),
    ],
)
def test_tubelets_that_do_not_fit(said, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(**said)


def test_restore_gives_the_pixels_back_and_greys_the_rest():
    cut = tokenizer()
    made = cut(View(CLIPS, "video"))
    assert torch.equal(cut.restore(made, None), CLIPS)
    shown = torch.zeros(2, 12, dtype=torch.bool)
    shown[0, 7] = True  # slice 1, row 0, column 1
    picture = cut.restore(made, shown)
    assert torch.equal(picture[0, 2:, :, :8, 8:16], CLIPS[0, 2:, :, :8, 8:16])
    picture[0, 2:, :, :8, 8:16] = 128
    assert (picture == 128).all()


def test_the_papers_counts():
    """VideoMAE and MAE-ST: 1568 tokens; tubes leave 160, random places 156."""
    paper = TubeletTokenizer(FACTS)
    assert paper.spec == TokenSpec(1536, 3, (8, 14, 14), (2, 16, 16), 3) and paper.spec.length == 1568
    whole = tokens((8, 14, 14), 2)
    tube, noise = (masker(ratio=0.9)(whole, draws(2), 0.0, None) for masker in (Tube, Random))
    assert tube.visible.sum(1).tolist() == [160, 160] and tube.visible_count == 160 and tube.target_count == 1408
    assert noise.visible.sum(1).tolist() == [156, 156] and noise.visible_count == 156


def test_tubes_hide_the_same_places_in_every_slice():
    mask = Tube(ratio=0.7)(tokens((5, 4, 3), 40), draws(40), 0.0, None)
    hidden = mask.hidden.reshape(40, 5, 12)
    assert (hidden == hidden[:, :1]).all() and (hidden.sum(-1) == 8).all()  # int(0.7 * 12)
    assert torch.equal(mask.targets[:, 0], mask.hidden)
    assert (mask.visible_count, mask.target_count) == (20, 40)
    assert (hidden[:, 0].float().mean(0) - 8 / 12).abs().max() < 0.3 and len(hidden[:, 0].unique(dim=0)) > 30


def test_whole_slices():
    mask = Slices(ratio=0.75)(tokens((8, 3, 3), 60), draws(60), 0.0, None)
    visible = mask.visible.reshape(60, 8, 9)
    assert (visible.all(-1) | ~visible.any(-1)).all() and (visible.any(-1).sum(1) == 2).all()
    assert (mask.visible_count, mask.target_count) == (18, 54) and torch.equal(mask.targets[:, 0], mask.hidden)
    assert visible.any(-1).any(0).all()
    with pytest.raises(ValueError, match=r"masker\.ratio=0\.9 leaves none of 8 time slices visible; .*at most 0\.875"):
        Slices(ratio=0.9)(tokens((8, 3, 3)), draws(), 0.0, None)


@pytest.mark.parametrize("masker", [Tube, Slices])
def test_maskers_need_time_and_space(masker):
    with pytest.raises(ValueError, match=r"needs tokens on a grid of \(time, row, column\).*use masker/random"):
        masker()(tokens((4, 4)), draws(), 0.0, None)
    with pytest.raises(ValueError, match=r"did you mean 0\.9"):
        masker(ratio=90)


def test_separable_positions():
    spec = TokenSpec(1, 3, (3, 2, 4))
    position = Separable(spec, 6)
    made = position(tokens((3, 2, 4), 1))[0].reshape(3, 2, 4, 6)
    space = position.space.reshape(2, 4, 6)
    for t in range(3):
        torch.testing.assert_close(made[t], space + position.time[t])
    some = tokens((3, 2, 4), 2).take(torch.tensor([[5, 20], [0, 9]]))
    flat = made.reshape(24, 6)
    assert torch.equal(position(some), flat[torch.tensor([[5, 20], [0, 9]])])
    assert sum(p.numel() for p in position.parameters()) == (3 + 8) * 6
    assert 0.015 < Separable(TokenSpec(1, 3, (8, 14, 14)), 64).space.std() < 0.025
    with pytest.raises(ValueError, match="needs a grid"):
        Separable(TokenSpec(1, 2, (4, 4)), 8)


def test_separable_positions_of_another_grid():
    position = Separable(TokenSpec(1, 3, (2, 2, 2)), 4)
    position.space.data = torch.ones(4, 4)
    position.time.data = torch.tensor([[0.0], [1.0]]).expand(2, 4).clone()
    made = position(tokens((4, 3, 3), 1))[0].reshape(4, 9, 4)
    torch.testing.assert_close(made, torch.tensor([1.0, 1.25, 1.75, 2.0]).view(4, 1, 1).expand(4, 9, 4))


def test_flat_sinusoid():
    """Element by element from the definition: sine at even columns, cosine at odd ones."""
    dim, grid = 10, (3, 4, 5)
    position = SinCosFlat(TokenSpec(1, 3, grid), dim)
    made = position(tokens(grid, 1))[0]
    for i in (0, 1, 17, 59):
        for j in range(dim):
            angle = i / 10000 ** (2 * (j // 2) / dim)
            assert made[i, j] == pytest.approx(math.cos(angle) if j % 2 else math.sin(angle), abs=1e-6)
    some = tokens(grid, 2).take(torch.tensor([[3, 59], [0, 1]]))
    assert torch.equal(position(some), made[torch.tensor([[3, 59], [0, 1]])])
    longer = position(tokens((6, 4, 5), 1))[0]
    assert torch.equal(longer[:60], made) and longer[119, 0] == pytest.approx(math.sin(119), abs=1e-6)
    assert not list(position.parameters()) and not position.state_dict()
    with pytest.raises(ValueError, match="has to be even"):
        SinCosFlat(TokenSpec(1, 3, grid), 7)
