"""`mmssl evaluate` on tiny runs: every protocol beside its baselines, several encoders, and what is refused."""

import json
from pathlib import Path

import pytest

import mmssl
from mmssl.cli import main

SMALL = ["data=sample", "trainer.accelerator=cpu", "evaluation.limit=60", "evaluation.protocols.linear=null",
         "evaluation.protocols.knn=null", "encoder.dim=24", "encoder.depth=1", "encoder.heads=2"]  # fmt: skip
TINY = [*SMALL, "data.batch_size=16", "objective.pixels.predictor.dim=16", "objective.pixels.predictor.depth=1",
        "objective.pixels.predictor.heads=2"]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two tiny runs on the image sample; the second learnt for longer."""
    root = f"run.root={tmp_path_factory.mktemp('images')}"
    return [
        str(mmssl.pretrain("image/mae", [*TINY, root, f"trainer.max_steps={steps}", f"seed={steps}"]).path)
        for steps in (2, 12)
    ]


def told(capsys, *words):
    assert main(["evaluate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_protocol_of_samples_beside_its_baselines(images, capsys):
    protocols = "few_shot,label_fraction,clustering,retrieval,svm,attentive,prototypical"
    words = [images[1], f"protocol={protocols}"]
    block = told(capsys, *words)["eval"]
    assert list(block) == protocols.split(",")
    for entry in block.values():
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
        for name in ("random_init", "raw_input"):
            low, high = entry[f"{name}_difference_ci95"]
            assert low <= entry["value"] - entry[name] <= high
    assert set(block["clustering"]["also"]) == {"ari", "accuracy"}
    assert [point["at"] for point in block["label_fraction"]["curve"]] == [0.01, 0.1, 1.0]
    assert block["label_fraction"]["curve"][2]["random_init_ci95"][0] > 0
    summary = json.loads((Path(images[1]) / "summary.json").read_text())
    assert set(block) <= set(summary["eval"])
    assert "label_fraction" in (Path(images[1]) / "report.html").read_text()
    assert main(["evaluate", images[1], "protocol=retrieval"]) == 0
    out = capsys.readouterr().out
    assert "retrieval recall_at_1" in out and "paired difference" in out


def test_settings_of_a_protocol_are_keys(images, capsys):
    words = [images[0], "protocol=few_shot"]
    block = told(capsys, *words, "evaluation.protocols.few_shot.shots=1", "evaluation.protocols.few_shot.episodes=7")
    assert block["eval"]["few_shot"]["chosen"]["shots"] == 1
    assert block["eval"]["few_shot"]["n_test"] == 60


def test_several_encoders_make_one_table(images, capsys):
    summary = told(capsys, *images, "timm:test_vit", "protocol=knn,clustering", "encoder.pretrained=false")
    names = [one["name"] for one in summary["encoders"]]
    assert len(set(names)) == 3 and names[2] == "timm:test_vit"
    for one in summary["encoders"]:
        assert set(one["eval"]) == {"knn", "clustering"}
        assert one["eval"]["knn"]["raw_input"] == summary["encoders"][0]["eval"]["knn"]["raw_input"]
    pairs = summary["differences"]["knn"]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [
        (names[0], names[1]),
        (names[0], names[2]),
        (names[1], names[2]),
    ]
    values = {one["name"]: one["eval"]["knn"]["value"] for one in summary["encoders"]}
    for pair in pairs:
        low, high = pair["ci95"]
        assert pair["difference"] == pytest.approx(values[pair["a"]] - values[pair["b"]])
        assert low <= pair["difference"] <= high
        assert pair["within_noise"] == (low <= 0 <= high)
        assert pair["within_noise"] or pair["better"] == max((pair["a"], pair["b"]), key=lambda name: values[name])
    assert "clustering ari" in summary["differences"]
    folder = Path(summary["run"])
    assert folder.parent.name == "compare" and json.loads((folder / "summary.json").read_text()) == summary
    for run in images:  # their own files are as they were
        assert "knn" not in json.loads((Path(run) / "summary.json").read_text())["eval"]
    assert main(["evaluate", *images, "protocol=knn"]) == 0
    out = capsys.readouterr().out
    assert out.count("  random init") == out.count("  raw input") == 2, "each encoder stands above its baselines"
    assert out.count("image/mae") >= 4 and ("within noise" in out or "is better" in out)


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    """A tiny run on a table whose label is a quantity."""
    import numpy as np

    folder = tmp_path_factory.mktemp("houses")
    g = np.random.default_rng(0)
    x = g.normal(size=(240, 3))
    price = 1e5 + 3e4 * x[:, 0] - 1e4 * np.abs(x[:, 1]) + 500 * g.normal(size=240)
    lines = [f"{a:.4f},{b:.4f},{c:.4f},{y:.1f}" for (a, b, c), y in zip(x, price, strict=True)]
    (folder / "houses.csv").write_text("\n".join(["rooms,age,noise,price", *lines]))
    words = [f"data.root={folder / 'houses.csv'}", "data.source.label=price", f"run.root={folder / 'runs'}"]
    said = [*SMALL[1:], "data=table", "data.batch_size=32", "trainer.max_steps=6", "objective.cells.predictor.dim=16"]
    more = ["objective.cells.predictor.depth=1", "objective.cells.predictor.heads=2", "data.source.test_share=0.3"]
    return str(mmssl.pretrain("tabular/remasker", [*said, *more, *words]).path)


def test_regression_of_a_table(houses, capsys):
    entry = told(capsys, houses, "protocol=regression")["eval"]["regression"]
    assert entry["metric"] == "r2" and entry["raw_input"] > 0.7  # linear but for the second column
    rmse = entry["also"]["rmse"]
    assert rmse["better"] == "lower" and 0 < rmse["raw_input"] < 3e4
    assert main(["evaluate", houses, "protocol=regression"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("regression rmse"))
    assert ">" not in line or rmse["raw_input_difference_ci95"][1] < 0 or rmse["random_init_difference_ci95"][1] < 0

    low, high = entry["boosted_trees_difference_ci95"]
    assert entry["boosted_trees"] > 0.7 and low <= entry["value"] - entry["boosted_trees"] <= high


def test_imputation_of_a_table(houses, capsys):
    entry = told(capsys, houses, "protocol=imputation")["eval"]["imputation"]
    assert entry["metric"] == "rmse" and entry["better"] == "lower" and 0 < entry["value"] < 1
    assert 0 < entry["mean_imputer"] < 0.3 and "mean_imputer stands beside" in entry["why"]["raw_input"]
    assert entry["random_init"] > entry["mean_imputer"] and entry["raw_input"] is None
    assert entry["chosen"]["hidden"] > 0.15 * entry["n_test"] * 3


def test_links_of_a_graph(tmp_path, capsys):
    words = ["data=sample", "trainer.accelerator=cpu", "trainer.max_steps=3", "encoder.dim=16", "encoder.heads=2",
             "evaluation.protocols.linear=null", "evaluation.protocols.knn=null", f"run.root={tmp_path}"]  # fmt: skip
    run = str(mmssl.pretrain("graph/graphmae", words).path)
    entry = told(capsys, run, "protocol=link")["eval"]["link"]
    # Cora has 5,278 edges between different nodes; a tenth of them, and as many pairs without
    assert entry["metric"] == "auc" and entry["n_test"] == 2 * 528 and entry["raw_input"] > 0.7
    assert entry["also"]["ap"]["raw_input"] > 0.7 and entry["random_init"] > 0.5
    assert main(["evaluate", run, "protocol=attentive"]) == 2
    assert "here every token has a label of its own" in capsys.readouterr().err


def test_protocols_that_do_not_fit_are_refused_before_anything_is_embedded(images, houses, capsys):
    for words, message in (
        ([images[0], "protocol=regression"], "needs a quantity for each sample, and the data have none"),
        ([houses, "protocol=svm"], "protocol=svm does not fit these data: it needs labels"),
        ([houses, "protocol=retreival"], "did you mean 'retrieval'?"),
        ([images[0], houses, "protocol=knn"], "would be scored on different data"),
    ):
        assert main(["evaluate", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and "features of the encoder" not in error
    assert main(["evaluate", houses, "protocol=knn"]) == 2
    assert "what fits them is protocol=" in (error := capsys.readouterr().err) and "regression" in error
    # without protocol= what does not fit is told and left out
    assert main(["evaluate", houses, "evaluation.protocols.linear._target_=protocol/linear"]) == 0
