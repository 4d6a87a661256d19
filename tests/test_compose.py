"""Composition, presets, overrides and checks: what is said wins in order, and what is misspelt is refused."""

from __future__ import annotations

import pytest
import yaml

from mmssl.config.check import check
from mmssl.config.compose import ConfigError, compose, flat, origins
from mmssl.config.files import CONF, SLOTS, chain
from mmssl.registry import UnknownName

PAPER = ["data=folder", "data.root=FOLDER"]
PRESET = dict(
    entry.split("=", 1)
    for entry in yaml.safe_load((CONF / "modality" / "image.yaml").read_text())["sample_preset"]
    if ": " not in entry
)


@pytest.fixture
def recipe(tmp_path):
    """Writes a user's recipe and gives its path."""

    def write(text, name="mine.yaml"):
        file = tmp_path / name
        file.write_text("# @package _global_\n" + text)
        return str(file)

    return write


def composed(name, *overrides, trust=True):
    tree = compose(name, list(overrides))
    check(tree, trust=trust)
    return tree


# what wins


def test_precedence(recipe):
    conf = recipe("defaults: [_self_]\n")
    assert composed(conf, "data.preset=null")["data"]["batch_size"] == 256  # conf/data/sample.yaml
    assert composed("image/mae", "data.preset=null")["data"]["batch_size"] == 4096  # the recipe
    assert (
        composed("image/mae")["data"]["batch_size"] == int(PRESET["data.batch_size"]) < 256
    )  # the preset of data=sample
    assert composed("image/mae", "data.batch_size=32")["data"]["batch_size"] == 32  # the command line
    assert "mlp_ratio" not in composed("image/mae")["encoder"]  # parts' defaults are theirs alone


def test_a_child_wins_over_its_parent():
    tree = composed("image/crossmae", *PAPER)
    assert tree["masker"] == {"_target_": "masker/random", "ratio": 0.75}
    assert tree["encoder"]["final_norm"] is False and tree["encoder"]["dim"] == 768
    assert tree["objective"]["pixels"]["predictor"]["_target_"] == "predictor/cross"
    assert tree["objective"]["pixels"]["target"]["normalize"] is True


def test_paper_sizes_without_preset_and_small_sizes_with():
    paper, small = composed("image/mae", *PAPER), composed("image/mae")
    assert (paper["data"]["size"], paper["tokenizer"]["patch"], paper["encoder"]["dim"]) == (224, 16, 768)
    assert paper["optim"]["base_lr"] == 1.5e-4 and paper["optim"]["lr"] is None
    found = flat(small)
    for key, value in PRESET.items():
        key = key.replace("*", "pixels")
        if key in flat(paper) or key.startswith("optim"):  # else there is no argument for it to land on
            assert found[key] == yaml.load(value, Loader=yaml.SafeLoader) or found[key] == float(value), key
    assert found["tokenizer.size"] == found["data.size"] == 32
    for tree in (paper, small):
        assert "preset" not in tree["data"]


@pytest.mark.parametrize(
    "said",
    ["encoder.depth=7", "++encoder.depth=7", "data.size=64", "objective.pixels.predictor.depth=7", "optim.lr=0.5"],
)
def test_preset_does_not_override_what_is_said(said):
    key, _, value = said.lstrip("+").partition("=")
    found = flat(composed("image/mae", said))
    assert found[key] == yaml.safe_load(value)
    for other, value in flat(composed("image/mae")).items():
        if other != key and "view" not in other and other not in ("tokenizer.size", "augment"):
            assert found[other] == value, other


def test_preset_skips_what_a_part_has_no_argument_for():
    tree = composed("image/simmim")  # predictor/linear has no dim, depth or heads, and no target is a network
    assert tree["objective"]["pixels"]["predictor"] == {"_target_": "predictor/linear"}
    assert "network" not in tree["objective"]["pixels"]["target"]
    assert composed("image/mr_mae")["objective"]["mimic"]["target"]["network"]["name"] == "vit_tiny_patch16_224"


def test_preset_may_make_smaller_only():
    assert composed("video/videomae")["tokenizer"]["frames"] == 8
    assert composed("video/siammae")["tokenizer"]["frames"] == 1
    assert composed("video/siammae", "tokenizer.frames=16")["tokenizer"]["frames"] == 16


def test_preset_skips_the_sizes_of_a_named_encoder():
    tree = composed("image/mae", "encoder=timm", "encoder.name=vit_tiny_patch16_224")
    assert tree["encoder"] == {"_target_": "encoder/timm", "name": "vit_tiny_patch16_224", "pretrained": False}


def test_a_group_is_chosen_on_the_command_line():
    tree = composed("image/mae", *PAPER, "encoder=vit_s")
    assert (tree["encoder"]["dim"], tree["encoder"]["heads"]) == (384, 6)
    with pytest.raises(ConfigError, match=r"optim\.betas: optim/lars takes no 'betas'.*momentum"):
        composed("image/mae", "optim=lars")
    assert composed("image/mae", "optim=lars", "~optim.betas")["optim"]["_target_"] == "optim/lars"


def test_dotted_keys_may_set_arguments_no_file_mentions():
    tree = composed("image/mae", "encoder.drop_path=0.2", "objective.pixels.weight=2.0")
    assert tree["encoder"]["drop_path"] == 0.2 and tree["objective"]["pixels"]["weight"] == 2.0


def test_a_whole_part_may_be_replaced():
    tree = composed("image/mae", "masker={_target_: masker/units, unit: 2}")
    assert tree["masker"] == {"_target_": "masker/units", "unit": 2, "ratio": 0.75}
    tree = composed("image/mae", "masker._target_=masker/units", "masker.unit=4")
    assert tree["masker"] == {"_target_": "masker/units", "unit": 4, "ratio": 0.75}
    tree = composed("image/mae", "objective.pixels.loss={_target_: loss/smooth_l1, beta: 2.0}")
    assert tree["objective"]["pixels"]["loss"] == {"_target_": "loss/smooth_l1", "beta": 2.0}
    tree = composed("image/mae", "encoder={_target_: encoder/vit, registers: 4}")
    assert tree["encoder"]["registers"] == 4 and tree["encoder"]["dim"] == int(PRESET["encoder.dim"])
    tree = composed("image/mae", "teacher={_target_: teacher/ema, momentum: {_target_: schedule/constant, value: 0.9}}")
    assert tree["teacher"]["momentum"]["value"] == 0.9


# users' recipes


def test_a_users_file_inherits_a_shipped_recipe(recipe):
    path = recipe("defaults: [/recipe/image/mae, _self_]\nmasker: {ratio: 0.6}\n")
    tree = composed(path, *PAPER)
    assert tree["masker"]["ratio"] == 0.6 and tree["data"]["batch_size"] == 4096
    assert tree["recipe"] == path
    assert [name for name, _ in chain(path)] == ["image/mae", path]


def test_a_users_file_may_be_relative(recipe, monkeypatch, tmp_path):
    recipe("defaults: [/recipe/image/mae, _self_]\nmasker: {ratio: 0.5}\n")
    monkeypatch.chdir(tmp_path)
    assert composed("mine.yaml")["masker"]["ratio"] == 0.5


def test_a_users_own_class_by_import_path(recipe):
    path = recipe("defaults: [/recipe/image/mae, _self_]\nteacher: {_target_: fractions.Fraction, numerator: 1}\n")
    tree = compose(path, [])
    check(tree)
    with pytest.raises(
        ConfigError, match=r"teacher: this checkpoint names the import path 'fractions.Fraction'.*trust=true"
    ):
        check(tree, trust=False)


def test_recipe_is_kept_as_named():
    assert composed("image/mae")["recipe"] == "image/mae"
    assert composed(None, "recipe=image/mae")["recipe"] == "image/mae"


# refusals


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("image/mea", [], r"unknown recipe 'image/mea'; did you mean 'image/mae'"),
        ("mine.yml", [], r"recipe: there is no file /.*mine\.yml"),
        ("image/mae", ["encoder=vit_bb"], r"encoder=vit_bb: there is no such choice; did you mean 'vit_b'"),
        ("image/mae", ["dta=sample"], r"unknown key 'dta' in 'dta=sample'; did you mean 'data'"),
        ("image/mae", ["encodr.dim=3"], r"unknown key 'encodr' in .*; did you mean 'encoder'"),
        ("image/mae", ["masker._target_=masker/randm"], r"masker: unknown part 'masker/randm'; did you mean 'masker/random'"),
        ("image/mae", ["masker.ratoi=0.5"], r"masker\.ratoi: masker/random takes no 'ratoi'; did you mean 'ratio'\?.*mmssl doc"),
        ("image/mae", ["encoder.spec=1"], r"encoder\.spec: encoder/vit takes no 'spec'"),
        ("image/mae", ["encoder.depth=four"], r"encoder\.depth: encoder/vit wants int, got 'four'"),
        ("image/mae", ["encoder.depth=4.5"], r"encoder\.depth: encoder/vit wants int, got 4\.5"),
        ("image/mae", ["encoder.depth=true"], r"encoder\.depth: encoder/vit wants int, got True"),
        ("image/mae", ["encoder.depth=null"], r"encoder\.depth: encoder/vit wants int, and null is none"),
        ("image/mae", ["encoder.class_token=1"], r"encoder\.class_token: encoder/vit wants bool \(True by default\), got 1"),
        ("image/mae", ["encoder.depth=[1,2]"], r"encoder\.depth: encoder/vit wants int, got \[1, 2\]"),
        ("image/mae", ["masker.predict=much"], r"masker\.predict: masker/random wants float \| None \(None by default\)"),
        ("image/mae", ["data=folder"], r"data.*root.*has to be given.*root=|data.source.root"),
        ("image/mae", ["~encoder.dim"], r"encoder: encoder/vit needs 'dim'; give encoder\.dim=\.\.\."),
        ("image/mae", ["encoder._target_="], r"encoder: _target_ has to be the name of a part"),
        ("image/mae", ["masker._target_=no.such.module"], r"masker: cannot import 'no\.such\.module'.*kind/name"),
        ("image/mae", ["encoder.depth"], r"'encoder\.depth' is no override; write key=value"),
        ("image/mae", ["encoder.dim=${no.such}"], r"the configuration does not compose"),
        (None, ["data=sample"], r"no recipe is named; the first word has to be one"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_with_a_remedy(name, overrides, message):
    with pytest.raises((ConfigError, UnknownName), match=message):
        composed(name, *overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "objective: {pixels: {loss: {_target_: loss/mes}}}",
            r"objective\.pixels\.loss: unknown part 'loss/mes'; did you",
        ),
        ("objective: {pixels: {los: {_target_: loss/mse}}}", r"objective\.pixels\.los: term/predict takes no 'los'"),
        ("views: {x: [{_target_: view/flp}]}", r"views\.x\[0\]: unknown part 'view/flp'; did you mean 'view/flip'"),
        (
            "masker: {predict: '???'}",
            r"masker\.predict has to be given: add masker\.predict=\.\.\. to the command line",
        ),
        ("masker: {ratio: 0.5", r"(?s)does not compose.*mine\.yaml"),
        ("optim: {schedule: {warmpu: 0.1}}", r"optim\.schedule\.warmpu: schedule/warmup_cosine takes no 'warmpu'"),
    ],
)
def test_mistakes_in_a_file_are_refused(recipe, text, message):
    path = recipe(f"defaults: [/recipe/image/mae, _self_]\n{text}\n")
    with pytest.raises(ValueError, match=message):
        composed(path)


def test_a_dotted_class_is_checked_against_its_signature(recipe):
    path = recipe("defaults: [/recipe/image/mae, _self_]\nteacher: {_target_: fractions.Fraction, numeratr: 1}\n")
    with pytest.raises(
        ConfigError, match=r"teacher\.numeratr: fractions\.Fraction takes no 'numeratr'; did you mean 'numerator'"
    ):
        composed(path)


@pytest.mark.parametrize("where", ["encoder", "objective.pixels.loss", "views.x"])
def test_a_checkpoints_config_may_not_name_import_paths(where):
    tree = composed("image/mae")
    check(tree, trust=False)
    node = tree
    *parents, last = where.split(".")
    for key in parents:
        node = node[key]
    evil = {"_target_": "os.system", "command": "echo"}
    node[last] = [evil] if where == "views.x" else evil
    with pytest.raises(
        ConfigError, match=r"this checkpoint names the import path 'os\.system', which could run any code"
    ):
        check(tree, trust=False)


def test_slots_are_frozen():
    """A new slot is a decision: change this list with the design, not in passing."""
    assert set(SLOTS) == {
        "meta", "recipe", "modality", "seed", "keep", "data", "views", "view", "augment", "sample_preset", "tokenizer",
        "encoder", "streams", "masker", "corruptor", "guide", "heads", "looks", "objective", "teacher", "optim", "trainer", "logger", "evaluation",
        "init_from", "init_share", "run", "stages", "fit",
    }  # fmt: skip


# where values come from


def test_origins():
    found = origins("image/mae", ["encoder.depth=3", "optim=sgd"])
    assert found["encoder.depth"] == "command line"
    assert found["encoder.dim"] == "preset"
    assert found["masker.ratio"] == "recipe"
    assert found["seed"] == "conf"
    assert found["optim._target_"].startswith("command line")
    assert set(found) == set(flat(compose("image/mae", ["encoder.depth=3", "optim=sgd"])))


def test_another_part_does_not_inherit_what_only_the_old_one_takes():
    tree = composed("image/mae", "optim._target_=optim/lars", "optim.trust=0.01")
    assert tree["optim"]["_target_"] == "optim/lars" and "betas" not in tree["optim"]
    assert tree["optim"]["trust"] == 0.01 and tree["optim"]["weight_decay"] == 0.05
    with pytest.raises(ConfigError, match=r"optim\.betas: optim/lars takes no 'betas'"):
        composed("image/mae", "optim._target_=optim/lars", "optim.betas=[0.9,0.95]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.rot=FOLDER", "did you mean 'root'"),
        ("evaluation.limt=5", "did you mean 'limit'"),
        ("evaluation=null", r"evaluation has to hold protocols, pool.*evaluation\.online=false measures nothing"),
        ("looks={x: {maskr: null}}", "did you mean 'masker'"),
        ("looks={x: {}, y: {views: [x], mask: z}}", "looks.y.mask"),
        ("seed=hello", "seed"),
        ("keep=both", "student"),
    ],
)
def test_mistakes_outside_of_parts_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        composed("image/mae", override)


def test_a_preset_may_exchange_one_part_for_another():
    small, paper = composed("image/simclr"), composed("image/simclr", *PAPER)
    assert paper["encoder"] == {"_target_": "encoder/timm", "name": "resnet50", "pretrained": False}
    assert paper["optim"]["_target_"] == "optim/lars"
    assert small["encoder"]["_target_"] == "encoder/vit" and small["encoder"]["dim"] == int(PRESET["encoder.dim"])
    assert small["optim"]["_target_"] == "optim/adamw" and "name" not in small["encoder"]
    said = composed("image/simclr", "encoder._target_=encoder/timm", "encoder.name=resnet18", "optim=sgd")
    assert said["encoder"]["name"] == "resnet18" and said["optim"]["_target_"] == "optim/sgd"
    assert composed("image/mae")["encoder"]["_target_"] == "encoder/vit"


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        (
            "image/mae",
            "masker._target_=masker/nodes",
            "masker: masker/nodes is made for modality 'graph', and this run is",
        ),
        (
            "graph/grace",
            "views.a=[{_target_: view/rotate}]",
            r"views\.a\[0\]: view/rotate is made for modality 'pointcloud'",
        ),
        ("tabular/scarf", "encoder._target_=encoder/gcn", "encoder: encoder/gcn is made for modality 'graph'"),
    ],
)
def test_parts_of_another_modality_are_refused(name, override, words):
    with pytest.raises(ConfigError, match=words):
        composed(name, override)
