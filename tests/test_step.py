"""Looks are computed on demand, at most once, and share masks where they say so."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from mmssl.config.compose import ConfigError
from mmssl.step import LookSpec, Step
from mmssl.types import View
from tests.small import PIXELS, batch, module

TEACHER = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}
LATENT = PIXELS | {"target": {"_target_": "target/teacher"}, "predictor": {"_target_": "predictor/linear"}, "at": "all"}
MIMIC = LATENT | {"at": "visible"}


def counted(part):
    """Counts calls of tokenizer, embedding and encoder of the network, and of its twin."""
    calls = Counter()
    networks = {"": part.networks["main"]} | ({"twin ": part.teacher.of(part.networks["main"])} if part.teacher else {})
    for prefix, network in networks.items():
        for name in ("tokenizer", "embed", "encoder"):
            getattr(network, name).register_forward_hook(lambda *_, n=prefix + name: calls.update([n]))
    return calls


def test_nothing_runs_before_it_is_asked_for():
    part = module()
    calls = counted(part)
    step = part.begin(batch())
    look = step["x"]
    assert not calls
    assert look.tokens.raw.shape == (4, 16, 192) and calls == {"tokenizer": 1}
    assert look.mask.visible.shape == (4, 16) and calls == {"tokenizer": 1}
    assert look.seen.x.shape == (4, 4, 32) and calls == {"tokenizer": 1, "embed": 1, "encoder": 1}
    assert look.whole.x.shape == (4, 16, 32) and calls == {"tokenizer": 1, "embed": 2, "encoder": 2}
    for name in ("tokens", "mask", "seen", "whole", "views"):
        assert getattr(look, name) is getattr(look, name)
    assert calls == {"tokenizer": 1, "embed": 2, "encoder": 2}


def test_two_terms_share_one_pass():
    part = module(objective={"pixels": PIXELS, "mimic": MIMIC, "again": PIXELS}, teacher=TEACHER)
    calls = counted(part)
    part.training_step(batch())
    assert calls == {"tokenizer": 1, "embed": 1, "encoder": 1, "twin embed": 1, "twin encoder": 1}


def test_a_teacher_runs_only_if_asked():
    part = module(teacher=TEACHER)
    calls = counted(part)
    part.training_step(batch())
    assert calls == {"tokenizer": 1, "embed": 1, "encoder": 1}


def test_taught_is_the_twin_without_gradient():
    part = module(teacher=TEACHER)
    with torch.no_grad():
        for parameter in part.teacher.twins["main"].encoder.parameters():
            parameter.mul_(1.1)
    look = part.begin(batch())["x"]
    expected = part.teacher.twins["main"](batch()["x"]).x
    assert torch.equal(look.taught.x, expected) and not look.taught.x.requires_grad
    assert not torch.equal(look.taught.x, look.whole.x) and look.whole.x.requires_grad


def test_without_a_teacher_taught_is_the_student_detached():
    look = module().begin(batch())["x"]
    assert torch.equal(look.taught.x, look.whole.x) and not look.taught.x.requires_grad


def test_a_look_without_corruptor_sees_the_whole():
    part = module(corruptor=None, objective={"latent": LATENT})
    calls = counted(part)
    look = part.begin(batch())["x"]
    assert look.seen is look.whole and calls["encoder"] == 1
    assert look.score is None


LOOKS = {
    "a": {"views": ["x"]},
    "b": {"views": ["x"], "mask": "a"},
    "c": {"views": ["x"], "mask": "~a"},
    "d": {"views": ["x"]},
}


def test_masks_are_shared_inverted_or_drawn_anew():
    part = module(looks=LOOKS, objective={"pixels": PIXELS | {"look": "a"}})
    step = part.begin(batch())
    assert step["b"].mask is step["a"].mask
    assert torch.equal(step["c"].mask.visible, step["a"].mask.hidden)
    assert torch.equal(step["c"].mask.targets[:, 0], step["a"].mask.visible)
    assert not torch.equal(step["d"].mask.visible, step["a"].mask.visible)
    assert step["c"].seen.x.shape[1] == 12 and step["a"].seen.x.shape[1] == 4
    joined = torch.cat([step["a"].seen.index, step["c"].seen.index], 1)
    assert torch.equal(joined.sort(1).values, torch.arange(16).expand(4, 16))


def test_a_look_may_have_a_masker_and_a_corruptor_of_its_own():
    looks = {"x": {}, "y": {"masker": {"_target_": "masker/units", "unit": 2, "ratio": 0.5}, "corruptor": {"_target_": "corruptor/token"}}}  # fmt: skip
    part = module(views={"x": [], "y": []}, looks=looks)
    step = part.begin(batch(names=("x", "y")))
    assert step["x"].seen.x.shape[1] == 4 and step["y"].seen.x.shape[1] == 16
    assert step["y"].mask.visible_count == 8
    assert step["y"].views == [step.batch["y"]]
    assert set(part.corruptors) == {"x", "y"} and part.corruptors["y"].mask_token.requires_grad


def test_every_view_has_a_look_by_default():
    part = module(views={"x": [], "y": []})
    step = part.begin(batch(names=("x", "y")))
    assert not torch.equal(step["x"].tokens.raw, step["y"].tokens.raw)
    assert not torch.equal(step["x"].mask.visible, step["y"].mask.visible)


def test_views_are_joined_as_one_sequence():
    part = module(
        views={"x": [], "y": []}, looks={"xy": {"views": ["x", "y"]}}, objective={"p": PIXELS | {"look": "xy"}}
    )
    calls = counted(part)
    look = part.begin(batch(names=("x", "y")))["xy"]
    assert look.tokens.index.shape == (4, 32) and look.tokens.stream[0].tolist() == [0] * 16 + [1] * 16
    assert look.mask.visible_count == 8  # one budget for both
    assert look.seen.x.shape == (4, 8, 32)
    assert calls == {"tokenizer": 2, "embed": 1, "encoder": 1}
    assert torch.isfinite(part.training_step(batch(names=("x", "y"))))


def test_a_guide_scores_for_the_masker():
    part = module()
    spec = part.looks["x"]
    masker, scores = spec.masker, []
    spec.guide = lambda look: look.tokens.raw.square().mean(-1)
    spec.masker = lambda tokens, draws, progress, score: (
        scores.append((progress, score)) or masker(tokens, draws, progress, score)
    )
    step = part.begin(batch())
    _ = step["x"].mask
    assert scores[0][0] == 0.0
    assert torch.equal(scores[0][1], step["x"].tokens.raw.square().mean(-1))


def test_a_corruptor_of_values_acts_before_the_tokenizer():
    class Negative(nn.Module):
        on = "view"

        def forward(self, view, look, draws):
            seen.append(draws.uniform(2))
            return View(1.0 - view.data, view.modality)

    seen = []
    part = module()
    part.looks["x"].corruptor = Negative()
    look = part.begin(batch())["x"]
    expected = part.networks["main"](View(1.0 - batch()["x"].data, "image")).x
    assert torch.equal(look.seen.x, expected)
    assert not torch.equal(look.seen.x, look.whole.x)
    assert not torch.equal(seen[0], look.draws.named("mask").uniform(2))


def test_masks_depend_on_seed_epoch_and_sample_alone():
    part = module()
    whole = part.begin(batch(6))["x"].mask.visible
    assert torch.equal(whole[2:5], part.begin(batch(3, first=2))["x"].mask.visible)
    assert not torch.equal(whole, part.begin(batch(6, epoch=1))["x"].mask.visible)
    assert not torch.equal(whole, module(seed=1).begin(batch(6))["x"].mask.visible)
    before = torch.random.get_rng_state()
    part.training_step(batch())
    assert torch.equal(before, torch.random.get_rng_state())


def test_terms_ask_for_taps_when_they_are_built():
    cross = PIXELS | {"predictor": {"_target_": "predictor/cross", "dim": 16, "depth": 2, "heads": 4}}
    part = module(objective={"pixels": cross})
    assert part.looks["x"].taps == {"embed", "block.0", "block.1"}
    seen = part.begin(batch())["x"].seen
    assert set(seen.taps) == part.looks["x"].taps
    assert {tap.shape for tap in seen.taps.values()} == {(4, 5, 32)}
    assert module().looks["x"].taps == set() and module().begin(batch())["x"].seen.taps == {}


def test_step_knows_its_looks():
    step = Step(batch(2), {"x": LookSpec("x", ("x",))}, {"main": module().networks["main"]}, seed=3)
    with pytest.raises(KeyError):
        step["y"]
    with pytest.raises(AssertionError, match="look 'x' has no masker"):
        _ = step["x"].mask


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"looks": {"x": {"views": ["z"]}}}, r"looks\.x.views: there is no view 'z'; there is: x"),
        ({"masker": None}, r"looks\.x: a corruptor needs a masker"),
        ({"corruptor": {"_target_": "corruptor/drop"}, "encoder": {"_target_": "encoder/beit", "dim": 16, "depth": 1, "heads": 2}},
         r"corruptor: corruptor/drop works with encoders that accept sequence or set or grid.*accepts 'full'"),
        ({"objective": {"pixels": PIXELS | {"look": "q"}}}, r"objective.*names look 'q', but the run has x"),
        ({"objective": {"pixels": PIXELS | {"at": "here"}}}, r"`at` has to be 'hidden', 'visible', 'all' or 'kept', or a list of them \(got 'here'\)"),
        ({"keep": "teacher"}, r"keep has to be 'student', or 'teacher' in a run with a teacher"),
        ({"masker": {"_target_": "masker/random", "ratio": 75}}, r"masker\.ratio.*\(got 75\); did you mean 0\.75\?"),
        ({"tokenizer": {"_target_": "tokenizer/image", "size": 30, "patch": 8}}, r"tokenizer\.patch=8 does not divide data\.size=30"),
        ({"encoder": {"_target_": "encoder/vit", "dim": 30, "depth": 1, "heads": 4}}, r"encoder\.heads=4 does not divide encoder\.dim=30"),
    ],
)  # fmt: skip
def test_parts_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        module(**changes)


def test_a_shared_mask_has_to_exist():
    with pytest.raises(ConfigError, match=r"looks\.y\.mask.*'z'"):
        module(looks={"x": {}, "y": {"views": ["x"], "mask": "z"}})


def test_a_misspelt_key_of_a_look_is_refused():
    with pytest.raises(ConfigError, match=r"looks\.x.*'maskr'.*'masker'"):
        module(looks={"x": {"maskr": None}})


def test_asking_for_the_mask_first_cuts_no_gradient():
    part = module()
    part.looks["x"].guide = lambda look: look.tokens.raw.mean(-1)
    pixels = batch()["x"].data.requires_grad_()
    look = part.begin(batch() | {"x": View(pixels, "image")})["x"]
    assert not look.mask.visible.requires_grad
    assert look.tokens.raw.requires_grad and look.score.requires_grad


def test_looks_that_hide_alike_share_the_mask_token():
    token = {"_target_": "corruptor/token"}
    looks = {"b": {"corruptor": token | {"std": 0.5}}}
    part = module(
        corruptor=token,
        views={"a": [], "b": [], "c": []},
        looks=looks,
        objective={"pixels": PIXELS | {"look": ["a", "b", "c"]}},
    )
    assert part.corruptors["a"] is part.corruptors["c"] and part.corruptors["a"] is not part.corruptors["b"]
    assert sum("mask_token" in name and "corruptors" in name for name, _ in part.named_parameters()) == 2


def test_two_views_of_one_size_are_one_call_and_the_numbers_of_two():
    pixels = PIXELS | {"look": ["a", "b"]}
    part = module(views={"a": [], "b": []}, objective={"pixels": pixels})
    given = batch(names=("a", "b"))
    calls = counted(part)
    step = part.begin(given)
    features = {name: step[name].seen for name in "ab"}
    assert calls["encoder"] == 1 and calls["embed"] == 2
    for name in "ab":
        look = part.begin(given)[name]
        alone = part.networks["main"].encoder(look.prepared("seen"))
        torch.testing.assert_close(features[name].x, alone.x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(features[name].prefix, alone.prefix, rtol=1e-5, atol=1e-6)
        assert torch.equal(features[name].index, alone.index)
