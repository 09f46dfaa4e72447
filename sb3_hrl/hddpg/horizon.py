"""
How far the predictions of the low level's value are trusted. Its estimate of the number of steps to a target is accurate for
targets that are actually reached. Estimates for farther targets are guesses, and usually too low: far from any reward, values
hardly tell a path through a wall from a real one.
"""

import numpy as np

from sb3_hrl.common.subgoals import SegmentEnd
from sb3_hrl.common.type_aliases import SegmentOutcomes

# Possible horizons, in environment steps. Success in mazes decreases beyond 30, where values ignore walls
HORIZONS = (5, 10, 15, 20, 25, 30)
LEAST_HORIZON = 10

# Edges of a planner may be this long even if the horizon is shorter: shorter edges would hardly connect any landmarks
LEAST_EDGE = 20.0

# The number of segments that determine the horizon, and of recent segments to find them in: many are trivial, at the goal
N_SEGMENTS = 200
N_RECENT = 5_000

# Predictions are trusted if at least this share of their segments reached the subgoals, for a minimum number of segments
BELIEVED_SHARE = 0.75
LEAST_SEGMENTS = 5

# A segment ends after its predicted number of steps times this factor, plus these extra steps
ALLOWANCE, EXTRA_STEPS = 1.5, 5.0
MOST_STEPS = 400


def calibrated_horizon(outcomes: SegmentOutcomes, horizon: float) -> float:
    """
    :param outcomes: the most recent segments
    :param horizon: the current horizon
    :return: the largest number of steps up to which predictions were correct, plus one step in :data:`HORIZONS`, so that the
        horizon can grow
    """
    reached = outcomes.ends == SegmentEnd.REACHED
    # The outcome of a segment that ended before its predicted steps is unknown
    is_known = np.isfinite(outcomes.predicted_steps) & (reached | (outcomes.steps >= outcomes.predicted_steps))
    newest = np.flatnonzero(is_known)[-N_SEGMENTS:]
    if len(newest) < N_SEGMENTS // 4:
        return horizon
    bins, n_bins = np.searchsorted(HORIZONS, outcomes.predicted_steps[newest]), len(HORIZONS) + 1
    n_issued, n_reached = (np.bincount(which, minlength=n_bins) for which in (bins, bins[reached[newest]]))
    best = 0
    for i in range(len(HORIZONS)):
        if n_issued[i] >= LEAST_SEGMENTS:
            if n_reached[i] < BELIEVED_SHARE * n_issued[i]:
                break
            best = i
    # Decrease by one step at a time, because there are few segments per bin
    least = max(HORIZONS.index(LEAST_HORIZON), int(np.searchsorted(HORIZONS, horizon)) - 1)
    return float(HORIZONS[int(np.clip(best + 1, least, len(HORIZONS) - 1))])


def steps_allowed(predicted_steps: np.ndarray, horizon: float) -> np.ndarray:
    """
    :param predicted_steps: predicted steps to the subgoals, infinite if the low level does not expect to arrive, shape (n,)
    :param horizon: number of steps up to which predictions are trusted
    :return: maximum number of environment steps of the segments, integers, shape (n,)
    """
    allowed = np.where(np.isfinite(predicted_steps), ALLOWANCE * predicted_steps + EXTRA_STEPS, 2.0 * horizon)
    return np.clip(np.ceil(allowed), LEAST_HORIZON, MOST_STEPS).astype(np.int64)
