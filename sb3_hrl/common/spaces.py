"""
Conversion between the environment and the learner: the learner uses flat float32 arrays, the environment uses its own spaces.
All conversions are in this module.
"""

from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import DTypeLike

GoalSpace: TypeAlias = spaces.Box | spaces.MultiBinary

# Whole numbers up to here are exact in float64
_MAX_WHOLE = 2.0**53


def flatten(values: Any, n: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    """
    Flatten observations, goals or actions of the environment for the learner.

    :param values: values of ``n`` environments or steps, an array of shape (n, ...); for ``n=1`` also without the first
        dimension
    :param n: number of environments or steps
    :param dtype: dtype of the result
    :return: one row each, shape (n, dim)
    """
    return np.asarray(values, dtype=dtype).reshape(n, -1)


def is_whole(space: spaces.Space | None) -> bool:
    """
    :param space: goal space
    :return: whether goals are whole numbers or bits
    """
    return space is not None and space.dtype is not None and not np.issubdtype(space.dtype, np.floating)


def goal_space(observation_space: spaces.Space) -> GoalSpace:
    """
    :param observation_space: observation space of a goal-conditioned environment
    :return: a space that contains both goals, because each may replace the other in hindsight
    """
    assert isinstance(observation_space, spaces.Dict)
    achieved, desired = observation_space["achieved_goal"], observation_space["desired_goal"]
    assert isinstance(desired, GoalSpace)
    if not isinstance(desired, spaces.Box) or not isinstance(achieved, spaces.Box) or achieved == desired:
        return desired
    dtype: Any = np.result_type(achieved.dtype, desired.dtype)
    return spaces.Box(np.minimum(achieved.low, desired.low), np.maximum(achieved.high, desired.high), dtype=dtype)


def flat_limits(space: GoalSpace) -> tuple[np.ndarray, np.ndarray]:
    """
    :param space: goal space
    :return: lowest and highest goals that the space declares, float64, shape (goal_dim,) each; infinite if unbounded
    """
    if isinstance(space, spaces.MultiBinary):
        dim = spaces.flatdim(space)
        return np.zeros(dim), np.ones(dim)
    low, high = flatten(space.low, 1, np.float64), flatten(space.high, 1, np.float64)
    return low[0], high[0]


def in_goal_space(goals: np.ndarray, space: spaces.Space | None) -> np.ndarray:
    """
    Convert goals to the environment's shape and type.

    Integers and bits are rounded, because an environment may use them as indices of a table. Goals are not clipped to the
    bounds of the space, which may be wrong: an achieved goal is real.

    :param goals: shape (n, goal_dim)
    :param space: goal space; ``None`` to return the goals unchanged
    :return: shape (n, *space.shape)
    """
    if space is None or space.shape is None:
        return goals
    goals = goals.reshape(-1, *space.shape)
    if not is_whole(space):
        return goals.astype(space.dtype, copy=False)
    if isinstance(space, spaces.MultiBinary):
        return np.clip(np.rint(goals), 0, 1).astype(space.dtype)
    # Clip to the range of the type
    info = np.iinfo(space.dtype)
    low, high = max(float(info.min), -_MAX_WHOLE), min(float(info.max), _MAX_WHOLE)
    return np.clip(np.rint(goals.astype(np.float64)), low, high).astype(space.dtype)


def existing_goals(points: np.ndarray, space: spaces.Space | None, seen: np.ndarray) -> np.ndarray:
    """
    Points for probing the environment. An environment that looks up integer goals in a table only accepts goals that exist.

    :param points: shape (..., goal_dim)
    :param space: goal space; ``None`` if it is unknown
    :param seen: goals of the environment, which may be outside the space that it declares, shape (n, goal_dim)
    :return: the points; integers are clipped to the range of the declared and seen goals
    """
    if not is_whole(space):
        return points
    assert isinstance(space, GoalSpace)
    low, high = flat_limits(space)
    return np.clip(points, np.minimum(low, seen.min(axis=0)), np.maximum(high, seen.max(axis=0)))


class ActionBorder:
    """
    Converts actions to the environment's action space.

    :param space: action space of the environment, with finite bounds
    """

    def __init__(self, space: spaces.Box):
        self._shape, self._dtype, self._is_whole = space.shape, space.dtype, is_whole(space)
        # Differences of small integer types overflow
        dtype = np.float64 if self._is_whole else space.low.dtype
        self._low, self._high = flatten(space.low, 1, dtype), flatten(space.high, 1, dtype)
        self._half_range = 0.5 * self._high - 0.5 * self._low
        # For some asymmetric bounds, rounding errors exceed the upper bound (never the lower one)
        self._overshoots = bool((self._low + self._half_range * np.float32(2.0) > self._high).any())

    def unflatten(self, scaled: np.ndarray) -> np.ndarray:
        """
        :param scaled: actions scaled to [-1, 1], shape (n, action_dim)
        :return: the environment's own actions, within their bounds, shape (n, *space.shape); integers are rounded
        """
        actions = self._low + self._half_range * (scaled + np.float32(1.0))
        if self._overshoots:
            actions = np.minimum(actions, self._high)
        if self._is_whole:
            actions = np.rint(actions)
        return actions.reshape(-1, *self._shape).astype(self._dtype, copy=False)
