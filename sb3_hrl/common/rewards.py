"""The environment's own reward for goals, called with goals in the environment's own format."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_hrl.common.spaces import in_goal_space

ComputeReward = Callable[[np.ndarray, np.ndarray, Any], np.ndarray]

# Float32 and float64 rewards of the same pair of goals differ by less than this
_TOLERANCE = 1e-3

_EXAMPLE = "`-(np.linalg.norm(achieved_goal - desired_goal, axis=-1) > 0.05).astype(np.float32)`"


def empty_infos(n: int) -> np.ndarray:
    """:return: an array of ``n`` empty infos; all of them are the same dict, because creating thousands would be slow"""
    infos = np.empty(n, dtype=object)
    infos.fill({})
    return infos


def goal_rewards(
    compute_reward: ComputeReward, space: spaces.Space | None, achieved: np.ndarray, desired: np.ndarray
) -> np.ndarray:
    """
    Call ``compute_reward`` with arrays of goals in the shape and type of the goal space, and an array of empty infos.

    :param compute_reward: the environment's method
    :param space: goal space; ``None`` to pass the goals unchanged
    :param achieved: shape (n, goal_dim)
    :param desired: shape (n, goal_dim)
    :return: rewards, shape (n,); NaN if the environment returns NaN, see :func:`check_rewards`
    :raises ValueError: if the method fails on arrays, or does not return one number per pair of goals
    """
    n = len(achieved)
    arguments = in_goal_space(achieved, space), in_goal_space(desired, space)
    infos = empty_infos(n)
    called_with = f"two arrays of goals of shape {arguments[0].shape} and an array of {n} empty infos"
    try:
        returned = compute_reward(*arguments, infos)
    except Exception as error:
        # `if`, float() and math.* only work on single numbers; in relabelling, only goals are known
        raise ValueError(
            f"`compute_reward` raised {type(error).__name__} ({error}) when called with {called_with}: it must be vectorised "
            f"and depend on the two goals only, such as {_EXAMPLE}. Replace `if` by `np.where`, `float(x)` by "
            "`np.asarray(x)`, and leave out what needs `info` or the state of the environment."
        ) from error
    try:
        rewards = np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`compute_reward` must return an array of {n} rewards when called with {called_with}, not "
            f"{type(returned).__name__}: return numbers, such as {_EXAMPLE}."
        ) from error
    # None becomes NaN
    if returned is None or rewards.size != n:
        what = "None" if returned is None else f"an array of shape {rewards.shape}"
        raise ValueError(
            f"`compute_reward` must be vectorised: when called with {called_with} it returned {what} instead of {n} rewards. "
            f"Reduce over the last axis only (axis=-1), such as {_EXAMPLE}."
        )
    return rewards.reshape(-1)


def check_rewards(rewards: np.ndarray) -> np.ndarray:
    """
    :param rewards: rewards of goals from the environment, shape (n,)
    :return: the same rewards
    :raises ValueError: if one of them is NaN
    """
    if np.isnan(rewards).any():
        raise ValueError(
            f"`compute_reward` returned NaN for {np.isnan(rewards).sum()} of {len(rewards)} pairs of goals: prevent undefined "
            "operations (0 / 0, the arccos of a number above 1, the root of a negative number), for example with `np.clip`."
        )
    return rewards


def is_paid_otherwise(paid: np.ndarray, computed: np.ndarray, values: np.ndarray) -> np.ndarray:
    """
    :param paid: rewards of steps, shape (n,)
    :param computed: rewards from ``compute_reward`` for the goals after these steps, shape (n,)
    :param values: the values of a sparse reward; empty if it is dense
    :return: whether a step's reward is not that of its goals, shape (n,). The other value of a sparse reward does not count:
        it may occur exactly at the tolerance, or after the tolerance has changed
    """
    is_other: np.ndarray = np.abs(paid - computed) > _TOLERANCE * (1.0 + np.abs(computed))
    return is_other & ~np.isin(paid, values.astype(paid.dtype))
