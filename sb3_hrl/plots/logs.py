"""
Reads the logs of a run: ``evaluations.npz``, ``*.monitor.csv`` and ``progress.csv`` in its folder, and TensorBoard's event
files elsewhere. rl_zoo3 writes the first if it evaluates, the second always, and event files with ``-tb``; it does not use the
CSV logger.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from stable_baselines3.common.monitor import get_monitor_files, load_results

# Number of episodes in the moving average of the success rate if there are only Monitor files, as SB3's `stats_window_size`
WINDOW = 100
# Seconds between the creation of a run's environments and the start of its log (negative: names of event files are rounded)
_LATEST, _EARLIEST = 300.0, -2.0
_STEPS = "time/total_timesteps"


class Series(NamedTuple):
    """A curve of one run, by environment steps."""

    steps: np.ndarray  # (n,), environment steps, increasing
    values: np.ndarray  # (n,)
    seconds: np.ndarray | None  # (n,), since the start of the run; None if unknown


@dataclass(frozen=True)
class Run:
    """
    One run of training.

    :param folder: its log folder
    :param seed: its seed, None if unknown
    :param series: curves by the logger's key, such as ``train/low_actor_loss``
    :param advice: messages about missing data and how to get it
    :param sources: files and folders from which the curves were read
    """

    folder: Path
    seed: int | None
    series: dict[str, Series]
    advice: tuple[str, ...]
    sources: tuple[Path, ...]


class _Monitor(NamedTuple):
    """Data of a run's Monitor files, with one row per episode of any of its environments."""

    start: float  # seconds since 1970
    steps: np.ndarray  # (n,), environment steps at the episode's end
    seconds: np.ndarray  # (n,), since the start
    success: np.ndarray | None  # (n,)


class _ArgsLoader(yaml.SafeLoader):
    """Reads the zoo's args.yml (an OrderedDict), without creating arbitrary Python objects."""


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> dict[str, Any]:
    return dict(loader.construct_sequence(node, deep=True)[0])


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_ArgsLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
_ArgsLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
# Other Python objects, such as paths, are not needed
_ArgsLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def find_runs(log_folder: str | Path, algo: str, env_id: str) -> list[Path]:
    """
    :param log_folder: value of ``-f`` in rl_zoo3's training, ``logs`` by default
    :param algo: name of the algorithm, such as ``hddpg``
    :param env_id: id of the environment
    :return: folders of the runs, in order of their numbers
    :raises ValueError: if there are none
    """
    name = env_id.replace("/", "-")  # as the zoo does
    folder = Path(log_folder) / algo
    numbers = {path: path.name.removeprefix(f"{name}_").split("_")[0] for path in folder.glob(f"{name}_*")}
    runs = sorted((path for path, number in numbers.items() if number.isdigit()), key=lambda path: int(numbers[path]))
    if not runs:
        others = sorted({f"{path.parent.name} on {path.name.rpartition('_')[0]}" for path in Path(log_folder).glob("*/*_*")})
        there = f"there is {', '.join(others)}" if others else "there is no run at all"
        raise ValueError(
            f"No run of {algo} on {env_id} in {log_folder}: {there}. Pass the values of `-f`, `--algo` and `--env` "
            "that were used in training."
        )
    return runs


def read_runs(folders: Sequence[Path], tensorboard: Sequence[Path] | None = None) -> list[Run]:
    """
    Read runs of one algorithm, each with the TensorBoard log that started at the same time.

    :param folders: folders of the runs, from :func:`find_runs`
    :param tensorboard: folders with event files; ``None``: the value of ``-tb`` in training
    """
    logs: dict[Path, Path] = {}
    pairs = []
    for folder in folders:
        monitor = _read_monitor(folder)
        candidates = _event_folders(folder, tensorboard)
        starts = {path: min(_event_time(file) for file in path.glob("events.out.tfevents.*")) for path in candidates}
        if monitor is not None:
            pairs += [(start - monitor.start, folder, path) for path, start in starts.items()]
    # Closest in time first, each log once
    for gap, folder, path in sorted(pairs, key=lambda pair: abs(pair[0])):
        if _EARLIEST <= gap <= _LATEST and folder not in logs and path not in logs.values():
            logs[folder] = path
    return [read_run(folder, logs.get(folder)) for folder in folders]


def read_run(folder: str | Path, events: str | Path | None = None) -> Run:
    """
    :param folder: folder of the run, ``<log folder>/<algo>/<env>_<n>``
    :param events: folder of its TensorBoard event files, if any
    :return: the run with all its curves
    :raises ValueError: if the folder does not exist, or has a progress.csv that is not SB3's
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: pass that of a run, `<log folder>/<algo>/<env>_<n>`.")
    advice: list[str] = []
    sources: list[Path] = []
    monitor = _read_monitor(folder)
    series: dict[str, Series] = {}
    if monitor is not None and monitor.success is not None and len(monitor.steps) > 0:
        series["rollout/success_rate"] = Series(monitor.steps, _running_mean(monitor.success), monitor.seconds)
    if events is not None:
        series |= _read_events(Path(events), None if monitor is None else monitor.start)
        sources.append(Path(events))
    if (folder / "progress.csv").is_file():
        series |= _read_progress(folder / "progress.csv")
        sources.append(folder / "progress.csv")
    if not any(key.startswith("train/") for key in series):
        advice.append(
            f"{folder} has no TensorBoard log, so there are no losses and rewards: train with `-tb FOLDER`, or pass the "
            "folder here (`-tb FOLDER`) if it was moved after training."
        )
    if (folder / "evaluations.npz").is_file():
        series |= _read_evaluations(folder / "evaluations.npz", monitor)
        sources.append(folder / "evaluations.npz")
    else:
        advice.append(f"{folder} has no evaluations.npz, so success is that of training: train with `--eval-freq N`.")
    if not any(key.endswith("/success_rate") for key in series):
        advice.append(
            f'{folder} has no success rate: the environment must return `info["is_success"]`, and Monitor must record it '
            "(`monitor_kwargs: dict(info_keywords=('is_success',))` in the hyperparameters)."
        )
    return Run(folder, read_arguments(folder).get("seed"), series, tuple(advice), tuple(sources))


def read_arguments(folder: Path) -> dict[str, Any]:
    """
    :param folder: folder of a run, ``<log folder>/<algo>/<env>_<n>``
    :return: arguments of the zoo's command line, empty if they were not saved
    """
    for path in folder.glob("*/args.yml"):
        arguments = yaml.load(path.read_text(), Loader=_ArgsLoader)
        if isinstance(arguments, dict):
            return arguments
    return {}


def _event_folders(folder: Path, tensorboard: Sequence[Path] | None) -> list[Path]:
    """:return: folders with event files of the run's environment and algorithm"""
    if tensorboard is None:
        given = read_arguments(folder).get("tensorboard_log")
        if not given:
            return []
        # A relative path is relative to the folder in which training was started: probably here, or the parent of the log
        # folder
        tensorboard = [Path(given), folder.parents[2] / given] if len(folder.parents) > 2 else [Path(given)]
    algo, env = folder.parent.name.lower(), folder.name.rpartition("_")[0]
    found = {path.parent.resolve() for root in tensorboard for path in root.rglob("events.out.tfevents.*")}
    return sorted(path for path in found if path.name.rpartition("_")[0].lower() == algo and path.parent.name == env)


def _event_time(path: Path) -> float:
    """:return: creation time of the file, in seconds since 1970, from its name ``events.out.tfevents.<seconds>.<host>...``"""
    return float(path.name.split(".")[3])


def _read_monitor(folder: Path) -> _Monitor | None:
    files = get_monitor_files(str(folder))
    if not files:
        return None
    headers = []
    for name in files:
        with open(name) as file:
            headers.append(json.loads(file.readline().removeprefix("#")))
    table = load_results(str(folder))
    success = table["is_success"].to_numpy(np.float64) if "is_success" in table else None
    steps, seconds = table["l"].to_numpy(np.float64).cumsum(), table["t"].to_numpy(np.float64)
    return _Monitor(min(header["t_start"] for header in headers), steps, seconds, success)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """:return: means over the last ``WINDOW`` values, over fewer at the start, the same shape"""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - WINDOW, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _read_evaluations(path: Path, monitor: _Monitor | None) -> dict[str, Series]:
    with np.load(path) as file:
        steps = file["timesteps"].astype(np.float64)
        means = {"eval/mean_reward": file["results"].mean(axis=1), "eval/mean_ep_length": file["ep_lengths"].mean(axis=1)}
        if "successes" in file:
            means["eval/success_rate"] = file["successes"].mean(axis=1)
    seconds = None
    if monitor is not None and len(monitor.steps) > 0:
        seconds = np.interp(steps, np.insert(monitor.steps, 0, 0.0), np.insert(monitor.seconds, 0, 0.0))
    return {key: Series(steps, values, seconds) for key, values in means.items()}


def _read_progress(path: Path) -> dict[str, Series]:
    """:return: curves of SB3's CSV logger, which has a column per key, and empty entries"""
    import pandas as pd

    try:
        # As text, to distinguish empty entries (not logged) from nan
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError):
        table = pd.DataFrame()
    if _STEPS not in table:
        raise ValueError(f"{path} has no column {_STEPS}, so SB3's CSV logger did not write it: delete it, train with `-tb`.")

    def numbers(key: str) -> Any:
        return pd.to_numeric(table[key], errors="coerce")

    steps = numbers(_STEPS).ffill().fillna(0.0).to_numpy(np.float64)
    seconds = numbers("time/time_elapsed").ffill().to_numpy(np.float64) if "time/time_elapsed" in table else None
    series = {}
    for key in table.columns:
        rows = (table[key] != "").to_numpy()
        if not key.startswith("time/") and rows.any():
            series[key] = Series(
                steps[rows], numbers(key).to_numpy(np.float64)[rows], None if seconds is None else seconds[rows]
            )
    return series


def _read_events(folder: Path, start: float | None) -> dict[str, Series]:
    """
    :param folder: folder with one run's event files
    :param start: start of the run, in seconds since 1970; ``None``: the start of the first file
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    except ImportError as error:
        raise ImportError('Reading TensorBoard logs needs tensorboard: `pip install "sb3-hrl[plots]"`.') from error
    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    if start is None:
        start = min(_event_time(path) for path in folder.glob("events.out.tfevents.*"))
    series = {}
    for key in accumulator.Tags()["scalars"]:
        events = accumulator.Scalars(key)
        rows = np.array([(event.step, event.value, event.wall_time - start) for event in events], dtype=np.float64)
        series[key] = Series(*rows.T)
    return series
