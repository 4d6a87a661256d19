"""mmssl: self-supervised learning for images, video, audio, point clouds, graphs and tables.

`import mmssl` is quick and imports no torch: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmssl.api import audit, build, doctor, embed, evaluate, export, finetune, load, pretrain, resume
    from mmssl.registry import register
    from mmssl.types import Mask, Tokens, View

__version__ = "0.1.0"

# torch, asked before its first tensor, takes memory of 2 MiB and more in huge pages, where the system grants them: a
# batch of floats is filled several times as fast.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = [
    "Mask", "Tokens", "View", "__version__", "audit", "build", "doctor", "embed", "evaluate", "export", "finetune",
    "load", "pretrain", "register", "resume",
]  # fmt: skip

_API = ("audit", "build", "doctor", "embed", "evaluate", "export", "finetune", "load", "pretrain", "resume")
_HOME = {"View": "types", "Tokens": "types", "Mask": "types", "register": "registry"} | dict.fromkeys(_API, "api")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
