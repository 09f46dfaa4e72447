"""Finds the definition of success if the reward is dense: other methods of the environment, or infos in a copy of it."""

import random
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_hrl.common.rewards import ComputeReward, goal_rewards
from sb3_hrl.common.spaces import flatten
from sb3_hrl.common.twin import Twin

# Number of steps in a copy of the environment, and how many of them must be successes
_N_STEPS, _N_SUCCESSES = 1_000, 10
# Number of steps that the copy stays at a goal
_N_AT_GOAL = 5
# Number of pairs of goals to test whether a method accepts arrays
_N_COMPARED = 32

# The lowest reward of a success, for each VecEnv of which a copy has been stepped
_found: weakref.WeakKeyDictionary[VecEnv, float] = weakref.WeakKeyDictionary()


class Pairs(NamedTuple):
    """Goals to test a method with."""

    goals: np.ndarray  # shape (n, goal_dim); each goal is also used as achieved
    achieved: np.ndarray  # points around the goals, near and far, shape (m, goal_dim)
    desired: np.ndarray  # the goal of each point, shape (m, goal_dim)


def has_two_values(rewards: np.ndarray, best_reward: float) -> bool:
    """
    :param rewards: rewards of probes at many distances; NaN if the reward of a probe is undefined
    :param best_reward: reward of a goal for itself
    :return: whether the reward is sparse
    """
    values = np.append(rewards, best_reward)
    return len(np.unique(values[~np.isnan(values)])) <= 2


def judge(
    twin: Twin, compute_reward: ComputeReward, threshold: float | None, space: spaces.Space | None, pairs: Pairs
) -> tuple[ComputeReward | None, float | None]:
    """
    :param twin: the environment that is called
    :param compute_reward: its reward
    :param threshold: maximum distance at which a goal counts as reached, if given
    :param space: goal space
    :param pairs: goals to test with
    :return: a sparse reward that defines success if the reward is dense and there is one; and the threshold, which may be the
        environment's own
    """
    best_reward = goal_rewards(compute_reward, space, pairs.goals, pairs.goals).max()
    if np.isnan(best_reward) or has_two_values(goal_rewards(compute_reward, space, *pairs[1:]), best_reward):
        return None, threshold
    compute_success = success_method(twin.env, compute_reward, space, pairs)
    if compute_success is None and threshold is None:
        if getattr(twin.env.unwrapped, "reward_type", None) == "dense":
            threshold = getattr(twin.env.unwrapped, "distance_threshold", None)
        if threshold is None:
            compute_success = success_by_experience(twin, compute_reward, space)
    return compute_success, threshold


def success_method(
    env: gym.Env, compute_reward: ComputeReward, space: spaces.Space | None, pairs: Pairs
) -> ComputeReward | None:
    """
    Find a method of the environment that defines success. These are tried in this order: the reward of its sparse version
    (``reward_type``, in Fetch, maze and panda-gym environments), ``_is_success(achieved_goal, desired_goal)`` or
    ``is_success`` of the environment or of its ``task``, and ``compute_terminated``. The first method that has two values,
    accepts each goal for itself and rejects some other points is used.

    :param env: an environment of this process
    :param compute_reward: its reward, which is dense
    :param space: goal space
    :param pairs: goals to test with
    :return: a sparse reward whose higher value means success; ``None`` if there is none
    """
    for candidate in _candidates(env, compute_reward, space, pairs):
        try:
            at_goals = goal_rewards(candidate, space, pairs.goals, pairs.goals)
            around = goal_rewards(candidate, space, pairs.achieved, pairs.desired)
        except ValueError:
            continue
        best = float(at_goals.max())
        if (at_goals == best).all() and has_two_values(around, best) and (around < best).any():
            return candidate
    return None


def _candidates(
    env: gym.Env, compute_reward: ComputeReward, space: spaces.Space | None, pairs: Pairs
) -> Iterator[ComputeReward]:
    """:return: functions that may define success; each may raise an error, or have another meaning"""
    # In panda-gym a separate object handles the goals
    owners = [owner for owner in (env.unwrapped, getattr(env.unwrapped, "task", None)) if owner is not None]
    for owner in owners:
        if getattr(owner, "reward_type", None) == "dense":
            yield _sparse_version(owner, compute_reward)
    methods = [getattr(owner, name, None) for name in ("_is_success", "is_success") for owner in owners]
    if env.has_wrapper_attr("compute_terminated"):
        compute_terminated = env.get_wrapper_attr("compute_terminated")
        methods.append(lambda achieved, desired: compute_terminated(achieved, desired, {}))
    for method in methods:
        if callable(method):
            yield _Method(method, space, pairs)


def _sparse_version(owner: Any, compute_reward: ComputeReward) -> ComputeReward:
    """:return: the reward that the environment would return if it had been created with ``reward_type="sparse"``"""

    def sparse_reward(achieved: np.ndarray, desired: np.ndarray, infos: Any) -> np.ndarray:
        given, owner.reward_type = owner.reward_type, "sparse"
        try:
            return compute_reward(achieved, desired, infos)
        finally:
            owner.reward_type = given

    return sparse_reward


class _Method:
    """
    Calls a method that tests one pair of goals for success, or many pairs at once if it supports arrays.

    :param method: function of an achieved and a desired goal
    :param space: goal space
    :param pairs: goals to test with
    """

    def __init__(self, method: Callable[[Any, Any], Any], space: spaces.Space | None, pairs: Pairs):
        self._method, self._takes_arrays = method, False
        chosen = np.linspace(0, len(pairs.achieved) - 1, _N_COMPARED).astype(int)
        sample = pairs.achieved[chosen], pairs.desired[chosen]
        try:
            one_by_one = goal_rewards(self, space, *sample)
            self._takes_arrays = True
            self._takes_arrays = np.array_equal(goal_rewards(self, space, *sample), one_by_one)
        except ValueError:
            self._takes_arrays = False

    def __call__(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> np.ndarray:
        """:return: 1 for success, 0 otherwise, shape (n,)"""
        if self._takes_arrays:
            return np.asarray(self._method(achieved, desired)).astype(np.float64)
        return np.array([float(bool(self._method(*pair))) for pair in zip(achieved, desired, strict=True)])


def success_by_experience(twin: Twin, compute_reward: ComputeReward, space: spaces.Space | None) -> ComputeReward | None:
    """
    Find the lowest reward that means success, from ``info["is_success"]`` (or ``info["success"]``) of 1,000 steps in a copy of
    the environment. Actions are random; an action is repeated as long as the reward increases. This is done once per training
    environment, with a warning.

    :param twin: the environment, which is not stepped itself
    :param compute_reward: its reward, which is dense
    :param space: goal space
    :return: a reward of 1 for success and 0 otherwise; ``None`` if neither key exists, if there were not enough successes and
        failures, or if the reward does not separate them
    """
    least = _found.get(twin.vec_env)
    if least is None:
        least = _least_reward_of_success(twin, compute_reward, space)
        if least is None:
            return None
        _found[twin.vec_env] = least
        warnings.warn(
            "The environment's reward is dense, and none of its methods defines success: according to `info['is_success']` of "
            f"{_N_STEPS:,} random steps in a copy of it, success is a `compute_reward` of at least {least:.4g}. If that is "
            "wrong, add a method `_is_success(achieved_goal, desired_goal)` to the environment.",
            UserWarning,
            stacklevel=2,
        )
    enough = least - 1e-6 * abs(least)
    return lambda achieved, desired, infos: np.asarray(compute_reward(achieved, desired, infos) >= enough, dtype=np.float64)


def _least_reward_of_success(twin: Twin, compute_reward: ComputeReward, space: spaces.Space | None) -> float | None:
    # Some environments use the global random number generators
    states = np.random.get_state(), random.getstate()
    try:
        env = twin.copy()
        try:
            achieved, desired, success = _play(env)
        finally:
            env.close()
        rewards = goal_rewards(compute_reward, space, achieved, desired)
    except Exception:
        # No copy can be created, or it does not work on its own: the user has to define success
        return None
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
    if success.sum() < _N_SUCCESSES or success.all() or rewards[success].min() <= rewards[~success].max():
        return None
    return float(rewards[success].min())


def _play(env: gym.Env) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:return: achieved and desired goals, shapes (n, goal_dim), and success, of the steps whose info contains it"""
    achieved, desired, success = [], [], []
    env.action_space.seed(0)
    env.reset(seed=0)
    action, last_reward, n_at_goal = env.action_space.sample(), -np.inf, 0
    for _ in range(_N_STEPS):
        obs, reward, terminated, truncated, info = env.step(action)
        said = info.get("is_success", info.get("success"))
        if said is not None:
            achieved.append(np.copy(obs["achieved_goal"]))
            desired.append(np.copy(obs["desired_goal"]))
            success.append(bool(said))
            n_at_goal += success[-1]
        if float(reward) <= last_reward:
            action = env.action_space.sample()
        last_reward = float(reward)
        if terminated or truncated or n_at_goal >= _N_AT_GOAL:
            if not success:
                break
            env.reset()
            last_reward, n_at_goal = -np.inf, 0
    return flatten(achieved, len(success)), flatten(desired, len(success)), np.array(success, dtype=bool)
