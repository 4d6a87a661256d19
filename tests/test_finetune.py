"""`mmssl finetune` as a whole: what it begins with, what it trains, what it says in the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import mmssl
from mmssl.api.finetuning import configured
from mmssl.cli import main
from mmssl.config import build
from mmssl.evaluation.features import embed
from mmssl.evaluation.protocols import Linear
from mmssl.evaluation.supervised import logits
from mmssl.run import checkpoints
from mmssl.run.loading import load, load_module
from mmssl.run.metrics import Table
from tests.test_faults import TINY

SHORT = ["trainer.max_steps=30", "trainer.accelerator=cpu", "trainer.log_every=5", "evaluation.limit=60"]
BARE = "evaluation.protocols.linear=null"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSSL_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def begun(folder):
    """A tiny pre-trained run."""
    recipe, *keys = TINY
    return mmssl.pretrain(recipe, [*keys, "trainer.max_steps=3"]).path


@pytest.fixture(scope="module")
def tuned(begun):
    return mmssl.finetune(str(begun), [*SHORT, "trainer.best=ce"], scratch=True)


def summary(run):
    return json.loads((run / "summary.json").read_text())


def test_it_is_a_run_of_its_own(tuned, begun):
    path = tuned.path
    assert path.parts[-3:-1] == ("finetune", "image-mae") and tuned.summary["status"] == "completed"
    for name in (
        "config.yaml",
        "environment.json",
        "data.json",
        "metrics.csv",
        "timing.csv",
        "report.html",
        "checkpoints/best.ckpt",
    ):
        assert (path / name).is_file(), name
    assert json.loads((path / "environment.json").read_text())["command"][:3] == ["mmssl", "finetune", str(begun)]
    tree = yaml.safe_load((path / "config.yaml").read_text())
    assert tree["init_from"] == f"encoder:{begun / 'checkpoints' / 'last.ckpt'}"
    assert tree["heads"]["classes"]["dim"] == 10 and tree["encoder"]["drop_path"] == 0.1
    assert tree["data"]["source"]["_target_"] == "source/supervised"
    old = yaml.safe_load((begun / "config.yaml").read_text())
    assert tree["encoder"] == old["encoder"] | {"drop_path": 0.1} and tree["tokenizer"] == old["tokenizer"]
    assert tree["data"]["view"] == old["data"]["view"] != tree["data"]["views"]["x"]


def test_it_learns_and_looks_at_validation_alone(tuned):
    rows = Table.read(tuned.path / "metrics.csv")
    seen = [row for row in rows if "val/top1" in row]
    assert len(seen) >= 1 and "val/knn" not in seen[0]
    assert float(seen[-1]["val/ce"]) < float(seen[0]["val/ce"]) < 2.4
    assert tuned.summary["train"]["loss"] < tuned.summary["train"]["first_loss"]
    best = tuned.summary["best"]
    values = {int(row["step"]): float(row["val/ce"]) for row in seen if int(row["step"])}
    assert best["criterion"] == "ce" and best["value"] == min(values.values()) == values[best["step"]]


def test_the_score_is_that_of_the_best_checkpoint_on_the_test_split(tuned):
    said = tuned.summary["eval"]["finetune"]
    module = load_module(tuned.path)
    _, data = mmssl.build(_written(tuned.path))
    found = logits(module, data.eval_loader("test", 60))
    right = (found.x.argmax(1) == found.y).double()
    assert said["metric"] == "top1" and said["split"] == "test" and said["n_test"] == len(right) == 60
    assert said["value"] == pytest.approx(float(right.mean())) and said["ci95"][0] <= said["value"] <= said["ci95"][1]
    assert said["n_train"] == len(data.splits["train"])


def _written(path):
    """The configuration of a run as a recipe of its own."""
    file = path / "as_recipe.yaml"
    tree = yaml.safe_load((path / "config.yaml").read_text())
    tree.pop("recipe")
    file.write_text("# @package _global_\n" + yaml.safe_dump(tree))
    return str(file)


def test_it_stands_beside_the_probe_and_the_run_from_scratch(tuned, begun):
    block = tuned.summary["eval"]
    assert summary(tuned.path)["eval"] == block and set(block) == {"finetune", "linear"}
    said, linear = block["finetune"], block["linear"]
    assert (said["linear_probe"], said["linear_probe_ci95"]) == (linear["value"], linear["ci95"])
    other = summary(Path(said["scratch"]))
    assert other["recipe"] == "finetune/image-mae-scratch" and other["planned_steps"] == tuned.summary["planned_steps"]
    assert said["random_init"] == other["eval"]["finetune"]["value"] and "random_init" not in said["why"]
    tree = yaml.safe_load((Path(said["scratch"]) / "config.yaml").read_text())
    assert tree["init_from"] is None and "linear" not in other["eval"]


def test_the_linear_probe_is_of_the_encoder_as_it_was_loaded(tuned, begun):
    """Not of the fine-tuned one: another way to the same rows gives the same score."""
    _, data = mmssl.build(_written(tuned.path))
    network = load(begun).network
    train, test = (embed(network, data.eval_loader(split, 60)).labelled() for split in ("train", "test"))
    assert tuned.summary["eval"]["linear"]["value"] == Linear()(train, test).value


def test_it_begins_with_the_encoder_that_was_trained(begun, monkeypatch, tmp_path):
    """Before the first step the weights are those of the run, the head's alone are new."""
    monkeypatch.setenv("MMSSL_RUNS", str(tmp_path))
    run = mmssl.finetune(
        str(begun),
        [
            *SHORT,
            BARE,
            "trainer.max_steps=1",
            "optim.lr=0.0",
            "optim.weight_decay=0.0",
            "trainer.best=null",
            "trainer.patience=null",
        ],
    )
    old, new = load(begun).network.state_dict(), load(run.path).network.state_dict()
    assert old.keys() == new.keys()
    for name, value in old.items():
        torch.testing.assert_close(new[name], value, rtol=0, atol=0)


def test_the_teacher_is_taken_where_a_recipe_keeps_it(folder):
    keys = [key for key in TINY[1:] if not key.startswith("objective.pixels")]
    run = mmssl.pretrain(
        "image/byol",
        [
            *keys,
            "heads.proj.dims=[16,8]",
            "objective.agree.predictor.dims=[16,8]",
            "encoder._target_=encoder/vit",
            "trainer.max_steps=2",
            "keep=teacher",
        ],
    )
    content = checkpoints.read(run.path / "checkpoints" / "last.ckpt")
    tree = configured(str(run.path), [])
    assert tree["keep"] == "student" and tree["init_from"].startswith("encoder:")
    module = build.module(tree, build.data(tree).facts())
    checkpoints.init_from(module, tree["init_from"], 0.9)
    twin = {
        name: value for name, value in content["state_dict"].items() if name.startswith("teacher.twins.main.encoder.")
    }
    assert twin
    moved = 0
    for name, value in twin.items():
        own = name.replace("teacher.twins.main.", "networks.main.")
        assert torch.equal(module.state_dict()[own], value)
        moved += not torch.equal(content["state_dict"][own], value)
    assert moved, "student and teacher are the same, so that nothing is told apart"


def test_it_is_resumed_to_the_same_end(begun, monkeypatch, tmp_path):
    monkeypatch.setenv("MMSSL_RUNS", str(tmp_path))
    keys = [*SHORT, BARE, "evaluation.every_epochs=null", "optim.schedule=null"]
    whole = mmssl.finetune(str(begun), [*keys, "trainer.max_steps=12"])
    half = mmssl.finetune(str(begun), [*keys, "trainer.max_steps=6"])
    rest = mmssl.resume(half.path, ["trainer.max_steps=12"])
    assert rest.summary["status"] == "completed" and rest.summary["eval"].keys() == {"finetune"}
    one, two = (
        torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, rest)
    )
    for name, value in one.items():
        assert torch.equal(two[name], value), name


def test_mixing_and_the_command_line(begun, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MMSSL_RUNS", str(tmp_path))
    words = ["finetune", str(begun), "mixup=0.8", "cutmix=1.0", *SHORT, BARE, "trainer.max_steps=4", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        told["verb"] == "finetune"
        and told["recipe"] == "finetune/image-mae"
        and told["eval"]["finetune"]["n_test"] == 60
    )
    tree = yaml.safe_load((Path(told["run"]) / "config.yaml").read_text())
    assert tree["corruptor"] == {"_target_": "corruptor/mix", "mixup": 0.8, "cutmix": 1.0}
    assert main(["evaluate", told["run"], "protocol=knn", "evaluation.limit=40", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert set(again["eval"]) == {"finetune", "knn"}
    assert main(["finetune", str(begun), "mixup=much"]) == 2 and "a number is wanted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["encoder.dropp_path=0.1"], "encoder/vit takes no 'dropp_path'; did you mean 'drop_path'"),
        (["encoder.dim=48"], "init_from: .*below init_share=0.9"),
        (["data=folder", "data.root={root}"], "has no labels, which fine-tuning needs"),
        (["trainer.best=knn"], "trainer.best=knn: probes take no part in fine-tuning"),
    ],
)
def test_what_cannot_be_is_refused(begun, keys, message, tmp_path, monkeypatch):
    from tests.small import photos_in

    monkeypatch.setenv("MMSSL_RUNS", str(tmp_path / "runs"))
    root = tmp_path / "photos"
    root.mkdir()
    photos_in(root)
    with pytest.raises(ValueError, match=message):
        mmssl.finetune(str(begun), [*SHORT, *(key.format(root=root) for key in keys)])
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def test_labels_of_tokens_and_the_whole_graph(folder):
    run = mmssl.pretrain(
        "graph/graphmae",
        [
            "data=sample",
            "encoder.dim=24",
            "encoder.heads=2",
            "trainer.max_steps=2",
            "trainer.accelerator=cpu",
            "evaluation.protocols.knn=null",
            BARE,
        ],
    )
    done = mmssl.finetune(str(run.path), [*SHORT, BARE, "trainer.best=ce", "trainer.patience=null"])
    tree = yaml.safe_load((done.path / "config.yaml").read_text())
    assert tree["objective"]["classify"]["pool"] == "token" and tree["evaluation"]["every_epochs"] == 10
    rows = [float(row["val/ce"]) for row in Table.read(done.path / "metrics.csv") if "val/ce" in row]
    assert len(rows) == 4 and rows[-1] < rows[0]
    assert done.summary["eval"]["finetune"]["value"] > 0.2
    with pytest.raises(ValueError, match="samples of modality 'graph' cannot be mixed"):
        mmssl.finetune(str(run.path), SHORT, mixup=0.8)


def test_a_timm_model(monkeypatch, tmp_path):
    monkeypatch.setenv("MMSSL_RUNS", str(tmp_path))
    keys = [
        "data=sample",
        "encoder.pretrained=false",
        "data.batch_size=16",
        *SHORT,
        BARE,
        "trainer.max_steps=2",
        "data.size=32",
    ]
    run = mmssl.finetune("timm:test_resnet", keys)
    assert run.path.parent.name == "test_resnet" and run.summary["eval"]["finetune"]["metric"] == "top1"
