"""Fine-tuning from Python: `finetune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmssl.api.sources import timm_encoder
from mmssl.api.training import resolve
from mmssl.compat import check_trio
from mmssl.config.check import check
from mmssl.config.compose import ConfigError, flat
from mmssl.config.files import CONF
from mmssl.config.words import word
from mmssl.registry import entry

# Keys of a run that fine-tuning takes over with the encoder, beside tokenizer, encoder and views.
_DATA = ("size", "small", "channels")


def finetune(
    source: str,
    overrides: list[str] | None = None,
    scratch: bool = False,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    val_share: float = 0.1,
    trust: bool = False,
) -> Any:
    """Fine-tunes an encoder with a linear head on labelled data; the same as `mmssl finetune RUN key=value ...`.

    The result is a run like any other under `runs/finetune/<name>/`: it is resumed, reported, evaluated and exported as
    they are. What is trained and how stands in `conf/finetune.yaml`. Validation is the data's own split, or a part of
    each class of train; the test split is used once, at the end.

    Args:
        source: a run's directory, a checkpoint, or `timm:NAME`.
        overrides: `key=value`, as for training: `data=...`, `optim.layer_decay=0.65`, `encoder.drop_path=0.2`.
        scratch: whether the same architecture is trained from random weights too, in a run of its own; its score
            becomes `random_init` of `eval.finetune`.
        mixup: a of mixup (`corruptor/mix`); 0 for none.
        cutmix: a of CutMix, likewise.
        val_share: share of each class of train that is validated on where the data have no such split.
        trust: whether a checkpoint may name import paths.

    Returns:
        A `Run` with `path` and `summary`.

    Raises:
        ConfigError: for data without labels, samples that cannot be mixed, or anything misspelt.
    """
    if message := check_trio():
        raise ConfigError(message)
    overrides = list(overrides or [])
    tree = configured(source, overrides, mixup, cutmix, val_share, trust)
    from mmssl.run.training import train

    command = ["mmssl", "finetune", source, *overrides]
    run = train(tree, command)
    if not scratch or run.summary["status"] != "completed":
        return run
    other = train(_from_scratch(tree), command)
    return _beside(run, other)


def configured(
    source: str, overrides: list[str], mixup: float = 0.0, cutmix: float = 0.0, val_share: float = 0.1,
    trust: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The checked configuration of a fine-tuning; see `finetune`."""
    if source.startswith("timm:"):
        name = source.removeprefix("timm:")
        init, old, begun = None, None, timm_encoder(name, overrides)
    else:
        from mmssl.run.loading import load

        loaded = load(source, trust)
        old, init = loaded.tree, f"encoder:{loaded.file.resolve()}" if loaded.file else None
        name, begun = Path(old["recipe"]).with_suffix("").name if "." in old["recipe"] else old["recipe"], _taken(old)
        begun += _own_data(old) if not any(o.startswith("data=") for o in overrides) else []
        print(f"fine-tuning {loaded.file}, the {loaded.branch}", file=sys.stderr)
    tree = resolve(str(CONF / "finetune.yaml"), [*begun, *_mixing(mixup, cutmix), *overrides])
    tree["recipe"], tree["init_from"] = f"finetune/{name.replace('/', '-')}", init
    said = {o.partition("=")[0].lstrip("+~") for o in overrides}
    if old is not None:
        _seen_alike(tree, old, said)
    if "drop_path" in entry(tree["encoder"]["_target_"]).arguments and "encoder.drop_path" not in said:
        tree["encoder"]["drop_path"] = 0.1
    _fit(tree, said, mixup > 0 or cutmix > 0, val_share)
    check(tree, trust=trust or old is None)
    return tree


def _taken(old: dict[str, Any]) -> list[str]:
    """Overrides that make the encoder of a run, and let it see what it saw."""
    kept = {f"{slot}.{key}": value for slot in ("tokenizer", "encoder") for key, value in flat(old[slot]).items()}
    kept |= {f"data.{key}": old["data"][key] for key in _DATA if old["data"].get(key) is not None}
    kept["evaluation.pool"] = old["evaluation"]["pool"]
    return [f"modality={old['modality']}", *(f"{key}={word(value)}" for key, value in kept.items())]


def _own_data(old: dict[str, Any]) -> list[str]:
    """Overrides that name the data of a run; the small set that is shipped brings its preset with it."""
    data = {key: value for key, value in old["data"].items() if key not in ("views", "view", *_DATA)}
    if data["source"]["_target_"] == "source/supervised":  # of a run that was fine-tuned itself
        data["source"] = data["source"]["source"]
    root = str(data.get("root"))
    words = []
    for key, value in flat(data).items():
        if isinstance(value, str) and key != "root" and (value == root or value.startswith(f"{root}/")):
            value = "${data.root}" + value[len(root) :]
        words.append(f"data.{key}={word(value)}")
    if data["source"]["_target_"] != f"source/{old['modality']}_sample":
        words.append("data.preset=null")
    return words


def _mixing(mixup: float, cutmix: float) -> list[str]:
    if mixup == 0 and cutmix == 0:
        return []
    return [f"corruptor={{_target_:corruptor/mix,mixup:{mixup},cutmix:{cutmix}}}"]


def _seen_alike(tree: dict[str, Any], old: dict[str, Any], said: set[str]) -> None:
    """Evaluation sees what it saw in the run; where that is the run's own affair, so does training."""
    own = old["data"]["view"]
    if tree["data"]["view"] == own or "view" in said:
        return
    tree["view"] = tree["data"]["view"] = own
    if not any(key.partition(".")[0] in ("views", "augment") for key in said):
        print("the run has a view of its own: fine-tuning sees it without augmentation; set views.x", file=sys.stderr)
        tree["views"] = tree["data"]["views"] = {"x": own}


def _fit(tree: dict[str, Any], said: set[str], mixes: bool, val_share: float) -> None:
    """What follows from the data: the number of classes, the pool, the splits, how often to look."""
    from mmssl.config import build

    tree["data"]["source"] = {"_target_": "source/supervised", "source": tree["data"]["source"], "share": val_share}
    data = build.data(tree)
    if mixes and not getattr(data.adapter, "mixes", False):
        raise ConfigError(
            f"mixup, cutmix: samples of modality {tree['modality']!r} cannot be mixed, since values between two of "
            "them mean nothing; leave both out"
        )
    labels = [part.labels for part in data.splits.values() if part.labels is not None]
    names = data.splits["train"].classes or []
    tree["heads"]["classes"]["dim"] = max(len(names), *(int(one.max()) + 1 for one in labels))
    if data.unit == "token":
        tree["objective"]["classify"]["pool"] = "token"
    if data.full:  # an epoch is one step of one sample, by which no rate can be scaled
        if "evaluation.every_epochs" not in said:
            tree["evaluation"]["every_epochs"] = 10
        if not said & {"optim.lr", "optim.base_lr"}:
            tree["optim"] |= {"lr": 1e-3, "base_lr": None}


def _from_scratch(tree: dict[str, Any]) -> dict[str, Any]:
    """The same without any weights to begin with."""
    from mmssl.config.build import without_weights

    return tree | {
        "init_from": None,
        "encoder": without_weights(tree["encoder"]),
        "recipe": f"{tree['recipe']}-scratch",
    }


def _beside(run: Any, other: Any) -> Any:
    """Puts the score of the run from scratch beside the fine-tuned one."""
    from mmssl.report.html import write
    from mmssl.run import directory, launch
    from mmssl.run.training import Run

    found = other.summary["eval"].get("finetune")
    if found is None or "finetune" not in run.summary["eval"]:
        return run
    summary = dict(run.summary)
    said = dict(summary["eval"]["finetune"])
    said |= {"random_init": found["value"], "random_init_ci95": found["ci95"], "scratch": str(other.path)}
    said["why"] = {name: why for name, why in said["why"].items() if name != "random_init"}
    summary["eval"] = dict(summary["eval"]) | {"finetune": said}
    if launch.rank() == 0:
        directory.write_json(run.path / "summary.json", summary)
        write(run.path)
    return Run(run.path, summary)
