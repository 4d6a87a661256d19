"""A run of several stages: each is a run in `stages/NAME/` of the directory of the last, which is the run itself.

Each is trained, killed, stopped and gone on with as any run; what is completed is not begun again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.config import build
from mmssl.config.stages import placed
from mmssl.run import directory, fitting, launch, training
from mmssl.run.resume import remember, remembered
from mmssl.run.trainer import Settings
from mmssl.run.training import Run


def train(tree: dict[str, Any], command: list[str], resume: Path | None = None) -> Run:
    """Trains a checked configuration, after the stages that it names.

    Args:
        tree: the configuration.
        command: what the user said.
        resume: the directory of the run to go on with; None for a new run.

    Returns:
        The run; `stopped` or `diverged` too where that became of a stage, whose name `stage` of the summary says.

    Raises:
        ConfigError: for a configuration that does not fit the data or itself.
        RunFailed: when a process of several was lost.
    """
    if not tree.get("stages"):
        return _one(tree, command, resume)
    # unfit settings are refused before there is a directory
    settings = launch.fitted(build.make(tree["trainer"], "trainer"))
    run = Path(_shared(settings, str(resume or _begun(tree, command)) if launch.rank() == 0 else None))
    folders = {name: str((run / "stages" / name).resolve()) for name in tree["stages"]}
    for name, stage in tree["stages"].items():
        folder = run / "stages" / name
        if _completed(folder):
            continue
        _tell(run, tree, {"stage": name})
        done = _one(placed(stage, folders), command, _made(folder, stage, command))
        _shared(settings, None)  # what the first rank writes last is there now
        if done.summary["status"] != "completed":
            return Run(run, _tell(run, tree, done.summary | {"stage": name}))
    last = placed(tree | {"stages": {}}, folders) | {"stages": tree["stages"]}
    return _one(last, command, run)


def _one(tree: dict[str, Any], command: list[str], resume: Path | None) -> Run:
    """One run: of codes, where it has a fit, else of training."""
    return (fitting.fit if tree.get("fit") else training.train)(tree, command, resume)


def _shared(settings: Settings, value: Any) -> Any:
    """The first rank's value, once all ranks are here."""
    with launch.Group(settings) as group:
        return group.share(value)


def _begun(tree: dict[str, Any], command: list[str]) -> Path:
    """The run that this job of a queue began, or a new one."""
    run = remembered(tree) or directory.create(training.home(tree))
    remember(tree, run)
    if not directory.is_run(run):
        directory.opened(run, tree, command)
    return run


def _made(folder: Path, tree: dict[str, Any], command: list[str]) -> Path:
    """The directory of a stage, which is a run's from the beginning."""
    if launch.rank() == 0 and not directory.is_run(folder):
        directory.opened(folder, tree, command)
    return folder


def _completed(folder: Path) -> bool:
    return directory.is_run(folder) and directory.read_summary(folder)["status"] == "completed"


def _tell(run: Path, tree: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """Writes the summary of a run whose own training has not begun, with what is known of a stage."""
    summary = directory.summary(run, tree, **said)
    if launch.rank() == 0:
        directory.write_json(run / "summary.json", summary)
    return summary
