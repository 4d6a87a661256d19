"""Official files of masked image modeling go through init_from, into small modules of the recipes, and are run beside
the official forward passes, written out plainly here and in tests/official_ssl.py."""

from __future__ import annotations

import argparse
import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F

import mmssl
from mmssl.nn.patches import fold
from mmssl.registry import entry
from mmssl.run.checkpoints import init_from
from mmssl.types import Tokens, View
from tests.official_ssl import backbone, block, linear, norm, run_blocks, table

DIM, DEPTH, HEADS, SIDE, PATCH, NARROW = 32, 4, 4, 4, 8, 16
RAW = 3 * PATCH**2
SMALL = [
    "data=sample", "data.channels=3", "tokenizer.patch=8", f"encoder.dim={DIM}", f"encoder.heads={HEADS}",
]  # fmt: skip


def recipe(name, *more, depth=DEPTH):
    """The module of a recipe, small, on colour images of 32 pixels in 4 x 4 patches."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "network/timm")  # the small teachers are random
        part, *_ = mmssl.build(f"image/{name}", [*SMALL, f"encoder.depth={depth}", *more])
    return part.eval()


def decoder(*terms):
    """Overrides that make decoders 16 wide."""
    return [
        f"objective.{term}.predictor.{k}={v}"
        for term in terms
        for k, v in (("dim", NARROW), ("depth", 2), ("heads", 4))
    ]


def official_decoder(out, depth=2, dim=NARROW, last="decoder_pred"):
    """MAE's decoder as the released models name it."""
    state = {"mask_token": torch.randn(1, 1, dim), "decoder_pos_embed": table(SIDE, dim)}
    state["decoder_pos_embed"] = torch.cat([torch.zeros(1, 1, dim), state["decoder_pos_embed"]], 1)
    linear(state, "decoder_embed", dim, DIM)
    for i in range(depth):
        block(state, f"decoder_blocks.{i}", dim)
    norm(state, "decoder_norm", dim)
    linear(state, last, out, dim)
    return state


def vit(**given):
    return backbone(**({"dim": DIM, "depth": DEPTH, "side": SIDE, "patch": PATCH, "fixed": "column"} | given))


def convert(name, content, part):
    return entry(f"format/official/{name}", "test").load()(content, part)


def load(name, content, part, tmp_path):
    torch.save(content, tmp_path / "official.pth")
    return init_from(part, f"official/{name}:{tmp_path / 'official.pth'}", 1.0)


def check_whole(name, content, part, absent=r"$^"):
    """Every parameter of ours is filled but the absent ones, in its own shape."""
    found, own = convert(name, content, part), dict(part.named_parameters())
    assert set(found) == {key for key in own if not re.fullmatch(absent, key)}
    assert all(found[key].shape == own[key].shape for key in found)


def unused(name, content, state, part):
    """Names of the file's tensors that change nothing and are compared with nothing."""
    first, found = convert(name, content, part), []
    for key in list(state):
        before = state[key]
        state[key] = before + 1
        try:
            now = convert(name, content, part)
            found += [key] * all(torch.equal(now[label], first[label]) for label in first)
        except ValueError:  # compared, and refused
            pass
        state[key] = before
    return found


def pictures(part, count=2):
    """Images, and what the official networks read: the images standardised."""
    data = torch.rand(count, 3, SIDE * PATCH, SIDE * PATCH)
    tokenizer = part.networks["main"].tokenizer
    return data, (255 * data - tokenizer.mean) / tokenizer.std


def features(network, data):
    with torch.no_grad():
        tokens = network(View(data, "image"))
    return torch.cat([tokens.prefix, tokens.x], 1)


def embedded(s, x):
    x = F.conv2d(x, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=PATCH).flatten(2).mT
    return torch.cat([s["cls_token"].expand(len(x), -1, -1), x], 1)


def layer_norm(s, name, x):
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)


def check_encoder(part, s, network=None, last: str | None = "norm"):
    """The encoder is that of MAE, which all but BEiT v2 and MFM have."""
    data, x = pictures(part)
    x = run_blocks(s, embedded(s, x) + s["pos_embed"], "blocks", HEADS)
    expected = x if last is None else layer_norm(s, last, x)
    found = features(part.networks["main"] if network is None else network, data)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


SEEN, ASKED = torch.tensor([[0, 3, 5, 6], [1, 2, 9, 15]]), torch.tensor([[8, 9, 13], [0, 4, 11]])


def tokens(index, x=None, prefix=None):
    pos = torch.stack([index // SIDE, index % SIDE], -1).float()
    return Tokens(raw=torch.zeros(*index.shape, 1), pos=pos, index=index, x=x, prefix=prefix, grid=(SIDE, SIDE))


def check_decoder(predictor, s, blocks="decoder_blocks", last="decoder_norm", head="decoder_pred"):
    """A decoder is that of MAE."""
    x, first, places = torch.randn(2, 4, DIM), torch.randn(2, 1, DIM), s["decoder_pos_embed"][0, 1:]
    y = F.linear(torch.cat([first, x], 1), s["decoder_embed.weight"], s["decoder_embed.bias"])
    y = torch.cat([y[:, :1], y[:, 1:] + places[SEEN], s["mask_token"] + places[ASKED]], 1)
    y = layer_norm(s, last, run_blocks(s, y, blocks, 4))[:, 5:]
    expected = F.linear(y, s[f"{head}.weight"], s[f"{head}.bias"])
    torch.testing.assert_close(predictor(tokens(SEEN, x, first), tokens(ASKED)), expected, rtol=0, atol=1e-5)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- dBOT


def dbot_file(**given):
    return vit(**given) | official_decoder(DIM, last="decoder_predp")


def wrapped(state):
    return {"model": state, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(blr=1e-3)}


def test_dbot(tmp_path):
    part, state = recipe("dbot", *decoder("distill")), dbot_file()
    content = wrapped(state)
    report = load("dbot", content, part, tmp_path)
    assert "not in the file" not in report, report
    check_whole("dbot", content, part, r"objective\.distill\.target\..+")
    assert unused("dbot", content, state, part) == []
    check_encoder(part, state)
    check_decoder(part.objective["distill"].predictor, state, head="decoder_predp")


def test_a_teacher_of_dbot_fills_the_encoder(tmp_path):
    part, state = recipe("dbot", *decoder("distill")), vit()
    before = {name: value.clone() for name, value in part.objective.state_dict().items()}
    report = load("dbot", {"model": state}, part, tmp_path)
    assert "100.0% of the encoder" in report and "not in the file: objective.distill.predictor" in report
    assert all(torch.equal(value, before[name]) for name, value in part.objective.state_dict().items())


def test_another_decoder_starts_anew_and_is_named(tmp_path):
    part, state = recipe("dbot", *decoder("distill")), vit() | official_decoder(DIM, depth=3, last="decoder_predp")
    with pytest.warns(UserWarning, match=r"objective\.distill\.predictor starts anew.+12 of .+blocks\.2\.attn"):
        load("dbot", {"model": state}, part, tmp_path)
    check_encoder(part, state)


def test_another_encoder_is_refused(tmp_path):
    part = recipe("dbot", *decoder("distill"))
    with pytest.raises(ValueError, match=r"encoder\.depth=3"):
        load("dbot", {"model": dbot_file(depth=3)}, part, tmp_path)
    with pytest.raises(ValueError, match=r"set tokenizer\.patch=4"):
        load("dbot", {"model": dbot_file(patch=4)}, part, tmp_path)


def test_other_heads_and_positions_of_a_decoder_are_refused(tmp_path):
    wide = [f"objective.distill.predictor.{k}={v}" for k, v in (("dim", 512), ("depth", 1), ("heads", 8))]
    state = vit() | official_decoder(DIM, 1, 512, "decoder_predp")
    with pytest.raises(ValueError, match=r"set objective\.distill\.predictor\.heads=16"):
        load("dbot", state, recipe("dbot", *wide), tmp_path)
    state = dbot_file() | {"decoder_pos_embed": torch.cat([torch.zeros(1, 1, NARROW), table(SIDE, NARROW, "row")], 1)}
    with pytest.raises(ValueError, match=r"Set objective\.distill\.predictor\.position="):
        load("dbot", state, recipe("dbot", *decoder("distill")), tmp_path)


# ---- HPM


def hpm_branch():
    state = vit() | official_decoder(RAW)
    for i in range(2):
        block(state, f"decoder_blocks_losspred.{i}", NARROW)
    norm(state, "decoder_norm_losspred", NARROW)
    linear(state, "decoder_pred_losspred", RAW, NARROW)
    return state


def hpm_file():
    student = {f"module.{name}": value for name, value in hpm_branch().items()}
    return {"epoch": 3, "model": "mae_vit_base_patch16", "state_dict": student, "ema_state_dict": hpm_branch()}


def losspred(predictor, s):
    check_decoder(predictor, s, "decoder_blocks_losspred", "decoder_norm_losspred", "decoder_pred_losspred")


def test_hpm(tmp_path):
    part, content = recipe("hpm", *decoder("pixels", "order")), hpm_file()
    report = load("hpm", content, part, tmp_path)
    assert "not in the file" not in report, report
    check_whole("hpm", content, part)
    student = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    check_encoder(part, student)
    check_decoder(part.objective["pixels"].predictor, student)
    losspred(part.objective["order"].predictor, student)
    check_encoder(part, content["ema_state_dict"], part.teacher.twins["main"])
    losspred(part.teacher.twins["term_order"], content["ema_state_dict"])
    assert unused("hpm", content, content["state_dict"], part) == []
    left = unused("hpm", content, content["ema_state_dict"], part)  # the teacher decodes no pixels
    assert {name.split(".")[0] for name in left} == {"decoder_blocks", "decoder_norm", "decoder_pred"}


def test_hpm_of_one_branch_and_without_foretold_losses(tmp_path):
    part, state = recipe("hpm", *decoder("pixels", "order")), hpm_branch()
    load("hpm", {"model": state | {"vis_mask_token": torch.zeros(1, 1, DIM)}}, part, tmp_path)
    check_encoder(part, state, part.teacher.twins["main"])  # the student's copy
    losspred(part.teacher.twins["term_order"], state)
    plain = {name: value for name, value in state.items() if "losspred" not in name}
    assert not any("order" in name for name in convert("hpm", plain, part))
    report = load("hpm", plain, recipe("hpm", *decoder("pixels", "order")), tmp_path)
    assert "not in the file: objective.order.predictor" in report


# ---- BEiT v2


def beit_block(state, name):
    block(state, name, DIM, "gamma_{}")
    del state[f"{name}.attn.qkv.bias"]
    state[f"{name}.attn.q_bias"], state[f"{name}.attn.v_bias"] = torch.randn(DIM), torch.randn(DIM)


def beit_index():
    """The official index of relative positions: rows of a grid first, then class to patch, patch to class, class."""
    wide = 2 * SIDE - 1
    index = torch.zeros(SIDE**2 + 1, SIDE**2 + 1, dtype=torch.long)
    for i in range(SIDE**2):
        for j in range(SIDE**2):
            down, right = i // SIDE - j // SIDE + SIDE - 1, i % SIDE - j % SIDE + SIDE - 1
            index[i + 1, j + 1] = down * wide + right
    index[0, :], index[:, 0], index[0, 0] = wide**2, wide**2 + 1, wide**2 + 2
    return index


def beit_file(depth=DEPTH, codes=64, second=1, heads=HEADS):
    state = {"cls_token": torch.randn(1, 1, DIM), "mask_token": torch.randn(1, 1, DIM)}
    state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = (
        torch.randn(DIM, 3, PATCH, PATCH),
        torch.randn(DIM),
    )
    state["rel_pos_bias.relative_position_bias_table"] = torch.randn((2 * SIDE - 1) ** 2 + 3, heads)
    state["rel_pos_bias.relative_position_index"] = beit_index()
    for i in range(depth):
        beit_block(state, f"blocks.{i}")
    norm(state, "norm", DIM)
    linear(state, "lm_head", codes, DIM)
    for i in range(second):
        beit_block(state, f"cls_pt_layers.{i}")
    return state


def beit_blocks(s, x, name, bias, first=0, last=99):
    """The official blocks of a kind, from one to before another."""
    while f"{name}.{first}.norm1.weight" in s and first < last:
        base, (b, n, d) = f"{name}.{first}.", x.shape
        y = layer_norm(s, base + "norm1", x)
        biases = torch.cat([s[base + "attn.q_bias"], torch.zeros(d), s[base + "attn.v_bias"]])
        q, k, v = F.linear(y, s[base + "attn.qkv.weight"], biases).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = ((q / math.sqrt(d // HEADS)) @ k.mT + bias).softmax(-1) @ v
        y = F.linear(y.transpose(1, 2).reshape(b, n, d), s[base + "attn.proj.weight"], s[base + "attn.proj.bias"])
        x = x + s.get(base + "gamma_1", torch.ones(d)) * y
        y = F.gelu(F.linear(layer_norm(s, base + "norm2", x), s[base + "mlp.fc1.weight"], s[base + "mlp.fc1.bias"]))
        y = F.linear(y, s[base + "mlp.fc2.weight"], s[base + "mlp.fc2.bias"])
        x = x + s.get(base + "gamma_2", torch.ones(d)) * y
        first += 1
    return x


@pytest.fixture(scope="module")
def beit_run():
    return recipe("beitv2", "stages.tokenizer.tokenizer.patch=8")


def test_beitv2(beit_run, tmp_path):
    part, state = beit_run, beit_file()
    content = wrapped(state)
    load("beitv2", content, part, tmp_path)
    check_whole("beitv2", content, part, r"objective\.ids\.target\..+")
    assert unused("beitv2", content, state, part) == ["rel_pos_bias.relative_position_index"]
    assert torch.equal(part.corruptors["x"].mask_token, state["mask_token"])
    network, predictor = part.networks["main"], part.objective["ids"].predictor
    data, x = pictures(part)
    bias = state["rel_pos_bias.relative_position_bias_table"][beit_index()].permute(2, 0, 1)
    early = beit_blocks(state, embedded(state, x), "blocks", bias, last=3)  # three quarters of four blocks
    late = beit_blocks(state, early, "blocks", bias, first=3)
    torch.testing.assert_close(features(network, data), layer_norm(state, "norm", late), rtol=0, atol=1e-5)
    with torch.no_grad():
        seen = network(View(data, "image"), predictor.taps)
        found = predictor.train()(seen, seen)
    second = beit_blocks(state, torch.cat([late[:, :1], early[:, 1:]], 1), "cls_pt_layers", bias)
    for answer, y in zip(found, (late, second), strict=True):
        expected = F.linear(layer_norm(state, "norm", y)[:, 1:], state["lm_head.weight"], state["lm_head.bias"])
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "more", "gone", "said"),
    [
        ({"depth": 3}, {}, (), "depth 3"),
        ({"heads": 2}, {}, (), "2 heads and 52 relative positions"),
        ({}, {"pos_embed": torch.zeros(1, 17, DIM)}, (), "pos_embed"),
        (
            {},
            {"blocks.0.attn.relative_position_bias_table": torch.zeros(52, 4)},
            (),
            "blocks.0.attn.relative_position_bias",
        ),
        ({}, {}, ("blocks.0.gamma_1", "blocks.0.gamma_2"), "layer-scale: no"),
        ({}, {"cls_pt_lm_head.weight": torch.zeros(64, DIM)}, (), "shared_lm_head=False"),
    ],
)
def test_beits_of_another_kind_are_refused(given, more, gone, said, beit_run, tmp_path):
    state = {name: value for name, value in (beit_file(**given) | more).items() if name not in gone}
    before = {name: value.clone() for name, value in beit_run.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(said)):
        load("beitv2", {"model": state}, beit_run, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in beit_run.state_dict().items())


def test_beitv2_with_other_codes_or_without_second_head_fills_the_encoder(beit_run, tmp_path):
    for state, said in (
        (beit_file(codes=8192), "head.weight is (8192, 32) there and (64, 32) here"),
        (beit_file(second=0), "absent"),
    ):
        with pytest.warns(UserWarning, match=re.escape(said)):
            load("beitv2", state, beit_run, tmp_path)
        assert torch.equal(beit_run.networks["main"].encoder.norm.weight, state["norm.weight"])


# ---- LocalMIM

TERMS, SCALES = ("fine", "medium", "coarse", "coarsest"), (4, 2, 1, 0.5)
TALL, READ = 7, (1, 3, 4, 6)  # a depth, and the blocks that its decoders read
PREDICTIONS = {4: ("up", "norm", None, "up", "last"), 2: ("up", "last"), 1: ("last",), 0.5: (None, "last")}


def localmim_file():
    state = {name: value for name, value in vit(depth=TALL).items() if not name.startswith("norm.")}
    for i, scale in enumerate(SCALES):
        norm(state, f"norm.{i}", DIM)
        own = official_decoder(1)
        for name in [name for name in own if "decoder_pred" not in name]:
            state[f"decoder.{i}.{name.removeprefix('decoder_')}"] = own[name]
        wide = NARROW
        for place, kind in enumerate(PREDICTIONS[scale]):
            name = f"decoder.{i}.pred.{place}"
            if kind == "up":
                state[f"{name}.weight"] = torch.randn(wide, wide // 2, 2, 2) * 0.2
                wide //= 2
                state[f"{name}.bias"] = torch.randn(wide)
            elif kind == "norm":
                norm(state, name, wide)
            elif kind == "last":
                state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(27, wide, 1, 1) * 0.2, torch.randn(27)
        state[f"hog_enc.{i}.conv.weight"] = torch.randn(2, 1, 3, 3)
    return state


def localmim_run(*more):
    layers = [f"objective.{term}.predictor.layer=block.{k}" for term, k in zip(TERMS[:3], READ[:3], strict=True)]
    return recipe("localmim", *decoder(*TERMS), *layers, *more, depth=TALL)


def official_map(s, i, y):
    """The official answers of all places, (b, 27, h, w), from decoded tokens on the grid of patches."""
    for place, kind in enumerate(PREDICTIONS[SCALES[i]]):
        weight, bias = (s.get(f"decoder.{i}.pred.{place}.{name}") for name in ("weight", "bias"))
        if kind == "up":
            y = F.conv_transpose2d(y, weight, bias, stride=2)
        elif kind == "norm":
            y = F.layer_norm(y.movedim(1, -1), y.shape[1:2], weight, bias, 1e-6).movedim(-1, 1)
        elif kind == "last":
            y = F.conv2d(y, weight, bias)
        else:
            y = F.gelu(y) if SCALES[i] > 1 else F.avg_pool2d(y, 2)
    return y


def test_localmim(tmp_path):
    part, state = localmim_run(), localmim_file()
    content = wrapped(state)
    report = load("localmim", content, part, tmp_path)
    assert "not in the file" not in report, report
    check_whole("localmim", content, part)
    assert unused("localmim", content, state, part) == [f"hog_enc.{i}.conv.weight" for i in range(4)]
    check_encoder(part, state, last="norm.3")
    rest = torch.stack([torch.tensor([k for k in range(SIDE**2) if k not in row.tolist()]) for row in SEEN])
    for i, term in enumerate(TERMS):
        layer = torch.randn(2, 5, DIM)
        normed = layer_norm(state, f"norm.{i}", layer)
        y = F.linear(normed, state[f"decoder.{i}.embed.weight"], state[f"decoder.{i}.embed.bias"])
        all_ = state[f"decoder.{i}.mask_token"].repeat(2, SIDE**2, 1)
        all_[torch.arange(2)[:, None], SEEN] = y[:, 1:]
        y = torch.cat([y[:, :1], all_], 1) + state[f"decoder.{i}.pos_embed"]
        y = layer_norm(state, f"decoder.{i}.norm", run_blocks(state, y, f"decoder.{i}.blocks", 4))[:, 1:]
        y, s = official_map(state, i, y.mT.reshape(2, NARROW, SIDE, SIDE)), int(max(SCALES[i], 1))
        y = y.repeat_interleave(2, 2).repeat_interleave(2, 3) if SCALES[i] < 1 else y
        y = y.reshape(2, 27, SIDE, s, SIDE, s).permute(0, 2, 4, 3, 5, 1).reshape(2, SIDE**2, -1)
        seen = tokens(SEEN, normed[:, 1:], normed[:, :1]).but(taps={f"block.{READ[i]}": layer})
        found = part.objective[term].predictor(seen, tokens(rest))
        torch.testing.assert_close(found, y[torch.arange(2)[:, None], rest], rtol=0, atol=1e-5)


def test_decoders_of_localmim_read_the_blocks_of_the_file(tmp_path):
    part = localmim_run("objective.medium.predictor.layer=block.2")
    with pytest.raises(ValueError, match=r"set objective\.medium\.predictor\.layer=block\.3"):
        load("localmim", localmim_file(), part, tmp_path)


# ---- MFM


def mfm_file():
    state = {f"encoder.{name}": value for name, value in vit(fixed=None).items()}
    for i in range(DEPTH):
        base = f"encoder.blocks.{i}.attn."
        del state[base + "qkv.bias"]
        state[base + "q_bias"], state[base + "v_bias"] = torch.randn(DIM), torch.randn(DIM)
    state["decoder.0.weight"], state["decoder.0.bias"] = torch.randn(RAW, DIM, 1, 1), torch.randn(RAW)
    return state


def test_mfm(tmp_path):
    part, state = recipe("mfm"), mfm_file()
    content = {"model": state, "max_accuracy": 0.0, "epoch": 3}
    report = load("mfm", content, part, tmp_path)
    assert "not in the file" not in report, report
    check_whole("mfm", content, part)
    assert unused("mfm", content, state, part) == []
    data, x = pictures(part)
    s = {name.removeprefix("encoder."): value for name, value in state.items()}
    x = beit_blocks(s, embedded(s, x) + s["pos_embed"], "blocks", torch.zeros(()))
    torch.testing.assert_close(features(part.networks["main"], data), layer_norm(s, "norm", x), rtol=0, atol=1e-5)
    x = torch.randn(2, SIDE**2, DIM)
    expected = F.conv2d(x.mT.reshape(2, DIM, SIDE, SIDE), state["decoder.0.weight"], state["decoder.0.bias"])
    index = torch.arange(SIDE**2).expand(2, -1)
    found = part.objective["frequencies"].predictor(tokens(index, x), tokens(index))
    found = fold(found, (SIDE, SIDE), (PATCH, PATCH))
    torch.testing.assert_close(found, F.pixel_shuffle(expected, PATCH), rtol=0, atol=1e-5)


def test_mfm_with_layer_scale_or_a_deep_decoder(tmp_path):
    scaled = {f"encoder.blocks.{i}.gamma_{k}": torch.ones(DIM) for i in range(DEPTH) for k in (1, 2)}
    with pytest.raises(ValueError, match=r"encoder\.layer_scale=1\.0e-5"):
        load("mfm", mfm_file() | scaled, recipe("mfm"), tmp_path)
    deep = {name: value for name, value in mfm_file().items() if not name.startswith("decoder.")}
    deep["decoder.embed.weight"] = torch.randn(NARROW, DIM)
    with pytest.warns(UserWarning, match=r"objective\.frequencies\.predictor starts anew"):
        load("mfm", deep, recipe("mfm"), tmp_path)


# ---- MaskAlign


def maskalign_file(name="distill_heads.{}"):
    state = vit() | {"distill_weights": torch.randn(DEPTH, DEPTH), "clip_model.post.weight": torch.randn(3)}
    for i in range(DEPTH):
        linear(state, name.format(i), 192, DIM)
    return state


def test_maskalign(tmp_path):
    part, state = recipe("maskalign"), maskalign_file()
    content = wrapped(state)
    report = load("maskalign", content, part, tmp_path)
    assert "not in the file" not in report, report
    check_whole("maskalign", content, part, r"guides?\..+")
    left = ["norm.weight", "norm.bias", "clip_model.post.weight", "distill_heads.0.weight", "distill_heads.0.bias"]
    assert unused("maskalign", content, state, part) == left
    check_encoder(part, state, last=None)
    layers = torch.randn(DEPTH, 2, 5, DIM)
    mixed = torch.einsum("ab,bcde->acde", state["distill_weights"], layers)
    expected = [
        F.linear(mixed[i], state[f"distill_heads.{i}.weight"], state[f"distill_heads.{i}.bias"]) for i in (1, 2, 3)
    ]
    seen = tokens(SEEN, torch.zeros(2, 4, DIM)).but(taps={f"block.{i}": layers[i] for i in range(DEPTH)})
    found = part.objective["align"].predictor.with_class(seen, tokens(SEEN))
    torch.testing.assert_close(found, torch.cat(expected, -1), rtol=0, atol=1e-5)


def test_maskalign_with_other_heads_or_a_norm(tmp_path):
    with pytest.warns(UserWarning, match=r"objective\.align\.predictor starts anew"):
        load("maskalign", maskalign_file("distill_heads.{}.1"), recipe("maskalign"), tmp_path)
    part, state = recipe("maskalign", "encoder.final_norm=true"), maskalign_file()
    load("maskalign", state, part, tmp_path)
    check_encoder(part, state)


# ---- DMAE


def test_dmae(tmp_path):
    part, state = recipe("dmae", *decoder("pixels")), vit() | official_decoder(RAW)
    linear(state, "aligned_feature_projection_heads.0", 64, DIM)
    content = wrapped(state)
    report = load("dmae", content, part, tmp_path)
    assert "not in the file" not in report, report
    check_whole("dmae", content, part, r"objective\.features\.target\..+")
    assert unused("dmae", content, state, part) == []
    check_encoder(part, state)
    check_decoder(part.objective["pixels"].predictor, state)
    layer, predictor = torch.randn(2, 5, DIM), part.objective["features"].predictor
    found = predictor(tokens(SEEN, torch.zeros(2, 4, DIM)).but(taps={predictor.taps[0]: layer}), tokens(SEEN))
    base = "aligned_feature_projection_heads.0"
    expected = F.normalize(F.linear(layer[:, 1:], state[f"{base}.weight"], state[f"{base}.bias"]), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
