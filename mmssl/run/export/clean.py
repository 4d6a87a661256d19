"""What a clean process runs to look at an export: the other library alone, nothing of mmssl.

Called as `python -P clean.py FORMAT FOLDER INPUT.npz OUTPUT.npz JSON`. It loads the folder, computes features of the
input (all of it, and of the first row alone), writes them, and prints one JSON object: the versions of the libraries,
or which of them cannot be imported. Only the format `safetensors` is mmssl's own.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
# What has to be there to read a format.
LIBRARIES = {
    "timm": ("timm", "safetensors"), "hf": ("transformers",), "onnx": ("onnxruntime",), "torch": ("torch",),
    "safetensors": ("mmssl",),
}  # fmt: skip


def _timm(folder: Path, told: dict[str, Any]) -> Callable[[Arrays], Arrays]:
    import timm
    import torch
    from safetensors.torch import load_file

    said = json.loads((folder / "config.json").read_text())
    model: Any = timm.create_model(said["architecture"], num_classes=0, **said["model_args"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    short = timm.create_model(f"local-dir:{folder}", pretrained=True)  # as a user loads it
    for name, value in short.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), f"{name} was not loaded from the folder"
    model.eval()

    def run(arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            x = model.forward_features(torch.from_numpy(arrays["pixels"]))
            if x.dim() == 4:
                x = (x if x.shape[1] == model.num_features else x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
            found = {"tokens": x.numpy()}
            if said["global_pool"]:
                found["features"] = model(torch.from_numpy(arrays["pixels"])).numpy()
        if "images" in arrays:
            from PIL import Image
            from timm.data.config import resolve_data_config
            from timm.data.transforms_factory import create_transform

            # the images have their size already: nothing is left to be resized
            config = resolve_data_config({}, pretrained_cfg=said["pretrained_cfg"] | {"crop_pct": 1.0})
            transform: Any = create_transform(**config)
            rows = [Image.fromarray(image.transpose(1, 2, 0).squeeze()) for image in arrays["images"]]
            found["pixels"] = torch.stack([transform(row) for row in rows]).numpy()
        return found

    return run


def _hf(folder: Path, told: dict[str, Any]) -> Callable[[Arrays], Arrays]:
    import torch
    import transformers  # pyright: ignore[reportMissingImports]

    said = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, said["architectures"][0])
    model, loaded = kind.from_pretrained(folder, output_loading_info=True)
    # ViTModel and IJepaModel end in a pooler that no pre-training has: it stays random, and no feature reads it.
    wrong = [*loaded["unexpected_keys"], *loaded["mismatched_keys"]]
    wrong += [name for name in loaded["missing_keys"] if not name.startswith("pooler.")]
    assert not wrong, f"transformers did not load {wrong}"
    assert isinstance(transformers.AutoModel.from_pretrained(folder), kind)
    model.eval()

    def run(arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            found = {"tokens": model(pixel_values=torch.from_numpy(arrays["pixels"])).last_hidden_state.numpy()}
        if "images" in arrays:
            processor = transformers.AutoImageProcessor.from_pretrained(folder)
            rows = [torch.from_numpy(image) for image in arrays["images"]]
            # the images have their size already: nothing is left to be resized
            found["pixels"] = processor(rows, do_resize=False, return_tensors="pt")["pixel_values"].numpy()
        return found

    return run


def _onnx(folder: Path, told: dict[str, Any]) -> Callable[[Arrays], Arrays]:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inputs = [value.name for value in session.get_inputs()]

    def run(arrays: Arrays) -> Arrays:
        found: Sequence[Any] = session.run(names, {name: arrays[name] for name in inputs})
        return dict(zip(names, found, strict=True))

    return run


def _torch(folder: Path, told: dict[str, Any]) -> Callable[[Arrays], Arrays]:
    import torch

    model = torch.export.load(folder / "model.pt2").module()

    def run(arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            found = model(*(torch.from_numpy(arrays[name]) for name in told["inputs"]))
        return {name: value.numpy() for name, value in zip(told["outputs"], found, strict=True)}

    return run


def _safetensors(folder: Path, told: dict[str, Any]) -> Callable[[Arrays], Arrays]:
    import torch

    from mmssl.run.loading import load
    from mmssl.types import Tokens

    network: Any = load(folder / "model.safetensors", told["trust"]).network

    def run(arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            if "batch" in arrays:
                tokens: Any = network(torch.from_numpy(arrays["batch"]))
            else:
                fields: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()}
                fields |= {name: tuple(fields[name].tolist()) for name in ("grid",) if name in fields}
                fields |= {name: int(fields[name]) for name in ("samples", "count") if name in fields}
                tokens = network.encode(Tokens(**fields))
            assert tokens.x is not None
            x = tokens.x if tokens.prefix is None else torch.cat([tokens.prefix, tokens.x], 1)
            found = {"tokens": x.numpy()}
            if told["pool"] != "token":
                found["features"] = tokens.pool(told["pool"]).numpy()
        return found

    return run


_LOADERS: dict[str, Callable[[Path, dict[str, Any]], Callable[[Arrays], Arrays]]] = {
    "timm": _timm, "hf": _hf, "onnx": _onnx, "torch": _torch, "safetensors": _safetensors,
}  # fmt: skip


def missing(kind: str) -> str | None:
    """Why a library that reads this format cannot be used here, or None."""
    for name in LIBRARIES[kind]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"{name} cannot be imported ({error})"
    return None


def versions(kind: str) -> Mapping[str, str]:
    """Versions of the libraries that were used."""
    return {name: str(importlib.import_module(name).__version__) for name in LIBRARIES[kind]}


def main(kind: str, folder: str, source: str, target: str, said: str) -> None:
    """Computes what an export gives; see the module."""
    if why := missing(kind):
        print(json.dumps({"missing": why}))
        return
    with np.load(source) as file:
        given = {name: file[name] for name in file.files}
    run = _LOADERS[kind](Path(folder), json.loads(said))
    found = run(given)
    if not given.keys() & {"sample", "edges"}:  # a packed batch has no first row to cut off
        one = run({name: value if name in ("grid", "samples", "count") else value[:1] for name, value in given.items()})
        found |= {f"first.{name}": value for name, value in one.items()}
    assert kind == "safetensors" or not any(name.partition(".")[0] == "mmssl" for name in sys.modules)
    np.savez(target, **found)  # pyright: ignore[reportArgumentType]
    print(json.dumps({"versions": versions(kind)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
