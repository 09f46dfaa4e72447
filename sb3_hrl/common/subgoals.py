"""
Pure functions on subgoals.

A subgoal is a point in the space of achieved goals. A high-level action in [-1, 1]^goal_dim is the offset of the subgoal from
the current achieved goal, in units of a radius (HIRO, https://arxiv.org/abs/1805.08296). Subgoals are clipped to bounds.
"""

from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th

ArrayT = TypeVar("ArrayT", th.Tensor, np.ndarray)

# A segment misses its subgoal if more than this share of the distance is left at its end
MISSED_SHARE = 0.5

# For how many segments of an episode a missed subgoal is remembered, and for how many it is not issued again
N_MISSED = 20
N_MISSED_RECENTLY = 4


class SegmentEnd(IntEnum):
    """How a segment, one step of the high level, ended."""

    NONE = 0  # it continues
    REACHED = 1  # its subgoal was reached
    OUT_OF_STEPS = 2  # it used up its environment steps before its subgoal was reached
    EPISODE_OVER = 3  # the episode ended before either, which tells nothing about the subgoal


class SubgoalBounds(NamedTuple):
    """Limits of subgoals: tensors or arrays of shape (goal_dim,), in the units of the achieved goal."""

    low: Any
    high: Any
    radius: Any


def action_to_subgoal(action: ArrayT, achieved_goal: ArrayT, bounds: SubgoalBounds) -> ArrayT:
    """
    Convert a high-level action to a subgoal.

    :param action: high-level action in [-1, 1], shape (..., goal_dim)
    :param achieved_goal: current achieved goal, shape (..., goal_dim)
    :param bounds: limits of subgoals
    :return: subgoal within the bounds, shape (..., goal_dim)
    """
    return (achieved_goal + bounds.radius * action).clip(bounds.low, bounds.high)


def subgoal_to_action(subgoal: ArrayT, achieved_goal: ArrayT, bounds: SubgoalBounds) -> ArrayT:
    """
    Convert a subgoal to a high-level action: the inverse of :func:`action_to_subgoal`, clipped to [-1, 1]. If ``subgoal`` is
    the goal that a segment achieved, the result is HAC's hindsight action (section 4.1, https://arxiv.org/abs/1712.00948).

    :param subgoal: subgoal, shape (..., goal_dim)
    :param achieved_goal: achieved goal when the subgoal was issued, shape (..., goal_dim)
    :param bounds: limits of subgoals
    :return: high-level action, shape (..., goal_dim)
    """
    return ((subgoal - achieved_goal) / bounds.radius).clip(-1.0, 1.0)


def is_reached(achieved_goal: ArrayT, subgoal: ArrayT, threshold: float, weights: ArrayT | float = 1.0) -> ArrayT:
    """
    Whether a subgoal is reached: the weighted Euclidean distance to it is at most ``threshold``.

    :param achieved_goal: tensor or array of shape (..., goal_dim)
    :param subgoal: shape (..., goal_dim)
    :param threshold: maximum distance, in the units of the goal
    :param weights: weight of each entry in the distance, see :class:`~sb3_hrl.common.goals.GoalTask`, shape (goal_dim,)
    :return: booleans, shape (...,)
    """
    return ((weights * (achieved_goal - subgoal)) ** 2).sum(-1) <= threshold * threshold


def is_missed(reached: np.ndarray | bool, left: np.ndarray | float, way: np.ndarray | float) -> np.ndarray:
    """
    Whether segments missed their subgoals: they did not reach them, and ended far away from them.

    :param reached: whether the subgoals were reached
    :param left: distances to the subgoals at the end of the segments
    :param way: distances to the subgoals at the start of the segments
    :return: booleans of the same shape
    """
    return np.logical_not(reached) & (np.asarray(left) > MISSED_SHARE * np.asarray(way))


def visited_bounds(
    goals: np.ndarray, margin: float, limits: tuple[Any, Any] = (-np.inf, np.inf), quantile: float = 0.005
) -> tuple[np.ndarray, np.ndarray]:
    """
    Bounding box of the goals seen so far, without the outermost ``quantile`` on each side.

    :param goals: achieved and desired goals, shape (n, goal_dim)
    :param margin: distance added on each side, in the units of the goal
    :param limits: lowest and highest goals of the declared space; the margin does not exceed them, but seen goals may
    :param quantile: share of outliers dropped on each side
    :return: lower and upper bounds, each of shape (goal_dim,)
    """
    low, high = np.quantile(goals, [quantile, 1.0 - quantile], axis=0)
    return np.minimum(low, np.maximum(low - margin, limits[0])), np.maximum(high, np.minimum(high + margin, limits[1]))


def reachable_radius(moves: np.ndarray, low: np.ndarray, high: np.ndarray, threshold: float) -> np.ndarray:
    """
    Distance that the low level covers within one segment: for each dimension the 95 % quantile of the displacement, at least
    twice the threshold (closer subgoals could be reached when they are issued), and at most half the box.

    :param moves: displacements within one segment, see :func:`displacements`, shape (n, goal_dim)
    :param low: lower bounds of the box, shape (goal_dim,)
    :param high: upper bounds of the box, shape (goal_dim,)
    :param threshold: maximum distance at which a subgoal counts as reached
    :return: radius, shape (goal_dim,)
    """
    radius = np.quantile(np.abs(moves), 0.95, axis=0)
    at_least = 2.0 * threshold
    return np.clip(radius, at_least, np.maximum(0.5 * (high - low), at_least))


def displacements(achieved: np.ndarray, next_achieved: np.ndarray, episodes: np.ndarray, n_steps: int) -> np.ndarray:
    """
    Displacement of the achieved goal within ``n_steps`` consecutive steps of an episode.

    :param achieved: goals achieved before each step, in chronological order, shape (n, goal_dim)
    :param next_achieved: goals achieved after each step, shape (n, goal_dim)
    :param episodes: the episode of each step, shape (n,)
    :param n_steps: number of steps
    :return: displacements, for all steps that are followed by enough steps of the same episode, shape (m, goal_dim)
    """
    n_starts = max(len(achieved) - n_steps + 1, 0)
    in_episode = episodes[:n_starts] == episodes[n_steps - 1 :][:n_starts]
    return (next_achieved[n_steps - 1 :][:n_starts] - achieved[:n_starts])[in_episode]
