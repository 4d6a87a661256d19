"""Where Hydra finds the launchers and the sweeper of mmssl: it takes plugins from this namespace only."""

from mmssl.sweep import launchers, search


class SlurmLauncher(launchers.SlurmLauncher):
    """`hydra/launcher=submitit_slurm`."""


class LocalLauncher(launchers.LocalLauncher):
    """`hydra/launcher=submitit_local`."""


class OptunaSweeper(search.OptunaSweeper):
    """`hydra/sweeper=optuna`."""
