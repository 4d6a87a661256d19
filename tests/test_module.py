"""The module: the objective of a batch is the same on any number of ranks, and hooks act once per optimizer step."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import warnings

import lightning
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mmssl.types import View
from tests.small import PIXELS, batch, gradients, module

SHARES = {1: [(0, 7)], 2: [(0, 5), (5, 2)], 3: [(0, 3), (3, 1), (4, 3)]}
TEACHER = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}
MIMIC = {
    "_target_": "term/predict", "at": "visible", "weight": 0.5, "predictor": {"_target_": "predictor/linear"},
    "loss": {"_target_": "loss/smooth_l1"}, "target": {"_target_": "target/teacher"},
}  # fmt: skip


class Padded(nn.Module):
    """A tokenizer of samples of unequal length, padded to the longest of the batch: 5 to 14 of 16 tokens, by content."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer, self.spec = tokenizer, tokenizer.spec

    def forward(self, view):
        tokens = self.tokenizer(view)
        count = 5 + (view.data[:, 0, 0, 0] * 255).long() % 10
        longest = int(count.max())
        valid = torch.arange(longest) < count.unsqueeze(1)
        return tokens.take(tokens.index[:, :longest], valid=valid)


def ragged(objective=None):
    """A module of two terms on samples of unequal length, the same on every rank."""
    objective = objective or {"pixels": PIXELS, "mimic": MIMIC}
    part = module(objective=objective, teacher=TEACHER, data={"batch_size": 7})
    for network in (part.networks["main"], part.teacher.twins["main"]):
        network.tokenizer = Padded(network.tokenizer)
    return part.double()


def share(first, count):
    """Some samples of one batch, in float64."""
    whole = batch(count, first)
    return whole | {"x": View(whole["x"].data.double(), "image")}


class Loss(nn.Module):
    """DistributedDataParallel calls `forward`."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, given):
        return self.part.training_step(given)


def _rank(rank, folder):
    """One process: the step on three ranks, then on the first two."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for world in (3, 2):
        if rank >= world:
            continue
        dist.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
        wrapped = Loss(ragged())
        parallel = DistributedDataParallel(wrapped)
        parallel(share(*SHARES[world][rank])).backward()
        part = wrapped.part
        found = {"gradients": gradients(part), "latest": dict(part.latest)}
        torch.save(found, f"{folder}/world{world}.rank{rank}")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What every rank found, by number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:  # the server imports once, and three ranks are forked from it
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        multiprocessing.set_forkserver_preload(["tests.small"])
        mp.start_processes(_rank, (str(folder),), nprocs=3, start_method="forkserver")
    return {world: [torch.load(folder / f"world{world}.rank{rank}") for rank in range(world)] for world in (2, 3)}


@pytest.fixture(scope="module")
def alone():
    part = ragged()
    part.training_step(share(0, 7)).backward()
    return part


def test_counts_are_unequal():
    """Else the tests below would also pass for a mean of means."""
    part = ragged()
    weights = [part.objective["pixels"](part.begin(share(*s)))[1].item() for s in SHARES[3]]
    per_sample = [w / s[1] for w, s in zip(weights, SHARES[3], strict=True)]
    assert len(set(per_sample)) == 3
    assert part.begin(share(0, 7))["x"].tokens.valid.sum(1).unique().numel() > 3
    assert (
        part.begin(share(*SHARES[3][0]))["x"].tokens.index.shape
        != part.begin(share(*SHARES[3][1]))["x"].tokens.index.shape
    )


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_of_ranks_average_to_those_of_one_process(ranks, alone, world):
    expected = gradients(alone)
    assert any(g is not None and g.abs().max() > 1e-3 for g in expected.values())
    for found in ranks[world]:
        assert found["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            other = found["gradients"][name]
            assert (gradient is None) == (other is None), name
            if gradient is not None:
                torch.testing.assert_close(other, gradient, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_logs_the_values_of_the_global_batch(ranks, alone, world):
    for name in ("loss", "pixels", "mimic"):
        for found in ranks[world]:
            assert float(found["latest"][name]) == pytest.approx(float(alone.latest[name]), rel=1e-6), name


@pytest.mark.parametrize("shares", [*SHARES.values(), [(i, 1) for i in range(7)]], ids=lambda s: f"{len(s)} parts")
def test_a_terms_value_does_not_depend_on_the_split(alone, shares):
    part = ragged()
    for name, term in part.objective.items():
        answers = [term(part.begin(share(*s))) for s in shares]
        value = sum(s.detach() for s, _ in answers) / sum(w for _, w in answers)
        assert float(value) == pytest.approx(float(alone.latest[name]), rel=1e-6)


def test_loss_is_the_weighted_sum_of_means(alone):
    part = ragged()
    step, total = part.begin(share(0, 7)), 0.0
    for name, term in part.objective.items():
        value, weight = term(step)
        assert float(weight) == float(
            step["x"].mask.target_index[1].sum() if name == "pixels" else step["x"].mask.visible.sum()
        )
        total += (0.5 if name == "mimic" else 1.0) * float(value.detach() / weight)
    assert float(alone.latest["loss"]) == pytest.approx(total, rel=1e-6)


def test_a_rank_without_any_token_adds_nothing(monkeypatch):
    monkeypatch.setattr("mmssl.ranks.world", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda told: None)  # the other rank has none either
    pixels = PIXELS | {"target": {"_target_": "target/raw"}}
    part = module(masker={"_target_": "masker/random", "ratio": 0.0}, objective={"pixels": pixels})
    loss = part.training_step(batch())
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is None or not p.grad.isnan().any() for p in part.parameters())


def test_kept_is_the_student_or_its_twin():
    part = module(teacher=TEACHER)
    assert part.kept is part.networks["main"]
    part = module(teacher=TEACHER, keep="teacher")
    assert part.kept is part.teacher.twins["main"]
    assert torch.equal(part(batch()["x"]).x, part.teacher.twins["main"](batch()["x"]).x)
    assert part(batch()["x"]).x.shape == (4, 16, 32)


def test_weights_come_from_the_seed_alone():
    before = torch.random.get_rng_state()
    first, second, other = module(), module(), module(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == (a.ndim == 1), name  # norms and biases are constants


# with Lightning's trainer


class Spy(lightning.Callback):
    """The rate of every batch; weights of student and twin at the start of every batch and at the end."""

    def __init__(self):
        self.rates, self.rows, self.at_end = [], [], []

    def look(self, pl_module):
        twin = pl_module.teacher.twins["main"].embed.proj.weight.detach().clone() if pl_module.teacher else None
        return pl_module.networks["main"].embed.proj.weight.detach().clone(), twin

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.append(self.look(pl_module))

    def on_train_end(self, trainer, pl_module):
        self.rows.append(self.look(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.at_end.append(self.look(pl_module))


def fit(part, batches, steps, accumulate=1):
    part.steps = steps
    spy = Spy()
    trainer = lightning.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate, callbacks=[spy],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(part, DataLoader(batches, batch_size=None))
    return spy


def batches(count):
    return [batch(2, 2 * i) for i in range(count)]


def test_every_step_has_the_rate_of_its_progress():
    optim = {"_target_": "optim/adamw", "base_lr": 0.1, "base_batch": 256, "schedule": {"_target_": "schedule/warmup_cosine", "warmup": 0.25}}  # fmt: skip
    spy = fit(module(optim=optim, data={"batch_size": 128}), batches(8), 8)
    peak = 0.1 * 128 / 256
    expected = [peak * t / 2 if t < 2 else peak * 0.5 * (1 + math.cos(math.pi * (t - 2) / 6)) for t in range(8)]
    assert spy.rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("when", ["after", "before"])
def test_the_teacher_follows_once_per_optimizer_step(when, accumulate):
    momentum = {"_target_": "schedule/linear", "first": 0.5, "last": 1.0}
    part = module(
        teacher={"_target_": "teacher/ema", "momentum": momentum, "when": when},
        optim={"_target_": "optim/sgd", "lr": 0.1},
    )
    rows = fit(part, batches(4 * accumulate), 4, accumulate).rows
    twin = rows[0][1]
    for i in range(4 * accumulate):
        if when == "before" and i % accumulate == 0:  # with the student that this step begins with
            keep = 0.5 + 0.5 * (i // accumulate) / 4
            twin = keep * twin + (1 - keep) * rows[i][0]
        if when == "after" and (i + 1) % accumulate == 0:  # with the student that this step ended with
            keep = 0.5 + 0.5 * (i // accumulate) / 4  # the schedule counts from 0, as in I-JEPA and DINO
            twin = keep * twin + (1 - keep) * rows[i + 1][0]
        torch.testing.assert_close(rows[i + 1][1], twin, rtol=1e-5, atol=1e-7, msg=f"batch {i}")
    assert not torch.equal(rows[0][1], rows[-1][1])


def test_callbacks_see_a_teacher_that_has_followed():
    part = module(teacher=TEACHER, optim={"_target_": "optim/sgd", "lr": 0.1})
    spy = fit(part, batches(2), 2)
    assert torch.equal(spy.at_end[0][1], spy.rows[1][1])


def test_gradients_are_clipped_by_their_common_norm():
    def weights(clip):
        part = module(optim={"_target_": "optim/sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "clip": clip})
        before = [p.detach().clone() for p in part.parameters()]
        fit(part, batches(1), 1)
        return torch.cat([(b - p.detach()).flatten() for b, p in zip(before, part.parameters(), strict=True)])

    free, clipped = weights(None), weights(0.01)
    assert float(free.norm()) > 0.1
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped, free * 0.01 / free.norm(), rtol=1e-2, atol=1e-6)


def one_step(part, given, accumulate):
    part.optim = module(optim={"_target_": "optim/sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}).optim
    if accumulate > 1:  # as the loader does
        given[0]["later"] = given[1:]
    fit(part.double(), given, 1, accumulate)
    return part.networks["main"].embed.proj.weight.detach()


def test_accumulated_steps_equal_one_step_where_samples_are_equally_long():
    joined = one_step(module(), [share(0, 6)], 1)
    torch.testing.assert_close(one_step(module(), [share(0, 3), share(3, 3)], 2), joined, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("at", ["hidden", ["hidden", "visible"]])
@pytest.mark.parametrize("reduce", ["token", "sample"])
def test_accumulated_steps_equal_one_step_where_samples_are_unequally_long(at, reduce):
    """Two regions of unequal shares too: each is divided by its number in the whole step."""
    objective = {"pixels": PIXELS | {"at": at, "reduce": reduce}, "mimic": MIMIC}
    joined = one_step(ragged(objective), [share(0, 6)], 1)
    parts = [share(0, 1), share(1, 3), share(4, 2)]
    torch.testing.assert_close(one_step(ragged(objective), parts, 3), joined, rtol=1e-9, atol=1e-12)


def test_a_loader_that_tells_nothing_of_later_passes_divides_by_what_it_finds():
    part = ragged()
    part.training_step(share(0, 3) | {"later": [share(3, 3)]})
    part.training_step(share(3, 3))
    told = part.latest["loss"].clone()
    part.training_step(share(3, 3))
    assert part.latest["loss"] != told
