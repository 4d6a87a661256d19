"""Checkpoints in fairseq's layout: every tensor finds its place, and features are those of torchaudio's own model."""

from __future__ import annotations

import argparse
import re

import pytest
import torch
import torch.nn.functional as F
from torchaudio.models import wav2vec2_model

import mmssl
from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.modalities.audio.formats_speech import hubert, wav2vec2
from mmssl.modalities.audio.waveform import KERNELS, STRIDES
from mmssl.run.checkpoints import fill, init_from
from mmssl.types import View

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

DEPTH, DIM, WIDTH, HEADS = 2, 64, 32, 4
SAMPLES = 400 + 24 * 320  # whole windows: ours normalises over those, theirs also over what is left behind them
SMALL = [
    "data=sample", f"tokenizer.kernels={list(KERNELS)}", f"tokenizer.strides={list(STRIDES)}", f"tokenizer.width={WIDTH}",
    f"encoder.dim={DIM}", f"encoder.depth={DEPTH}", f"encoder.heads={HEADS}",
]  # fmt: skip
# torchaudio's names, and fairseq's
NAMES = [
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.(.+)", r"feature_extractor.conv_layers.\1.0.\2"),
    (r"feature_extractor\.conv_layers\.0\.layer_norm\.(.+)", r"feature_extractor.conv_layers.0.2.\1"),
    (r"encoder\.feature_projection\.layer_norm\.(.+)", r"layer_norm.\1"),
    (r"encoder\.feature_projection\.projection\.(.+)", r"post_extract_proj.\1"),
    (r"encoder\.transformer\.pos_conv_embed\.conv\.bias", r"encoder.pos_conv.0.bias"),
    (
        r"encoder\.transformer\.pos_conv_embed\.conv\.(?:weight_g|parametrizations\.weight\.original0)",
        r"encoder.pos_conv.0.weight_g",
    ),
    (
        r"encoder\.transformer\.pos_conv_embed\.conv\.(?:weight_v|parametrizations\.weight\.original1)",
        r"encoder.pos_conv.0.weight_v",
    ),
    (r"encoder\.transformer\.layer_norm\.(.+)", r"encoder.layer_norm.\1"),
    (r"encoder\.transformer\.layers\.(\d+)\.attention\.(.+)", r"encoder.layers.\1.self_attn.\2"),
    (r"encoder\.transformer\.layers\.(\d+)\.layer_norm\.(.+)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"encoder\.transformer\.layers\.(\d+)\.feed_forward\.intermediate_dense\.(.+)", r"encoder.layers.\1.fc1.\2"),
    (r"encoder\.transformer\.layers\.(\d+)\.feed_forward\.output_dense\.(.+)", r"encoder.layers.\1.fc2.\2"),
    (r"encoder\.transformer\.layers\.(\d+)\.final_layer_norm\.(.+)", r"encoder.layers.\1.final_layer_norm.\2"),
]
HEAD = {"hubert": "objective.units", "wav2vec2": "objective.contrast"}


def reference(depth=DEPTH):
    """torchaudio's model with random weights, norms and biases among them."""
    torch.manual_seed(0)
    model = wav2vec2_model(
        extractor_mode="group_norm", extractor_conv_bias=False,
        extractor_conv_layer_config=[(WIDTH, k, s) for k, s in zip(KERNELS, STRIDES, strict=True)],
        encoder_embed_dim=DIM, encoder_projection_dropout=0.1, encoder_pos_conv_kernel=128, encoder_pos_conv_groups=16,
        encoder_num_layers=depth, encoder_num_heads=HEADS, encoder_attention_dropout=0.1,
        encoder_ff_interm_features=4 * DIM, encoder_ff_interm_dropout=0.0, encoder_dropout=0.1,
        encoder_layer_norm_first=False, encoder_layer_drop=0.05, aux_num_out=None,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model


def trunk(model):
    """Its weights under fairseq's names."""
    state = {}
    for name, value in model.state_dict().items():
        pattern, theirs = next((p, t) for p, t in NAMES if re.fullmatch(p, name))
        state[re.sub(pattern, theirs, name)] = value.clone()
    assert len(state) == 7 + 2 + 2 + 2 + 3 + 2 + 16 * (len(model.encoder.transformer.layers))
    return state


def official(kind, model, module):
    """The state dict of fairseq's pre-training model: the same, mask token and heads."""
    own = module.state_dict()
    state = trunk(model) | {"mask_emb": torch.randn(DIM)}
    if kind == "hubert":
        count, dim = own["objective.units.predictor.codes"].shape
        return state | {
            "final_proj.weight": torch.randn(dim, DIM), "final_proj.bias": torch.randn(dim),
            "label_embs_concat": torch.randn(4 + count, dim),
        }  # fmt: skip
    groups, entries, part = own["objective.contrast.quantizer.codes"].shape
    dim = groups * part
    return state | {
        "quantizer.vars": torch.randn(1, groups * entries, part),
        "quantizer.weight_proj.weight": torch.randn(groups * entries, WIDTH),
        "quantizer.weight_proj.bias": torch.randn(groups * entries),
        "project_q.weight": torch.randn(dim, dim), "project_q.bias": torch.randn(dim),
        "final_proj.weight": torch.randn(dim, DIM), "final_proj.bias": torch.randn(dim),
    }  # fmt: skip


FORMATS = {"hubert": hubert, "wav2vec2": wav2vec2}
KINDS = pytest.mark.parametrize("kind", list(FORMATS))


def made(kind, *more):
    return mmssl.build(f"audio/{kind}", [*SMALL, *more])[0].eval()


@KINDS
def test_every_parameter_is_filled(kind):
    module, model = made(kind), reference()
    state = official(kind, model, module)
    wrapped = {"args": None, "cfg": {"model": {"layer_norm_first": False}}, "model": state}
    found = FORMATS[kind](wrapped, module)
    own = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
    assert {name: value.shape for name, value in found.items()} == own
    assert set(FORMATS[kind](state, module)) == set(found)
    assert "100.0% of the encoder's" in fill(module, found, 1.0, kind)
    wave = torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(1)) * 0.3
    with torch.no_grad():
        ours = module.networks["main"](wave, ("block.0",))
        layers = model.extract_features(wave)[0]
    assert layers[-1].std() > 0.5
    torch.testing.assert_close(ours.x, layers[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.taps["block.0"], layers[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(module.corruptors["x"].mask_token.flatten(), state["mask_emb"])


def test_hubert_tells_codes_by_cosines_with_the_labels_vectors():
    module, model = made("hubert"), reference()
    state = official("hubert", model, module)
    fill(module, hubert({"model": state}, module), 1.0, "hubert")
    wave = torch.randn(1, SAMPLES) * 0.3
    with torch.no_grad():
        seen = module.networks["main"](wave)
        made_of = module.objective["units"].predictor(seen, seen)
        x = model.extract_features(wave)[0][-1] @ state["final_proj.weight"].T + state["final_proj.bias"]
    labels = state["label_embs_concat"][4:]  # of `0`, `1`, ... behind <s>, <pad>, </s>, <unk>
    wanted = torch.stack([torch.cosine_similarity(x, label[None, None], dim=-1) for label in labels], -1) / 0.1
    torch.testing.assert_close(made_of, wanted, atol=1e-4, rtol=1e-5)


def test_wav2vec2_chooses_the_codes_of_the_release():
    module, model = made("wav2vec2"), reference()
    state = official("wav2vec2", model, module)
    fill(module, wav2vec2({"model": state}, module), 1.0, "wav2vec2")
    wave = torch.randn(2, SAMPLES) * 0.3
    with torch.no_grad():
        heard = model.feature_extractor(wave, None)[0]
        heard = F.layer_norm(heard, (WIDTH,), state["layer_norm.weight"], state["layer_norm.bias"])
        logits = heard @ state["quantizer.weight_proj.weight"].T + state["quantizer.weight_proj.bias"]
        b, t, n = logits.shape
        best = logits.reshape(b, t, 2, n // 2).argmax(-1) + torch.tensor([0, n // 2])  # the second group lies behind
        joined = state["quantizer.vars"][0][best].flatten(2)
        wanted = joined @ state["project_q.weight"].T + state["project_q.bias"]
        network, quantizer = module.networks["main"], module.objective["contrast"].quantizer
        features = network.embed(network.tokenizer(View(wave, "audio"))).taps["features"]
        codes, soft = quantizer(features, Draws.of(0, 0, torch.arange(2)), 0.0)
    torch.testing.assert_close(codes, wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(soft, logits.reshape(b, t, 2, n // 2).softmax(-1), atol=1e-5, rtol=1e-4)
    head = module.objective["contrast"].predictor.head
    assert torch.equal(head.weight, state["final_proj.weight"]) and torch.equal(head.bias, state["final_proj.bias"])


@KINDS
def test_a_fine_tuned_file_fills_the_encoder(kind):
    module, model = made(kind), reference()
    state = {f"w2v_encoder.w2v_model.{n}": v for n, v in (trunk(model) | {"mask_emb": torch.randn(DIM)}).items()}
    state |= {"w2v_encoder.proj.weight": torch.randn(32, DIM), "w2v_encoder.proj.bias": torch.randn(32)}
    found = FORMATS[kind]({"model": state}, module)
    own = {n for n, _ in module.named_parameters() if n.startswith("networks.")} | {"corruptors.x.mask_token"}
    assert set(found) == own
    report = fill(module, found, 0.9, "FILE")
    assert HEAD[kind] in report.split("not in the file: ")[1]


@KINDS
def test_other_depths_are_refused(kind, tmp_path):
    module = made(kind)
    deeper = official(kind, reference(DEPTH + 1), module)
    with pytest.raises(ValueError, match=r"encoder is another one: .*blocks\.2\..*not here.*encoder\.depth"):
        FORMATS[kind]({"model": deeper}, module)
    with pytest.raises(ValueError, match=r"embed\.first\.weight \(32,\) \(here \(16,\)\)"):
        FORMATS[kind]({"model": official(kind, reference(), made(kind))}, made(kind, "tokenizer.width=16"))
    torch.save({"model": official(kind, reference(1), module)}, tmp_path / "one.pt")
    with pytest.raises(
        ConfigError, match=r"not in the file: networks\.main\.encoder\.blocks\.1.*below init_share=0\.9"
    ):
        init_from(module, f"official/{kind}:{tmp_path / 'one.pt'}", 0.9)


@KINDS
@pytest.mark.parametrize(
    "name",
    ["feature_extractor.conv_layers.1.2.1.weight", "feature_extractor.conv_layers.0.0.bias", "target_glu.0.weight"],
)
def test_variants_are_refused_by_name(kind, name):
    module = made(kind)
    state = official(kind, reference(), module) | {name: torch.zeros(WIDTH)}
    with pytest.raises(ValueError, match=f"the file holds {re.escape(name)}, which"):
        FORMATS[kind]({"model": state}, module)


@KINDS
@pytest.mark.parametrize("beside", [
    {"cfg": {"model": {"layer_norm_first": True}}}, {"args": argparse.Namespace(layer_norm_first=True), "cfg": None},
])  # fmt: skip
def test_norms_in_front_are_refused(kind, beside):
    module = made(kind)
    with pytest.raises(ValueError, match=r"layer_norm_first.*encoder/postnorm"):
        FORMATS[kind](beside | {"model": official(kind, reference(), module)}, module)
