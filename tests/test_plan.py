"""`plan`: tensors counted against sizes worked out by hand, small steps against large ones, all of it against a real run."""

from __future__ import annotations

import json
import math
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.plan import EXACT, compare
from mmssl.api import plan as plan_of
from mmssl.api import resolve
from mmssl.cli import main
from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.run.planning import estimate as whole
from mmssl.run.planning import memory, timing
from mmssl.run.planning.curve import Curve, largest
from mmssl.run.planning.estimate import memory_bytes, parameters
from mmssl.run.planning.live import LABELS, Live, total
from mmssl.run.planning.text import count, duration, text
from mmssl.run.planning.trial import Trial
from mmssl.run.planning.weightless import Idle, empty

SMALL = [
    "data=sample", "trainer.accelerator=cpu", "trainer.max_steps=20", "encoder.dim=32", "encoder.depth=1",
    "encoder.heads=2", "data.batch_size=8",
]  # fmt: skip
MAE = [
    *SMALL,
    "objective.pixels.predictor.dim=16",
    "objective.pixels.predictor.depth=1",
    "objective.pixels.predictor.heads=2",
]


def made(recipe, overrides, weightless=True):
    tree = resolve(recipe, overrides)
    data = build.data(tree)
    return Trial(tree, data, build.make(tree["trainer"], "trainer"), weightless)


@pytest.fixture(scope="module")
def mae():
    return made("image/mae", MAE)


@pytest.fixture(scope="module")
def planned():
    return plan_of("image/mae", MAE, "2GiB")


# Counting


def test_bytes_are_those_of_storages_that_live():
    with Live() as live:
        a = torch.zeros(1000)  # 4000
        b = a.view(10, 100)[2:]  # the same storage
        c = a + 1  # 8000
        del c  # 4000
        d = torch.zeros(500, dtype=torch.float64)  # 8000
        e = torch.cat([d, d])  # 16000
        del d, e
        f = a[:1] * 2  # 4004
    lines = live.timeline().sum(0)
    assert lines.max() == 16000
    assert lines[-1] == 4004
    assert total([a, b, f]) == 4004


def test_labels_and_phases():
    live = Live()
    weight = torch.zeros(100)
    live.note(weight, "weights")
    with live:
        live.mark("forward")
        out = [weight + i for i in range(3)]
        live.mark("backward")
        grad = torch.ones(100)
        live.note(grad, "gradients")
        del out
        weight.mul_(2)
    names, peaks = live.peaks()
    assert names == ["forward", "backward"]
    rows = {label: peaks[i].tolist() for i, label in enumerate(LABELS)}
    assert rows["weights"] == [400, 400]
    assert rows["activations"] == [1200, 1200]
    assert rows["gradients"][1] == 400


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_compressed_matrices_count():
    dense = torch.eye(50)
    with Live() as live:
        matrix = dense.to_sparse_csr()
    assert total(matrix) == 50 * (4 + 16)
    assert live.timeline().sum(0)[-1] >= total(matrix)


def test_weights_without_memory_stay_without():
    before = memory.resident()
    with Idle():
        model = nn.Sequential(*[nn.Linear(4096, 4096) for _ in range(40)])  # 2.5 GiB
        nn.init.trunc_normal_(model[0].weight)
    empty(model, torch.device("cpu"))
    assert sum(p.numel() for p in model.parameters()) == 40 * (4096**2 + 4096)
    assert memory.resident() - before < 300 * 2**20
    out = model(torch.zeros(2, 4096))
    assert out.shape == (2, 4096)
    out.sum().backward()
    assert model[0].weight.grad.shape == (4096, 4096)
    assert memory.resident() - before < 300 * 2**20


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("image/mae", MAE),
        ("image/simclr", SMALL),
        ("image/dino", SMALL),
    ],
)
def test_weightless_steps_take_what_real_ones_take(recipe, more):
    """The same bytes and operations as with weights that have values."""
    first, second = (made(recipe, more, weightless).count(4) for weightless in (True, False))
    # scalars apart, which torch keeps in other ways
    assert first.lines.sum(0).max() == pytest.approx(second.lines.sum(0).max(), rel=5e-3)
    assert first.state == second.state
    assert (first.forward, first.backward) == (second.forward, second.backward)


def test_gradients_weights_and_state_are_those_of_the_parameters(mae):
    found = mae.count(4)
    size = 4 * sum(p.numel() for p in mae.module.parameters())
    buffers = 4 * sum(b.numel() for b in mae.module.buffers())
    kinds = dict(zip(LABELS, found.lines.max(1).tolist(), strict=True))
    assert kinds["gradients"] == size
    assert size <= kinds["weights"] <= size + 2 * buffers
    steps = 4 * len(list(mae.module.parameters()))  # AdamW counts the steps of each parameter
    assert found.state == kinds["optimizer"] == 2 * size + steps
    assert kinds["teacher"] == 0


def test_small_steps_tell_large_ones_to_the_byte(mae):
    curve = Curve([4, 8], [mae.count(4).lines, mae.count(8).lines])
    assert np.array_equal(curve.at(24), mae.count(24).lines)


def test_terms_that_compare_samples_grow_with_the_square():
    trial = made("image/simclr", SMALL)
    sizes = [4, 8, 12, 16]
    curve = Curve(sizes, [trial.count(n).lines for n in sizes])
    assert curve.exact
    assert np.array_equal(curve.at(48), trial.count(48).lines)
    line = Curve(sizes[:2], [trial.count(n).lines for n in sizes[:2]])
    assert (line.at(480) < curve.at(480)).any() and not (line.at(480) > curve.at(480)).any()


def test_operations_are_those_of_the_layers():
    """Against a count by hooks on the layers of a real model, and attention by its formula."""
    trial = made("image/mae", MAE, weightless=False)
    found, told = trial.count(4), []

    def linear(layer, given, out):
        told.append(2 * out.numel() * layer.in_features)

    hooks = [part.register_forward_hook(linear) for part in trial.module.modules() if isinstance(part, nn.Linear)]
    step = trial.module.begin(trial.batch(4))
    for term in trial.module.objective.values():
        term(step)
    for hook in hooks:
        hook.remove()
    # rows x heads x tokens^2 x width of a head, twice; 16 of 64 tokens are seen, the decoder has all
    attention = 2 * 2 * 4 * (16**2 * 32 + 64**2 * 16)
    assert found.forward >= sum(told) + attention
    assert found.forward == pytest.approx(sum(told) + attention, rel=0.1)
    assert 1.8 < found.backward / found.forward < 2.6


# Growing


def test_curve_of_whole_parabolas_is_exact():
    def f(n):
        return np.array([[7, 3 * n], [5 * n * n + n, 2 * n * n]])

    curve = Curve([2, 4, 6, 8], [f(n) for n in (2, 4, 6, 8)])
    assert curve.exact and np.array_equal(curve.at(4096), f(4096))


def test_curve_of_noise_is_a_line():
    values = [np.array([10.0 * n + e]) for n, e in zip((2, 4, 6, 8), (0, 1, -1, 0), strict=True)]
    curve = Curve([2, 4, 6, 8], values)
    assert not curve.exact
    assert curve.at(1000)[0] == pytest.approx(10000, rel=0.03)
    assert Curve([8], [[5.0]]).at(100)[0] == 5.0
    assert Curve([8, 16], [[5.0], [9.0]]).at(100)[0] == 51.0


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 17, 1000])
def test_largest(limit):
    assert largest(lambda n: n <= limit) == limit
    assert largest(lambda n: True, most=50) == 50


def test_a_device_is_asked_in_the_end():
    def take(samples):
        if samples > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert memory.verified(100, take) == 72  # 100, 90, 81, 72
    assert memory.verified(80, take) == 80
    assert memory.verified(1000, take) is None


def test_a_gpu_has_the_last_word(monkeypatch):
    """The estimate says 1000 samples fit; the device takes 900 at most."""

    class Real:
        def __init__(self, *said, weightless):
            assert not weightless

        def batch(self, samples):
            return {"x": torch.zeros(samples)}

        def count(self, samples):
            if samples > 900:
                raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(whole, "Trial", Real)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100_000, 200_000))
    step = types.SimpleNamespace(peak=lambda samples: 100 * samples)
    data = types.SimpleNamespace(full=False, dataset=lambda split: range(5000))
    given = types.SimpleNamespace(gpus=True, world=1, accumulate=1)
    found = whole._largest({}, step, data, given, 0, None, True)
    assert (found["batch_size"], found["verified"]) == (900, True)
    assert whole._largest({}, step, data, given, 0, None, False)["batch_size"] == 1000
    assert whole._largest({}, step, data, given, 0, 50_000, True)["batch_size"] == 450


# The plan


def test_plan_tells_everything(planned):
    assert planned["batch_size"] == planned["per_pass"] == 8
    assert planned["steps"] == 20
    assert planned["tokens"]["x"] == {"network": "main", "tokens": 64.0, "visible": 16.0}
    numbers = planned["parameters"]
    tree = resolve("image/mae", MAE)
    module = build.module(tree, build.data(tree).facts())
    assert numbers["total"]["parameters"] == sum(p.numel() for p in module.parameters())
    assert numbers["networks.main"]["parameters"] == sum(p.numel() for p in module.networks["main"].parameters())
    assert sum(own["parameters"] for name, own in numbers.items() if name != "total") == numbers["total"]["parameters"]
    kinds = {key: size for key, size in planned["memory"].items() if key.endswith("_mb") and key != "peak_mb"}
    assert sum(kinds.values()) == pytest.approx(planned["memory"]["peak_mb"], abs=0.5)
    assert kinds["allocator_mb"] == pytest.approx(0.35 * (sum(kinds.values()) - kinds["process_mb"]) / 1.35, abs=0.2)
    assert planned["flops"]["step"] == planned["flops"]["forward"] + planned["flops"]["backward"]
    assert planned["time"]["step_ms"] > 0 and 0 < planned["time"]["efficiency"] < 1.2
    assert planned["time"]["seconds"] == pytest.approx(20 * planned["time"]["step_ms"] / 1000, rel=0.05, abs=0.06)
    assert planned["disk"]["checkpoint_mb"] == pytest.approx(
        3 * 4 * numbers["total"]["parameters"] / 2**20, rel=0.1, abs=0.1
    )
    assert json.loads(json.dumps(planned)) == planned


def test_largest_batch_fills_the_memory_and_no_more(planned):
    found = planned["largest"]
    assert found["memory_mb"] == 2048 and found["batch_size"] > 100
    trial = made("image/mae", MAE)
    fits = trial.count(found["per_pass"] // 16).lines.sum(0).max() * 16 / 2**20
    assert 0.87 * 2048 < fits < 0.93 * 2048  # a tenth is left free
    assert plan_of("image/mae", MAE, "100kB", measure=False)["largest"]["batch_size"] == 0


def test_teacher_and_heads_are_told_apart():
    trial = made("image/byol", SMALL)
    numbers = parameters(trial.module)
    assert numbers["teacher"]["trained"] == 0
    assert numbers["teacher"]["parameters"] > numbers["networks.main"]["parameters"]
    assert {name.split(".")[0] for name in numbers} >= {"networks", "heads", "objective", "teacher", "total"}


def settings(**changes):
    return replace(build.make({"_target_": "trainer/lightning"}, "trainer"), **changes)


def test_ranks_share_weights_or_keep_gradients(mae):
    counted = [mae.count(n) for n in (4, 8)]
    alone = memory.Step(counted, settings(), 0, 0.0)
    ddp = memory.Step(counted, settings(devices=4, strategy="ddp"), 0, 0.0)
    fsdp = memory.Step(counted, settings(devices=4, strategy="fsdp"), 1000, 0.0)
    size = 4 * sum(p.numel() for p in mae.module.parameters())
    assert ddp.memory(8)["gradients"] == size
    assert alone.peak(8) <= ddp.peak(8) <= alone.peak(8) + size
    assert fsdp.memory(8)["weights"] == pytest.approx(alone.memory(8)["weights"] / 4)
    assert fsdp.memory(8)["optimizer"] == pytest.approx(alone.memory(8)["optimizer"] / 4)
    assert fsdp.memory(8)["gathered"] == 1000
    own = memory.gathered(mae.module)
    assert 0 < own < size


def test_passes_wait_with_their_batches(mae):
    tree = resolve("image/mae", [*MAE, "data.batch_size=32", "trainer.accumulate=4"])
    data = build.data(tree)
    given = build.make(tree["trainer"], "trainer")
    data.set_share(0, 1, 4)
    trial, step = memory.counted(tree, data, given, 8)
    assert trial.weightless
    assert step.peak(8) == pytest.approx(trial.count(8, 4).lines.sum(0).max(), rel=0.02)


@pytest.mark.parametrize("more", ["trainer.precision=bf16-mixed", "trainer.checkpoint_activations=true"])
def test_precision_and_activation_checkpoints_take_less(more, mae):
    def kept(trial, which):
        return trial.count(8).lines[LABELS.index(which)].max()

    other = made("image/mae", [*MAE, more])
    assert kept(other, "activations") < kept(mae, "activations")
    assert kept(other, "weights") == kept(mae, "weights")


def test_what_needs_values_is_counted_in_earnest():
    found = plan_of("graph/graphmae", ["data=sample", "trainer.accelerator=cpu", "encoder.dim=32"], measure=False)
    assert found["memory"]["weightless"] is False
    assert found["largest"]["batch_size"] is None and "full" in found["largest"]["why"]
    assert found["time"]["seconds"] is None and "not asked for" in text(found)


def test_no_step_is_taken_in_earnest_without_memory(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(ConfigError, match="graph/graphmae can only be planned by taking a small step in earnest"):
        plan_of("graph/graphmae", ["data=sample", "trainer.accelerator=cpu", "encoder.dim=32"], measure=False)


def test_time_is_unknown_where_no_step_fits(mae, monkeypatch):
    step = memory.Step([mae.count(n) for n in (4, 8)], settings(), 0, 0.0)
    monkeypatch.setattr(timing, "available", lambda: 1000)
    monkeypatch.setattr(timing, "matrix_rate", lambda device, dtype: 1e9)
    found = timing.measured({}, mae.data, settings(accelerator="cpu"), step, 8)
    assert found["step_ms"] is None and "memory" in found["why"]


def test_several_machines_are_planned_on_one():
    words = [*MAE, "trainer.devices=4", "trainer.nodes=2", "data.batch_size=64"]
    found = whole.plan(resolve("image/mae", words), measure=False)
    assert (found["world"], found["per_pass"], found["batch_size"]) == (8, 8, 64)


# Words


@pytest.mark.parametrize(
    ("said", "meant"), [("24GB", 24 * 10**9), ("80GiB", 80 * 2**30), ("1.5 gb", 1500000000), (None, None)]
)
def test_memory_in_words(said, meant):
    assert memory_bytes(said) == meant


def test_words():
    assert [count(n) for n in (0, 999, 1000, 85_800_000, 1.5e12)] == ["0", "999", "1k", "85.8M", "1.5T"]
    assert [duration(s) for s in (5, 200, 8000, 400000)] == ["5 s", "3.3 min", "2.2 h", "4.6 days"]


def test_text_names_what_counts(planned):
    told = text(planned)
    for word in (
        "parameters",
        "tokens       x: 64 of a sample, 16 visible",
        "memory",
        "largest      batch of",
        "time",
        "disk",
    ):
        assert word in told
    assert math.isfinite(planned["memory"]["peak_mb"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan"], "needs a recipe"),
        (["plan", "image/mea"], "did you mean 'image/mae'"),
        (["plan", "image/mae", "memory=much"], "memory=much: give a number with a unit"),
        (["plan", "image/mae", "measure=maybe"], "measure=maybe: give true or false"),
        (["plan", "image/mae", "data.batch_size=100000"], "larger than the train split"),
        (["plan", "image/mae", "trainer.accumulate=3", "data.batch_size=8"], "does not divide"),
    ],
)
def test_refused(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_command_line(capsys):
    assert main(["plan", "image/mae", "measure=false", "--json", *MAE]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert out.count("\n") == 1 and (found["verb"], found["schema"]) == ("plan", 1)
    assert main(["plan", "image/mae", "measure=false", *MAE]) == 0
    assert "image/mae on cpu, 32-true" in capsys.readouterr().out


def test_estimate_is_what_a_real_run_takes(tmp_path):
    """Fresh processes: one plans, one trains, its allocator told to give memory back; `make plan` has larger ones."""
    words = ["encoder.dim=384", "encoder.depth=4", "encoder.heads=6", "data.batch_size=64"]
    row = compare("image/mae", words, tmp_path, **EXACT)
    assert row["off"] == pytest.approx(0, abs=0.15)
    assert row["off_without_process"] == pytest.approx(0, abs=0.15)
