"""How ranks share the work: the strategy and precision of Lightning's trainer, and what is done to blocks before."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from mmssl.nn.norm import synchronise
from mmssl.nn.sharding import blocks, like, warm, whole
from mmssl.run import sharded


class Sharded(ModelParallelStrategy):
    """FSDP2 over all ranks of all machines, see `mmssl.nn.sharding`.

    A checkpoint file is that of one device: whole tensors, the optimizer's in its own order. So a run may go on with
    another strategy or number of ranks. A checkpoint in pieces (`mmssl.run.sharded`) is read by any number of ranks.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)
        self._bare = False
        self._pieces: Path | None = None

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the content of the file on."""
        return True

    def setup_environment(self) -> None:
        """Makes a mesh of all ranks; Lightning's own `auto` means machines."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Moves the module, whose precision is settled then, and sets the optimizers up."""
        super().setup(trainer)
        assert self.model is not None
        warm(self.model)

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """Here a checkpoint's content has neither weights nor the optimizer's state."""
        self._bare = True
        try:
            yield
        finally:
            self._bare = False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights and buffers, whole, on rank 0; all ranks call it together."""
        assert self.model is not None
        return {} if self._bare else whole(self.model.state_dict(), self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State of an optimizer, whole, on rank 0; all ranks call it together."""
        return {} if self._bare else whole(optimizer.state_dict(), self.is_global_zero)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a checkpoint, read by every rank; of one in pieces all that is no piece."""
        path = Path(checkpoint_path)
        self._pieces = path if path.is_dir() else None
        return sharded.extra(path) if path.is_dir() else Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fills the pieces of the weights from whole ones."""
        assert self.model is not None
        if self._pieces is not None:
            sharded.load(self._pieces, self.model, self.optimizers[0])
            return
        own, found = self.model.state_dict(), checkpoint["state_dict"]
        pieces = {name: like(value, own[name]) if name in own else value for name, value in found.items()}
        self.model.load_state_dict(pieces, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Fills the pieces of the optimizers' state from whole ones."""
        if self._pieces is not None:  # read with the weights
            return
        for optimizer, found in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                place: {key: like(x, parameters[place]) if torch.is_tensor(x) else x for key, x in values.items()}
                for place, values in found["state"].items()
            }
            optimizer.load_state_dict({"state": state, "param_groups": found["param_groups"]})


def strategy(word: str, world: int, timeout: timedelta = timedelta(minutes=30)) -> Any:
    """What Lightning's trainer takes as `strategy`.

    Args:
        word: `ddp`, `fsdp`, or `auto`: DDP where there are several processes.
        world: number of processes.
        timeout: how long a rank waits for the others.
    """
    if word == "fsdp":
        return Sharded(timeout)
    if word == "auto" and world == 1:
        return "auto"
    # buffers of all ranks are equal already, so that there is nothing to send with each forward pass
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, timeout=timeout)


def precision(word: str, kind: str, device: str) -> dict[str, Any]:
    """What Lightning's trainer takes for its precision.

    Under FSDP weights, gradients and their sums stay in float32 where the precision is mixed, as under DDP.

    Args:
        word: the strategy.
        kind: Lightning's word, such as `bf16-mixed`.
        device: `cuda`, `cpu`, ...
    """
    if word == "fsdp" and kind == "16-mixed":  # Lightning refuses the word only: the scaler sums over ranks
        return {"plugins": [MixedPrecision(kind, device, GradScaler(device))]}
    return {"precision": kind}


def prepare(module: nn.Module, *, checkpoint_activations: bool, compiled: bool, sync_batchnorm: bool) -> None:
    """Changes how blocks and batch norms compute; their names, weights and results stay. Call it before sharding.

    Args:
        module: with blocks, see `mmssl.nn.sharding`.
        checkpoint_activations: blocks that train keep their inputs alone and run once more on the way back.
        compiled: blocks run through torch.compile in training.
        sync_batchnorm: batch norms of foreign encoders take their statistics over all ranks.
    """
    if sync_batchnorm:
        synchronise(module)
    for block in blocks(module):
        if compiled:
            block.forward = _chosen(block, torch.compile(block.forward), block.forward)
        if checkpoint_activations and any(p.requires_grad for p in block.parameters()):
            again = partial(checkpoint, block.forward, use_reentrant=False)
            block.forward = _chosen(block, again, block.forward)


def tell_apart(module: nn.Module, accumulate: int, batch_size: int) -> None:
    """Warns where gradients that accumulate are not those of the whole batch.

    Args:
        module: with terms under `objective`; those that compare samples with one another say `compares`.
        accumulate: passes of an optimizer step.
        batch_size: samples of all of them.
    """
    terms: Any = module.get_submodule("objective")
    found = [f"objective.{name} compares samples" for name, term in terms.items() if getattr(term, "compares", False)]
    found += [f"the batch norm {name} takes statistics" for name, part in module.named_modules() if _normed(part)]
    if accumulate > 1 and found:
        print(
            f"mmssl: trainer.accumulate={accumulate} is not the step of the whole batch: {found[0]} within one pass. "
            f"trainer.chunk={batch_size // accumulate} computes it in pieces, if the encoder has no batch norm.",
            file=sys.stderr,
        )


def _normed(part: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
    return isinstance(part, kinds) and any(p.requires_grad for p in part.parameters())


def _chosen(block: nn.Module, training: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """One way to compute a block in training, another elsewhere: evaluation neither compiles nor keeps anything."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (training if block.training else plain)(*args, **kwargs)

    return forward
