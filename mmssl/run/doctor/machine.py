"""Checks of devices, cores, memory and disks."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mmssl.data.memory import cache_folder
from mmssl.run.directory import root
from mmssl.run.doctor.findings import Case, Finding, cores, error, note, ok, size, warning
from mmssl.run.planning.memory import available

SHM = Path("/dev/shm")
# Seconds that the clocks of a disk and of this machine may differ by.
_SKEW = 10
_FILES = 4096
_AHEAD = 2  # batches that a worker prepares


def devices(case: Case) -> Iterator[Finding]:
    """GPUs, and whether the settings fit them."""
    import torch

    given = case.settings
    wanted = given.accelerator in ("gpu", "cuda")
    if not torch.cuda.is_available():
        if wanted or shutil.which("nvidia-smi"):
            build = "this torch was built without CUDA" if torch.version.cuda is None else (
                f"this torch needs a driver for CUDA {torch.version.cuda}"
            )  # fmt: skip
            say = error if wanted else warning
            what = f"trainer.accelerator={given.accelerator}, but torch sees no GPU" if wanted else (
                "there is nvidia-smi, but torch sees no GPU"
            )  # fmt: skip
            yield say(f"{what}: {build}", "Install a torch that fits the driver (see pytorch.org), or ask for a GPU "
                      "of the cluster (--gpus-per-node); CUDA_VISIBLE_DEVICES may hide it")  # fmt: skip
        else:
            yield ok("no GPU: runs take the CPU")
        return
    count = torch.cuda.device_count()
    for i in range(count):
        found = torch.cuda.get_device_properties(i)
        narrow = "bf16" if found.major >= 8 else "no bf16"
        yield ok(f"GPU {i}: {found.name}, {size(found.total_memory)}, capability {found.major}.{found.minor}, {narrow}")
        if str(given.precision).startswith("bf16") and found.major < 8:
            yield warning(f"GPU {i} computes bf16 by other means, slowly", "trainer.precision=16-mixed")
    if given.gpus and isinstance(given.devices, int) and given.devices > count:
        yield error(f"trainer.devices={given.devices}, but there are {count} GPUs", f"trainer.devices={count}, or auto")


def processors(case: Case) -> Iterator[Finding]:
    """Cores, against the processes that will want them."""
    have, ranks, workers = cores(), case.here, case.workers
    said = case.environ.get("SLURM_CPUS_PER_TASK", "")
    each = int(said) if said.isdigit() else max(1, have // ranks)
    told = f"{have} cores for {ranks} ranks with {workers} workers each"
    if workers > each:
        yield warning(told, f"data.workers={max(0, each - 1)}, or more cores of the cluster (--cpus-per-task)")
    else:
        yield ok(told)


def threads(case: Case) -> Iterator[Finding]:
    """Threads of each rank, against the cores."""
    have, ranks = cores(), case.here
    said = case.environ.get("OMP_NUM_THREADS", "")
    if said and not said.isdigit():
        yield error(f"OMP_NUM_THREADS={said} is no number", f"export OMP_NUM_THREADS={max(1, have // ranks)}")
    elif said and int(said) * ranks > have:
        yield warning(
            f"OMP_NUM_THREADS={said} times {ranks} ranks is more than {have} cores: threads wait for one another",
            f"export OMP_NUM_THREADS={max(1, have // ranks)}",
        )
    elif said and not case.settings.gpus and int(said) * ranks * 2 <= have:
        yield note(
            f"OMP_NUM_THREADS={said} leaves most of {have} cores idle", f"unset it, or set it to {have // ranks}"
        )
    else:
        yield ok(f"OMP_NUM_THREADS={said}" if said else "threads follow the cores")


def shared_memory(case: Case) -> Iterator[Finding]:
    """/dev/shm, through which workers hand batches over."""
    if not SHM.is_dir():
        return
    free = shutil.disk_usage(SHM).free
    batch = _batch(case)
    if case.workers == 0 or batch is None:
        small = free < 2**28
        told = f"{size(free)} free in {SHM}"
        yield (
            note(told, "Containers get more by --shm-size=8g or --ipc=host; data.workers=0 needs none")
            if small
            else ok(told)
        )
        return
    need = batch * case.workers * _AHEAD * case.here
    told = (
        f"{size(free)} free in {SHM}; {case.here} ranks x {case.workers} workers x {_AHEAD} batches take {size(need)}"
    )
    remedy = "Fewer data.workers, or more shared memory: --shm-size or --ipc=host of a container"
    if free < batch * case.here:
        yield error(told, remedy)
    elif free < need:
        yield warning(told, remedy)
    else:
        yield ok(told)


def _batch(case: Case) -> int | None:
    """Bytes of one pass of a rank; None without a run, or where its data cannot be read, which another check says."""
    from mmssl.run.planning.live import total

    try:
        if case.data is None or case.data.full:
            return None
        case.data.facts()
        count = min(2, len(case.data.dataset("train")))
        each = total(case.data.batch([(0, i) for i in range(count)])) / count
    except (ValueError, OSError):
        return None
    return int(each * max(1, case.data.batch_size // (case.settings.world * case.settings.accumulate)))


def memory(case: Case) -> Iterator[Finding]:
    """Memory of the machine, or of the container or job."""
    free = available()
    if free < 2**30 * case.here:
        yield warning(f"{size(free)} of memory free", "Free some, or ask the cluster for more (--mem)")
    else:
        yield ok(f"{size(free)} of memory free")


def run_root(case: Case) -> Iterator[Finding]:
    """Where runs are written: rights and room."""
    place = root(None if case.tree is None else case.tree["run"]["root"]).absolute()
    there = _existing(place)
    remedy = "run.root=DIR or MMSSL_RUNS names another folder"
    if not os.access(there, os.W_OK):
        yield error(f"run.root {place} cannot be written", remedy)
        return
    free = shutil.disk_usage(there).free
    if free < 2**28:
        yield error(f"{size(free)} free at run.root {place}", f"Make room; {remedy}")
    elif free < 5 * 2**30:
        yield warning(f"{size(free)} free at run.root {place}; a run keeps two checkpoints and writes a third", remedy)
    else:
        yield ok(f"{size(free)} free at run.root {place}")


def clock(case: Case) -> Iterator[Finding]:
    """This machine's clock, against that of the disk that runs are written to."""
    there = _existing(root(None if case.tree is None else case.tree["run"]["root"]).absolute())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".mmssl-") as file:
            apart = os.stat(file.name).st_mtime - time.time()
    except OSError:  # another check says so
        return
    if abs(apart) > _SKEW:
        yield warning(
            f"the clock of {there} is {abs(apart):.0f} s {'ahead' if apart > 0 else 'behind'}",
            "Set the clocks by NTP: names of runs and their order are times",
        )
    else:
        yield ok("the clocks of machine and disk agree")


def caches(case: Case) -> Iterator[Finding]:
    """Folders that decoded data and foreign weights are kept in."""
    home = Path(case.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    places = {
        "MMSSL_CACHE": cache_folder(),
        "HF_HOME": Path(case.environ.get("HF_HOME") or home / "huggingface").expanduser(),
        "TORCH_HOME": Path(case.environ.get("TORCH_HOME") or home / "torch").expanduser(),
        "TMPDIR": Path(tempfile.gettempdir()),
    }
    shut = {name: place for name, place in places.items() if not os.access(_existing(place), os.W_OK)}
    for name, place in shut.items():
        yield warning(f"{place} cannot be written", f"export {name}=DIR names another folder")
    if not shut:
        yield ok(", ".join(f"{name} {place}" for name, place in places.items()))


def files(case: Case) -> Iterator[Finding]:
    """Files that a process may have open; every tensor of a worker is one."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FILES or case.workers == 0:
        yield ok(f"{soft} open files allowed")
    else:
        most = (
            "more" if hard == resource.RLIM_INFINITY or hard > _FILES else f"at most {hard}, else ask an administrator"
        )
        yield warning(
            f"{soft} open files allowed, and {case.workers} workers open many", f"ulimit -n {_FILES} ({most})"
        )


def data(case: Case) -> Iterator[Finding]:
    """Whether the run's data can be read, and its batch divides over the ranks."""
    if case.tree is None:
        return
    place = case.tree["data"].get("root")
    try:
        dataset = case.data.dataset("train")
        dataset.read(0)
        world = case.here * case.settings.nodes
        case.data.set_share(rank=0, world=world, accumulate=case.settings.accumulate)
    except (ValueError, OSError) as found:
        yield error(f"data: {found}", "data.root=DIR names the place; `mmssl audit data=...` lists what cannot be read")
        return
    yield ok(f"{len(dataset)} samples to train on" + (f" in {place}" if place else ""))


def _existing(place: Path) -> Path:
    """The nearest folder that is there."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place
