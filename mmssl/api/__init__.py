"""mmssl in Python: each function does what the verb of its name does on the command line."""

from __future__ import annotations

from mmssl.api.data import audit, shards
from mmssl.api.finetuning import finetune
from mmssl.api.measuring import evaluate
from mmssl.api.planning import doctor, plan
from mmssl.api.training import build, pretrain, resolve, resume
from mmssl.api.using import embed, export, load
from mmssl.api.watching import watch

__all__ = [
    "audit", "build", "doctor", "embed", "evaluate", "export", "finetune", "load", "plan", "pretrain", "resolve",
    "resume", "shards", "watch",
]  # fmt: skip
