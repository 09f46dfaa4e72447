"""What an environment says about goals, asked in the learner's process: success, tolerance, termination."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import WrapperSpec, load_env_creator
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

ComputeReward = Callable[[np.ndarray, np.ndarray, Any], np.ndarray]

# Distances at which the reward is probed, in the units of the goal
_PROBE_DISTANCES = np.logspace(-6, 4, 101)


class GoalTask:
    """
    Success of achieved goals, vectorised, from the environment's own ``compute_reward``.
    Never by ``VecEnv.env_method``: that costs a round trip and desynchronises a pending step.

    A *sparse* reward takes two values and success is the higher one. With any other reward, success is an Euclidean
    distance of at most ``threshold``.

    :param compute_reward: the environment's method, called with (achieved, desired, infos) of shape (n, goal_dim)
    :param goals: some desired goals of the environment, to probe with, shape (n, goal_dim)
    :param threshold: distance at which a goal counts as reached; ``None`` to find it by probing
    :param ends_at_success: whether an episode ends when its goal is reached
    """

    def __init__(
        self,
        compute_reward: ComputeReward,
        goals: np.ndarray,
        threshold: float | None = None,
        ends_at_success: bool = False,
    ):
        self.compute_reward = compute_reward
        self.ends_at_success = ends_at_success
        self.best_reward = float(self._rewards(goals, goals).max())
        tolerance = self._probe_tolerance(goals)
        self.is_sparse = tolerance is not None
        if threshold is None and tolerance is None:
            raise ValueError(
                "The environment's reward is dense, so the distance at which a goal counts as reached cannot be found by "
                "probing `compute_reward`: pass it as `threshold` in `subgoal_kwargs` (in the units of the achieved goal)."
            )
        self.threshold = float(tolerance if threshold is None else threshold)  # type: ignore[arg-type]

    def _rewards(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        rewards = np.asarray(self.compute_reward(achieved, desired, [{}] * len(achieved)))
        if rewards.size != len(achieved):
            raise ValueError(
                f"`compute_reward` must be vectorised: for {len(achieved)} pairs of goals it returned an array of shape "
                f"{rewards.shape}. Reduce over the last axis only (axis=-1)."
            )
        return rewards.reshape(-1)

    def _is_best(self, rewards: np.ndarray) -> np.ndarray:
        return np.greater_equal(rewards, self.best_reward - 1e-6)

    def success(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """
        :param achieved: shape (n, goal_dim)
        :param desired: shape (n, goal_dim)
        :return: booleans, shape (n,)
        """
        if self.is_sparse:
            return self._is_best(self._rewards(achieved, desired))
        return np.linalg.norm(achieved - desired, axis=-1) <= self.threshold

    def _probe_tolerance(self, goals: np.ndarray) -> float | None:
        """
        :param goals: shape (n, goal_dim)
        :return: largest distance that is still a success in every direction of the axes; ``None`` if the reward is dense
        """
        goals = goals[:4]
        axes = np.concatenate([np.eye(goals.shape[1]), -np.eye(goals.shape[1])])

        def rewards_at(distances: np.ndarray) -> np.ndarray:
            """:return: rewards of the goals displaced by each distance along each axis, shape (len(distances), n)"""
            offsets = (distances[:, None, None, None] * axes[:, None, :]).astype(goals.dtype)
            achieved, desired = np.broadcast_arrays(goals + offsets, goals)
            shape = (-1, goals.shape[1])
            return self._rewards(achieved.reshape(shape), desired.reshape(shape)).reshape(len(distances), -1)

        rewards = rewards_at(_PROBE_DISTANCES)
        if len(np.unique(np.append(rewards, self.best_reward))) > 2:
            return None
        reached = np.asarray(self._is_best(rewards).all(axis=1))
        if reached.all():
            raise ValueError(
                "`compute_reward` says that every goal is always reached: the environment gives no goal to learn from. "
                "Check its `compute_reward(achieved_goal, desired_goal, info)`."
            )
        if not reached[0]:
            # Goals are compared bit by bit: two of them differ by at least 1
            return 0.5
        inner = int(np.argmin(reached))
        fine = np.linspace(_PROBE_DISTANCES[inner - 1], _PROBE_DISTANCES[inner], 1001)
        still = self._is_best(rewards_at(fine)).all(axis=1)
        return float(fine[np.flatnonzero(still)[-1]])


def _local_env(env: VecEnv) -> gym.Env:
    """
    An environment of this process that is like those of the ``VecEnv``: the first one itself, or a twin from its spec.

    :param env: the training environment
    :return: an environment whose goal methods can be called without a round trip
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if isinstance(env, DummyVecEnv):
        return env.envs[0]
    spec = env.get_attr("spec", 0)[0]
    if spec is None:
        raise ValueError(
            "The goal's reward function is needed in the learner's process, and the environments of this VecEnv have no "
            "`spec` to make a twin from: register your environment with `gymnasium.register` and create it by "
            "`gymnasium.make`, or use DummyVecEnv."
        )
    spec = copy.deepcopy(spec)
    spec.additional_wrappers = _goal_wrappers(spec.additional_wrappers)
    spec.disable_env_checker = True
    return gym.make(spec)


def _goal_wrappers(wrappers: tuple[WrapperSpec, ...]) -> tuple[WrapperSpec, ...]:
    """
    :param wrappers: the wrappers of an environment, from the innermost on
    :return: those that a twin needs for its goal methods: the topmost with such methods of its own, and what lies beneath it;
        without those that cannot be made again from a spec (Monitor among them), as only observations pass through these
    """
    gives_goals = [_has_goals(wrapper) for wrapper in wrappers]
    n_needed = len(wrappers) - gives_goals[::-1].index(True) if any(gives_goals) else 0
    for wrapper, gives in zip(wrappers, gives_goals, strict=True):
        if gives and wrapper.kwargs is None:
            raise ValueError(
                f"The goal's reward function is needed in the learner's process, and the wrapper {wrapper.name} that has it "
                "cannot be made again there: let it inherit from `gymnasium.utils.RecordConstructorArgs`, or use DummyVecEnv."
            )
    return tuple(wrapper for wrapper in wrappers[:n_needed] if wrapper.kwargs is not None)


def _has_goals(wrapper: WrapperSpec) -> bool:
    """:return: whether the wrapper has goal methods of its own"""
    try:
        return hasattr(load_env_creator(wrapper.entry_point), "compute_reward")
    except (ImportError, AttributeError):
        # Its class lives in a function or in a worker's main module
        return False


def goal_task_from_env(env: VecEnv, goals: np.ndarray, threshold: float | None = None) -> GoalTask:
    """
    :param env: the training environment, whose environments have ``compute_reward(achieved, desired, info)``
    :param goals: some desired goals of the environment, shape (n, goal_dim)
    :param threshold: distance at which a goal counts as reached; ``None``: the environment's ``distance_threshold``
        where its reward is dense, else found by probing
    :return: the environment's goals, as the learner sees them
    """
    local = _local_env(env)
    try:
        compute_reward = local.get_wrapper_attr("compute_reward")
    except AttributeError as error:
        raise ValueError(
            "A goal-conditioned environment needs a method `compute_reward(achieved_goal, desired_goal, info)`, "
            "see gymnasium_robotics.core.GoalEnv."
        ) from error
    if threshold is None and getattr(local.unwrapped, "reward_type", None) == "dense":
        threshold = getattr(local.unwrapped, "distance_threshold", None)
    try:
        compute_terminated = local.get_wrapper_attr("compute_terminated")
    except AttributeError:
        ends_at_success = False
    else:
        ends_at_success = bool(compute_terminated(goals[0], goals[0], {}))
    return GoalTask(compute_reward, goals, threshold, ends_at_success)
