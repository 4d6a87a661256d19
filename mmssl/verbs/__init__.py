"""What the verbs of the command line do. Each takes the words behind it and the flags, and returns the exit status."""

from __future__ import annotations

from collections.abc import Callable

from mmssl.verbs.before import doctor, plan
from mmssl.verbs.data import audit, shards
from mmssl.verbs.look import doc, list_, preview, show
from mmssl.verbs.measure import bench, evaluate
from mmssl.verbs.runs import report, runs
from mmssl.verbs.train import finetune, pretrain, resume
from mmssl.verbs.use import embed, export
from mmssl.verbs.words import Usage

__all__ = ["VERBS", "Usage"]

VERBS: dict[str, Callable[[list[str], list[str]], int]] = {
    "pretrain": pretrain,
    "resume": resume,
    "finetune": finetune,
    "evaluate": evaluate,
    "embed": embed,
    "export": export,
    "list": list_,
    "doc": doc,
    "show": show,
    "preview": preview,
    "plan": plan,
    "bench": bench,
    "doctor": doctor,
    "audit": audit,
    "shards": shards,
    "runs": runs,
    "report": report,
}
