"""`export`: what other libraries load computes what our encoder computes, and the card says where it comes from."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import mmssl
from mmssl import api
from mmssl.cli import main
from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.run.export import formats, pixels, twins, writing
from mmssl.run.export.graphs import join
from mmssl.run.export.hugging import translate
from mmssl.run.export.twins import Unfit, twin
from mmssl.run.loading import Loaded
from mmssl.types import View
from tests.small import FACTS, VIT, tree
from tests.test_faults import TINY

VIEW = [{"_target_": "view/resize", "size": 36}, {"_target_": "view/center_crop", "size": 32}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny trained run with a score."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSSL_RUNS", str(tmp_path_factory.mktemp("runs")))
        words = [word for word in TINY[1:] if "protocols.knn" not in word]
        return api.pretrain(TINY[0], [*words, "trainer.max_steps=10", "encoder.depth=2"]).path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The run, exported for timm by the command line, and what that printed."""
    out = tmp_path_factory.mktemp("exported") / "mae"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["export", str(run), "format=timm", f"out={out}", "license=cc-by-4.0", "--json"]) == 0
    return out, json.loads(printed.getvalue())


def noise(count=3, channels=3, size=32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def toy(pool="mean", facts=FACTS, **encoder):
    """An untrained image encoder and data that give one batch. Weights of norms and gates are random, too."""
    said = tree(encoder=VIT | encoder, data={"batch_size": 4, "view": VIEW}, evaluation={"pool": pool}, recipe="toy")
    network = build.fresh_network(said, facts, 0).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    batch = {"x": View(noise(channels=facts["channels"]), "image")}
    data = SimpleNamespace(splits={"test": None}, unit="sample", workers=0, eval_loader=lambda split, limit: [batch])
    return Loaded(network, said, facts, None, "student"), data


def normalised(network, images):
    """Pixels as other libraries want them, written plainly."""
    said = network.tokenizer.pixels
    mean, std = (torch.tensor(said[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return ((images / 255 - mean) / std).float()


def near(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-4 * float(abs(expected).max()))


def told(folder):
    return json.loads((folder / "export.json").read_text())


def snippet(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


LEARNED = {"_target_": "position/learned"}
PARTS = {"_target_": "position/sincos_parts"}
BEIT = {"_target_": "encoder/beit", "layer_scale": 0.1}


@pytest.mark.parametrize(
    ("pool", "encoder"),
    [
        ("mean", {}),
        ("cls", {"position": LEARNED, "layer_scale": 0.1, "registers": 2}),
        ("max", {"position": PARTS, "class_token": False, "registers": 1, "qkv_bias": False, "mlp_ratio": 3.0}),
        ("meanmax", {"class_token": False, "final_norm": False}),
    ],
)
def test_a_vit_is_timms_vit(pool, encoder):
    loaded, data = toy(pool, **encoder)
    made = twin(loaded.network, loaded.tree, pool)
    images = next(iter(data.eval_loader("test", 8)))["x"]
    with torch.inference_mode():
        tokens, x = loaded.network(images), normalised(loaded.network, images.data)
        near(made.model.forward_features(x), join(tokens))
        assert (made.pool == "") == (pool == "meanmax")
        if made.pool:
            near(made.model(x), tokens.pool(pool))
    assert not made.limit and json.loads(json.dumps(made.args)) == made.args


@pytest.mark.parametrize(
    ("name", "pool"), [("test_vit", "mean"), ("test_vit3", "cls"), ("test_byobnet", "mean"), ("beit", "cls")]
)
def test_encoders_of_timm_go_back(name, pool):
    said = BEIT | {"dim": 32, "depth": 2, "heads": 4} if name == "beit" else {"_target_": "encoder/timm", "name": name}
    loaded, data = toy(pool, _target_="encoder/vit")
    told = loaded.tree | {"encoder": said}
    network = build.fresh_network(told, FACTS, 0).eval()
    made = twin(network, told, pool)
    images = data.eval_loader("test", 8)[0]["x"]
    with torch.inference_mode():
        x = made.model.forward_features(normalised(network, images.data))
        tokens = network(images)
    near(x.flatten(2).transpose(1, 2) if x.dim() == 4 else x, join(tokens))


@pytest.mark.parametrize(
    ("encoder", "why"),
    [
        ({"position_every": True}, "encoder.position_every=true adds positions before every block"),
        ({"_target_": "encoder/postnorm"}, "no model with the arithmetic of encoder/postnorm"),
        ({"_target_": "encoder/alibi"}, "no model with the arithmetic of encoder/alibi"),
    ],
)
def test_other_arithmetic_is_refused_by_name(encoder, why, tmp_path):
    loaded, data = toy(**encoder)
    with pytest.raises(ConfigError, match=f"format=timm cannot hold this encoder: .*{why}.* Formats that can: onnx"):
        writing.export(loaded, data, "timm", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_one_format_can_say_another_cannot():
    loaded, _ = toy(norm_eps=1e-5)
    made = twin(loaded.network, loaded.tree, "mean")
    assert "encoder.norm_eps" in made.limit and translate(made)[0]["layer_norm_eps"] == 1e-5
    for encoder, why in (
        ({"final_norm": False}, "encoder.final_norm=false"),
        ({"class_token": False, "registers": 2}, "encoder.registers without encoder.class_token=true"),
        ({"layer_scale": 0.1, "mlp_ratio": 2.5}, "encoder.mlp_ratio=2.5"),
    ):
        loaded, _ = toy(**encoder)
        with pytest.raises(Unfit, match=why):
            translate(twin(loaded.network, loaded.tree, "mean"))
    loaded, _ = toy()
    said = loaded.tree | {"tokenizer": {"_target_": "tokenizer/table"}}
    with pytest.raises(Unfit, match="tokenizer/table reads no images"):
        twin(SimpleNamespace(tokenizer=None), said, "mean")


def test_options_hold_the_defaults():
    said = twins.options({"_target_": "encoder/vit", "dim": 8})
    assert (said["dim"], said["class_token"], said["mlp_ratio"], said["layer_scale"]) == (8, True, 4.0, None)
    assert "position" not in said  # a class, no plain value


def test_preprocessing_in_the_words_of_others():
    loaded, _ = toy()
    said = pixels.preprocessing(loaded.network, loaded.tree)
    assert said["size"] == [32, 32] and (said["resize"], said["crop"], said["other"]) == (36, 32, [])
    np.testing.assert_allclose([said["mean"], said["std"]], [FACTS["mean"], FACTS["std"]], rtol=1e-6)
    assert pixels.timm_config(said, 3)["crop_pct"] == 32 / 36
    assert pixels.processor_config(said, 3)["size"] == {"shortest_edge": 36}
    other = loaded.tree | {"data": {"view": [{"_target_": "view/gradients"}]}}
    assert pixels.preprocessing(loaded.network, other)["other"] == ["view/gradients"]


def test_timm(run, exported, monkeypatch):
    out, printed = exported
    assert printed["verb"] == "export" and printed["dir"] == str(out) and printed["branch"] == "student"
    found = told(out)
    assert found["checked"]["rows"] == 8 and found["checked"]["by"].keys() == {"timm", "safetensors"}
    assert found["checked"]["differences"].keys() == {
        "tokens", "features", "pixels", "first.tokens", "first.features", "first.pixels"
    }  # fmt: skip
    assert not list(out.parent.glob(".*")) and {file.name for file in out.iterdir()} == {
        "README.md", "config.json", "export.json", "model.safetensors"
    }  # fmt: skip
    image = noise(1, 1)
    monkeypatch.chdir(out.parent)
    space = {"image": Image.fromarray(image[0, 0].numpy())}
    with torch.inference_mode():
        exec(snippet(out), space)  # the card's own lines
        near(space["features"], mmssl.load(run)(image).pool())


def test_the_card_is_written_from_the_run(run, exported):
    out, _ = exported
    text = (out / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "cc-by-4.0", "library_name": "timm", "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised-learning", "feature-extraction", "mmssl", "image"],
    }  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    facts = json.loads((run / "data.json").read_text())
    assert "He et al. 2021" in body and "arXiv:2111.06377" in body
    assert facts["fingerprint"] in body and "train 8000, test 2000" in body
    assert f"`{' '.join(json.loads((run / 'environment.json').read_text())['command'])}`" in body
    assert "`masker/random(ratio=0.75)`" in body and "| steps | 10 of 10" in body
    assert f"Verdict: **{summary['health']['verdict']}**" in body
    score = summary["eval"]["knn"]
    row = next(line for line in body.splitlines() if line.startswith("| knn"))
    assert "| knn | top1 |" in row and row.count(" to ") == 3
    shown = [float(value) for value in re.findall(r"(?<!to )(?<!\()\b(\d\.\d+) \(", row)]
    np.testing.assert_allclose(shown, [score["value"], score["random_init"], score["raw_input"]], atol=6e-3)


@pytest.mark.requires("export")
def test_transformers(run, tmp_path, monkeypatch):
    out = tmp_path / "mae"
    found = api.export(str(run), "hf", out)
    assert found["model"] == "ViTModel" and "transformers" in found["checked"]["by"]
    assert found["checked"]["differences"].keys() == {"tokens", "pixels", "first.tokens", "first.pixels"}
    assert json.loads((out / "preprocessor_config.json").read_text())["crop_size"] == {"height": 32, "width": 32}
    assert "from transformers import" in snippet(out)


@pytest.mark.requires("export")
@pytest.mark.parametrize(
    ("model", "encoder"),
    [
        ("Dinov2Model", {"layer_scale": 0.1, "position": LEARNED}),
        ("Dinov2WithRegistersModel", {"registers": 2}),
        ("IJepaModel", {"class_token": False, "norm_eps": 1e-5}),
    ],
)
def test_transformers_other_kinds(model, encoder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library about itself
        import transformers
    loaded, data = toy(**encoder)
    view = data.eval_loader("test", 8)[0]["x"]
    source = formats.Source(loaded.network, loaded.tree, loaded.facts, "student", "mean", view)
    made = formats.FORMATS["hf"](source, tmp_path)
    theirs, found = getattr(transformers, model).from_pretrained(tmp_path, output_loading_info=True)
    assert made.more["model"] == model and not found["unexpected_keys"]
    assert all(name.startswith("pooler.") for name in found["missing_keys"])
    with torch.inference_mode():
        x = theirs.eval()(pixel_values=normalised(loaded.network, view.data)).last_hidden_state
        near(x, join(loaded.network(view)))


@pytest.mark.requires("export")
def test_onnx_takes_batches_of_any_size(run, tmp_path, monkeypatch):
    import onnxruntime

    found = api.export(str(run), "onnx", tmp_path / "mae")
    assert (
        found["raw"] and "uint8 (b, 1, 32, 32)" in found["takes"] and found["checked"]["by"].keys() == {"onnxruntime"}
    )
    monkeypatch.chdir(tmp_path)
    batch = noise(3, 1)
    space = {"batch": batch.numpy()}
    exec(snippet(tmp_path / "mae"), space)
    with torch.inference_mode():
        near(space["features"], mmssl.load(run)(batch).pool())
    (graph,) = onnxruntime.InferenceSession("mae/model.onnx").get_inputs()
    assert graph.shape[1:] == [1, 32, 32] and not isinstance(graph.shape[0], int)


def test_torch_export(run, tmp_path):
    found = api.export(str(run), "torch", tmp_path / "mae")
    assert found["outputs"] == ["tokens", "features"] and found["checked"]["differences"]["features"]["max_rel"] < 1e-5


def test_safetensors_is_a_checkpoint_of_the_encoder(run, exported, tmp_path):
    api.export(str(run), "safetensors", tmp_path / "mae")
    ours, again = mmssl.load(run), mmssl.load(tmp_path / "mae")
    assert ours.state_dict().keys() == again.state_dict().keys()
    batch = noise(2, 1)
    with torch.inference_mode():
        assert torch.equal(ours(batch).pool(), again(batch).pool())
    module, _ = api.build(TINY[0], [*TINY[1:], "encoder.depth=2"])
    from mmssl.run.checkpoints import init_from

    init_from(module, str(tmp_path / "mae" / "model.safetensors"), 0.9)
    assert torch.equal(module.networks["main"].embed.proj.weight, ours.embed.proj.weight)
    with pytest.raises(ConfigError, match="was not written by mmssl"):
        mmssl.load(exported[0])


def test_the_branch_that_the_recipe_keeps(tmp_path, runs):
    small = ["data=sample", "trainer.max_steps=2", "trainer.accelerator=cpu", "encoder.dim=24", "encoder.depth=1"]
    none = [
        "evaluation.protocols.linear=null",
        "evaluation.protocols.knn=null",
        "evaluation.limit=40",
        "encoder.heads=2",
    ]
    made = api.pretrain(
        "image/dino", [*small, *none, "data.batch_size=8", "keep=teacher", "teacher.momentum.first=0.5"]
    )
    found = api.export(str(made.path), "timm", tmp_path / "out")
    state = torch.load(made.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    wrote = load_file(tmp_path / "out" / "model.safetensors")["blocks.0.attn.qkv.weight"]
    name = "encoder.blocks.0.attn.qkv.weight"
    assert found["branch"] == "teacher" and torch.equal(wrote, state[f"teacher.twins.main.{name}"])
    assert not torch.equal(wrote, state[f"networks.main.{name}"])


def built(recipe, *words):
    tree = api.resolve(recipe, ["data=sample", *words])
    data = build.data(tree)
    facts = data.facts()
    return Loaded(build.fresh_network(tree, facts, 0).eval(), tree, facts, None, "student"), data


def test_tables_begin_behind_the_tokenizer(tmp_path):
    loaded, data = built("tabular/remasker", "encoder.dim=16", "encoder.depth=1", "encoder.heads=2")
    found = writing.export(loaded, data, "torch", tmp_path / "torch")
    assert (
        not found["raw"]
        and found["inputs"] == ["raw", "given"]
        and "what mmssl's tokenizer/table cuts" in found["takes"]
    )
    with pytest.raises(ConfigError, match=r"it is for images.* Formats that can: onnx, torch, safetensors\."):
        writing.export(loaded, data, "hf", tmp_path / "hf")
    writing.export(loaded, data, "safetensors", tmp_path / "own")
    assert mmssl.load(tmp_path / "own").tokenizer.encoding.names == loaded.network.tokenizer.encoding.names


def test_graphs_fit_into_our_own_format_alone(tmp_path):
    loaded, data = built("graph/graphmae", "encoder.dim=16")
    with pytest.raises(ConfigError, match=r"unequal size and joined by edges.* Formats that can: safetensors\."):
        writing.export(loaded, data, "torch", tmp_path / "torch")
    assert writing.export(loaded, data, "safetensors", tmp_path / "own")["checked"]["by"] == {
        "mmssl": mmssl.__version__
    }


def test_features_that_differ_are_deleted(tmp_path, monkeypatch):
    """Weights that are not ours must not get out, whatever wrote them."""

    def wrong(source, folder):
        made = formats._timm(source, folder)
        state = load_file(folder / "model.safetensors")
        state["norm.bias"] = state["norm.bias"] + 0.01
        save_file(state, folder / "model.safetensors")
        return made

    monkeypatch.setitem(formats.FORMATS, "timm", wrong)
    loaded, data = toy()
    with pytest.raises(ConfigError, match=r"format=timm: \w+ differ from ours by up to 0\.01"):
        writing.export(loaded, data, "timm", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_missing_is_said(tmp_path, monkeypatch):
    """A module of its name that cannot be imported stands for it."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "transformers.py").write_text("raise ModuleNotFoundError(\"No module named 'transformers'\")")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")]))
    loaded, data = toy()
    found = writing.export(loaded, data, "hf", tmp_path / "out")
    assert found["checked"] is None and "pip install 'mmssl[export]'" in found["why"]
    assert "Not checked: transformers cannot be imported" in (tmp_path / "out" / "README.md").read_text()
    assert told(tmp_path / "out")["checked"] is None


def test_mistakes_are_refused(tmp_path, capsys):
    loaded, data = toy()
    with pytest.raises(ConfigError, match="format=onxx: there is no such format; did you mean 'onnx'"):
        api.export("runs/none", "onxx", tmp_path / "out")
    with pytest.raises(ConfigError, match="license=All Rights: one word"):
        writing.export(loaded, data, "timm", tmp_path / "out", "All Rights")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds other things than an export"):
        writing.export(loaded, data, "timm", tmp_path / "full")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text('{"format": "timm"}')
    (tmp_path / "out" / "left").write_text("of an earlier export")
    with pytest.raises(ConfigError, match="holds an export with format=timm; give another directory for format=hf"):
        writing.export(loaded, data, "hf", tmp_path / "out")
    writing.export(loaded, data, "timm", tmp_path / "out")
    assert told(tmp_path / "out")["checked"] and not (tmp_path / "out" / "left").exists()
    assert "came without its run" in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", "runs/none", "format=timm"]) == 2 and "out=DIR" in capsys.readouterr().err
