"""FSDP2 trains what one rank trains, students and teachers; its checkpoints are read by any number of ranks."""

from __future__ import annotations

import copy
import multiprocessing
import os
import socket
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import lightning
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader

from mmssl.config.compose import ConfigError
from mmssl.evaluation.features import embed
from mmssl.nn.sharding import blocks, roots, shard, whole
from mmssl.run import checkpoints, sharded
from mmssl.run.strategies import precision, prepare, strategy
from mmssl.types import View
from tests.gloo import leave
from tests.small import PIXELS, batch, images, module

pytestmark = pytest.mark.requires("fsdp")
EMA = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}
MANY = {"_target_": "head/prototypes", "dims": [15, 8], "count": 13, "rows": "reset", "norm": "batch", "joint": True}
SWAPPED = {
    "_target_": "term/match", "head": "proj", "loss": {"_target_": "loss/soft_ce"},
    "normalize": {"_target_": "norm/sinkhorn"},
}  # fmt: skip
LATENT = PIXELS | {
    "target": {"_target_": "target/teacher", "layers": ["ffn.0", "ffn.1"], "layer_norm": "layer"},
    "loss": {"_target_": "loss/mse"},
}
CASES = {
    # prototypes that are set back to length 1, a batch norm, rates by whole norms
    "swapped": {
        "views": {"a": [], "b": []}, "masker": None, "corruptor": None, "heads": {"proj": MANY}, "teacher": EMA,
        "objective": {"swap": SWAPPED}, "optim": {"_target_": "optim/lars", "lr": 0.5, "trust": 0.1, "clip": 0.5},
    },
    # what blocks give inside, each gradient clipped on its own, chunks of unequal number
    "latent": {
        "objective": {"latent": LATENT}, "teacher": EMA, "trainer": {"chunk": 2},
        "optim": {"_target_": "optim/adamw", "lr": 1e-3, "clip": 0.01, "clip_each": True, "weight_decay": 0.1},
    },
}  # fmt: skip
SHARES = {1: [(0, 7)], 2: [(0, 5), (5, 2)]}
STEPS, MIDDLE = 5, 3
MIXED = ("bf16-mixed", "16-mixed")


def made(name, dtype=torch.float64):
    part = module(data={"batch_size": 7}, **CASES[name]).to(dtype)
    part.steps = 50
    return part


def own(name, world, rank, dtype):
    """This rank's batches."""
    names, (first, count) = tuple(CASES[name].get("views", {"x": []})), SHARES[world][rank]
    for step in range(STEPS):
        given = batch(count, 10 * step + first, names, epoch=step)
        yield given | {key: View(given[key].data.to(dtype), "image") for key in names}


class Middle(lightning.Callback):
    """Keeps the state in the middle of a run, in memory, as one file and in pieces."""

    def __init__(self, folder=None):
        self.folder, self.losses, self.features, self.state, self.writing = folder, [], [], None, None

    def on_train_start(self, trainer, pl_module):
        """Features are looked at before the first step, and between others."""
        view = View(images(4).to(next(pl_module.parameters()).dtype), "image")
        self.features.append(embed(pl_module.kept, [{"x": view}]).x)

    def on_train_batch_end(self, trainer, pl_module, *rest):
        self.losses.append(float(pl_module.latest["loss"]))
        if trainer.global_step == 2:
            self.on_train_start(trainer, pl_module)
        if trainer.global_step == MIDDLE and self.folder:
            optimizer = trainer.optimizers[0]
            self.state = copy.deepcopy(whole({"model": pl_module.state_dict(), "optimizer": optimizer.state_dict()}))
            self.writing = sharded.save(self.folder / "pieces", pl_module, optimizer, {"step": 3}, asynchronous=True)
            trainer.save_checkpoint(self.folder / "whole.ckpt")

    def on_train_end(self, trainer, pl_module):
        if self.writing:
            self.writing.wait()


def fitted(name, world, rank, word, dtype=torch.float64, folder=None, file=None, kind=None, **more):
    part, seen = made(name, dtype), Middle(folder)
    prepare(part, **({"checkpoint_activations": False, "compiled": False, "sync_batchnorm": False} | more))
    trainer = lightning.Trainer(
        max_epochs=-1, max_steps=STEPS, devices=world, accelerator="cpu", callbacks=[seen], logger=False,
        strategy=strategy(word, world, timedelta(minutes=5)), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, **(precision("fsdp", kind, "cpu") if kind else {}),
    )  # fmt: skip
    batches = DataLoader(list(own(name, world, rank, dtype))[MIDDLE if file else 0 :], batch_size=None)
    trainer.fit(part, train_dataloaders=batches, ckpt_path=file)
    state = {"model": part.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
    return {"losses": seen.losses, "features": seen.features, "end": whole(state), "middle": seen.state}


def _loaded(name, folder, mesh):
    part = made(name)
    if mesh is not None:
        shard(part, mesh)
    optimizer = part.optim.build(part, 7)
    extra = sharded.load(folder / "pieces", part, optimizer)
    return {"extra": extra} | whole({"model": part.state_dict(), "optimizer": optimizer.state_dict()})


def _rank(rank, folder, ports):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for world, port in zip((2, 3, 4), ports, strict=True):
        if rank >= world:
            continue
        said = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        said |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ.update({key: str(value) for key, value in said.items()})
        dist.init_process_group("gloo")
        if world == 2:
            found = {name: fitted(name, 2, rank, "fsdp", folder=Path(folder, name)) for name in CASES}
            narrow = {"dtype": torch.float32, "checkpoint_activations": True}
            for word in ("ddp", "fsdp"):
                found |= {f"{word} {kind}": fitted("swapped", 2, rank, word, kind=kind, **narrow) for kind in MIXED}
        else:
            mesh = init_device_mesh("cpu", (world,))
            found = {name: _loaded(name, Path(folder, name), mesh) for name in CASES}
        torch.save(found, f"{folder}/{world}.{rank}")
        dist.barrier()
        dist.destroy_process_group()
    leave(folder, rank, 4)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What ranks found: of 2 that trained, of 3 and 4 that loaded what these wrote."""
    folder, held = tmp_path_factory.mktemp("fsdp"), [socket.socket() for _ in range(3)]
    for name in CASES:
        (folder / name).mkdir()
    for one in held:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    with pytest.MonkeyPatch.context() as patch:  # the server imports once, and the ranks are forked from it
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        multiprocessing.set_forkserver_preload(["tests.small", "lightning"])
        mp.start_processes(_rank, (str(folder), ports), nprocs=4, start_method="forkserver")
    return folder


def found(home, world):
    return [torch.load(home / f"{world}.{rank}") for rank in range(world)]


def same(one, other, tolerance=1e-9):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=tolerance, atol=tolerance, msg=str(key))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_trains(home, name):
    alone = fitted(name, 1, 0, "auto")
    start = made(name).state_dict()
    moved = {key for key, value in alone["end"]["model"].items() if not torch.equal(value, start[key])}
    assert any(key.startswith("teacher.") for key in moved)
    for there in found(home, 2):
        assert there[name]["losses"] == pytest.approx(alone["losses"], rel=1e-9)
        for one, other in zip(alone["features"], there[name]["features"], strict=True):
            torch.testing.assert_close(other, one)
        same(alone["end"]["model"], there[name]["end"]["model"])
        for place, state in alone["end"]["optimizer"]["state"].items():
            same(state, there[name]["end"]["optimizer"]["state"][place])


@pytest.mark.parametrize("kind", MIXED)
def test_mixed_precision_is_the_same_under_both_strategies(home, kind):
    """From the same weights the same loss; then float32 sums in another order may round to another bfloat16.

    What both differ by stays below half of what the narrow type takes them away from exact arithmetic.
    """
    exact = fitted("swapped", 1, 0, "auto")
    for there in found(home, 2):
        ddp, fsdp = (there[f"{word} {kind}"] for word in ("ddp", "fsdp"))
        assert fsdp["losses"][0] == pytest.approx(ddp["losses"][0], rel=1e-6)
        for whole_of in (lambda run: torch.tensor(run["losses"], dtype=torch.float64), weights):
            apart = (whole_of(fsdp) - whole_of(ddp)).norm()
            assert apart <= (whole_of(ddp) - whole_of(exact)).norm() / 2
        assert all(fsdp["end"]["model"][key].dtype == value.dtype for key, value in ddp["end"]["model"].items())


def weights(run):
    return torch.cat([value.double().flatten() for value in run["end"]["model"].values()])


@pytest.mark.parametrize("world", [1, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_pieces_of_two_ranks_are_loaded_by_others(home, name, world):
    middle = found(home, 2)[0][name]["middle"]
    loads = [_loaded(name, home / name, None)] if world == 1 else [one[name] for one in found(home, world)]
    for loaded in loads:
        assert loaded["extra"] == {"step": 3}
        same(middle["model"], loaded["model"], 0)
        for place, state in middle["optimizer"]["state"].items():
            same(state, loaded["optimizer"]["state"][place], 0)
        assert loaded["optimizer"]["param_groups"] == middle["optimizer"]["param_groups"]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # the rest of the batches is given
@pytest.mark.parametrize("name", CASES)
def test_a_file_of_two_ranks_goes_on_on_one(home, name):
    there = fitted(name, 1, 0, "auto", file=home / name / "whole.ckpt")
    same(found(home, 2)[0][name]["end"]["model"], there["end"]["model"])


def test_pieces_become_one_file(home, tmp_path):
    sharded.consolidate(home / "latent" / "pieces", tmp_path / "one.ckpt")
    content = checkpoints.read(tmp_path / "one.ckpt")
    same(found(home, 2)[0]["latent"]["middle"]["model"], content["state_dict"], 0)
    assert content["step"] == 3 and not list(tmp_path.glob(".*"))


def test_a_checkpoint_cut_off_leaves_the_one_before(home, tmp_path, monkeypatch):
    part = made("latent")
    optimizer = part.optim.build(part, 7)
    sharded.save(tmp_path / "last", part, optimizer, {"step": 1})
    monkeypatch.setattr(sharded, "write_pieces", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ConfigError, match="disk full"):
        sharded.save(tmp_path / "last", part, optimizer, {"step": 2})
    assert sharded.load(tmp_path / "last", part, optimizer) == {"step": 1}
    (tmp_path / "last").rename(tmp_path / ".last.old")  # killed between two names
    assert sharded.load(tmp_path / "last", part, optimizer) == {"step": 1}
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        sharded.load(tmp_path / "other", part, optimizer)


def test_what_is_shared_out():
    part = made("latent")
    names = {id(one): name for name, one in part.named_modules()}
    assert sorted(names[id(one)] for one in blocks(part)) == [
        "networks.main.encoder.blocks.0", "networks.main.encoder.blocks.1", "objective.latent.predictor.blocks.0",
        "teacher.twins.main.encoder.blocks.0", "teacher.twins.main.encoder.blocks.1",
    ]  # fmt: skip
    assert sorted(names[id(one)] for one in roots(part)) == [
        "networks.main.embed", "networks.main.encoder", "objective.latent", "teacher.twins.main.embed",
        "teacher.twins.main.encoder",
    ]  # fmt: skip
