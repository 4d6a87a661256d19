"""Checkpoints in pieces: every rank writes its own, any number of ranks reads them; and one file out of the pieces.

A folder holds the shards of weights, buffers and optimizer state (torch.distributed.checkpoint), and `extra.pt` with
everything else. It is written under another name and gets its own once all ranks are done.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as read_pieces
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as write_pieces

from mmssl import ranks
from mmssl.config.compose import ConfigError
from mmssl.run import checkpoints

_EXTRA = "extra.pt"
_groups: dict[Any, Any] = {}


class Writing:
    """A checkpoint that is being written.

    Args:
        folder: the name it gets in the end.
        future: of the shards; None where they are written.
    """

    def __init__(self, folder: Path, future: Future[Any] | None = None) -> None:
        self.folder, self.future = folder, future
        self._lock, self._done = threading.Lock(), False
        if future is not None:
            future.add_done_callback(lambda _: self._finish())

    def wait(self) -> None:
        """Returns when the folder has its name, on all ranks; all of them have to ask.

        Raises:
            ConfigError: where a rank could not write; the folder that was there is as it was.
        """
        error = None if self.future is None else self.future.exception()
        self._finish()
        if error is not None:
            raise _unwritten(self.folder, error)
        _meet()

    def _finish(self) -> None:
        with self._lock:
            if self._done or ranks.rank() != 0:
                return
            self._done = True
            new, old = _beside(self.folder, "tmp"), _beside(self.folder, "old")
            if self.future is not None and self.future.exception() is not None:
                shutil.rmtree(new, ignore_errors=True)
                return
            if self.folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                self.folder.rename(old)
            new.rename(self.folder)
            shutil.rmtree(old, ignore_errors=True)


def save(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, beside: Mapping[str, Any],
    asynchronous: bool = False,
) -> Writing:  # fmt: skip
    """Writes a checkpoint in pieces; all ranks call it together.

    Args:
        folder: what is there gives way once the new one is complete.
        module: with its twins and buffers; its parameters may be shared out (`mmssl.nn.sharding`) or not.
        optimizer: over parameters of the module.
        beside: plain tensors and containers, the same for all ranks; rank 0 writes them.
        asynchronous: whether training goes on while the disk works: all is copied to the CPU first. Call `wait` before
            the next checkpoint and at the end. One process alone waits at once.

    Raises:
        ConfigError: where a rank cannot write; the folder that was there is as it was.
    """
    temporary = _beside(folder, "tmp")
    weights, steps = get_state_dict(module, optimizer)
    state = {"model": weights, "optimizer": steps}
    if ranks.rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        torch.save(dict(beside), temporary / _EXTRA)
    _meet()
    if asynchronous and ranks.world() > 1:
        future: Any = async_save(state, checkpoint_id=temporary, process_group=_group())
        return Writing(folder, future)
    try:
        with _alone():
            write_pieces(state, checkpoint_id=temporary, process_group=_group())
    except (OSError, RuntimeError, CheckpointException) as error:
        raise _unwritten(folder, error) from error
    done = Writing(folder)
    done.wait()
    return done


def load(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fills a module and its optimizer from a folder that any number of ranks wrote; all ranks call it together.

    Returns:
        What was saved beside the pieces.

    Raises:
        ConfigError: for a folder that is missing or not whole.
    """
    found = find(folder)
    optimizers = () if optimizer is None else optimizer
    weights, steps = get_state_dict(module, optimizers)
    state: dict[str, Any] = {"model": weights} | ({"optimizer": steps} if optimizer is not None else {})
    try:
        with _alone():
            read_pieces(state, checkpoint_id=found, process_group=_group())
    except (OSError, RuntimeError, ValueError, CheckpointException) as error:
        raise _broken(found, error) from error
    set_state_dict(module, optimizers, model_state_dict=state["model"], optim_state_dict=state.get("optimizer", {}))
    return extra(found)


def extra(folder: Path) -> dict[str, Any]:
    """What was saved beside the pieces.

    Raises:
        ConfigError: for a folder that is missing or not whole.
    """
    found = find(folder)
    try:
        return torch.load(found / _EXTRA, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint break the reader in any way
        raise _broken(found, error) from error


def there(folder: Path) -> bool:
    """Whether there is something that a checkpoint in pieces was written to."""
    return folder.is_dir() or _beside(folder, "old").is_dir()


def find(folder: Path) -> Path:
    """The folder, or the one it was to replace where a kill came between two names.

    Raises:
        ConfigError: where there is neither.
    """
    for path in (folder, _beside(folder, "old")):
        if (path / ".metadata").is_file() and (path / _EXTRA).is_file():
            return path
    raise ConfigError(f"there is no checkpoint in {folder}: a whole one holds .metadata and {_EXTRA}")


def consolidate(folder: Path, file: Path) -> None:
    """One file with whole weights out of the pieces, as a run on one device writes it, without optimizer state.

    One process does it, and needs no other.

    Raises:
        ConfigError: for a folder that is missing or not whole, or a file that cannot be written.
    """
    found, temporary = find(folder), file.with_name(f".{file.name}.whole")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp_to_torch_save(found, temporary)
        state = torch.load(temporary, map_location="cpu", weights_only=False, mmap=True)["model"]
        content = {name: value for name, value in extra(found).items() if name != "optimizer_states"}
        checkpoints.save(content | {"state_dict": state}, file)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{found} cannot be made one file ({error}); take another checkpoint of the run") from error
    finally:
        temporary.unlink(missing_ok=True)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _broken(folder: Path, error: BaseException) -> ConfigError:
    return ConfigError(
        f"the checkpoint {folder} is not whole, or was written for another model ({str(error).splitlines()[0]}). "
        "Take another checkpoint of the run."
    )


def _unwritten(folder: Path, error: BaseException) -> ConfigError:
    return ConfigError(
        f"the checkpoint {folder} cannot be written ({str(error).splitlines()[0]}). The one before is intact: make "
        "room, or write rights, and go on with `mmssl resume`."
    )


def _group() -> Any:
    """Ranks' own line for checkpoints: on the CPU, and apart from what training sends at the same time."""
    if ranks.world() == 1:
        return None
    world = dist.group.WORLD
    if world not in _groups:
        _groups[world] = dist.new_group(backend="gloo")
    return _groups[world]


def _meet() -> None:
    if ranks.world() > 1:
        dist.barrier(_group())


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Holds back torch's remark that one process is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
