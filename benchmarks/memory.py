"""What an encoder keeps for backward, by share of tokens hidden: `python benchmarks/memory.py RECIPE [key=value ...]`.

Counts the bytes of all tensors that autograd saves in its forward pass, each storage once and parameters not at all.
Prints one JSON object.
"""

from __future__ import annotations

import json
import sys

import torch

import mmssl

RATIOS = (0.5, 0.75, 0.9)


def saved(recipe: str, overrides: list[str]) -> dict[str, int]:
    """Tokens, visible tokens, and bytes kept."""
    module, data = mmssl.build(recipe, overrides)
    batch = data.batch([(0, i) for i in range(data.batch_size)])
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step = module.begin(batch)
        encoded = step["x"].seen
    assert encoded.x is not None and encoded.x.requires_grad
    return {"tokens": step["x"].tokens.index.shape[-1], "visible": encoded.index.shape[-1], "bytes": sum(held.values())}


def main() -> None:
    """The command line."""
    recipe, *overrides = sys.argv[1:] or ["video/videomae", "data=sample"]
    rows = {ratio: saved(recipe, [*overrides, f"masker.ratio={ratio}"]) for ratio in RATIOS}
    print(json.dumps({"recipe": recipe, "overrides": overrides, "torch": torch.__version__, "ratios": rows}, indent=1))


if __name__ == "__main__":
    main()
