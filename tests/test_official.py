"""Losses and gradients equal those of the authors' own code, from golden numbers (tests/golden/README.md: how made).

Weights go through our converters of official checkpoints, so those are tested too.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from mmssl.config import build
from mmssl.parts.formats import crossmae, mae, simmim
from mmssl.types import Mask, View

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("fill", GOLDEN / "fill.py")
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)

FACTS = {"channels": 3, "mean": [0.0, 0.0, 0.0], "std": [1 / 255] * 3}
VIT = {"_target_": "encoder/vit", "dim": 48, "depth": 3, "heads": 4}
DECODER = {"_target_": "predictor/transformer", "dim": 32, "depth": 2, "heads": 4}
CROSS = {"_target_": "predictor/cross", "dim": 32, "depth": 3, "heads": 4}
BEIT = {"_target_": "encoder/beit", "dim": 48, "depth": 2, "heads": 4, "layer_scale": 0.1, "drop_path": 0.0}


def tree(encoder, predictor, corruptor, loss, normalize):
    return {
        "modality": "image", "seed": 0, "keep": "student", "views": {"x": []}, "data": {"batch_size": 3},
        "tokenizer": {"_target_": "tokenizer/image", "size": 32, "patch": 8}, "encoder": encoder,
        "masker": {"_target_": "masker/random"}, "corruptor": {"_target_": f"corruptor/{corruptor}"},
        "optim": {"_target_": "optim/adamw", "lr": 1e-3},
        "objective": {"pixels": {
            "_target_": "term/predict", "predictor": predictor, "loss": {"_target_": f"loss/{loss}"},
            "target": {"_target_": "target/raw", "normalize": normalize},
        }},
    }  # fmt: skip


CASES = [
    ("mae", "norm_pix_loss=False", mae, tree(VIT, DECODER, "drop", "mse", False)),
    ("mae", "norm_pix_loss=True", mae, tree(VIT, DECODER, "drop", "mse", True)),
    *(
        ("crossmae", f"kept_mask_ratio={kept},norm_pix_loss={norm}", crossmae,
         tree(VIT | {"final_norm": False}, CROSS, "drop", "mse", norm))
        for kept in (0.75, 0.5) for norm in (False, True)
    ),
    ("simmim_vit", "default", simmim, tree(BEIT, {"_target_": "predictor/linear"}, "token", "l1", False)),
]  # fmt: skip


def official_mask(golden, variant):
    masks = golden["masks"]
    masks = masks.get(variant.split(",")[0], masks)
    visible = torch.tensor(masks["visible"], dtype=torch.bool)
    predicted = torch.tensor(masks["predicted"], dtype=torch.bool)
    return Mask(visible, predicted.unsqueeze(1), None, int(visible[0].sum()), int(predicted[0].sum()))


def prepared(name, variant, convert, config, dtype):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    shapes = {entry[0]: tuple(entry[1]) for entry in _parameters(golden)}
    module = build.module(config, FACTS).to(dtype)
    weights = convert({key: value.to(dtype) for key, value in fill.fill(shapes).items()}, module)
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected
    assert {key for key in missing if key in dict(module.named_parameters())} == set()
    mask = official_mask(golden, variant)
    module.looks["x"].masker = lambda tokens, draws, progress, score: mask
    # the golden images are normalised already: undo the tokenizer's reading of floats as [0, 1]
    images = fill.image().to(dtype) / 255
    batch = {"x": View(images, "image"), "id": torch.arange(3), "epoch": torch.zeros(3, dtype=torch.long)}
    return golden, shapes, module, batch


def _parameters(golden):
    found = golden["parameters"]
    if isinstance(found, dict):
        return [(key, value if isinstance(value, list) else value["shape"]) for key, value in found.items()]
    return [tuple(entry) if isinstance(entry, list) else (entry["name"], entry["shape"]) for entry in found]


def official_gradients(shapes, module, convert):
    """Our gradients in the official layout: the converters carry the place of every element over."""
    offsets, total, labelled = {}, 0, {}
    for key, shape in shapes.items():
        count = int(torch.tensor(shape).prod()) if shape else 1
        labelled[key] = (torch.arange(count, dtype=torch.float64) + total).reshape(shape)
        offsets[key] = (total, count)
        total += count
    places = convert(labelled, module)
    flat = torch.zeros(total, dtype=torch.float64)
    for key, parameter in module.named_parameters():
        if parameter.requires_grad:
            flat[places[key].flatten().long()] = parameter.grad.double().flatten()
    return {key: flat[start : start + count] for key, (start, count) in offsets.items()}


@pytest.mark.parametrize(("name", "variant", "convert", "config"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_loss_and_gradients_equal_the_official_code(name, variant, convert, config, dtype):
    golden, shapes, module, batch = prepared(name, variant, convert, config, dtype)
    # Golden float64 is the reference. CrossMAE's own tables are 1e-7 off, and SimMIM adds 1e-5 to its divisor.
    exact = dtype == torch.float64 and name == "mae"
    tolerance = (1e-12, 1e-10) if exact else (1e-6, 1e-5)
    reference = golden["variants"][variant]["float64"]
    loss = module.training_step(batch)
    loss.backward()
    assert abs(loss.item() - reference["loss"]) < tolerance[0]
    found = official_gradients(shapes, module, convert)
    for key, (norm, _, *entries) in reference["gradients"].items():
        gradient = found[key]
        scale = max(norm, 1e-12)
        assert abs(float(gradient.norm()) - norm) / scale < tolerance[1], key
        for place, value in zip(golden["gradient_indices"][key], entries, strict=True):
            assert abs(float(gradient[place]) - value) / scale < tolerance[1], (key, place)


def test_latents_equal_the_official_code():
    golden, _, module, batch = prepared(*CASES[0], torch.float64)
    seen = module.begin(batch)["x"].seen
    expected = golden["variants"]["norm_pix_loss=False"]["float64"]["latent_sample_0"]
    torch.testing.assert_close(seen.prefix[0, 0, :8], torch.tensor(expected["cls"], dtype=torch.float64))
    for label, values in expected.items():
        if label.startswith("patch"):
            slot = (seen.index[0] == int(label.split()[1])).nonzero().item()
            torch.testing.assert_close(seen.x[0, slot, :8], torch.tensor(values, dtype=torch.float64))


def test_positions_equal_the_official_tables():
    from mmssl.nn.patches import coordinates
    from mmssl.nn.positions import sincos

    golden = json.loads((GOLDEN / "mae.json").read_text())
    expected = torch.tensor(golden["sincos_4x4_dim48_first_3_rows"], dtype=torch.float32)
    torch.testing.assert_close(sincos(coordinates((4, 4)), 48)[:3], expected, rtol=0, atol=1e-7)


def test_parameter_counts_equal_the_official_models():
    golden = json.loads((GOLDEN / "init.json").read_text())["parameter_counts"]
    sizes = {"dim": 768, "depth": 12, "heads": 12}
    cases = {
        "mae": tree(VIT | sizes, DECODER | {"dim": 512, "depth": 8, "heads": 16}, "drop", "mse", True),
        "crossmae": tree(
            VIT | sizes | {"final_norm": False}, CROSS | {"dim": 512, "depth": 12, "heads": 16}, "drop", "mse", True
        ),
        "simmim": tree(BEIT | sizes, {"_target_": "predictor/linear"}, "token", "l1", False),
    }
    for key, config in cases.items():
        config["tokenizer"] = {"_target_": "tokenizer/image", "size": 224, "patch": 16}
        config["data"] = {"batch_size": 3}
        with torch.device("meta"):
            ours = sum(p.numel() for p in build.module(config, FACTS).parameters())
        counted = next(value for name, value in golden.items() if name.startswith(key))
        assert ours == counted["trainable"], key
