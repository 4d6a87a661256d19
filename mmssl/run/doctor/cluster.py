"""Checks of what processes on several devices and machines need: networks, Slurm, launchers."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator

from mmssl.run.doctor.findings import Case, Finding, error, note, ok, warning

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SLOW = {"NCCL_P2P_DISABLE": "GPUs of one machine talk through its memory", "NCCL_IB_DISABLE": "InfiniBand is not used"}


def interfaces(case: Case) -> Iterator[Finding]:
    """Network interfaces, and the ones that NCCL and Gloo are told to use."""
    have = [name for _, name in socket.if_nameindex()]
    outside = [name for name in have if name != "lo"]
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        said = case.environ.get(variable, "")
        names = [name.lstrip("=") for name in said.lstrip("^").split(",") if name]
        if said and not said.startswith("^") and not any(one.startswith(name) for name in names for one in have):
            near = ", ".join(outside) or "none but lo"
            yield error(f"{variable}={said}, but the interfaces are {near}", f"unset {variable}, or name one of them")
    if case.settings.nodes > 1 and not outside:
        yield error("there is no network interface but lo", "Run on machines with a network, or trainer.nodes=1")
    elif case.settings.nodes > 1 and len(outside) > 1 and "NCCL_SOCKET_IFNAME" not in case.environ:
        yield note(
            f"several interfaces: {', '.join(outside)}", "If ranks do not find one another, export NCCL_SOCKET_IFNAME"
        )
    else:
        yield ok(f"interfaces: {', '.join(have)}")


def variables(case: Case) -> Iterator[Finding]:
    """Variables of NCCL that slow a run down or make it talk."""
    said = {name: case.environ[name] for name in sorted(case.environ) if name.startswith(("NCCL_", "GLOO_"))}
    for name, why in _SLOW.items():
        if said.get(name, "0") not in ("0", ""):
            yield warning(f"{name}={said[name]}: {why}", f"unset {name}, unless it works around a fault")
    if said.get("NCCL_DEBUG", "").upper() in ("INFO", "TRACE"):
        yield note(f"NCCL_DEBUG={said['NCCL_DEBUG']} fills the log", "unset NCCL_DEBUG when all is well")
    yield ok(", ".join(f"{name}={value}" for name, value in said.items()) or "no NCCL or Gloo variables are set")


def torchrun(case: Case) -> Iterator[Finding]:
    """Variables by which ranks find one another: all or none, and an address that there is."""
    said = {name: case.environ[name] for name in _TORCHRUN if name in case.environ}
    if not said:
        yield ok("no variables of torchrun are set")
        return
    missing = [name for name in _TORCHRUN if name not in said]
    if "RANK" in said and missing:
        yield error(f"RANK is set, but not {', '.join(missing)}", "Start ranks by torchrun or srun, or unset RANK")
        return
    if "WORLD_SIZE" in said and "RANK" not in said:
        yield warning("WORLD_SIZE is set without RANK and is ignored", "unset WORLD_SIZE")
    if not said.get("MASTER_PORT", "1").isdigit():
        yield error(f"MASTER_PORT={said['MASTER_PORT']} is no number", "export MASTER_PORT=29500, a free port")
    if address := said.get("MASTER_ADDR"):
        try:
            socket.getaddrinfo(address, None)
        except OSError as found:
            yield error(
                f"MASTER_ADDR={address} cannot be resolved ({found})", "Name a machine that all ranks can reach"
            )
            return
    yield ok(", ".join(f"{name}={value}" for name, value in said.items()))


def slurm(case: Case) -> Iterator[Finding]:
    """The tasks, GPUs and cores of this Slurm job, against the trainer's settings."""
    said, given = case.environ, case.settings
    if "SLURM_JOB_ID" not in said:
        if given.nodes > 1 and "RANK" not in said:
            yield error(
                f"trainer.nodes={given.nodes}, but this is no job of a cluster",
                "Start one process per device with srun (conf/slurm/multi_node.sbatch) or torchrun",
            )
        return
    nodes, tasks = _number(said, "SLURM_JOB_NUM_NODES", "SLURM_NNODES"), _number(said, "SLURM_NTASKS", "SLURM_NPROCS")
    step = _number(said, "SLURM_STEP_NUM_TASKS") if "SLURM_STEP_ID" in said else None
    if given.devices != "auto" and int(given.devices) * given.nodes != (step or tasks):
        yield error(
            f"the job has {step or tasks} tasks on {nodes} nodes, but trainer.devices={given.devices} times "
            f"trainer.nodes={given.nodes} is {int(given.devices) * given.nodes}",
            f"trainer.devices=auto, or trainer.devices={max(1, (step or tasks) // nodes)} trainer.nodes={nodes}, or "
            "other --nodes and --ntasks-per-node",
        )
    if step is None and tasks > 1:
        yield note(f"this is a batch script of {tasks} tasks, itself one process", "Start the run with srun")
    gpus = said.get("SLURM_GPUS_ON_NODE", "")
    each = max(1, tasks // nodes)
    if gpus.isdigit() and int(gpus) != each:
        yield warning(
            f"{gpus} GPUs and {each} tasks on a node; every task takes one GPU",
            f"--ntasks-per-node={gpus} --gpus-per-node={gpus}",
        )
    yield ok(f"Slurm job {said['SLURM_JOB_ID']}: {nodes} nodes, {tasks} tasks")


def _number(said: object, *names: str) -> int:
    for name in names:
        value = said.get(name, "")  # pyright: ignore[reportAttributeAccessIssue]
        if value.isdigit():
            return int(value)
    return 1


def launchers(case: Case) -> Iterator[Finding]:
    """What starts jobs of a sweep on a cluster."""
    have = {name: shutil.which(name) is not None for name in ("sbatch", "squeue", "srun", "scontrol", "sacct")}
    if not any(have.values()):
        yield ok("no Slurm here; sweeps run one job after the other, or with hydra/launcher=submitit_local")
        return
    missing = [name for name, there in have.items() if not there and name != "sacct"]
    if missing:
        yield warning(
            f"Slurm without {', '.join(missing)}: hydra/launcher=submitit_slurm needs them", "Put them on PATH"
        )
    else:
        yield ok("Slurm: " + ", ".join(name for name, there in have.items() if there))
