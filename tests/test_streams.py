"""Further networks beside the main one: their looks, their facts, and CROMA's two streams in one step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import ConfigError, compose
from mmssl.config.files import describe
from mmssl.types import View
from tests.parts.test_fusion import FUSE, SECOND, pair, two
from tests.small import FACTS, batch, images, tree

EMA = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}
CONTRAST = {
    "_target_": "term/match", "looks": ["optical", "radar"], "head": {"optical": "o", "radar": "r"}, "detach": False,
    "loss": {"_target_": "loss/clip"},
}  # fmt: skip
HEADS = {name: {"_target_": "head/feedforward", "dim": 8} for name in "or"}
BOTH = {"heads": HEADS, "objective": {"contrast": CONTRAST, "joint": FUSE}}


def test_each_stream_is_encoded_once():
    part = two(**BOTH)
    calls = Counter()
    for name, network in part.networks.items():
        network.encoder.register_forward_hook(lambda *_, n=name: calls.update([n]))
    part.training_step(pair())
    assert calls == {"main": 1, "radar": 1}


def test_a_stream_has_facts_of_its_own_and_the_datas_else():
    part = two(**BOTH)
    assert part.networks["radar"].spec.channels == 2 and part.networks["main"].spec.channels == 3
    torch.testing.assert_close(part.networks["radar"].tokenizer.std.flatten(), torch.tensor([0.1, 0.2]) * 255)
    plain = two(streams={"radar": {k: v for k, v in SECOND.items() if k != "facts"}}, **BOTH)
    assert plain.networks["radar"].spec.channels == 3


def test_the_main_network_is_kept_and_starts_as_without_streams():
    part = two(**BOTH)
    assert part.kept is part.networks["main"]
    alone = build.network(tree(encoder=SECOND["encoder"]), FACTS)
    fresh = build.fresh_network(tree(encoder=SECOND["encoder"], streams={"radar": SECOND}), FACTS, 0)
    assert [n for n, _ in fresh.named_parameters()] == [n for n, _ in alone.named_parameters()]
    for (name, x), y in zip(part.networks["main"].named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(x, y), name


def test_a_teacher_twins_every_network():
    part = two(teacher=EMA, **BOTH)
    assert {"main", "radar"} <= set(part.teacher.twins)


def test_a_corruptor_belongs_to_its_looks_network():
    part = two(
        streams={"radar": SECOND | {"encoder": SECOND["encoder"] | {"dim": 16}}},
        corruptor={"_target_": "corruptor/token"}, heads=HEADS, objective={"contrast": CONTRAST},
    )  # fmt: skip
    assert part.corruptors["radar"].mask_token.shape[-1] == 16 and part.corruptors["optical"].mask_token.shape[-1] == 32
    assert torch.isfinite(part.training_step(pair()))


def logits(part, given):
    step = part.begin(given)
    o, r = (F.normalize(step[name].answer(name[0], "seen", "mean"), dim=1) for name in ("optical", "radar"))
    return (o @ r.T).detach()


@pytest.mark.parametrize("stream", ["optical", "radar"])
def test_another_sensor_of_one_sample_changes_its_row_or_column_alone(stream):
    part, given = two(**BOTH), pair()
    before = logits(part, given)
    data = given[stream].data.clone()
    data[2] = images(1, seed=77)[0, : data.shape[1]]
    changed = (logits(part, given | {stream: View(data, "image")}) - before).abs() > 1e-6
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[2 if stream == "optical" else slice(None), 2 if stream == "radar" else slice(None)] = True
    assert torch.equal(changed, expected)


def croma(*overrides):
    found = compose("multimodal/croma", ["data=folder", "data.root=FOLDER", *overrides])
    check(found)
    return found


def test_croma_at_the_papers_sizes():
    """56 of 225 kept by each sensor, in different places; 12 and 6 layers of 16 heads, fused in 6."""
    small = ("encoder.dim=32", "streams.radar.encoder.dim=32", "objective.joint.predictor.dim=16")
    part = build.module(croma(*small), FACTS | {"samples": 8})
    depth = {name: len(network.encoder.blocks) for name, network in part.networks.items()}
    assert depth == {"main": 12, "radar": 6} and len(part.objective["joint"].fusion.blocks) == 6
    assert part.networks["radar"].encoder.blocks[0].attn.num_heads == 16
    given = batch(2, names=("optical", "radar"))
    given |= {"optical": View(images(2, 120), "image"), "radar": View(images(2, 120, seed=5)[:, :2], "image")}
    step = part.begin(given)
    kept = [step[name].mask.visible for name in ("optical", "radar")]
    assert [x.sum(1).tolist() for x in kept] == [[56, 56], [56, 56]] and kept[0].shape == (2, 225)
    assert (kept[0] != kept[1]).any(1).all()
    assert step["radar"].seen.x.shape == (2, 56, 32)
    with torch.no_grad():
        assert part.objective["joint"].predict(step).shape == (2, 225, 8 * 8 * 5)


def test_croma_says_what_it_is():
    row = describe("multimodal/croma")
    assert row["modality"] == "multimodal" and row["streams"] == ["radar", "optical"]
    assert croma()["encoder"]["dim"] == 768 and croma()["streams"]["radar"]["tokenizer"]["patch"] == 8
    assert "streams" not in describe("image/mae") and describe("image/mae")["modality"] == "image"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("looks.radar.network=rader", r"looks\.radar\.network: there is no stream 'rader'; did you mean 'radar'"),
        ("looks.optical.network=rader", r"looks\.optical\.network: there is no stream 'rader'; did you mean 'radar'"),
        ("~streams.radar.tokenizer", r"streams\.radar\.tokenizer has to be a part"),
        ("~streams.radar.encoder", r"streams\.radar\.encoder has to be a part"),
        ("streams.radar.tokeniser=null", r"streams\.radar\.tokeniser.*did you mean 'tokenizer'"),
        ("streams.radar.encoder.dept=3", r"streams\.radar\.encoder\.dept: encoder/alibi takes no 'dept'"),
        ("looks.radar.network=main", r"streams\.radar: no look is of this stream"),
        ("streams.main={tokenizer: {_target_: tokenizer/image}, encoder: {_target_: encoder/vit}}", r"streams\.main"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        croma(override)


def test_a_view_of_a_misspelt_view_is_refused(tmp_path):
    found = croma("views.radar=[{_target_: view/of, name: optcal}]")
    found["data"]["views"] = found["views"]
    with pytest.raises(ConfigError, match=r"view/of names view 'optcal'.*did you mean 'optical'"):
        build.data(found)


def test_a_stream_without_a_tokenizer_is_refused_when_built():
    with pytest.raises(ConfigError, match=r"streams\.radar\.tokenizer has to be a part"):
        two(streams={"radar": {"encoder": SECOND["encoder"]}}, **BOTH)


def test_small_steps_train_both_streams():
    part, given = two(**BOTH, optim={"_target_": "optim/adamw", "lr": 3e-3}), pair(8)
    part.batch_size = 8
    optimizer = torch.optim.AdamW(part.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = part.training_step(given)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for n, p in part.named_parameters() if n.startswith("networks"))
