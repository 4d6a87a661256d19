"""Encoders of others: official files on a recipe, and Hugging Face directories, against the libraries' own numbers."""

import json
import re
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file

from mmssl.cli import main
from mmssl.config.compose import ConfigError
from mmssl.run.foreign import HuggingFace, with_format
from mmssl.types import View

torch.set_num_threads(1)
EVALUATE = ["data=sample", "evaluation.limit=60", "protocol=knn", "--json"]


def model(depth=2, dim=24, heads=3, size=32, patch=8, channels=1):
    torch.manual_seed(0)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=patch, in_chans=channels, num_classes=0, global_pool="", embed_dim=dim, depth=depth,
        num_heads=heads, norm_layer=partial(torch.nn.LayerNorm, eps=1e-12),
    ).eval()  # fmt: skip


def directory(folder, net, **changes):
    """The model as transformers writes a ViTModel."""
    names = [
        (r"cls_token", "embeddings.cls_token"), (r"pos_embed", "embeddings.position_embeddings"),
        (r"patch_embed\.proj\.(.+)", r"embeddings.patch_embeddings.projection.\1"),
        (r"blocks\.(\d+)\.norm1\.(.+)", r"encoder.layer.\1.layernorm_before.\2"),
        (r"blocks\.(\d+)\.norm2\.(.+)", r"encoder.layer.\1.layernorm_after.\2"),
        (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"encoder.layer.\1.attention.output.dense.\2"),
        (r"blocks\.(\d+)\.mlp\.fc1\.(.+)", r"encoder.layer.\1.intermediate.dense.\2"),
        (r"blocks\.(\d+)\.mlp\.fc2\.(.+)", r"encoder.layer.\1.output.dense.\2"), (r"norm\.(.+)", r"layernorm.\1"),
    ]  # fmt: skip
    state = {"pooler.dense.weight": torch.zeros(2, 2)}
    for name, value in net.state_dict().items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(.+)", name):
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[f"encoder.layer.{match[1]}.attention.attention.{part}.{match[2]}"] = rows.clone()
            continue
        pattern, other = next(pair for pair in names if re.fullmatch(pair[0], name))
        state[re.sub(pattern, other, name)] = value.clone()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    config = {
        "model_type": "vit", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
        "patch_size": 8, "num_channels": 1, "layer_norm_eps": 1e-12, "intermediate_size": 96,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4], "image_std": [0.3]}))
    return folder


def test_a_hugging_face_directory_gives_the_numbers_of_the_model(tmp_path):
    net = model()
    found = HuggingFace.read(str(directory(tmp_path, net)))
    tree = {"tokenizer": {"_target_": "tokenizer/image", "size": 32, "patch": 8}}
    network = found.network(tree, {"channels": 1, "mean": [0.1], "std": [0.9]})
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = net.forward_features((images / 255 - 0.4) / 0.3)
        tokens = network(View(images, "image"))
        torch.testing.assert_close(tokens.x, expected[:, 1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tokens.pool("cls"), expected[:, 0], rtol=1e-4, atol=1e-5)
        fresh = found.network(tree, {"channels": 1, "mean": [0.1], "std": [0.9]}, seed=1)
        assert not torch.allclose(fresh(View(images, "image")).x, tokens.x, atol=0.1)
        larger = found.network(
            {"tokenizer": tree["tokenizer"] | {"size": 64}}, {"channels": 1, "mean": [0], "std": [1]}
        )
        assert larger(View(torch.zeros(1, 1, 64, 64, dtype=torch.uint8), "image")).x.shape == (1, 64, 24)


def test_a_hugging_face_directory_is_evaluated(tmp_path, capsys, runs):
    folder = directory(tmp_path / "hf", model())
    assert main(["evaluate", f"hf:{folder}", *EVALUATE]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["encoder"] == f"hf:{folder}" and summary["eval"]["knn"]["random_init"] is not None


def test_other_directories_are_refused_kindly(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config\.json"):
        HuggingFace.read(str(tmp_path))
    with pytest.raises(ConfigError, match=r"is a .swin.*timm:NAME"):
        HuggingFace.read(str(directory(tmp_path, model(), model_type="swin")))
    directory(tmp_path, model())
    save_file({"encoder.layer.0.strange.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"holds encoder\.layer\.0\.strange\.weight"):
        HuggingFace.read(str(tmp_path))
    found = HuggingFace.read(str(directory(tmp_path, model(), num_hidden_layers=3)))
    tree = {"tokenizer": {"_target_": "tokenizer/image", "size": 32, "patch": 8}}
    with pytest.raises(ConfigError, match=r"do not fit.*blocks\.2"):
        found.network(tree, {"channels": 1, "mean": [0.1], "std": [0.9]})


def test_an_official_file_is_evaluated_on_a_recipe(tmp_path, capsys, runs):
    net = model(size=32, patch=4)
    state = {name: value for name, value in net.state_dict().items() if name != "pos_embed"}
    torch.save({"model": state}, tmp_path / "mae.pth")
    words = ["recipe=image/mae", "encoder.dim=24", "encoder.depth=2", "encoder.heads=3"]
    assert main(["evaluate", str(tmp_path / "mae.pth"), *words, *EVALUATE]) == 0
    captured = capsys.readouterr()
    assert "100.0% of the encoder's" in captured.err
    block = json.loads(captured.out)["eval"]
    assert main(["evaluate", f"official/mae:{tmp_path / 'mae.pth'}", *words, *EVALUATE]) == 0
    assert json.loads(capsys.readouterr().out)["eval"]["knn"]["value"] == block["knn"]["value"]
    assert main(["evaluate", str(tmp_path / "mae.pth"), *words[:1], "encoder.dim=48", *EVALUATE]) == 2
    assert "probably of another architecture" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "mae.pth"), *EVALUATE]) == 2
    assert "was not written by mmssl" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"write FORMAT:a\.pth"):
        with_format("a.pth", "image/simclr")
