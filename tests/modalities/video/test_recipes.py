"""The recipes against the authors' models: counts, checkpoints in their layouts, and one step written out plainly."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import compose
from mmssl.modalities.video.formats import mae_st, videomae
from mmssl.types import View

FACTS = {"channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
SMALL = [
    "data=folder", "data.root=.", "data.batch_size=2", "data.size=24", "tokenizer.frames=8", "tokenizer.patch=8", "encoder.dim=24",
    "encoder.depth=2", "encoder.heads=3", "objective.pixels.predictor.dim=20", "objective.pixels.predictor.depth=2",
    "objective.pixels.predictor.heads=2", "masker.ratio=0.7",
]  # fmt: skip


def module(name, *overrides):
    tree = compose(name, list(overrides))
    check(tree)
    return build.module(tree, FACTS)


def paper(name):
    with torch.device("meta"):
        return module(name, "data=folder", "data.root=.", "data.batch_size=64")


def count(part):
    return sum(p.numel() for p in part.parameters())


def block(dim, biases):
    """Values of a transformer block: two norms, attention with so many biases of its three, an MLP."""
    return 4 * dim + 3 * dim * dim + biases * dim + dim * dim + dim + 8 * dim * dim + 5 * dim


def test_videomae_has_the_published_size():
    """94,210,944 parameters (ViT-B), as its log says; ours adds biases that do nothing: of keys, and into the decoder."""
    ours = paper("video/videomae")
    assert count(ours) - 12 * 768 - 4 * 384 - 384 == 94_210_944
    spec = ours.networks["main"].spec
    assert (spec.grid, spec.raw, spec.length) == ((8, 14, 14), 1536, 1568)
    assert ours.objective["pixels"].target.dim == 1536 and ours.networks["main"].encoder.prefix is None


def test_mae_st_has_the_official_size():
    """Counted from the official model: ViT-L, 4 blocks of 512, separate positions, both class tokens."""
    ours = paper("video/mae_st")
    encoder = 1536 * 1024 + 1024 + 24 * block(1024, 3) + 2 * 1024 + (196 + 8) * 1024 + 1024
    decoder = 1024 * 512 + 512 + 4 * block(512, 3) + 2 * 512 + (196 + 8) * 512 + 2 * 512 + 512 * 768 + 768
    assert count(ours) == encoder + decoder  # their class tokens' positions are one vector more each
    target = ours.objective["pixels"].target
    assert target.dim == 768 and (target.offsets.shape, ours.networks["main"].spec.length) == ((8, 1), 1568)


def values(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.2


def blocks(prefix, dim, depth, separate):
    """Weights of blocks in the official layouts: VideoMAE joins queries, keys and values, MAE-ST does not."""
    shapes = {"norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,)}
    shapes |= {"attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)}
    shapes |= {"mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,)}
    shapes |= {"mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,)}
    if separate:
        shapes |= {f"attn.{part}.weight": (dim, dim) for part in "qkv"} | {
            f"attn.{part}.bias": (dim,) for part in "qkv"
        }
    else:
        shapes |= {"attn.qkv.weight": (3 * dim, dim), "attn.q_bias": (dim,), "attn.v_bias": (dim,)}
    return {f"{prefix}.{i}.{name}": shape for i in range(depth) for name, shape in shapes.items()}


def run_blocks(state, prefix, depth, heads, x):
    """Pre-norm blocks in plain tensor code."""
    for i in range(depth):
        part = {
            key.removeprefix(f"{prefix}.{i}."): value
            for key, value in state.items()
            if key.startswith(f"{prefix}.{i}.")
        }
        y = F.layer_norm(x, x.shape[-1:], part["norm1.weight"], part["norm1.bias"], 1e-6)
        if "attn.qkv.weight" in part:
            q, k, v = (y @ part["attn.qkv.weight"].T).chunk(3, -1)
            q, v = q + part["attn.q_bias"], v + part["attn.v_bias"]
        else:
            q, k, v = (y @ part[f"attn.{one}.weight"].T + part[f"attn.{one}.bias"] for one in "qkv")
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))
        y = ((q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + y.transpose(1, 2).flatten(2) @ part["attn.proj.weight"].T + part["attn.proj.bias"]
        y = F.layer_norm(x, x.shape[-1:], part["norm2.weight"], part["norm2.bias"], 1e-6)
        x = (
            x
            + F.gelu(y @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"]) @ part["mlp.fc2.weight"].T
            + part["mlp.fc2.bias"]
        )
    return x


def batch():
    clips = torch.randint(0, 256, (2, 8, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    return {"x": View(clips, "video"), "id": torch.arange(2), "epoch": torch.zeros(2, dtype=torch.long)}


def loaded(ours, weights):
    """Our module with the converted weights, all of them used and nothing learned left over."""
    ours = ours.double()
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    learned = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert not unexpected and not learned & set(missing)
    return ours


def tube(video, p):
    """(b, c, t, h, w) to (b, n, 2, p, p, c) as the official einsums do."""
    b, c, t, h, w = video.shape
    cells = video.reshape(b, c, t // 2, 2, h // p, p, w // p, p)
    return torch.einsum("bctuhpwq->bthwupqc", cells).reshape(b, -1, 2, p, p, c)


def videomae_state():
    shapes = {"encoder.patch_embed.proj.weight": (24, 3, 2, 8, 8), "encoder.patch_embed.proj.bias": (24,)}
    shapes |= blocks("encoder.blocks", 24, 2, False) | blocks("decoder.blocks", 20, 2, False)
    shapes |= {
        "encoder.norm.weight": (24,),
        "encoder.norm.bias": (24,),
        "decoder.norm.weight": (20,),
        "decoder.norm.bias": (20,),
    }
    shapes |= {"decoder.head.weight": (384, 20), "decoder.head.bias": (384,), "encoder_to_decoder.weight": (20, 24)}
    shapes |= {"mask_token": (1, 1, 20)}
    return {name: values(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def sinusoid(n, dim):
    table = torch.tensor(
        [[i / 10000 ** (2 * (j // 2) / dim) for j in range(dim)] for i in range(n)], dtype=torch.float64
    )
    table[:, 0::2], table[:, 1::2] = table[:, 0::2].sin(), table[:, 1::2].cos()
    return table.float().double()


def videomae_loss(state, clips, hidden):
    """One step of VideoMAE: embed all, add positions, drop; decode [visible, masked]; channel-wise targets."""
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    video = clips.double().transpose(1, 2) / 255
    weight, bias = state["encoder.patch_embed.proj.weight"], state["encoder.patch_embed.proj.bias"]
    x = F.conv3d((video - mean) / std, weight, bias, (2, 8, 8)).flatten(2).transpose(1, 2)
    b, n, _ = x.shape
    x = (x + sinusoid(n, 24))[~hidden].reshape(b, -1, 24)
    x = run_blocks(state, "encoder.blocks", 2, 3, x)
    x = F.layer_norm(x, (24,), state["encoder.norm.weight"], state["encoder.norm.bias"], 1e-6)
    place = sinusoid(n, 20).expand(b, -1, -1)
    known = x @ state["encoder_to_decoder.weight"].T + place[~hidden].reshape(b, -1, 20)
    x = torch.cat([known, state["mask_token"] + place[hidden].reshape(b, -1, 20)], 1)
    x = run_blocks(state, "decoder.blocks", 2, 2, x)[:, known.shape[1] :]
    x = F.layer_norm(x, (20,), state["decoder.norm.weight"], state["decoder.norm.bias"], 1e-6)
    answer = x @ state["decoder.head.weight"].T + state["decoder.head.bias"]
    pixels = tube(video, 8).flatten(2, 4)
    target = (pixels - pixels.mean(-2, keepdim=True)) / (pixels.var(-2, unbiased=True, keepdim=True).sqrt() + 1e-6)
    return F.mse_loss(answer, target.flatten(2)[hidden].reshape(b, -1, 384))


def test_one_step_of_videomae_from_its_checkpoint():
    state, data = videomae_state(), batch()
    ours = module("video/videomae", *SMALL)
    ours = loaded(ours, videomae({"model": state}, ours))
    hidden = ours.begin(data)["x"].mask.hidden
    assert hidden.sum(1).tolist() == [24, 24] and hidden.shape == (2, 36)  # int(0.7 * 9) of 9 in each of 4 slices
    loss = ours.training_step(data)
    # tokens are normalised in float32, whatever the weights
    torch.testing.assert_close(loss, videomae_loss(state, data["x"].data, hidden), atol=1e-5, rtol=1e-5)
    loss.backward()
    keys = ours.networks["main"].encoder.blocks[0].attn.qkv.bias.grad[24:48]
    assert keys.abs().max() < 1e-12  # which is why the bias that theirs does not have stays zero


def test_a_fine_tuned_videomae_fills_the_encoder():
    plain = {
        name.removeprefix("encoder."): value for name, value in videomae_state().items() if name.startswith("encoder.")
    }
    ours = module("video/videomae", *SMALL)
    found = videomae({"module": plain | {"head.weight": values(3, 24, seed=0)}}, ours)
    wanted = {name for name, _ in ours.named_parameters() if name.startswith("networks.main.")}
    assert set(found) == wanted


def mae_st_state():
    shapes = {"patch_embed.proj.weight": (24, 3, 2, 8, 8), "patch_embed.proj.bias": (24,)}
    for prefix, dim in (("", 24), ("decoder_", 20)):
        shapes |= {f"{prefix}cls_token": (1, 1, dim), f"{prefix}pos_embed_class": (1, 1, dim)}
        shapes |= {f"{prefix}pos_embed_spatial": (1, 9, dim), f"{prefix}pos_embed_temporal": (1, 4, dim)}
        shapes |= {f"{prefix}norm.weight": (dim,), f"{prefix}norm.bias": (dim,)} | blocks(
            f"{prefix}blocks", dim, 2, True
        )
    shapes |= {"decoder_embed.weight": (20, 24), "decoder_embed.bias": (20,), "mask_token": (1, 1, 20)}
    shapes |= {"decoder_pred.weight": (192, 20), "decoder_pred.bias": (192,)}
    return {name: values(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def mae_st_loss(state, clips, hidden):
    """One step of MAE-ST: dense decoder, class tokens with positions, joint targets on 4 of 8 frames, masked mean."""
    video = (clips.double().transpose(1, 2) / 255 - 0.45) / 0.225
    x = (
        F.conv3d(video, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], (2, 8, 8))
        .flatten(2)
        .transpose(1, 2)
    )
    b, n, _ = x.shape

    def place(prefix):
        space, time = state[f"{prefix}pos_embed_spatial"], state[f"{prefix}pos_embed_temporal"]
        every = space.repeat(1, 4, 1) + time.repeat_interleave(9, 1)
        return torch.cat([state[f"{prefix}pos_embed_class"], every], 1).expand(b, -1, -1)

    kept = torch.cat([torch.ones(b, 1, dtype=torch.bool), ~hidden], 1)
    x = torch.cat([state["cls_token"].expand(b, -1, -1), x], 1) + place("")
    x = run_blocks(state, "blocks", 2, 3, x[kept].reshape(b, -1, 24))
    x = F.layer_norm(x, (24,), state["norm.weight"], state["norm.bias"], 1e-6)[:, 1:]
    x = x @ state["decoder_embed.weight"].T + state["decoder_embed.bias"]
    full = state["mask_token"].expand(b, n, -1).clone()
    full[~hidden] = x.flatten(0, 1)
    x = torch.cat([state["decoder_cls_token"].expand(b, -1, -1), full], 1) + place("decoder_")
    x = run_blocks(state, "decoder_blocks", 2, 2, x)
    x = F.layer_norm(x, (20,), state["decoder_norm.weight"], state["decoder_norm.bias"], 1e-6)[:, 1:]
    answer = x @ state["decoder_pred.weight"].T + state["decoder_pred.bias"]
    frames = video[:, :, torch.linspace(0, 7, 4).long()]
    target = torch.einsum("bcthpwq->bthwpqc", frames.reshape(b, 3, 4, 3, 8, 3, 8)).reshape(b, n, -1)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    loss = (answer - target).square().mean(-1)
    return (loss * hidden).sum() / hidden.sum()


@pytest.mark.parametrize("wrapped", ["model", "model_state"])
def test_one_step_of_mae_st_from_its_checkpoint(wrapped):
    state, data = mae_st_state(), batch()
    ours = module("video/mae_st", *SMALL, "data.repeats=1")
    ours = loaded(ours, mae_st({wrapped: state}, ours))
    hidden = ours.begin(data)["x"].mask.hidden
    assert hidden.sum(1).tolist() == [26, 26]  # int(36 * 0.3) = 10 are seen
    torch.testing.assert_close(
        ours.training_step(data), mae_st_loss(state, data["x"].data, hidden), atol=1e-5, rtol=1e-5
    )


def test_decay_is_as_in_the_papers():
    """VideoMAE spares its mask token; MAE-ST spares only what has one axis."""
    for name, spared in (("video/videomae", True), ("video/mae_st", False)):
        ours = module(name, *SMALL)
        groups = ours.configure_optimizers().param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        token = ours.objective["pixels"].predictor.mask_token
        assert decay[id(token)] == (0.0 if spared else 0.05)
        assert decay[id(ours.networks["main"].encoder.norm.weight)] == 0.0
        if not spared:
            assert decay[id(ours.networks["main"].encoder.position.space)] == 0.05


def test_rates_are_the_papers():
    """VideoMAE: 1e-6 to 1.5e-4 to 1e-5 per 256 clips, 40 of 800 epochs of warm-up; batch 2048 of 16 frames."""
    tree = compose("video/videomae", ["data=folder", "data.root=."])
    schedule = build.make(tree["optim"]["schedule"])
    assert tree["optim"]["base_lr"] * schedule(0.0) == pytest.approx(1e-6, rel=1e-5)
    assert tree["optim"]["base_lr"] * schedule(1.0) == pytest.approx(1e-5, rel=1e-5)
    assert schedule(40 / 800) == pytest.approx(1.0) and tree["data"]["batch_size"] == 2048
    tree = compose("video/mae_st", ["data=folder", "data.root=."])
    assert (tree["data"]["repeats"], tree["optim"]["clip"], tree["optim"]["base_lr"]) == (4, 0.02, 1.6e-3)
    assert build.make(tree["optim"]["schedule"])(5 / 100) == pytest.approx(1.0)
