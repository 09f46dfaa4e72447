"""A figure of runs: success rate, and success, losses and reward per level; seeds as thin lines, with mean and range."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sb3_hrl.plots.logs import Run, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# For each level: titles, and keys of the logger, of which the first one in the run is drawn. SB3's flat agents are low levels
PANELS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "high": [
        ("success rate (training)", ("rollout/success_rate",)),
        ("actor loss", ("train/high_actor_loss",)),
        ("critic loss", ("train/high_critic_loss",)),
        ("reward per decision", ("train/high_reward",)),
    ],
    "low": [
        ("subgoal success rate (training)", ("rollout/subgoal_success_rate",)),
        ("actor loss", ("train/low_actor_loss", "train/actor_loss")),
        ("critic loss", ("train/low_critic_loss", "train/critic_loss")),
        ("reward per step", ("train/low_reward",)),
    ],
}


class Band(NamedTuple):
    """Mean and range of several runs."""

    x: np.ndarray  # (n,)
    mean: np.ndarray  # (n,)
    low: np.ndarray  # (n,)
    high: np.ndarray  # (n,)


def band(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> Band:
    """
    Mean and range of curves with different x values. Each curve is linearly interpolated, in the range that all curves cover.

    :param curves: pairs of x (increasing) and y, each of shape (n,), at least one
    :return: mean and range at all of their x values
    :raises ValueError: if there is no curve
    """
    if not curves:
        raise ValueError("There is no curve to take the mean of: pass at least one.")
    x = np.unique(np.concatenate([x for x, _ in curves]))
    x = x[(x >= max(x[0] for x, _ in curves)) & (x <= min(x[-1] for x, _ in curves))]
    values = np.array([np.interp(x, *curve) for curve in curves])
    return Band(x, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def plot_curves(groups: Mapping[str, Sequence[Run]], title: str) -> "Figure":
    """
    Draw success against environment steps and wall time, and the eight curves of the two levels.

    :param groups: runs by their name in the legend, such as all seeds by algorithm; at least one run each
    :param title: title of the figure
    :return: the figure; save it with ``savefig``
    :raises ValueError: if no run has anything to draw
    """
    figure = _figure(groups, (15, 9))
    grid = figure.add_gridspec(3, 4)
    _draw_success([figure.add_subplot(grid[0, column : column + 2]) for column in (0, 2)], groups)
    for row, (level, panels) in enumerate(PANELS.items(), start=1):
        for column, (name, keys) in enumerate(panels):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, groups, keys, "environment steps")
            axes.set(title=f"{level}: {name}", xlabel="environment steps")
            if "success" in name:
                axes.set_ylim(-0.03, 1.03)
    figure.suptitle(title)
    return figure


def plot_success(groups: Mapping[str, Sequence[Run]], title: str) -> "Figure":
    """
    Draw success against environment steps and wall time.

    :param groups: runs by their name in the legend, such as all seeds by algorithm; at least one run each
    :param title: title of the figure
    :return: the figure; save it with ``savefig``
    :raises ValueError: if no run has anything to draw
    """
    figure = _figure(groups, (10, 4))
    _draw_success(list(figure.subplots(1, 2)), groups)
    figure.suptitle(title)
    return figure


def _figure(groups: Mapping[str, Sequence[Run]], size: tuple[float, float]) -> "Figure":
    """:return: an empty figure of a size in inches; refuses runs without curves"""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Curves need matplotlib: `pip install "sb3-hrl[plots]"`.') from error
    if not any(run.series for runs in groups.values() for run in runs):
        raise ValueError("None of the runs has logged a curve: train with `-tb FOLDER` or `--eval-freq N`.")
    return Figure(figsize=size, dpi=100, layout="constrained")


def _draw_success(panels: "Sequence[Axes]", groups: Mapping[str, Sequence[Run]]) -> None:
    """Draw success against environment steps in the first panel, and against wall time in the second panel."""
    key = "eval/success_rate"
    if not all(key in run.series for runs in groups.values() for run in runs):
        key = "rollout/success_rate"
    kind = "evaluation" if key.startswith("eval") else "training, with exploration noise"
    for axes, x_axis in zip(panels, ("environment steps", "minutes"), strict=True):
        _draw(axes, groups, (key,), x_axis)
        axes.set(title=f"success rate ({kind})", xlabel=x_axis, ylim=(-0.03, 1.03))
    panels[0].legend(loc="best", fontsize=8)


def _draw(axes: "Axes", groups: Mapping[str, Sequence[Run]], keys: Sequence[str], x_axis: str) -> None:
    """Draw one panel, or a note if there is nothing to draw."""
    is_empty = True
    for number, (label, runs) in enumerate(groups.items()):
        curves = [curve for run in runs if (curve := _curve(run, keys, x_axis)) is not None]
        if not curves:
            continue
        is_empty, color = False, f"C{number}"
        if len(curves) > 1:
            for curve in curves:
                axes.plot(*curve, color=color, alpha=0.35, linewidth=0.7)
        middle = band(curves)
        seeds = "1 seed" if len(curves) == 1 else f"{len(curves)} seeds: mean, range"
        # A single evaluation is a point
        marker = "o" if len(middle.x) == 1 else None
        axes.plot(middle.x, middle.mean, color=color, linewidth=1.8, marker=marker, label=f"{label} ({seeds})")
        axes.fill_between(middle.x, middle.low, middle.high, color=color, alpha=0.15, linewidth=0)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    if is_empty:
        axes.text(0.5, 0.5, f"not logged:\n{keys[0]}", ha="center", va="center", transform=axes.transAxes, color="gray")


def _curve(run: Run, keys: Sequence[str], x_axis: str) -> tuple[np.ndarray, np.ndarray] | None:
    """:return: x and y of the first key that the run has, without values that are not finite"""
    series: Series | None = next((run.series[key] for key in keys if key in run.series), None)
    if series is None:
        return None
    x = series.steps if x_axis == "environment steps" else None if series.seconds is None else series.seconds / 60.0
    if x is None:
        return None
    finite = np.isfinite(series.values)
    return (x[finite], series.values[finite]) if finite.any() else None
