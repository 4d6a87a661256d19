"""Codes: how they are fitted, found, put in place of tokens, and asked for."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmssl import api
from mmssl.config.compose import ConfigError, compose
from mmssl.config.stages import composed
from mmssl.draws import Draws
from mmssl.parts.beit_maskers import BEiTBlocks
from mmssl.parts.codes import Nearest, RandomProjection, nearest
from mmssl.parts.seen_maskers import SeenToo
from mmssl.parts.supervised import CrossEntropy
from mmssl.run.directory import read_summary
from mmssl.run.untrained import standing
from tests.small import PIXELS, batch, module, tokens

RAW = {"_target_": "target/raw"}
KMEANS = {"_target_": "fit/kmeans", "target": RAW, "clusters": 3, "tokens": 40, "restarts": 1, "passes": 5}


def written(folder, centroids):
    save_file({"centroids": centroids}, folder / "codes.safetensors")
    return str(folder)


def coded(path, **more):
    target = {"_target_": "target/codes", "of": RAW, "codes": {"_target_": "codes/nearest", "path": path}}
    return PIXELS | {"target": target, "loss": {"_target_": "loss/cross_entropy"}} | more


def test_nearest_is_the_smallest_distance(monkeypatch):
    monkeypatch.setattr("mmssl.parts.codes._AT_ONCE", 16)  # so that rows are looked up in several parts
    values, centroids = torch.randn(2, 7, 5), torch.randn(6, 5)
    plain = np.linalg.norm(values.numpy()[:, :, None] - centroids.numpy(), axis=-1).argmin(-1)
    assert torch.equal(nearest(values, centroids), torch.from_numpy(plain))


def test_nearest_refuses_what_is_no_code(tmp_path):
    with pytest.raises(ValueError, match=r"there are no codes in .*a run with `fit` leaves codes\.safetensors"):
        Nearest(4, path=str(tmp_path))
    path = written(tmp_path, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="are 5 wide, what they are to be found for 4"):
        Nearest(4, path=path)
    assert Nearest(5, path=f"{path}/codes.safetensors").count == 3


def test_random_projections_are_functions_of_the_seed():
    values = torch.randn(20, 12)
    one, same, other = (RandomProjection(12, count=50, dim=8, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one(values), same(values)) and not torch.equal(one(values), other(values))
    projected = values @ one.matrix.T
    projected = (projected - projected.mean(-1, keepdim=True)) / (projected.var(-1, False, True) + 1e-5).sqrt()
    assert torch.equal(one(values), torch.cdist(projected, one.centroids).argmin(-1))
    assert not one.state_dict()  # they need not be kept
    assert one.matrix.std() == pytest.approx(math.sqrt(2 / (12 + 8)), rel=0.2)


def test_codes_are_classes_of_tokens(tmp_path):
    centroids = torch.randn(7, 192)
    part = module(objective={"ids": coded(written(tmp_path, centroids))})
    step = part.begin(batch())
    term = part.objective["ids"]
    query, _ = term.query(step["x"], "hidden")
    ids = term.target(step["x"], query)
    assert ids.dtype == torch.int64 and term.target.dim == 7
    assert torch.equal(ids, torch.cdist(query.raw, centroids).argmin(-1))
    total, count = term(step)
    logits = term.predict(step)[0][1]
    log = torch.log_softmax(logits, -1).gather(-1, ids[..., None])
    assert float(total.detach()) == pytest.approx(float(-log.sum().detach()), rel=1e-5) and count == ids.numel()
    term.predictor.head.weight.data.zero_(), term.predictor.head.bias.data.zero_()
    total, count = term(part.begin(batch()))
    assert float(total.detach() / count) == pytest.approx(math.log(7), rel=1e-6)  # uniform logits
    assert not [key for key in part.state_dict() if "centroids" in key]


def test_cross_entropy_takes_rows_of_any_shape():
    logits, ids = torch.randn(2, 3, 4, 5), torch.randint(5, (3, 4))
    found = CrossEntropy(smoothing=0.1)(logits, ids)  # two answers to one target
    smooth = torch.nn.functional.one_hot(ids, 5) * 0.9 + 0.1 / 5
    torch.testing.assert_close(found, -(smooth * logits.log_softmax(-1)).sum(-1))
    torch.testing.assert_close(CrossEntropy()(logits[0], smooth), -(smooth * logits[0].log_softmax(-1)).sum(-1))


# fits


def test_kmeans_finds_clusters():
    part = module(objective={"fit": KMEANS}).objective["fit"]
    centres = torch.tensor([[0.0], [10.0], [20.0]]).expand(3, 192)
    rows = centres.repeat_interleave(30, 0) + 0.01 * torch.randn(90, 192)
    tensors, told = part.fit(rows)
    assert torch.allclose(tensors["centroids"].mean(1).sort().values, torch.tensor([0.0, 10.0, 20.0]), atol=0.1)
    assert tensors["counts"].tolist() == [30, 30, 30] and told["empty"] == 0 and told["tokens"] == 90
    apart = (rows.unsqueeze(1) - tensors["centroids"]).double().square().sum(-1)
    assert told["inertia"] == pytest.approx(float(apart.min(1).values.mean()), rel=1e-5)
    with pytest.raises(ValueError, match=r"fit\.clusters=3, but the training data hold 2 tokens"):
        part.fit(rows[:2])
    with pytest.raises(ConfigError, match=r"fit\.clusters has to lie between 2 and fit\.tokens=40 \(got 50\)"):
        module(objective={"fit": KMEANS | {"clusters": 50}})


SMALL = ["data=sample", "data.workers=0", "data.batch_size=100", "fit.tokens=500", "fit.clusters=5"]
FIT = "fit={_target_: fit/kmeans, target: {_target_: target/raw}}"


def test_a_run_that_fits_leaves_codes(runs):
    given = [FIT, *SMALL]
    run = api.pretrain("image/mae", given)
    codes = load_file(run.path / "codes.safetensors")
    assert run.summary["status"] == "completed" and run.summary["fit"]["tokens"] == 500 == int(codes["counts"].sum())
    assert codes["centroids"].shape == (5, 16) and (run.path / "report.html").is_file()
    # tokens are drawn, whatever the batches
    again = api.pretrain("image/mae", [*given, "data.batch_size=37"])
    assert torch.equal(load_file(again.path / "codes.safetensors")["centroids"], codes["centroids"])
    # what was killed begins again
    (again.path / "codes.safetensors").unlink()
    (again.path / "summary.json").write_text(json.dumps(read_summary(again.path) | {"status": "running"}))
    done = api.resume(again.path)
    assert done.path == again.path and done.summary["status"] == "completed"
    assert torch.equal(load_file(done.path / "codes.safetensors")["centroids"], codes["centroids"])
    assert run.summary["fit"]["inertia"] < 0.9 * float(codes["centroids"].var(0).sum() + run.summary["fit"]["inertia"])
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        api.evaluate(str(run.path), [], ["knn"])


def test_a_stage_may_fit_for_the_next(tmp_path, runs):
    file = tmp_path / "fitted.yaml"
    file.write_text(
        """
# @package _global_
meta: {paper: none, family: [distillation], command: none, expect: none}
defaults: [/recipe/image/mae, _self_]
stages:
  units: {fit: {_target_: fit/kmeans, target: {_target_: target/raw}, clusters: 6, tokens: 300, restarts: 1}}
objective:
  ids:
    _target_: term/predict
    predictor: {_target_: predictor/transformer, dim: 32, depth: 1, heads: 2}
    target: {_target_: target/codes, of: {_target_: target/raw}, codes: {_target_: codes/nearest, path: "${stage:units}"}}
    loss: {_target_: loss/cross_entropy}
"""
    )
    given = ["data=sample", "data.workers=0", "trainer.max_steps=2", "encoder.depth=1"]
    given += ["evaluation.protocols={knn: null, linear: null}", "evaluation.online=false"]
    tree = composed(str(file), given)
    units = tree["stages"]["units"]
    # what is fitted needs neither the objective, which reads its codes, nor a mask
    assert units["objective"] == {} and units["masker"] is None and tree["objective"]["ids"]
    with standing(tree) as own:  # before anything is fitted
        path = own["objective"]["ids"]["target"]["codes"]["path"]
        assert load_file(f"{path}/codes.safetensors")["centroids"].shape == (64, 16)
    run = api.pretrain(str(file), [*given, "stages.units.fit.clusters=6"])
    assert run.summary["status"] == "completed" and run.summary["steps"] == 2
    codes = load_file(run.path / "stages" / "units" / "codes.safetensors")
    assert codes["centroids"].shape == (6, 16)


def test_a_term_of_null_is_taken_away():
    tree = compose("image/mr_mae", ["data=sample", "objective.mimic=null"])
    assert list(tree["objective"]) == ["pixels"]


# CCViT


def test_tokens_that_are_seen_may_be_asked_for_too():
    made = tokens(5, 196, grid=(14, 14))
    draws = Draws.of(0, 0, torch.arange(5))
    mask = SeenToo(masker=BEiTBlocks(ratio=0.3827), share=0.1021)(made, draws, 0.0, None)
    assert mask.hidden.sum(1).tolist() == [75] * 5 and mask.target_count == 95 and mask.visible_count == 121
    asked = mask.targets[:, 0]
    assert asked.sum(1).tolist() == [95] * 5 and (asked & mask.visible).sum(1).tolist() == [20] * 5
    assert bool((asked | mask.visible).all()) and not torch.equal(asked[0], asked[1])
    with pytest.raises(ValueError, match=r"masker\.share has to be at least 0 and below 1 \(got 2\)"):
        SeenToo(masker=BEiTBlocks(), share=2)


def hidden_twice(path):
    first, second = {"_target_": "corruptor/nearest_code", "path": path}, {"_target_": "corruptor/token"}
    blocks = {"_target_": "masker/beit_blocks", "ratio": 0.5, "smallest": 2}
    return {
        "masker": {"_target_": "masker/seen_too", "masker": blocks, "share": 0.25},
        "corruptor": {"_target_": "corruptor/both", "first": first, "second": second},
        "encoder": {"_target_": "encoder/beit", "dim": 32, "depth": 4, "heads": 4},
    }


def test_what_is_seen_and_asked_for_is_replaced_by_its_code(tmp_path):
    centroids = torch.randn(7, 192)
    path = written(tmp_path, centroids)
    linear = {"predictor": {"_target_": "predictor/linear"}}
    part = module(objective={"ids": coded(path, **linear)}, **hidden_twice(path))
    look = part.begin(batch())["x"]
    given = look.prepared("seen")
    replaced = look.mask.visible & look.mask.targets[:, 0]
    assert replaced.sum(1).tolist() == [4] * 4 and look.mask.targets.sum((1, 2)).tolist() == [12] * 4
    assert torch.equal(given.raw[replaced], centroids[torch.cdist(look.tokens.raw[replaced], centroids).argmin(-1)])
    assert torch.equal(given.raw[~replaced], look.tokens.raw[~replaced])  # of the clean view, which targets read
    embed = part.networks["main"].embed.proj
    torch.testing.assert_close(given.x[look.mask.visible], embed(given.raw[look.mask.visible]))
    token = part.corruptors["x"].second.mask_token
    assert torch.equal(given.x[look.mask.hidden], token[0].expand(int(look.mask.hidden.sum()), -1))
    wrong = hidden_twice(path)
    wrong["corruptor"]["first"] = wrong["corruptor"]["second"]
    with pytest.raises(ConfigError, match=r"corruptor/both: the first acts on tokens"):
        module(**wrong)
    with pytest.raises(ConfigError, match=r"the codes of .* are 5 wide and tokens have 192 raw values"):
        module(**hidden_twice(written(tmp_path, torch.zeros(2, 5))))


def aggregated(path, **more):
    predictor = {"_target_": "predictor/aggregate", "depth": 2, "heads": 4, "layer": 0.5} | more
    ids = coded(path, predictor=predictor, weight=1.0 + bool(more))
    given = hidden_twice(path) | {"masker": {"_target_": "masker/beit_blocks", "ratio": 0.5, "smallest": 2}}
    return module(objective={"ids": ids}, **given | {"corruptor": {"_target_": "corruptor/token"}})


def test_an_aggregation_joins_inner_patches_and_the_last_class_token(tmp_path):
    part = aggregated(written(tmp_path, torch.randn(7, 192)))
    term = part.objective["ids"]
    assert term.predictor.taps == ("block.1", "block.3")
    step = part.begin(batch())
    seen, (query, found) = step["x"].seen, term.predict(step)[0]
    x = torch.cat([seen.taps["block.3"][:, :1], seen.taps["block.1"][:, 1:]], 1)
    for block in term.predictor.blocks:
        x = block(x, shared_rel_pos_bias=term.predictor.bias())
    plain = term.predictor.head(term.predictor.norm(x))[:, 1:]
    torch.testing.assert_close(found, plain.gather(1, query.index.unsqueeze(-1).expand(-1, -1, 7)))
    part.training_step(batch()).backward()
    blocks = part.networks["main"].encoder.blocks
    assert all(blocks[i].attn.qkv.weight.grad.abs().sum() > 0 for i in range(4))  # the last ones by the class token


def test_an_aggregation_may_answer_twice(tmp_path):
    part = aggregated(written(tmp_path, torch.randn(7, 192)), both=True)
    part.train()
    step = part.begin(batch())
    term = part.objective["ids"]
    total, count = term(step)
    assert int(count) == 2 * 4 * 8 == int(term.count(step))
    query, both = term.predict(step)[0]
    both = both.detach()
    ids = term.target(step["x"], query)
    plain = sum(torch.nn.functional.cross_entropy(one.flatten(0, 1), ids.flatten()) for one in both)
    assert float(term.weight * total.detach() / count) == pytest.approx(float(plain), rel=1e-5)
    torch.testing.assert_close(both[0], term.predictor.head(step["x"].seen.at(query)))
    term.predictor.head.weight.data.zero_(), term.predictor.head.bias.data.zero_()
    total, count = term(part.begin(batch()))
    assert float(term.weight * total.detach() / count) == pytest.approx(2 * math.log(7), rel=1e-6)
    part.eval()
    assert term.predict(part.begin(batch()))[0][1].shape == (4, 8, 7)


# layers of frozen networks, and dBOT


def test_dbot_asks_the_class_token_of_a_layer_without_the_last_norm():
    part, data = api.build("image/dbot", ["data=sample", "data.batch_size=3", "encoder.depth=2"])
    term = part.objective["distill"]
    step = part.begin(data.batch([(0, i) for i in range(3)]))
    query, _ = term.query(step["x"], "hidden")
    found = term.target.with_class(step["x"], query)
    network = term.target._network[0]
    plain = network(step["x"].views[0], ("block.1",)).taps["block.1"]
    places = torch.cat([torch.zeros(3, 1, dtype=torch.int64), query.index + 1], 1)
    torch.testing.assert_close(found, plain.gather(1, places.unsqueeze(-1).expand(-1, -1, plain.shape[-1])))
    count = term(step)[1]
    assert int(count) == 3 * (48 + 1)  # 64 tokens, 16 of which are seen
    with torch.no_grad():  # the class token counts
        for p in term.predictor.parameters():
            p.zero_()
        zero = term(part.begin(data.batch([(0, i) for i in range(3)])))[0]
    goal = (found - found.mean(-1, keepdim=True)) / (found.var(-1, keepdim=True) + 1e-6).sqrt()
    plain = torch.nn.functional.smooth_l1_loss(torch.zeros_like(goal), goal, beta=2.0, reduction="none").mean(-1)
    assert float(zero) == pytest.approx(float(plain.sum()), rel=1e-5)
    first, _ = api.build("image/dbot", ["data=sample", "encoder.depth=2"], stage="random")
    for key, value in first.networks["main"].state_dict().items():  # the teacher is the student of the stage before
        assert torch.equal(network.state_dict()[key], value)
