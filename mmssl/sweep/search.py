"""A sweeper that searches instead of counting all combinations: Optuna proposes, the jobs' score is told to it.

To Hydra it is `hydra/sweeper=optuna`. Hydra's own package for it needs Optuna 2; this one asks and tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.utils import instantiate
from omegaconf import DictConfig

from mmssl.config.compose import ConfigError
from mmssl.sweep.jobs import Record, tell


class OptunaSweeper(Sweeper):
    """Runs a number of trials, some at a time, towards the best score.

    Args:
        score: dotted path of a number in `summary.json`, such as `eval.knn.value`; null for the first score.
        direction: `maximize` or `minimize`.
        n_trials: jobs in all.
        n_jobs: jobs at a time; the search learns from a batch when all of it has ended.
        sampler: an Optuna sampler.
        storage: a database that keeps the study, such as `sqlite:///study.db`; null for this sweep only.
        study_name: name in the database; a study that is there goes on.
    """

    def __init__(
        self,
        score: str | None,
        direction: str,
        n_trials: int,
        n_jobs: int,
        sampler: DictConfig,
        storage: str | None,
        study_name: str | None,
    ) -> None:
        self.score, self.direction, self.n_trials, self.n_jobs = score, direction, n_trials, n_jobs
        self.sampler, self.storage, self.study_name = sampler, storage, study_name

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Takes the launcher and the sweep's directory."""
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self.record = Record(Path(config.hydra.sweep.dir))

    def sweep(self, arguments: list[str]) -> None:
        """Asks, launches and tells until all trials are done.

        Raises:
            ConfigError: when Optuna is missing, nothing varies, or the score is not in the jobs' summaries.
        """
        study = self._study()
        parsed = OverridesParser.create().parse_overrides(arguments)
        space = {name_of(one): distribution(one) for one in parsed if one.is_sweep_override()}
        fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
        prefixes = {name_of(one): str(one.input_line).partition("=")[0] for one in parsed}
        if not space:
            raise ConfigError(
                "hydra/sweeper=optuna has nothing to vary: write key=a,b or key=interval(low,high) or "
                "key=tag(log,interval(1e-5,1e-2)) for at least one key"
            )
        self.record.write(score=self.score, direction=self.direction)
        for start in range(0, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - start))]
            batch = [[*fixed, *(f"{prefixes[k]}={v}" for k, v in trial.params.items())] for trial in trials]
            assert self.launcher is not None
            returned = self.launcher.launch(batch, initial_job_idx=start)
            self._tell(study, trials, [job.return_value for job in returned], start)

    def _study(self) -> Any:
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise ConfigError("hydra/sweeper=optuna needs the package optuna: pip install 'mmssl[optuna]'") from error
        if self.direction not in ("maximize", "minimize"):
            raise ConfigError(f"hydra.sweeper.direction is maximize or minimize (got {self.direction!r})")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(
            sampler=instantiate(self.sampler),
            direction=self.direction,
            storage=self.storage,
            study_name=self.study_name,
            load_if_exists=self.study_name is not None,
        )

    def _tell(self, study: Any, trials: list[Any], values: list[float | None], start: int) -> None:
        """Tells values; a trial without one has failed, and the search goes on."""
        from optuna.trial import TrialState

        for trial, value in zip(trials, values, strict=True):
            study.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
        rows = self.record.read()["jobs"][start : start + len(trials)]
        if lacking := [row for row in rows if row["status"] == "completed" and row["value"] is None]:
            has = ", ".join(f"eval.{name}.value" for name in lacking[0].get("eval", {})) or "no scores"
            raise ConfigError(
                f"hydra.sweeper.score={self.score}: there is no such number in {lacking[0]['run']}/summary.json; "
                f"there is train.loss, and {has}"
            )
        best = self.record.write()["best"]
        if best is not None:
            tell(f"best of {start + len(trials)} trials: {best['value']:.4f}, job {best['job']}")


def name_of(override: Override) -> str:
    """An override's key without signs."""
    return override.get_key_element().lstrip("+~")


def distribution(override: Override) -> Any:
    """Optuna's distribution of a Hydra sweep: `a,b`, `choice(...)`, `range(...)`, `interval(...)`, `tag(log, ...)`.

    Raises:
        ConfigError: for a sweep that Optuna has no word for.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low or 0), float(high or 0), log=log)
    if isinstance(value, RangeSweep) and all(isinstance(n, int) for n in (value.start, value.stop, value.step)):
        numbers = sorted(range(int(value.start or 0), int(value.stop or 0), int(value.step)))
        return IntDistribution(numbers[0], numbers[-1], step=abs(int(value.step)))
    return CategoricalDistribution([*dict.fromkeys(override.sweep_string_iterator())])
