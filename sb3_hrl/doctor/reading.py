"""Logs as SB3 writes them, as series of environment steps and values."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_hrl.doctor.run import Series

STEPS = "time/total_timesteps"


def read_progress(path: Path) -> dict[str, Series]:
    """
    :param path: ``progress.csv``, of SB3's CSV logger
    :return: steps and values by key
    :raises ValueError: if it is another kind of file
    """
    try:
        # As text: an empty field was not logged, one that says nan was
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError):
        table = pd.DataFrame()
    if STEPS not in table:
        raise ValueError(f"{path} has no column {STEPS}, it is no log of SB3's CSV logger: delete it, train with `-tb`.")
    steps = pd.to_numeric(table[STEPS], errors="coerce").ffill().fillna(0.0).to_numpy(np.float64)
    series = {}
    for key in table.columns.drop(STEPS):
        is_given = (table[key] != "").to_numpy()
        values = pd.to_numeric(table[key], errors="coerce").to_numpy(np.float64)
        series[key] = (steps[is_given], values[is_given])
    return series


def read_events(path: Path) -> dict[str, Series]:
    """
    :param path: an event file of TensorBoard
    :return: steps and values by key
    :raises ImportError: if tensorboard is not installed
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ImportError(f"`pip install tensorboard` to read {path}.") from error
    # All of the values, not a sample
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    series = {}
    for key in events.Tags()["scalars"]:
        scalars = events.Scalars(key)
        steps = np.array([scalar.step for scalar in scalars], np.float64)
        series[key] = (steps, np.array([scalar.value for scalar in scalars], np.float64))
    return series


def read_evaluations(path: Path) -> dict[str, Series]:
    """
    :param path: ``evaluations.npz`` of SB3's EvalCallback
    :return: steps and values of evaluations, by the keys that the callback logs
    """
    with np.load(path) as file:
        steps = file["timesteps"].astype(np.float64)
        names = {"results": "eval/mean_reward", "ep_lengths": "eval/mean_ep_length", "successes": "eval/success_rate"}
        return {key: (steps, file[name].mean(axis=1)) for name, key in names.items() if name in file}
