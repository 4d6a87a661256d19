"""What each operation of a loader takes of a sample: milliseconds of one core, all in one process and thread.

python -m benchmarks.speed.operations wav_folder | jpeg_folder | dino | simclr
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPOCHS = 4


class Timed:
    """A function whose time is added up under a name."""

    def __init__(self, call: Callable[..., Any], name: str, spent: Counter[str]) -> None:
        self.call, self.name, self.spent = call, name, spent

    def __call__(self, *given: Any) -> Any:
        """What the function gives."""
        mark = time.thread_time_ns()
        try:
            return self.call(*given)
        finally:
            self.spent[self.name] += time.thread_time_ns() - mark


def main(name: str) -> None:
    """Prints a table of one loader, the first epoch left out; views come by their class."""
    import torch

    from benchmarks.speed import loaders, wav_folder

    torch.set_num_threads(1)
    spent, done = Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "files"
        said = ["data=folder", f"data.root={root}", "data.batch_size=16"]
        if name == "wav_folder":
            wav_folder.recordings(root)
            said.append(
                "views.x=[{_target_: view/resample, rate: 16000}, {_target_: view/gain}, "
                "{_target_: view/spec_augment, seconds: 1.0, width: 0.3}]"
            )
            recipe, tokenizer = "audio/audio_mae", loaders.tokenizer("audio/audio_mae", said)
            behind = Timed(lambda batch: tokenizer(batch["x"]), "filter banks, normalised, in patches", spent)
        else:
            loaders.photographs(root, 256)
            recipe, said = {"jpeg_folder": "image/mae"}.get(name, f"image/{name}"), [*said, "data.batch_size=64"]
            behind = Timed(loaders.normalised, "bytes to normalised floats", spent)
        loader: Any = loaders.ours(recipe, said, name == "jpeg_folder", workers=0)
        made = loader.dataset
        made.views = {view: [Timed(op, type(op).__name__, spent) for op in ops] for view, ops in made.views.items()}
        made.dataset.read = Timed(made.dataset.read, "reading", spent)
        made.adapter.collate = Timed(made.adapter.collate, "collating", spent)
        with torch.inference_mode():
            for epoch in range(EPOCHS):
                for batch in loader:
                    behind(batch)
                    done += len(batch["id"]) if epoch else 0
                if not epoch:
                    spent.clear()
    for part, time_ns in spent.most_common():
        print(f"| {part} | {time_ns / done / 1e6:.3f} |")
    print(f"| all | {spent.total() / done / 1e6:.3f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
