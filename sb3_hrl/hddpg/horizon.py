"""
How far the low level's value is believed. Its estimate of the steps to a target is right where such targets are reached;
beyond that it is a guess, as a rule too short: values that lie far from any reward hardly tell ways through walls from others.
"""

import numpy as np

from sb3_hrl.common.subgoals import SegmentEnd
from sb3_hrl.common.type_aliases import SegmentOutcomes

# Environment steps that the horizon can be. Beyond 30 success in mazes falls again: there values see no walls
HORIZONS = (5, 10, 15, 20, 25, 30)
LEAST_HORIZON = 10

# As long as the horizon is shorter, edges of a planner go beyond it: with shorter ones hardly any two landmarks are joined
LEAST_EDGE = 20.0

# So many segments tell the horizon, among so many of the newest, most of which are trivial where an agent stays at its goal
N_SEGMENTS = 200
N_RECENT = 5_000

# Predictions are believed where at least this share of the segments reached their subgoals, of so many at least
BELIEVED_SHARE = 0.75
LEAST_SEGMENTS = 5

# A segment has this share of the predicted steps, and so many beside, before its subgoal is given up
ALLOWANCE, EXTRA_STEPS = 1.5, 5.0
MOST_STEPS = 400


def calibrated_horizon(outcomes: SegmentOutcomes, horizon: float) -> float:
    """
    :param outcomes: the newest segments
    :param horizon: as it was
    :return: the largest number of steps up to which predictions came true, and one of :data:`HORIZONS` more, so that it
        can grow
    """
    reached = outcomes.ends == SegmentEnd.REACHED
    # Of a segment that ended before the predicted steps were over nothing is known
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
    # Down one at a time, as few segments tell of each
    least = max(HORIZONS.index(LEAST_HORIZON), int(np.searchsorted(HORIZONS, horizon)) - 1)
    return float(HORIZONS[int(np.clip(best + 1, least, len(HORIZONS) - 1))])


def steps_allowed(predicted_steps: np.ndarray, horizon: float) -> np.ndarray:
    """
    :param predicted_steps: to the subgoals, infinite where the low level does not believe that it gets there, shape (n,)
    :param horizon: how far predictions are believed
    :return: environment steps after which segments end, whole numbers, shape (n,)
    """
    allowed = np.where(np.isfinite(predicted_steps), ALLOWANCE * predicted_steps + EXTRA_STEPS, 2.0 * horizon)
    return np.clip(np.ceil(allowed), LEAST_HORIZON, MOST_STEPS).astype(np.int64)
