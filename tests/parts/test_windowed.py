import pytest
import torch
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock

from mmssl.parts.windowed import Window, WindowBlock
from mmssl.types import TokenSpec
from tests.small import tokens

SPEC = TokenSpec(6, 2, (16, 8))


def decoder(**said):
    torch.manual_seed(0)
    made = Window(SPEC, 12, 6, (), **{"dim": 16, "depth": 2, "heads": 4} | said).eval()
    for name, p in made.named_parameters():  # biases and scales that are zero or one would hide mistakes
        if p.ndim == 1 and "norm" not in name:
            torch.nn.init.normal_(p, std=0.3) if "tau" not in name else torch.nn.init.uniform_(p, 0.3, 2.0)
    return made


def visible(b=2, count=20, grid=(16, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]
    order = torch.stack([torch.randperm(n, generator=generator) for _ in range(b)])
    whole = tokens(b, n, 6, grid=grid)
    seen = whole.take(order[:, :count]).but(x=torch.randn(b, count, 12, generator=generator))
    return seen, whole.take(order[:, count:])


@pytest.mark.parametrize("shift", [(0, 0), (2, 2)])
@pytest.mark.parametrize("grid", [(16, 8), (8, 4)])
def test_blocks_are_those_of_swin_v2(grid, shift):
    """timm's block of the same weights; its temperature is kept as a logarithm of the inverse, its shift is half a window."""
    torch.manual_seed(0)
    theirs = SwinTransformerV2CrBlock(16, 4, grid, (4, 4), shift, init_values=None).eval()
    moved = tuple(0 if side == 4 else s for side, s in zip(grid, shift, strict=True))
    ours = WindowBlock(grid, 16, 4, (4, 4), moved, 4.0, 0.1).eval()
    state = dict(theirs.state_dict())
    state["attn.tau"] = torch.exp(-state.pop("attn.logit_scale").uniform_(-0.5, 1.0))
    theirs.attn.logit_scale.data = -state["attn.tau"].log()
    for part in (ours.norm1, ours.norm2, theirs.norm1, theirs.norm2):
        part.eps = 1e-6
    ours.load_state_dict(state)
    x = torch.randn(2, grid[0] * grid[1], 16)
    wanted = theirs(x.reshape(2, *grid, 16)).reshape(2, -1, 16)
    torch.testing.assert_close(ours(x), wanted, rtol=0, atol=2e-5)


def test_attention_in_windows_written_out():
    """Windows shifted in time only, from the definition: who may read whom, cosines, temperature and bias."""
    torch.manual_seed(0)
    block = WindowBlock((8, 4), 8, 2, (4, 2), (2, 0), 2.0, 0.0).eval()
    block.attn.tau.data = torch.tensor([0.5, 2.0])
    x = torch.randn(1, 32, 8)
    place = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(4), indexing="ij"), -1).reshape(32, 2)
    window = torch.stack([(place[:, 0] - 2) % 8 // 4, place[:, 1] // 2], 1)
    # the last window in time holds both ends of the recording, which are no neighbours
    torn = (window[:, 0] == 1) & (place[:, 0] < 2)
    together = (window.unsqueeze(0) == window.unsqueeze(1)).all(-1) & (torn.unsqueeze(0) == torn.unsqueeze(1))
    q, k, v = block.attn.qkv(x[0]).reshape(32, 3, 2, 4).unbind(1)
    cosine = torch.einsum("ihd,jhd->hij", q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True))
    offset = (place.unsqueeze(1) - place.unsqueeze(0)).float()
    bias = block.attn.meta_mlp(offset.sign() * (1 + offset.abs()).log()).permute(2, 0, 1)
    share = (cosine / torch.tensor([0.5, 2.0]).reshape(2, 1, 1) + bias).masked_fill(~together, -torch.inf).softmax(-1)
    read = torch.einsum("hij,jhd->ihd", share, v).flatten(1)
    wanted = x[0] + block.norm1(block.attn.proj(read))
    wanted = wanted + block.norm2(block.mlp(wanted))
    torch.testing.assert_close(block(x)[0], wanted, rtol=0, atol=1e-5)


def influence(net, token):
    """Places of the grid whose answers change with one seen token."""
    whole = tokens(1, 128, 6, grid=(16, 8))
    seen = whole.but(x=torch.randn(1, 128, 12, generator=torch.Generator().manual_seed(1)))
    changed = seen.but(x=seen.x + 5 * torch.nn.functional.one_hot(torch.tensor(token), 128).reshape(1, 128, 1))
    return ((net(seen, whole) - net(changed, whole)).abs().amax(-1) > 1e-4)[0].reshape(16, 8)


@pytest.mark.parametrize("token", [(0, 0), (5, 6), (15, 3)])
def test_at_rest_a_token_reaches_its_own_window_only(token):
    moved = influence(decoder(shift=(0, 0), depth=3), token[0] * 8 + token[1])
    wanted = torch.zeros(16, 8, dtype=torch.bool)
    wanted[token[0] // 4 * 4 :, token[1] // 4 * 4 :][:4, :4] = True
    assert torch.equal(moved, wanted)


@pytest.mark.parametrize("token", [(0, 0), (5, 6), (8, 3), (15, 7)])
def test_after_a_shift_it_reaches_eight_steps_and_four_rows(token):
    moved = influence(decoder(), token[0] * 8 + token[1])
    steps, rows = moved.any(1).nonzero()[:, 0], moved.any(0).nonzero()[:, 0]
    top = token[0] // 4 * 4
    assert steps.tolist() == list(range(max(0, top - 2), min(16, top + 6)))  # at the edges there is nothing to meet
    assert rows.tolist() == list(range(token[1] // 4 * 4, token[1] // 4 * 4 + 4))
    assert len(steps) <= 8 and len(rows) == 4


def test_tokens_go_back_to_their_places():
    """The dense decoder by hand: mask tokens everywhere, seen tokens in place, positions, blocks, norm, linear."""
    net = decoder()
    seen, query = visible()
    x = net.mask_token.expand(2, 128, 16).clone()
    for i in range(2):
        x[i, seen.index[i]] = net.embed(seen.x[i])
    x = x + net.position(tokens(1, 128, 6, grid=(16, 8)))
    for block in net.blocks:
        x = block(x)
    wanted = net.head(net.norm(x))
    made = net(seen.but(prefix=torch.full((2, 1, 12), 9.0)), query)
    for i in range(2):
        torch.testing.assert_close(made[i], wanted[i, query.index[i]], rtol=0, atol=1e-5)


def test_padded_rows_are_left_out():
    net = decoder()
    seen, query = visible()
    valid = torch.ones(2, 20, dtype=torch.bool)
    valid[1, 12:] = False
    made = net(seen.but(valid=valid), query)
    torch.testing.assert_close(made[0], net(seen, query)[0])
    fewer = seen.but(x=seen.x[1:, :12], index=seen.index[1:, :12], pos=seen.pos[1:, :12], raw=seen.raw[1:, :12])
    one = query.but(index=query.index[1:])
    torch.testing.assert_close(made[1], net(fewer, one)[0], rtol=0, atol=1e-5)


def test_short_axes_are_one_window():
    net = Window(TokenSpec(6, 2, (8, 2)), 12, 6, (), dim=16, depth=2, heads=4)
    assert [block.window for block in net.blocks] == [(4, 2), (4, 2)] and net.blocks[1].shift == (2, 0)
    single = Window(TokenSpec(6, 2, (4, 4)), 12, 6, (), dim=16, depth=2, heads=4)
    assert single.blocks[1].shift == (0, 0) and single.blocks[1].apart is None


def test_audio_maes_decoder():
    net = Window(TokenSpec(256, 2, (64, 8)), 768, 256, ())
    assert len(net.blocks) == 16 and [block.shift for block in net.blocks][:4] == [(0, 0), (2, 0), (0, 0), (2, 0)]
    assert net.embed.out_features == 512 and net.blocks[0].attn.heads == 16 and net.blocks[0].window == (4, 4)
    assert {part.p for part in net.blocks[0].attn.modules() if isinstance(part, torch.nn.Dropout)} == {0.1}


@pytest.mark.parametrize(
    ("spec", "said", "message"),
    [
        (TokenSpec(6, 1), {}, "needs tokens on a grid with two axes"),
        (TokenSpec(6, 2, (10, 8)), {}, r"window=\[4, 4\] does not divide the grid of tokens \[10, 8\]"),
        (SPEC, {"heads": 3}, r"predictor\.heads=3 does not divide predictor\.dim=16"),
        (SPEC, {"shift": (4, 0)}, r"predictor\.shift=\[4, 0\] has to lie in a window of \[4, 4\]"),
    ],
)
def test_arguments_are_checked(spec, said, message):
    with pytest.raises(ValueError, match=message):
        Window(spec, 12, 6, (), **{"dim": 16, "depth": 1, "heads": 4} | said)


def test_another_grid_is_refused():
    seen, query = visible(grid=(8, 8))
    with pytest.raises(ValueError, match=r"built for the grid \(16, 8\) and got tokens on \(8, 8\)"):
        decoder()(seen, query)
