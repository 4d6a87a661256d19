"""Models of VideoMAE's layout: VideoMAE V2 and AdaMAE fill their recipes, and compute what plain tensor code does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl.modalities.video.formats import videomae
from mmssl.run.checkpoints import fill
from tests.modalities.video.test_recipes import (
    SMALL,
    batch,
    loaded,
    module,
    run_blocks,
    sinusoid,
    values,
    videomae_state,
)

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

SIZES = [said for said in SMALL if not said.startswith("masker.")]
PLACES = 36  # 4 slices of 3 x 3


def adamae_state():
    """VideoMAE's tensors, and those of the network that draws: positions, a block whose maps have no biases, a head."""
    shapes = {"pos_embed_probs": (1, PLACES, 24), "get_token_probs.1.weight": (1, 24), "get_token_probs.1.bias": (1,)}
    part = {
        "norm1.weight": (24,), "norm1.bias": (24,), "attn.qkv.weight": (72, 24), "attn.proj.weight": (24, 24),
        "attn.proj.bias": (24,), "norm2.weight": (24,), "norm2.bias": (24,), "mlp.fc1.weight": (96, 24),
        "mlp.fc1.bias": (96,), "mlp.fc2.weight": (24, 96), "mlp.fc2.bias": (24,),
    }  # fmt: skip
    shapes |= {f"get_token_probs.0.{name}": shape for name, shape in part.items()}
    more = {f"encoder.{name}": values(*shape, seed=100 + i) for i, (name, shape) in enumerate(shapes.items())}
    return videomae_state() | more


STATES = {"videomae_v2": videomae_state, "adamae": adamae_state}
RECIPES = pytest.mark.parametrize("name", list(STATES))


def embedded(state, clips):
    """Tokens of clips (b, t, c, h, w) in bytes, by the convolution."""
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    video = (clips.double().transpose(1, 2) / 255 - mean) / std
    weight, bias = state["encoder.patch_embed.proj.weight"], state["encoder.patch_embed.proj.bias"]
    return F.conv3d(video, weight, bias, (2, 8, 8)).flatten(2).transpose(1, 2)


def answers(state, clips, visible, asked):
    """Features of visible tokens, and what the decoder makes of them and of mask tokens at the places asked for."""
    x = (embedded(state, clips) + sinusoid(PLACES, 24))[:, visible]
    x = run_blocks(state, "encoder.blocks", 2, 3, x)
    x = F.layer_norm(x, (24,), state["encoder.norm.weight"], state["encoder.norm.bias"], 1e-6)
    place = sinusoid(PLACES, 20)
    known = x @ state["encoder_to_decoder.weight"].T + place[visible]
    hidden = (state["mask_token"] + place[asked]).expand(len(x), -1, -1)
    y = run_blocks(state, "decoder.blocks", 2, 2, torch.cat([known, hidden], 1))[:, len(visible) :]
    y = F.layer_norm(y, (20,), state["decoder.norm.weight"], state["decoder.norm.bias"], 1e-6)
    return x, y @ state["decoder.head.weight"].T + state["decoder.head.bias"]


@RECIPES
def test_every_parameter_is_filled_and_used(name):
    state, data = STATES[name](), batch()
    ours = module(f"video/{name}", *SIZES)
    found = videomae({"model": state, "epoch": 3}, ours)
    assert set(found) == {n for n, _ in ours.named_parameters()}
    ours = loaded(ours, found).eval()
    order = torch.randperm(PLACES, generator=torch.Generator().manual_seed(0))
    visible, asked = order[:9].sort().values, order[9:22].sort().values  # V2 decodes some of the hidden tokens only
    network = ours.networks["main"]
    with torch.no_grad():
        tokens = network.tokenizer(data["x"])
        tokens = tokens.but(raw=tokens.raw.double())
        seen = network.encode(tokens.take(visible.expand(2, -1)))
        made = ours.objective["pixels"].predictor(seen, tokens.take(asked.expand(2, -1)))
        x, wanted = answers(state, data["x"].data, visible, asked)
    torch.testing.assert_close(seen.x, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)


def test_adamaes_network_gives_the_chances_of_the_release():
    state, data = adamae_state(), batch()
    ours = module("video/adamae", *SIZES)
    ours = loaded(ours, videomae({"model": state}, ours)).eval()
    with torch.no_grad():
        score = ours.begin(data)["x"].score
        x = embedded(state, data["x"].data) + state["encoder.pos_embed_probs"]
        part = {n.removeprefix("encoder.get_token_probs."): v for n, v in state.items() if "get_token_probs" in n}
        y = F.layer_norm(x, (24,), part["0.norm1.weight"], part["0.norm1.bias"], 1e-5)
        q, k, v = ((y @ w.T).unflatten(-1, (8, 3)).transpose(1, 2) for w in part["0.attn.qkv.weight"].chunk(3))
        y = ((q @ k.mT / 3**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + y @ part["0.attn.proj.weight"].T + part["0.attn.proj.bias"]
        y = F.layer_norm(x, (24,), part["0.norm2.weight"], part["0.norm2.bias"], 1e-5)
        y = F.gelu(y @ part["0.mlp.fc1.weight"].T + part["0.mlp.fc1.bias"])
        x = x + y @ part["0.mlp.fc2.weight"].T + part["0.mlp.fc2.bias"]
        chances = (x @ part["1.weight"].T + part["1.bias"])[..., 0].softmax(-1)
    torch.testing.assert_close(score.exp().double(), chances, atol=1e-6, rtol=1e-5)


def test_a_file_without_the_drawing_network_says_so():
    ours = module("video/adamae", *SIZES)
    found = videomae({"model": videomae_state()}, ours)
    report = fill(ours, found, 1.0, "FILE")
    assert "100.0% of the encoder's" in report and "not in the file: guides.x.position" in report


@RECIPES
def test_other_blocks_are_refused_by_name(name):
    ours = module(f"video/{name}", *SIZES, "encoder.depth=1")
    with pytest.raises(ValueError, match=r"encoder is another one: networks\.main\.encoder\.blocks\.1\.norm1\.weight"):
        videomae({"model": STATES[name]()}, ours)
    ours = module(f"video/{name}", *SIZES)
    with pytest.raises(ValueError, match=r"blocks\.0\.gamma_1 \(24,\) \(not here\)"):
        videomae({"model": STATES[name]() | {"encoder.blocks.0.gamma_1": torch.ones(24)}}, ours)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.scale \(3, 1, 1\) \(not here\)"):
        videomae({"model": STATES[name]() | {"encoder.blocks.0.attn.scale": torch.ones(3, 1, 1)}}, ours)


def test_a_fine_tuned_v2_fills_all_but_the_norm():
    """Its norm lies behind the mean of the tokens, and has another name."""
    plain = {n.removeprefix("encoder."): v for n, v in videomae_state().items() if n.startswith("encoder.")}
    plain["fc_norm.weight"], plain["fc_norm.bias"] = plain.pop("norm.weight"), plain.pop("norm.bias")
    ours = module("video/videomae_v2", *SIZES)
    found = videomae({"module": plain | {"head.weight": values(3, 24, seed=0), "head.bias": values(3, seed=1)}}, ours)
    wanted = {n for n, _ in ours.named_parameters() if n.startswith("networks.main.")}
    assert wanted - set(found) == {"networks.main.encoder.norm.weight", "networks.main.encoder.norm.bias"}
    assert "not in the file: networks.main.encoder.norm.weight" in fill(ours, found, 0.9, "FILE")
