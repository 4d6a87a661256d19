"""N ranks against one: what DDP and FSDP train of each recipe, beside what one rank trains.

Every recipe runs on its shipped data through Lightning's trainer and mmssl's strategies on CPU ranks (gloo): five steps
in float64, of which all losses, the first and the last gradient, and the weights in the end (students, teachers,
buffers) are compared, and one in float32, of which the gradient is; relative, in the Euclidean norm of all numbers
together. `rounding` is how far one rank's own first gradient in float32 is from that in float64. Each rank holds other
samples of the same global batch; dropout and drop path are off, and batch norms run over ranks. Optimizer, clipping,
schedules and teacher are the recipe's.

    python -m benchmarks.ranks [--write] [PATTERN ...]
"""

from __future__ import annotations

import dataclasses
import fnmatch
import gc
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).parents[1] / "docs" / "results" / "ranks.json"
SETUPS = {"ddp2": ("ddp", 2), "fsdp2": ("fsdp", 2), "ddp4": ("ddp", 4)}
LIMITS = {"loss": 1e-9, "gradient": 1e-9, "gradient32": 1e-5}
# Weights have no limit: a bias in front of a batch norm has no gradient, and Adam makes steps out of its rounding.
COLUMNS = ("loss", "gradient", "weights", "gradient32")
STEPS = 5
FEW = ["data.batch_size=8", "data.workers=0"]
MORE = ["data.batch_size=32", "data.workers=0"]  # of nodes and rows; clouds contrast too little in a small batch
WHOLE = "the graph is one sample, so that a step has no share for a second rank"
LEFT_OUT = {"graph/bgrl": WHOLE, "graph/grace": WHOLE}


def cases(folder):
    """Overrides by the name of a case; the recipe is what stands in front of the colon."""
    from mmssl.config.files import recipes

    small = ("graph/", "tabular/", "pointcloud/simclr")
    found = {
        name: ["data=sample", *(MORE if name.startswith(small) else FEW)] for name in recipes() if name not in LEFT_OUT
    }
    found["image/mae:chunk"] = [*found["image/mae"], "trainer.chunk=1"]
    found["image/simclr:lars"] = [*found["image/simclr"], "optim=lars"]
    for name in ("graph/graphmae", "graph/graphmae2", "graph/graph_jepa"):
        found[f"{name}:many"] = ["data=folder", f"data.root={folder}/graphs", *FEW]
    resnet = ["encoder=timm", "encoder.name=resnet10t"]
    found["image/simclr:resnet"] = [*found["image/simclr"], *resnet]
    return found


def graphs(folder):
    """A folder of small random graphs, one a file."""
    draw = np.random.default_rng(0)
    for i in range(48):
        n = int(draw.integers(6, 20))
        pairs = np.stack(np.triu(draw.random((n, n)) < 0.3, 1).nonzero())
        path = folder / ("odd" if i % 2 else "even") / f"{i:02}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        edges = np.concatenate([pairs, pairs[::-1]], 1)
        np.savez(path, edge_index=edges, x=draw.normal(size=(n, 8)).astype(np.float32))


def still(module):
    """Turns off what is drawn from a rank's own generator."""
    from timm.layers.drop import DropPath

    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        elif isinstance(part, DropPath):
            part.drop_prob = 0.0
        for name in ("dropout", "noise"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def wide(x):
    """Floating-point tensors of anything as float64."""
    if isinstance(x, torch.Tensor):
        return x.double() if x.is_floating_point() else x
    if dataclasses.is_dataclass(x):
        return dataclasses.replace(x, **{f.name: wide(getattr(x, f.name)) for f in dataclasses.fields(x)})
    if hasattr(x, "_replace"):
        return x._replace(**{name: wide(value) for name, value in x._asdict().items()})
    if hasattr(x, "apply"):  # torch-geometric's batches
        return x.apply(wide)
    return type(x)(map(wide, x)) if isinstance(x, (list, tuple)) else x


def whole(x):
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


def spy(dtype):
    """A callback that makes batches float64, and keeps losses, the first gradient and the last state."""
    import lightning

    class Spy(lightning.Callback):
        def __init__(self):
            self.losses, self.gradients, self.state = [], [], {}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if dtype == torch.float64:
                batch.update({name: wide(value) for name, value in batch.items()})

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step in (0, STEPS - 1):
                named = pl_module.named_parameters()
                self.gradients.append({name: whole(p.grad) for name, p in named if p.grad is not None})

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.losses.append(float(pl_module.latest["loss"]))

        def on_train_end(self, trainer, pl_module):
            found = {name: whole(value) for name, value in pl_module.state_dict().items()}
            self.state = {name: value for name, value in found.items() if value.is_floating_point()}

    return Spy()


def trained(tree, data, word, world, dtype):
    """One run of a recipe by Lightning's trainer."""
    import lightning

    from mmssl.config import build
    from mmssl.run.strategies import prepare, strategy
    from mmssl.run.trainer import quiet

    torch.set_default_dtype(torch.float32)
    module = build.module(tree, data.facts()).to(dtype)
    prepare(module, checkpoint_activations=False, compiled=False, sync_batchnorm=True)
    still(module)
    module.steps = 100
    torch.set_default_dtype(dtype)
    seen = spy(dtype)
    data.set_start(0)
    with quiet():
        trainer = lightning.Trainer(
            max_epochs=-1, max_steps=STEPS if dtype == torch.float64 else 1, devices=world, accelerator="cpu",
            strategy=strategy(word, world), callbacks=[seen], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    torch.set_default_dtype(torch.float32)
    return {"losses": seen.losses, "gradients": seen.gradients, "state": seen.state}


def environment(rank, world, port):
    """What torchrun tells a process."""
    said = {
        "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "ranks",
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in said.items()})
    return said


def runs(rank, folder, chosen, word, world):
    """All chosen cases in one setup: one rank alone leaves what it trained, others how far they are from it."""
    from mmssl.api import resolve
    from mmssl.config import build

    for name, said in chosen.items():
        started, stem = time.perf_counter(), Path(folder) / name.replace("/", "-").replace(":", "-")
        try:
            tree = resolve(name.split(":")[0], said)
            data = build.data(tree)
            found = {dtype: trained(tree, data, word, world, dtype) for dtype in (torch.float64, torch.float32)}
        except Exception as error:  # the other cases go on
            print(f"{word}{world} {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            data, found = None, None
        wall = round(time.perf_counter() - started, 1)
        if world == 1:
            torch.save((found, wall), f"{stem}.alone")
            if found:
                first, rounded = (found[dtype]["gradients"][0] for dtype in (torch.float64, torch.float32))
                Path(f"{stem}.rounding").write_text(json.dumps(apart(first, rounded)))
        elif rank in (0, world - 1):
            alone, _ = torch.load(f"{stem}.alone", weights_only=False)
            gaps = differences(alone, found) if alone and found else dict.fromkeys(COLUMNS)
            Path(f"{stem}.{word}{world}.{rank}").write_text(json.dumps(gaps | {"wall_s": wall}))
        if rank == 0:
            print(f"{word}{world} {name} {wall} s", file=sys.stderr, flush=True)
        del found, data
        gc.collect()


def worker(rank, folder, chosen, ports):
    """One process: a rank of every setup that has so many."""
    from torch import distributed as dist

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if rank == 0:
        runs(0, folder, chosen, "auto", 1)
    for (word, world), port in zip(SETUPS.values(), ports, strict=True):
        if rank < world:
            said = environment(rank, world, port)
            dist.init_process_group("gloo")
            runs(rank, folder, chosen, word, world)
            dist.barrier()
            dist.destroy_process_group()
            for name in said:
                os.environ.pop(name, None)
    leave(folder, rank, max(world for _, world in SETUPS.values()))


def leave(folder, rank, world):
    """Waits for all, then ends: gloo may abort where a peer has gone."""
    Path(folder, f"{rank}.done").touch()
    while not all(Path(folder, f"{other}.done").exists() for other in range(world)):
        time.sleep(0.1)
    os._exit(0)


def ports(count):
    """Free ports of this machine."""
    import socket

    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("localhost", 0))
    found = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return found


def differences(alone, there):
    """How far a run in several ranks is from one in one."""
    a, b, c, d = (one[dtype] for dtype in (torch.float64, torch.float32) for one in (alone, there))
    return {
        "loss": max(abs(x - y) / abs(x) for x, y in zip(a["losses"], b["losses"], strict=True)),
        "gradient": max(apart(x, y) for x, y in zip(a["gradients"], b["gradients"], strict=True)),
        "weights": apart(a["state"], b["state"]),
        "gradient32": apart(c["gradients"][0], d["gradients"][0]),
    }


def apart(one, other):
    """|a - b| / |a| over all tensors together; infinite where names differ."""
    if one.keys() != other.keys():
        return float("inf")
    size = sum(float(value.double().square().sum()) for value in one.values())
    gap = sum(float((value.double() - other[name].double()).square().sum()) for name, value in one.items())
    return (gap / size) ** 0.5


def compared(folder, name):
    """Differences of every setup from one rank, the larger of those of two ranks."""
    stem = folder / name.replace("/", "-").replace(":", "-")
    row = {}
    for setup, (_, world) in SETUPS.items():
        one, other = (json.loads(Path(f"{stem}.{setup}.{rank}").read_text()) for rank in (0, world - 1))
        row[setup] = {key: None if one[key] is None else max(one[key], other[key]) for key in one}
    rounding = Path(f"{stem}.rounding")
    row["rounding"] = json.loads(rounding.read_text()) if rounding.exists() else None
    return row | {"wall_s": torch.load(f"{stem}.alone", weights_only=False)[1]}


def equal(row):
    """Whether every difference of a case is within its limit, in float32 within what float32 itself loses."""
    limits = LIMITS | {"gradient32": max(LIMITS["gradient32"], row["rounding"] or 0.0)}
    return all(
        row[setup][key] is not None and row[setup][key] <= most for setup in SETUPS for key, most in limits.items()
    )


def table(found):
    """The differences as Markdown."""
    heads = [f"{setup} {key}" for setup in SETUPS for key in COLUMNS]
    lines = [f"| recipe | {' | '.join(heads)} | rounding | equal |", "|---" * (len(heads) + 3) + "|"]
    for name, row in found.items():
        values = [*(row[setup][key] for setup in SETUPS for key in COLUMNS), row["rounding"]]
        cells = ["failed" if value is None else f"{value:.0e}" for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if equal(row) else '**no**'} |")
    return "\n".join(lines)


def main(arguments):
    """Runs the cases that a pattern names, all by default; prints the table."""
    from torch import multiprocessing as processes

    patterns = [word for word in arguments if word != "--write"] or ["*"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs(folder / "graphs")
        chosen = {k: v for k, v in cases(folder).items() if any(fnmatch.fnmatch(k, p) for p in patterns)}
        multiprocessing.set_forkserver_preload(["mmssl.api", "lightning"])
        world = max(world for _, world in SETUPS.values())
        processes.start_processes(
            worker, (name, chosen, ports(len(SETUPS))), nprocs=world, start_method="forkserver"
        )  # fmt: skip
        found = {case: compared(folder, case) for case in chosen}
    print(table(found))
    if "--write" in arguments:
        import lightning

        content = {
            "command": "make ranks", "steps": STEPS, "limits": LIMITS, "left_out": LEFT_OUT,
            "versions": {"python": platform.python_version()}
            | {package.__name__: package.__version__ for package in (torch, lightning)},
            "wall_s": round(time.perf_counter() - started), "cases": found,
        }  # fmt: skip
        OUT.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(map(equal, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
