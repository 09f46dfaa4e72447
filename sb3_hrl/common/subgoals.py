"""
Pure functions on subgoals.

A subgoal is a point in the space of achieved goals. The high level commands it by an action in [-1, 1]^goal_dim, an offset
from the goal that is achieved now in units of a radius (HIRO, https://arxiv.org/abs/1805.08296), within bounds.
"""

from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th

ArrayT = TypeVar("ArrayT", th.Tensor, np.ndarray)

# A segment misses its subgoal if more than this share of the way to it is left
MISSED_SHARE = 0.5

# For so many segments of an episode a missed subgoal is remembered; it is not issued again for so many
N_MISSED = 20
N_MISSED_RECENTLY = 4


class SegmentEnd(IntEnum):
    """How a segment, one step of the high level, ended."""

    NONE = 0  # it goes on
    REACHED = 1  # at its subgoal
    OUT_OF_STEPS = 2  # after the environment steps that it was given, its subgoal not reached
    EPISODE_OVER = 3  # with the episode, before either: it says nothing about the subgoal


class SubgoalBounds(NamedTuple):
    """Where subgoals may lie, all tensors or all arrays of shape (goal_dim,), in the units of the achieved goal."""

    low: Any
    high: Any
    radius: Any


def action_to_subgoal(action: ArrayT, achieved_goal: ArrayT, bounds: SubgoalBounds) -> ArrayT:
    """
    Subgoal that a high-level action commands.

    :param action: high-level action in [-1, 1], shape (..., goal_dim)
    :param achieved_goal: goal achieved now, shape (..., goal_dim)
    :param bounds: where subgoals may lie
    :return: subgoal within the bounds, shape (..., goal_dim)
    """
    return (achieved_goal + bounds.radius * action).clip(bounds.low, bounds.high)


def subgoal_to_action(subgoal: ArrayT, achieved_goal: ArrayT, bounds: SubgoalBounds) -> ArrayT:
    """
    High-level action that commands a subgoal: the inverse of :func:`action_to_subgoal`, clipped to [-1, 1].
    With the goal that a segment achieved as ``subgoal`` it is HAC's hindsight action (section 4.1,
    https://arxiv.org/abs/1712.00948).

    :param subgoal: subgoal, shape (..., goal_dim)
    :param achieved_goal: goal achieved when the subgoal was issued, shape (..., goal_dim)
    :param bounds: where subgoals may lie
    :return: high-level action, shape (..., goal_dim)
    """
    return ((subgoal - achieved_goal) / bounds.radius).clip(-1.0, 1.0)


def is_reached(achieved_goal: ArrayT, subgoal: ArrayT, threshold: float) -> ArrayT:
    """
    Whether a subgoal is reached: the Euclidean distance to it is at most ``threshold``.

    :param achieved_goal: tensor or array of shape (..., goal_dim)
    :param subgoal: shape (..., goal_dim)
    :param threshold: distance, in the units of the goal
    :return: booleans, shape (...,)
    """
    return ((achieved_goal - subgoal) ** 2).sum(-1) <= threshold * threshold


def is_missed(reached: np.ndarray | bool, left: np.ndarray | float, way: np.ndarray | float) -> np.ndarray:
    """
    Whether segments missed their subgoals: they did not even come near.

    :param reached: whether the subgoals were reached
    :param left: distances to the subgoals when the segments ended
    :param way: distances to the subgoals when they were issued
    :return: booleans of the same shape
    """
    return np.logical_not(reached) & (np.asarray(left) > MISSED_SHARE * np.asarray(way))


def visited_bounds(
    goals: np.ndarray, margin: float, limits: tuple[Any, Any] = (-np.inf, np.inf), quantile: float = 0.005
) -> tuple[np.ndarray, np.ndarray]:
    """
    Box of the goals seen so far, without the outermost ``quantile`` on each side.

    :param goals: achieved and desired goals, shape (n, goal_dim)
    :param margin: added on each side, in the units of the goal
    :param limits: lowest and highest goals of the declared space, which the margin does not cross; goals that were seen do
    :param quantile: share of outliers dropped on each side
    :return: lower and upper bounds, each of shape (goal_dim,)
    """
    low, high = np.quantile(goals, [quantile, 1.0 - quantile], axis=0)
    return np.minimum(low, np.maximum(low - margin, limits[0])), np.maximum(high, np.minimum(high + margin, limits[1]))


def reachable_radius(moves: np.ndarray, low: np.ndarray, high: np.ndarray, threshold: float) -> np.ndarray:
    """
    How far the low level gets within one segment: per dimension the 95 % quantile of the displacement, at least
    twice the threshold (a subgoal nearer than that is reached when it is issued), at most half the box.

    :param moves: displacements over one segment, see :func:`displacements`, shape (n, goal_dim)
    :param low: lower bounds of the box, shape (goal_dim,)
    :param high: upper bounds of the box, shape (goal_dim,)
    :param threshold: distance at which a subgoal counts as reached
    :return: radius, shape (goal_dim,)
    """
    radius = np.quantile(np.abs(moves), 0.95, axis=0)
    at_least = 2.0 * threshold
    return np.clip(radius, at_least, np.maximum(0.5 * (high - low), at_least))


def displacements(achieved: np.ndarray, next_achieved: np.ndarray, episodes: np.ndarray, n_steps: int) -> np.ndarray:
    """
    How the achieved goal moves over ``n_steps`` consecutive steps of an episode.

    :param achieved: goals achieved before each step, in the order of their happening, shape (n, goal_dim)
    :param next_achieved: goals achieved after each step, shape (n, goal_dim)
    :param episodes: the episode that each step belongs to, shape (n,)
    :param n_steps: how many steps
    :return: differences, of as many steps as have ``n_steps`` in one episode ahead of them, shape (m, goal_dim)
    """
    n_starts = max(len(achieved) - n_steps + 1, 0)
    in_episode = episodes[:n_starts] == episodes[n_steps - 1 :][:n_starts]
    return (next_achieved[n_steps - 1 :][:n_starts] - achieved[:n_starts])[in_episode]
