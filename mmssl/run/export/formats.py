"""The formats: how each is written, what it is given to compute, and how it is loaded."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.config.compose import ConfigError
from mmssl.nn.patches import fold
from mmssl.run.export import graphs
from mmssl.run.export.hugging import translate
from mmssl.run.export.pixels import preprocessing, processor_config, timm_config
from mmssl.run.export.twins import Twin, Unfit, twin
from mmssl.types import View


@dataclass(frozen=True)
class Source:
    """What is exported.

    Args:
        network: the encoder, in evaluation mode.
        tree: the configuration it was made with.
        facts: the data's facts it was made with.
        branch: student or teacher.
        pool: `evaluation.pool`, or `token`.
        view: a real batch, as evaluation sees it.
        trust: whether the configuration may name import paths.
    """

    network: Any
    tree: dict[str, Any]
    facts: dict[str, Any]
    branch: str
    pool: str
    view: View
    trust: bool = False


@dataclass(frozen=True)
class Written:
    """What a format holds now, for the check, `export.json` and the model card.

    Args:
        inputs: the real batch, as the other library is given it.
        takes: in words, what a user has to give.
        gives: in words, what comes out, by name.
        usage: Python that loads it; `DIR` stands for the folder.
        library: Hugging Face's word for who reads it.
        more: what else `export.json` says.
        features: whether the other library pools as well.
    """

    inputs: dict[str, Tensor]
    takes: str
    gives: dict[str, str]
    usage: str
    library: str
    more: dict[str, Any] = field(default_factory=dict)
    features: bool = True


_FEATURES = "tokens = model.forward_features(transform(image)[None])"
_TOKENS = "(b, q + n, d): class and register tokens, then patches"


def _pixels(source: Source) -> dict[str, Tensor]:
    """Normalised pixels (b, c, h, w), and the bytes they are from where other libraries' preprocessing reads such."""
    network = source.network
    with torch.inference_mode():
        tokens = network.tokenizer(source.view)
        found = {"pixels": fold(tokens.raw, tokens.grid, network.spec.cell)}
    if source.view.data.dtype == torch.uint8 and network.spec.channels in (1, 3):
        found["images"] = source.view.data
    return found


def _takes(source: Source) -> str:
    said = preprocessing(source.network, source.tree)
    assert said is not None
    return (
        f"normalised pixels, float32 (b, {source.network.spec.channels}, {said['size'][0]}, {said['size'][1]}): "
        f"values in [0, 1], less the mean {_short(said['mean'])}, over the deviation {_short(said['std'])}"
    )


def _short(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def _save(state: Mapping[str, Tensor], file: Path, said: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, file, said)


def _timm(source: Source, folder: Path) -> Written:
    made: Twin = twin(source.network, source.tree, source.pool)
    if made.limit:
        raise Unfit(made.limit)
    said, channels = preprocessing(source.network, source.tree), source.network.spec.channels
    assert said is not None
    known = getattr(made.model, "pretrained_cfg", {})
    config = {
        "architecture": made.name, "num_classes": 0, "num_features": made.model.num_features, "global_pool": made.pool,
        "model_args": made.args,
        "pretrained_cfg": timm_config(said, channels)
        | {key: known[key] for key in ("first_conv", "classifier") if known.get(key)},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _save(made.model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    usage = (
        'import timm\nmodel = timm.create_model("local-dir:DIR", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        + ("features = model(transform(image)[None])" if made.pool else _FEATURES)
    )  # fmt: skip
    gives = {"forward_features": _TOKENS} | ({"forward": f"(b, d): pool={source.pool}"} if made.pool else {})
    more = {"model": made.name, "args": made.args}
    return Written(_pixels(source), _takes(source), gives, usage, "timm", more, bool(made.pool))


def _hf(source: Source, folder: Path) -> Written:
    config, state = translate(twin(source.network, source.tree, source.pool))
    said, channels = preprocessing(source.network, source.tree), source.network.spec.channels
    assert said is not None
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_config(said, channels), indent=1))
    _save(state, folder / "model.safetensors", {"format": "pt"})
    usage = (
        "from transformers import AutoImageProcessor, AutoModel\n"
        'inputs = AutoImageProcessor.from_pretrained("DIR")(images, return_tensors="pt")\n'
        'tokens = AutoModel.from_pretrained("DIR")(**inputs).last_hidden_state'
    )
    gives = {"last_hidden_state": _TOKENS}
    if config["model_type"] in ("vit", "ijepa"):
        gives["pooler_output"] = "not trained: pre-training has no such layer, transformers draws one at random"
    more = {"model": config["architectures"][0]}
    return Written(_pixels(source), _takes(source), gives, usage, "transformers", more, features=False)


def _graph(source: Source, folder: Path, write: Callable[[graphs.Graph, Path], str]) -> tuple[graphs.Graph, Written]:
    """The first graph that can be written: of raw batches, else of what the tokenizer cuts."""
    reason: Unfit | None = None
    for made in graphs.graphs(source.network, source.pool, source.view):
        try:
            write(made, folder)
            break
        except Unfit as error:
            reason = error
    else:
        assert reason is not None
        raise reason
    shapes = [f"{name} {str(x.dtype).removeprefix('torch.')} (b{_axes(x)})" for name, x in made.inputs.items()]
    if made.raw:
        takes = f"a raw batch, which the graph normalises itself: {shapes[0]}"
    else:
        takes = f"what mmssl's {source.tree['tokenizer']['_target_']} cuts a batch into: {', '.join(shapes)}"
    gives = {"tokens": _TOKENS} | ({} if source.pool == "token" else {"features": f"(b, d): pool={source.pool}"})
    more = {"inputs": list(made.inputs), "outputs": list(made.outputs), "raw": made.raw}
    return made, Written(made.inputs, takes, gives, "", "", more)


def _axes(x: Tensor) -> str:
    return "".join(f", {side}" for side in x.shape[1:])


def _onnx(source: Source, folder: Path) -> Written:
    lacking = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError(f"format=onnx is written with {' and '.join(lacking)}, not installed here: {install('onnx')}")
    made, told = _graph(source, folder, graphs.write_onnx)
    given = ", ".join(f'"{name}": {name}' for name in made.inputs)
    usage = (
        'import onnxruntime\nsession = onnxruntime.InferenceSession("DIR/model.onnx")\n'
        f"{', '.join(made.outputs)}{',' * (len(made.outputs) == 1)} = session.run(None, {{{given}}})"
    )
    return Written(told.inputs, told.takes, told.gives, usage, "onnx", told.more)


def _torch(source: Source, folder: Path) -> Written:
    made, told = _graph(source, folder, graphs.write_torch)
    usage = (
        'import torch\nmodel = torch.export.load("DIR/model.pt2").module()\n'
        f"{', '.join(made.outputs)}{',' * (len(made.outputs) == 1)} = model({', '.join(made.inputs)})"
    )
    return Written(told.inputs, told.takes, told.gives, usage, "pytorch", told.more)


def _safetensors(source: Source, folder: Path) -> Written:
    from mmssl import __version__

    # The encoder alone, whichever branch it was: the file's own configuration calls it the student.
    own = {
        "config": source.tree | {"keep": "student"}, "facts": source.facts, "branch": source.branch,
        "versions": {"mmssl": __version__, "torch": torch.__version__},
    }  # fmt: skip
    state = {f"networks.main.{name}": value for name, value in source.network.state_dict().items()}
    _save(state, folder / "model.safetensors", {"format": "pt", "mmssl": json.dumps(own)})
    last = "tokens = encoder(batch).x" if source.pool == "token" else f'features = encoder(batch).pool("{source.pool}")'
    usage = f'import mmssl\nencoder = mmssl.load("DIR")\n{last}'
    with torch.inference_mode():
        tokens = source.network.tokenizer(source.view)
    if isinstance(source.view.data, Tensor):
        inputs = {"batch": source.view.data}
    else:  # batches that are no tensor come as what was cut
        plain = {name: getattr(tokens, name) for name in ("grid", "samples", "count")}
        inputs = {name: torch.tensor(value) for name, value in plain.items() if value is not None}
        inputs |= {name: value for name, value in vars(tokens).items() if isinstance(value, Tensor)}
    takes = f"a raw batch of the modality ({source.tree['modality']}), as mmssl's data classes make it"
    return Written(inputs, takes, {"x": "(b, n, d)", "prefix": "(b, q, d)", "pool": "(b, d)"}, usage, "mmssl")


def install(kind: str) -> str:
    """The command that installs what a format needs."""
    return {"timm": "pip install timm", "torch": "pip install torch"}.get(kind, "pip install 'mmssl[export]'")


FORMATS: dict[str, Callable[[Source, Path], Written]] = {
    "timm": _timm, "hf": _hf, "onnx": _onnx, "torch": _torch, "safetensors": _safetensors,
}  # fmt: skip


def fitting(source: Source) -> list[str]:
    """The formats that can hold an encoder, as far as can be said without writing them."""
    found = []
    for kind, attempt in (
        ("timm", lambda: twin(source.network, source.tree, source.pool)),
        ("hf", lambda: translate(twin(source.network, source.tree, source.pool))),
        ("onnx", lambda: next(graphs.graphs(source.network, source.pool, source.view))),
        ("torch", lambda: next(graphs.graphs(source.network, source.pool, source.view))),
    ):
        try:
            made = attempt()
        except Unfit:
            continue
        if not getattr(made, "limit", None):
            found.append(kind)
    return [*found, "safetensors"]
