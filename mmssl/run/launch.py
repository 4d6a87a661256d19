"""One run in several processes: joining those that torchrun, srun or `mmssl.run.spawning` have started."""

from __future__ import annotations

import datetime
import functools
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmssl.config.compose import ConfigError
from mmssl.run.trainer import Settings

# What Lightning leaves behind in the environment, for children to trip over.
LEFT = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
# Tells a worker the folder in which it finds its configuration and leaves what its starter has to know.
FOLDER = "MMSSL_LAUNCH"
# Counts the groups of this process: all ranks open the same ones in the same order.
_GROUPS = itertools.count()


def joined() -> bool:
    """Whether this process is one of several that were started from outside, by torchrun or srun."""
    return int(os.environ.get("WORLD_SIZE", 1) if "RANK" in os.environ else _tasks()) > 1


def _tasks() -> int:
    """Tasks of this process's Slurm step; 1 in a batch script, which is no step."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_STEP_ID" in os.environ else 1


def rank() -> int:
    """This process's number among all of the run, before they know of one another."""
    return int(os.environ.get("RANK", os.environ["SLURM_PROCID"] if _tasks() > 1 else 0))


def local(given: Settings) -> int:
    """Processes that the settings ask for on this machine.

    Raises:
        ConfigError: for a number that cannot be.
    """
    if given.devices != "auto":
        return int(given.devices)
    if not given.gpus:
        return 1
    import torch

    return torch.cuda.device_count()


def fitted(given: Settings) -> Settings:
    """The settings with the devices and nodes there are.

    Raises:
        ConfigError: where the processes that were started are not those that the settings ask for, or several nodes
            are asked for and nobody has started their processes.
    """
    if not joined():
        if given.nodes > 1:
            raise ConfigError(
                f"trainer.nodes={given.nodes}: one command cannot start processes on other machines. Start it with "
                "srun (see conf/slurm/ for a batch script) or torchrun, one process per device."
            )
        return replace(given, devices=local(given))
    adopt()
    world, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if given.devices == "auto":
        return replace(given, devices=here, nodes=world // here)
    if int(given.devices) * given.nodes != world:
        raise ConfigError(
            f"trainer.devices={given.devices} times trainer.nodes={given.nodes} is not the {world} processes that were "
            f"started, {here} on this machine. Set trainer.devices={here} trainer.nodes={world // here}, or "
            "trainer.devices=auto, or start other numbers of processes (--ntasks-per-node, --nproc-per-node)."
        )
    return given


def adopt() -> None:
    """Says what srun says in torchrun's words, which everything else reads."""
    if "RANK" in os.environ:
        return
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    said = os.environ
    nodes = said.get("SLURM_STEP_NODELIST") or said.get("SLURM_NODELIST", "127.0.0.1")
    address = "127.0.0.1" if int(said.get("SLURM_STEP_NUM_NODES", 1)) == 1 else None
    found = {
        "RANK": said["SLURM_PROCID"],
        "WORLD_SIZE": said["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": said["SLURM_LOCALID"],
        "GROUP_RANK": said["SLURM_NODEID"],
        # tasks of a node come as `2(x3),1`; mmssl wants equally many on each
        "LOCAL_WORLD_SIZE": said["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0],
        "MASTER_ADDR": said.get("MASTER_ADDR") or address or SLURMEnvironment.resolve_root_node_address(nodes),
        "MASTER_PORT": said.get("MASTER_PORT") or str(15000 + (int(said["SLURM_JOB_ID"]) * 7 + _step()) % 20000),
    }
    os.environ.update(found)


def _step() -> int:
    """The number of this Slurm step, so that two steps of one job do not meet on one port."""
    word = os.environ.get("SLURM_STEP_ID", "0")
    return int(word) if word.isdigit() else 0


@functools.cache
def _met(wait: datetime.timedelta) -> tuple[Any, int, int]:
    """The store in which ranks find one another, this one's number, and how many there are; once per process."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://", timeout=wait)))


def _rendezvous(wait: datetime.timedelta) -> tuple[Any, int, int]:
    """The same with a place of its own in the store for every group.

    torch's agent keeps one store for all attempts, and lost ranks have left their addresses in it, as has a group that
    a run's stage had before.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    store, number, world = _met(wait)
    return PrefixStore(f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_GROUPS)}", store), number, world


class Group:
    """The processes of a run, which know of one another inside this context; a single one is a group as well.

    Args:
        given: what the trainer is set to.
    """

    def __init__(self, given: Settings) -> None:
        self.given, self.open = given, False
        self._before = {name: os.environ.get(name) for name in LEFT}

    def __enter__(self) -> Group:
        import torch.distributed as dist

        if joined():
            self._open(_rendezvous(datetime.timedelta(minutes=self.given.timeout_minutes)))
        elif self.given.strategy != "auto" and not dist.is_initialized():
            # one process that shares work with nobody: Lightning would open a port for it, for good
            self._open((dist.HashStore(), 0, 1))  # pyright: ignore[reportPrivateImportUsage]
        return self

    def _open(self, found: tuple[Any, int, int]) -> None:
        import torch
        import torch.distributed as dist

        store, number, world = found
        if self.given.gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        backend = "cpu:gloo,cuda:nccl" if self.given.gpus else "gloo"
        wait = datetime.timedelta(minutes=self.given.timeout_minutes)
        dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=wait)
        self.open = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.open and (kind is None or not joined()):
            self.leave()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def share(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if not self.open:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def leave(self) -> None:
        """From here on every process is alone."""
        if self.open:
            import torch.distributed as dist

            self.open = False
            dist.barrier()
            dist.destroy_process_group()


def tell(name: str, text: str) -> None:
    """Leaves word for the process that started this one, where there is one."""
    if folder := os.environ.get(FOLDER):
        draft = Path(folder, f".{name}.{os.getpid()}")
        draft.write_text(text)
        draft.replace(Path(folder, name))
