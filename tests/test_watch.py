"""The watch over a run's verdict: it speaks when things get worse, and ends the run where told to."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from mmssl.run.safety import Watch
from mmssl.run.trainer import settings


def watched(verdicts, stop_on=()):
    """A run measured once per verdict; gives the trainer, the watch and how many steps it took."""
    online, found = SimpleNamespace(history=[]), iter(verdicts)
    state = {}

    def health():
        word = state["word"]
        return {"verdict": word, "causes": [f"cause of {word}."], "remedies": [f"remedy of {word}."]}

    watch = Watch(online, health, stop_on)
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, should_stop=False)
    for word in found:
        state["word"] = word
        trainer.global_step += 1
        watch.on_train_batch_end(trainer, None, None, None, 0)  # nothing was measured since: nothing is said
        online.history.append({})
        watch.on_train_batch_end(trainer, None, None, None, 0)
        if trainer.should_stop:
            break
    return trainer, watch


def test_it_speaks_once_per_verdict_and_never_of_health(capsys):
    trainer, watch = watched(["unknown", "healthy", "warning", "warning", "collapsed", "healthy", "warning"])
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said == [
        "step 3: warning. cause of warning. remedy of warning.",
        "step 5: collapsed. cause of collapsed. remedy of collapsed.",
        "step 7: warning. cause of warning. remedy of warning.",
    ]
    assert not trainer.should_stop and watch.why is None


def test_it_ends_the_run_where_told_to():
    trainer, watch = watched(["healthy", "warning", "collapsed", "healthy"], ["collapsed", "diverged"])
    assert trainer.should_stop and trainer.global_step == 3
    assert watch.why == "trainer.stop_on: the run is collapsed. cause of collapsed."


def test_an_unknown_verdict_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.stop_on: there is no verdict 'colapsed'; warning, collapsed"):
        settings(stop_on=["colapsed"])


def test_peak_memory_is_that_of_the_process_itself():
    """And not of a larger one that started it, with which the system's own count begins."""
    child = "from mmssl.run.device import peak_memory; print(peak_memory())"
    parent = (
        "import subprocess, sys\n"
        "held = bytearray(b'1') * (3 << 30)\n"
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True, check=True).stdout)"
    )
    told = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert 50 < int(told) < 2500
