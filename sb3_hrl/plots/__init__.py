"""Learning curves of runs, from the files of rl_zoo3 and SB3; independent of the algorithm."""

from sb3_hrl.plots.figures import Band, band, plot_curves, plot_success
from sb3_hrl.plots.logs import Run, Series, find_runs, read_arguments, read_run, read_runs

__all__ = [
    "Band",
    "Run",
    "Series",
    "band",
    "find_runs",
    "plot_curves",
    "plot_success",
    "read_arguments",
    "read_run",
    "read_runs",
]
