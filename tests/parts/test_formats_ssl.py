"""Official files of I-JEPA, DINO, iBOT, DINOv2 and MoCo v3 go through init_from and are run beside the official forward
pass, which is written out plainly in tests/official_ssl.py."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer

from mmssl.config import build
from mmssl.parts import formats_ssl
from mmssl.parts.encoders.timm import TimmViT
from mmssl.parts.formats_vit import IGNORED, resize
from mmssl.run.checkpoints import ConfigError, init_from
from mmssl.types import Tokens, View
from tests.official_ssl import (
    DIM,
    HEADS,
    LEARNED,
    PATCH,
    PROTOTYPES,
    SIDE,
    VIT,
    backbone,
    dino_file,
    dino_run,
    dinov2_file,
    dinov2_run,
    ibot_file,
    ibot_run,
    ijepa_file,
    ijepa_run,
    mae_run,
    mocov3_file,
    mocov3_run,
    plain,
    reference,
    reference_head,
    reference_perceptron,
    run_blocks,
    table,
    two_heads,
)
from tests.small import images, tree


def load(content, name, part, tmp_path, share=1.0):
    torch.save(content, tmp_path / "official.pth")
    part.eval()
    return init_from(part, f"official/{name}:{tmp_path / 'official.pth'}", share)


def features(network, data):
    with torch.no_grad():
        tokens = network(View(data, "image"))
    return tokens.x if tokens.prefix is None else torch.cat([tokens.prefix, tokens.x], 1)


def check(network, state, seed=0):
    data = images(2, seed=seed)
    torch.testing.assert_close(features(network, data), reference(state, data), rtol=0, atol=1e-5)


def unused(name, content, part):
    """Names of tensors that change nothing: each is altered in turn, and the converter asked again."""
    convert = getattr(formats_ssl, name)
    first, found = convert(content, part), []

    def visit(holder):
        for key, value in holder.items():
            if isinstance(value, Mapping):
                visit(value)
            elif isinstance(value, torch.Tensor):
                holder[key] = value + 1
                try:
                    same = all(torch.equal(now, first[label]) for label, now in convert(content, part).items())
                except ValueError:  # compared, and refused
                    same = False
                found.extend([key] * same)
                holder[key] = value

    visit(content)
    return found


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


FULL = {
    "dino": (dino_run, dino_file, "student", "teacher"),
    "ibot": (lambda: ibot_run(**two_heads(), encoder=LEARNED | {"layer_scale": 0.1}), ibot_file, "student", "teacher"),
    "ijepa": (ijepa_run, ijepa_file, "encoder", "target_encoder"),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_checkpoint_fills_everything(name, tmp_path):
    make, file, student, teacher = FULL[name]
    part, content = make(), file()
    report = load(content, name, part, tmp_path)
    assert "100.0% of" in report and "not in the file" not in report, report
    check(part.networks["main"], content[student])
    check(part.teacher.twins["main"], content[teacher])
    assert unused(name, content, part) == []


def test_mocov3_fills_everything(tmp_path):
    part, content = mocov3_run(), mocov3_file()
    report = load(content, "mocov3", part, tmp_path)
    assert "100.0% of" in report and "not in the file" not in report, report
    state = plain(content["state_dict"])
    for network, head, name in (
        (part.networks["main"], part.heads["proj"], "base_encoder"),
        (part.teacher.twins["main"], part.teacher.twins["head_proj"], "momentum_encoder"),
    ):
        own = {n.split(f"{name}.")[1]: value for n, value in content["state_dict"].items() if f"{name}." in n}
        check(network, own)
        x = torch.randn(5, DIM)
        mlp = {n.removeprefix("head."): value for n, value in own.items() if n.startswith("head.")}
        torch.testing.assert_close(head(x), reference_perceptron(mlp, x, 3), rtol=0, atol=1e-5)
    x = torch.randn(5, 16)
    mlp = {n.removeprefix("predictor."): value for n, value in state.items() if n.startswith("predictor.")}
    predictor = part.objective["contrast"].predictor
    torch.testing.assert_close(predictor(x), reference_perceptron(mlp, x, 2), rtol=0, atol=1e-5)
    assert unused("mocov3", content, part) == []


def test_heads_and_centres_of_dino(tmp_path):
    part, content = dino_run(), dino_file()
    load(content, "dino", part, tmp_path)
    x = torch.randn(5, DIM)
    torch.testing.assert_close(part.heads["proj"](x), reference_head(content["student"], x), rtol=0, atol=1e-5)
    twin = part.teacher.twins["head_proj"]
    torch.testing.assert_close(twin(x), reference_head(content["teacher"], x), rtol=0, atol=1e-5)
    assert torch.equal(part.objective["samples"].normalize.center, content["dino_loss"]["center"][0])


def test_learned_gains_need_free_prototypes(tmp_path):
    content = dino_file(gain=0.5)
    part = dino_run(heads={"proj": PROTOTYPES | {"rows": "free"}})
    load(content, "dino", part, tmp_path)
    x = torch.randn(5, DIM)
    torch.testing.assert_close(part.heads["proj"](x), reference_head(content["student"], x), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"set heads\.proj\.rows=free"):
        load(content, "dino", dino_run(), tmp_path)


def test_a_head_of_another_size_starts_anew(tmp_path):
    part = dino_run(heads={"proj": PROTOTYPES | {"count": 7}})
    before = {name: value.clone() for name, value in part.heads.state_dict().items()}
    content = dino_file()
    load(content, "dino", part, tmp_path)
    check(part.networks["main"], content["student"])
    assert all(torch.equal(value, before[name]) for name, value in part.heads.state_dict().items())
    twins = part.teacher.twins["head_proj"].state_dict()
    assert all(torch.equal(value, before[f"proj.{name}"]) for name, value in twins.items())


def test_heads_of_ibot_separate_and_shared(tmp_path):
    part, content = FULL["ibot"][0](), ibot_file()
    load(content, "ibot", part, tmp_path)
    x = torch.randn(5, DIM)
    for head, last in (("proj", "last_layer"), ("patches", "last_layer2")):
        expected = reference_head(content["student"], x, last=last)
        torch.testing.assert_close(part.heads[head](x), expected, rtol=0, atol=1e-5)
        expected = reference_head(content["teacher"], x, last=last)
        torch.testing.assert_close(part.teacher.twins[f"head_{head}"](x), expected, rtol=0, atol=1e-5)
    assert torch.equal(part.objective["patches"].normalize.center, content["ibot_loss"]["center2"][0, 0])
    assert torch.equal(part.corruptors["a"].mask_token[0], content["student"]["module.backbone.masked_embed"])
    one = ibot_run(encoder=LEARNED | {"layer_scale": 0.1})
    load(content, "ibot", one, tmp_path)
    torch.testing.assert_close(one.heads["proj"](x), reference_head(content["student"], x), rtol=0, atol=1e-5)
    left = [plain({name: torch.zeros(())}).popitem()[0] for name in unused("ibot", content, one)]
    assert left == ["head.last_layer2.weight_v", "head.last_layer2.weight_g"] * 2 + ["center2"]
    assert all(re.fullmatch("|".join(IGNORED), name) for name in left[:-1])


def test_hidden_patches_of_ibot_are_the_official_ones(tmp_path):
    """Both replace embedded patches before positions are added."""
    part, content = FULL["ibot"][0](), ibot_file()
    load(content, "ibot", part, tmp_path)
    network, data = part.networks["main"], images(2)
    hidden = torch.rand(2, SIDE * SIDE) < 0.5
    tokens = network.embed(network.tokenizer(View(data, "image")))
    replaced = torch.where(hidden[..., None], part.corruptors["b"].mask_token, tokens.x)
    found = network.encoder(tokens.but(x=replaced))
    s = plain(content["student"])
    embedded = torch.where(hidden[..., None], s["masked_embed"], tokens.x)
    x = torch.cat([s["cls_token"].expand(2, -1, -1), embedded], 1) + s["pos_embed"]
    x = F.layer_norm(run_blocks(s, x, "blocks", HEADS), (DIM,), s["norm.weight"], s["norm.bias"], 1e-6)
    torch.testing.assert_close(torch.cat([found.prefix, found.x], 1), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_teacher_fills_student_and_teacher(registers, tmp_path):
    encoder = LEARNED | {"layer_scale": 1e-5, "registers": registers}
    part, content = dinov2_run(encoder=encoder), dinov2_file(registers=registers)
    report = load(content, "dinov2", part, tmp_path)
    assert "100.0% of" in report
    x = torch.randn(5, DIM)
    for network, heads, prefix in (
        (part.networks["main"], part.heads, ""), (part.teacher.twins["main"], part.teacher.twins, "head_"),
    ):  # fmt: skip
        check(network, content["teacher"])
        for head, theirs in (("proj", "dino_head"), ("patches", "ibot_head")):
            expected = reference_head(content["teacher"], x, theirs)
            torch.testing.assert_close(heads[prefix + head](x), expected, rtol=0, atol=1e-5)
    assert torch.equal(part.corruptors["a"].mask_token[0], content["teacher"]["backbone.mask_token"])
    assert unused("dinov2", content, part) == []


def test_dinov2_heads_one_and_two(tmp_path):
    scaled = {"encoder": LEARNED | {"layer_scale": 1e-5}}
    part, content = ibot_run(**scaled), dinov2_file()
    load(content, "dinov2", part, tmp_path)
    x = torch.randn(5, DIM)
    expected = reference_head(content["teacher"], x, "dino_head")
    torch.testing.assert_close(part.heads["proj"](x), expected, rtol=0, atol=1e-5)
    left = unused("dinov2", content, part)
    assert len(left) == 8 and all(re.fullmatch("|".join(IGNORED), name) for name in left)
    heads = {"proj": PROTOTYPES, "patches": PROTOTYPES}
    part = dinov2_run(heads=heads)
    common = {"teacher": {n: value for n, value in content["teacher"].items() if "ibot_head" not in n}}
    load(common, "dinov2", part, tmp_path)
    torch.testing.assert_close(part.heads["patches"](x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["dino", "ibot", "dinov2", "mocov3", "ijepa"])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_a_released_backbone_fills_student_and_teacher(name, wrap, tmp_path):
    make, given = {
        "dino": (dino_run, {}), "ibot": (ibot_run, {}), "mocov3": (mocov3_run, {"fixed": "row"}),
        "dinov2": (dinov2_run, {"scale": "ls{}.gamma", "token": "mask_token"}),
        "ijepa": (ijepa_run, {"cls": False, "fixed": "column"}),
    }[name]  # fmt: skip
    part, state = make(), backbone(**given)
    load(state if wrap is None else {wrap: state}, name, part, tmp_path)
    check(part.networks["main"], state)
    check(part.teacher.twins["main"], state)
    assert unused(name, state, part) == []


def test_without_a_teacher_the_branch_that_authors_evaluate_is_taken(tmp_path):
    part, content = mae_run(), dino_file()
    load(content, "dino", part, tmp_path)
    check(part.networks["main"], content["teacher"])
    part, content = mae_run(encoder=VIT | {"position": {"_target_": "position/sincos_parts"}}), mocov3_file()
    load(content, "mocov3", part, tmp_path)
    state = content["state_dict"]
    check(part.networks["main"], {n.split("encoder.")[1]: v for n, v in state.items() if "base_encoder." in n})


def test_the_predictor_of_ijepa_is_the_official_one(tmp_path):
    part, content = ijepa_run(), ijepa_file()
    load(content, "ijepa", part, tmp_path)
    predictor, s = part.objective["latent"].predictor, plain(content["predictor"])
    context, asked = torch.tensor([[0, 3, 5, 6], [1, 2, 9, 15]]), torch.tensor([[8, 9, 13], [0, 4, 11]])
    x, positions = torch.randn(2, 4, DIM), s["predictor_pos_embed"][0]
    given = F.linear(x, s["predictor_embed.weight"], s["predictor_embed.bias"]) + positions[context]
    y = run_blocks(s, torch.cat([given, s["mask_token"] + positions[asked]], 1), "predictor_blocks", 4)[:, 4:]
    y = F.layer_norm(y, (16,), s["predictor_norm.weight"], s["predictor_norm.bias"], 1e-6)
    expected = F.linear(y, s["predictor_proj.weight"], s["predictor_proj.bias"])

    def tokens(index, x=None):
        pos = torch.stack([index // SIDE, index % SIDE], -1).float()
        return Tokens(raw=torch.zeros(*index.shape, 1), pos=pos, index=index, x=x, grid=(SIDE, SIDE))

    torch.testing.assert_close(predictor(tokens(context, x), tokens(asked)), expected, rtol=0, atol=1e-5)


def test_positions_are_resized_as_our_own_are(tmp_path):
    small, large = dino_run(), dino_run(tokenizer={"_target_": "tokenizer/image", "size": 48, "patch": PATCH})
    state = backbone()
    load(state, "dino", small, tmp_path)
    load(state, "dino", large, tmp_path)
    data = images(2, size=48)
    # the small network resizes its table for larger images; the large one had it resized when it was filled
    torch.testing.assert_close(
        features(small.networks["main"], data), features(large.networks["main"], data), rtol=0, atol=1e-5
    )
    given = torch.randn(16, DIM)
    assert torch.equal(resize(given, (4, 4)), given)
    assert resize(given, (2, 6)).shape == (12, DIM)
    with pytest.raises(ValueError, match="15 positions are no square grid"):
        resize(given[:15], (4, 4))


def test_fixed_positions_may_be_learned_further(tmp_path):
    part, state = mocov3_run(encoder=LEARNED), backbone(fixed="row")
    load(state, "mocov3", part, tmp_path)
    check(part.networks["main"], state)


@pytest.mark.parametrize(
    ("name", "make", "given", "said"),
    [
        ("mocov3", lambda: mocov3_run(encoder=VIT), {"fixed": "row"}, "position/sincos_parts"),
        ("dino", lambda: dino_run(encoder=VIT), {}, "position/learned"),
        ("ijepa", ijepa_run, {"cls": False, "fixed": "row"}, "position/sincos"),
    ],
)
def test_other_positions_are_refused(name, make, given, said, tmp_path):
    with pytest.raises(ValueError, match=f"set encoder.position={{_target_: {said}}}".replace("set", "Set")):
        load(backbone(**given), name, make(), tmp_path)


def test_positions_of_another_fixed_grid_fit(tmp_path):
    """A file made with larger images has the same positions, and more of them."""
    part = ijepa_run()
    load(ijepa_file(side=6), "ijepa", part, tmp_path)
    content = ijepa_file(side=6)
    content["predictor"]["module.predictor_pos_embed"] = table(6, 16, "row")
    with pytest.raises(ValueError, match=r"Set objective\.latent\.predictor\.position="):
        load(content, "ijepa", part, tmp_path)


@pytest.mark.parametrize(
    ("given", "changes", "said"),
    [
        ({"depth": 3}, {}, "encoder.depth=3"),
        ({"depth": 1}, {}, "encoder.depth=1"),
        ({"registers": 2}, {}, "encoder.registers=2"),
        ({}, {"registers": 2}, "encoder.registers=0"),
        ({"scale": "ls{}.gamma"}, {}, "encoder.layer_scale=1.0e-5"),
        ({}, {"layer_scale": 0.1}, "encoder.layer_scale=null"),
        ({"cls": False}, {}, "encoder.class_token=false"),
        ({}, {"qkv_bias": False}, "encoder.qkv_bias=true"),
        ({}, {"final_norm": False}, "encoder.final_norm=true"),
        ({"patch": 4}, {}, "set tokenizer.patch=4"),
        ({"swiglu": 40}, {}, "encoder/timm, name: vit_giant_patch14_dinov2"),
        ({"dim": 192}, {"dim": 192, "heads": 6}, "encoder.heads=3"),
    ],
)
def test_a_file_of_another_architecture_names_the_remedy(given, changes, said, tmp_path):
    part = dino_run(encoder=LEARNED | changes)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(said)):
        load(backbone(**given), "dino", part, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


def test_grey_images_have_to_be_repeated(tmp_path):
    grey = build.module(tree(encoder=LEARNED), {"channels": 1, "mean": [0.5], "std": [0.2]})
    with pytest.raises(ValueError, match=r"set data\.channels=3"):
        load(backbone(), "dino", grey, tmp_path)


def test_another_width_is_refused_with_both_sizes(tmp_path):
    with pytest.raises(
        ConfigError, match=r"Shapes that differ: networks\.main\.embed\.proj\.weight \(64, 192\) for \(32"
    ):
        load(backbone(dim=64), "dino", dino_run(), tmp_path, share=0.9)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"conv1.weight": torch.zeros(4, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(1)},
            "this file holds conv1.weight",
        ),
        ({"epoch": 3}, "this file holds no tensors"),
        ({"model": {"student.backbone._flat_param": torch.zeros(3)}}, "teacher_checkpoint.pth"),
        ({"patch_embed.proj.0.weight": torch.zeros(4, 3, 3, 3)}, "this file holds patch_embed.proj.0.weight"),
    ],
)
def test_other_networks_are_refused(content, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        load(content, "dinov2", dinov2_run(), tmp_path)
    with pytest.raises(ValueError, match="encoder/vit or a vision transformer of encoder/timm"):
        part = dino_run(encoder={"_target_": "encoder/beit", "dim": DIM, "depth": 2, "heads": HEADS})
        load(backbone(), "dino", part, tmp_path)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("class_only", [False, True])
@pytest.mark.parametrize("swiglu", [None, 40])
def test_a_transformer_of_timm_takes_them_too(registers, class_only, swiglu, tmp_path):
    """With it come the gated MLPs of DINOv2's largest model."""
    part = mae_run()
    gated = {"mlp_layer": SwiGLUPacked, "mlp_ratio": 2 * swiglu / DIM, "act_layer": torch.nn.SiLU} if swiglu else {}
    model = VisionTransformer(
        img_size=32, patch_size=PATCH, embed_dim=DIM, depth=2, num_heads=HEADS, num_classes=0, global_pool="",
        init_values=1e-5, reg_tokens=registers, no_embed_class=class_only, **gated,
    )  # fmt: skip
    network = part.networks["main"]
    network.encoder = TimmViT(model, network.spec)
    content = dinov2_file(registers=registers, swiglu=swiglu)
    load(content, "dinov2", part, tmp_path, share=1.0)
    check(network, content["teacher"])
