"""N ranks train what one rank trains: every loss, normaliser, head and teacher, on different and uneven data.

Five steps of momentum SGD in float64 on 1, 2 and 3 gloo ranks, with a last batch whose shares differ, end in the same
weights and buffers; and the gradient of the first step in float32 is the same in its norm.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmssl import registry
from mmssl.types import View
from tests.gloo import leave
from tests.small import PIXELS, batch, module

EMA = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}
PROJ = {"_target_": "head/mlp", "dims": [24, 8]}
PLAIN = {"_target_": "head/mlp", "dims": [24, 8], "last_norm": "plain", "bias": False}
MANY = {"_target_": "head/prototypes", "dims": [16, 8], "count": 12}
TWO = {"views": {"a": [], "b": []}, "masker": None, "corruptor": None}
TOKEN = {"_target_": "corruptor/token"}


def pair(kind, head=PROJ, **more):
    """Two looks and a loss over their set."""
    loss = {"_target_": f"set/{kind}"}
    return (
        TWO
        | {"heads": {"proj": head}, "objective": {"set": {"_target_": "term/set", "head": "proj", "loss": loss}}}
        | more
    )


def match(loss, head=PROJ, teacher=EMA, **more):
    """Two looks, each answering the other's target."""
    term = {"_target_": "term/match", "head": "proj", "loss": {"_target_": f"loss/{loss}"}} | more
    return TWO | {"heads": {"proj": head}, "objective": {"match": term}} | ({"teacher": teacher} if teacher else {})


def latent(loss="mse", norm=None, **more):
    """Masked prediction of the teacher's features."""
    term = PIXELS | {"target": {"_target_": "target/teacher"}, "loss": {"_target_": f"loss/{loss}"}} | more
    return {
        "objective": {"latent": term | ({"normalize": {"_target_": f"norm/{norm}"}} if norm else {})},
        "teacher": EMA,
    }


def named(**more):
    """Classes of samples, or of tokens, some of which have no label; pairs are mixed within even shares only."""
    head = {"_target_": "head/linear", "dim": 3, "std": 0.1, "norm": "batch"}
    loss = {"_target_": "loss/cross_entropy", "smoothing": 0.1}
    term = {"_target_": "term/classify", "head": "classes", "loss": loss} | more
    return {"masker": None, "corruptor": None, "heads": {"classes": head}, "objective": {"classify": term}}


# two streams with an encoder each, contrasted and fused
SECOND = {
    "tokenizer": {"_target_": "tokenizer/image", "size": 32, "patch": 8},
    "encoder": {"_target_": "encoder/alibi", "dim": 32, "depth": 1, "heads": 4},
}
FUSE = {
    "_target_": "term/fuse",
    "looks": ["b", "a"],
    "fusion": {"_target_": "fusion/alibi", "depth": 1, "heads": 4},
    "predictor": PIXELS["predictor"],
    "normalize": {"_target_": "norm/standard"},
    "loss": {"_target_": "loss/mse"},
}
STREAMS = TWO | {
    "heads": {name: {"_target_": "head/feedforward", "dim": 8} for name in "ab"},
    "streams": {"second": SECOND},
    "objective": {
        "match": {
            "_target_": "term/match",
            "head": {"a": "a", "b": "b"},
            "detach": False,
            "loss": {"_target_": "loss/clip"},
        },
        "joint": FUSE,
    },
    "looks": {"a": {}, "b": {"network": "second"}},
    "masker": {"_target_": "masker/random"},
    "corruptor": {"_target_": "corruptor/drop"},
}
PREDICTOR = {"predictor": {"_target_": "head/mlp", "dims": [16, 8]}}
# tokens of other samples of the global batch, and where they are
SWAPPED = {
    "masker": {"_target_": "masker/swap", "ratio": 0.4},
    "corruptor": {"_target_": "corruptor/swap"},
    "objective": {
        "mask": PIXELS
        | {"at": "all", "predictor": {"_target_": "predictor/pooled"}, "target": {"_target_": "target/swapped"}}
        | {"loss": {"_target_": "loss/bce"}}
    },
}
# two streams that read one another, decoders that read layers, and layers contrasted
NORMED = {"_target_": "encoder/vit", "dim": 32, "depth": 2, "heads": 4, "class_token": False, "tap_norm": True}
SKIPS = {"_target_": "predictor/skips", "layers": [1.0, 0.5], "dim": 16, "heads": 2}
MIDDLE = {
    "_target_": "term/match", "layer": 0.5, "detach": False, "weight": 0.1, "loss": {"_target_": "loss/clip", "temperature": 0.07}
}  # fmt: skip
EXCHANGED = {
    "views": {"a": [], "b": []},
    "encoder": NORMED,
    "streams": {"second": SECOND | {"encoder": NORMED}},
    "looks": {"a": {}, "b": {"network": "second", "masker": {"_target_": "masker/random", "ratio": 0.5}}},
    "heads": {"fusion": {"_target_": "head/exchange", "looks": ["a", "b"], "depth": 1, "heads": 4}},
    "objective": {
        "first": PIXELS | {"look": "a", "project": "fusion", "predictor": SKIPS},
        "second": PIXELS | {"look": "b", "project": "fusion", "predictor": SKIPS},
        "middle": MIDDLE,
    },
}


def whole(loss, **more):
    """Whole images predicted by an encoder that keeps all tokens."""
    term = {
        "_target_": "term/whole",
        "predictor": {"_target_": "predictor/linear"},
        "target": {"_target_": "target/raw"},
    }
    return {"objective": {"whole": term | {"loss": {"_target_": f"whole/{loss}"}}}, "corruptor": TOKEN} | more


CASES = {
    "loss/mse": {},
    "loss/l1": latent("l1", "standard"),
    "loss/focal_l1": latent("focal_l1"),
    "loss/smooth_l1": latent("smooth_l1", "layer"),
    "loss/cosine": match("cosine", **PREDICTOR),
    "loss/cross_entropy": named(),
    "loss/bce": SWAPPED,
    "loss/cells": {"objective": {"cells": PIXELS | {"loss": {"_target_": "loss/cells", "classes": 3}}}},
    "loss/soft_ce": match("soft_ce", MANY, normalize={"_target_": "norm/center"}),
    "loss/info_nce": match("info_nce", PLAIN, EMA | {"when": "before"}, **PREDICTOR),
    "loss/clip": STREAMS,
    "loss/token_info_nce": latent("token_info_nce", target={"_target_": "target/asked"}),
    "loss/relation": match("relation"),
    "loss/chamfer": {"objective": {"points": PIXELS | {"loss": {"_target_": "loss/chamfer"}}}},
    "loss/scaled_cosine": latent("scaled_cosine"),
    "loss/token_relation": {"objective": {"pixels": PIXELS | {"loss": {"_target_": "loss/token_relation", "heads": 4}}}},
    "loss/known_mse": {"objective": {"pixels": PIXELS | {"loss": {"_target_": "loss/known_mse"}}}},
    "set/ntxent": pair("ntxent", PROJ | {"joint": True}),
    "set/barlow": pair("barlow"),
    "set/mixture": pair(
        "mixture",
        looks={"a": {}, "b": {}, "m": {"views": ["a"], "corruptor": {"_target_": "corruptor/mixture", "other": "b"}}},
        objective={"set": {"_target_": "term/set", "looks": ["a", "b", "m"], "head": "proj", "loss": {"_target_": "set/mixture", "unit": True}}},
    ),
    "set/vicreg": pair("vicreg", PROJ | {"norm": "layer"}),
    "set/koleo": pair("koleo"),
    "set/invariance": pair("invariance", views={"a": [], "b": [], "c": []}),
    "set/sigreg": pair("sigreg"),
    "whole/spectrum": whole("spectrum", masker=None, corruptor={"_target_": "corruptor/frequency", "radius": 4}),
    "whole/focal_spectrum": whole("focal_spectrum"),
    "whole/complement": whole("complement", masker=None, corruptor={"_target_": "corruptor/project"}),
    "norm/layer": latent(norm="layer"),
    "norm/standard": latent(norm="standard"),
    "norm/unit": latent(norm="unit"),
    "norm/center": latent(
        "soft_ce", "center", predictor=None, head="proj", look=["a", "b"], reduce="sample"
    ) | TWO | {"masker": {"_target_": "masker/random", "ratio": 0.5}, "corruptor": TOKEN, "heads": {"proj": MANY}},
    "norm/sinkhorn": match("soft_ce", MANY, None, normalize={"_target_": "norm/sinkhorn"}),
    "head/mlp": match("cosine", PLAIN, None, **PREDICTOR),
    "head/prototypes": match("soft_ce", MANY | {"rows": "reset", "norm": "batch", "joint": True}, normalize={"_target_": "norm/sinkhorn", "each": True}),
    "head/linear": named(pool="token"),
    "head/clusters": {
        "heads": {"clusters": {"_target_": "head/clusters", "count": 12}}, "teacher": EMA,
        "objective": {
            "clusters": {"_target_": "term/cluster", "head": "clusters"},
            "latent": PIXELS | {"target": {"_target_": "target/clusters", "head": "clusters"}, "loss": {"_target_": "loss/soft_ce"}},
        },
    },
    "head/neighbours": latent(
        project="proj", target={"_target_": "target/neighbours", "head": "proj"}
    ) | {"heads": {"proj": {"_target_": "head/neighbours", "heads": 4}}},
    "head/exchange": EXCHANGED,
    "head/feedforward": match("mse", {"_target_": "head/feedforward", "dim": 8}),
    "teacher/ema": match("mse"),
}  # fmt: skip
# blocks drawn for the whole batch, contexts cut to its shortest
BLOCKS = {"_target_": "masker/multiblock", "targets": 3, "min_keep": 2, "context": [0.9, 1.0]}
# codes that follow the vectors of all ranks, placed by those of the first batch
DECODED = {"_target_": "encoder/vit", "dim": 16, "depth": 1, "heads": 4}
QUANTIZED = {"_target_": "predictor/quantized", "decoder": DECODED, "count": 9, "dim": 6, "decay": 0.9}
TOKENIZER = {
    "masker": None,
    "corruptor": None,
    "objective": {
        "features": PIXELS | {"at": "all", "predictor": QUANTIZED, "loss": {"_target_": "loss/cosine"}},
        "commitment": {"_target_": "term/aside", "of": "features", "name": "commitment"},
    },
}
# pairs of tokens are counted over the batch, and masks follow what the teacher foretells
FORETOLD = {
    "objective": {"pixels": PIXELS, "order": {"_target_": "term/rank", "of": "pixels", "predictor": PIXELS["predictor"]}},
    "guide": {"_target_": "guide/loss"}, "masker": {"_target_": "masker/guided", "share": 0.5}, "teacher": EMA,
}  # fmt: skip
# a guide that is trained, by what was lost on the tokens it did not draw
DRAWN = {
    "objective": {"pixels": PIXELS, "sampling": {"_target_": "term/policy", "of": "pixels", "weight": 1.0}},
    "guide": {"_target_": "guide/policy", "heads": 4, "dropout": 0.0}, "masker": {"_target_": "masker/sampled", "log": True},
}  # fmt: skip
ALIKE = {"_target_": "term/similarity", "wanted": 0.3}
# one half of the batch is noised, the other is not, and both share a decoder
DENOISE = {"_target_": "term/predict", "target": {"_target_": "target/denoise"}, "loss": {"_target_": "loss/known_mse"}}


def half(rest):
    """One half of a batch, masked at random."""
    return {"_target_": "masker/share", "rest": rest, "masker": {"_target_": "masker/random"}}


HALVES = {
    "encoder": {"_target_": "encoder/adaln", "dim": 32, "depth": 1, "heads": 4},
    "looks": {
        "x": {"masker": half(False)},
        "noised": {"views": ["x"], "masker": half(True), "corruptor": {"_target_": "corruptor/diffuse"}},
    },
    "objective": {
        "clean": DENOISE | {"predictor": {"_target_": "predictor/adaln", "depth": 1, "heads": 4}},
        "noised": DENOISE | {"look": "noised", "of": "clean", "at": ["hidden", "visible"]},
    },
}
SPANS = {"_target_": "masker/spans", "ratio": 0.5, "length": 3}
WHOLE = {
    "a batch of blocks": latent("smooth_l1", "layer") | {"masker": BLOCKS}, "losses foretold": FORETOLD,
    "halves of a batch": HALVES, "learned codes": TOKENIZER,
    "equal spans": latent() | {"masker": SPANS, "corruptor": TOKEN}, "tokens drawn": DRAWN,
    "similarities": {"objective": {"pixels": PIXELS, "answers": ALIKE | {"of": "pixels"}, "seen": ALIKE}},
}  # fmt: skip
KINDS = ("loss", "set", "whole", "norm", "head", "teacher")
SHARES = {1: [(0, 7)], 2: [(0, 5), (5, 2)], 3: [(0, 3), (3, 2), (5, 2)]}
LAST = {1: [(0, 6)], 2: [(0, 3), (3, 3)], 3: [(0, 3), (3, 1), (4, 2)]}  # the last batch is smaller
STEPS = 5


def test_every_part_that_could_differ_between_ranks_has_a_case():
    known = {name for name in registry.entries() if name.split("/")[0] in KINDS}
    missing = known - set(CASES)
    assert not missing, f"add a case for {sorted(missing)}: ranks have to train what one rank trains"
    assert set(CASES) <= known


class Loss(nn.Module):
    """DistributedDataParallel calls `forward`."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, given):
        return self.part.training_step(given)


def own(case, world, rank, step, dtype):
    """A rank's share of the batch of a step; the last batch is smaller."""
    first, count = (LAST if step == STEPS - 1 else SHARES)[world][rank]
    names = tuple(case.get("views", {"x": []}))
    made = batch(count, 10 * step + first, names, epoch=step)
    made["label"] = made["id"] % 4 - 1  # a sample of four has none
    if any(term.get("pool") == "token" for term in case.get("objective", {}).values()):
        made["label"] = (made["id"].unsqueeze(1) + torch.arange(16)) % 4 - 1
    return made | {name: View(made[name].data.to(dtype), "image") for name in names}


def trained(case, world, rank, dtype):
    """The gradient of the first step, and the state after five."""
    torch.manual_seed(0)
    part = module(data={"batch_size": 7}, **case).to(dtype)
    part.train()
    wrapped = Loss(part)
    run = wrapped if world == 1 else DistributedDataParallel(wrapped, find_unused_parameters=True)
    optimizer = torch.optim.SGD([p for p in part.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    gradient = {}
    for step in range(STEPS if dtype == torch.float64 else 1):
        if part.teacher is not None and part.teacher.when == "before":
            part.teacher.follow(0.0)
        optimizer.zero_grad()
        loss = run(own(case, world, rank, step, dtype))
        loss.backward()
        if step == 0:
            gradient = {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}
        optimizer.step()
        if part.teacher is not None and part.teacher.when == "after":
            part.teacher.follow(0.0)
    return {"gradient": gradient, "state": part.state_dict(), "loss": part.latest["loss"]}


def _rank(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for world in (3, 2):
        if rank >= world:
            continue
        dist.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
        found = {
            (name, dtype): trained(case, world, rank, dtype)
            for name, case in (CASES | WHOLE).items() for dtype in (torch.float64, torch.float32)
        }  # fmt: skip
        torch.save(found, f"{folder}/world{world}.rank{rank}")
        dist.barrier()
        dist.destroy_process_group()
    leave(folder, rank, 3)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What every rank found, by number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:  # the server imports once, and three ranks are forked from it
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        multiprocessing.set_forkserver_preload(["tests.small"])
        mp.start_processes(_rank, (str(folder),), nprocs=3, start_method="forkserver")
    return {world: [torch.load(folder / f"world{world}.rank{rank}") for rank in range(world)] for world in (2, 3)}


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_ranks_train_what_one_rank_trains(ranks, name):
    case = (CASES | WHOLE)[name]
    alone, single = trained(case, 1, 0, torch.float64), trained(case, 1, 0, torch.float32)
    start = module(data={"batch_size": 7}, **case).double().state_dict()
    moved = {k for k, v in alone["state"].items() if v.is_floating_point() and (v - start[k]).abs().max() > 1e-4}
    assert moved, "nothing was trained"
    for world in (2, 3):
        for found in ranks[world]:
            assert float(found[name, torch.float64]["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-9)
            for key, value in alone["state"].items():
                torch.testing.assert_close(
                    found[name, torch.float64]["state"][key], value, rtol=1e-9, atol=1e-9, msg=key
                )
            mine, other = (
                torch.cat([g.flatten() for g in x["gradient"].values()]) for x in (single, found[name, torch.float32])
            )
            assert float((mine - other).norm() / mine.norm()) < 1e-5
