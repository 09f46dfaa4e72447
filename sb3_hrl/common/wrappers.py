"""Wrappers of environments."""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor

from sb3_hrl.common.goal_wrapper import GoalFromObservationWrapper

__all__ = [
    "ActionLimitWrapper",
    "FallTerminationWrapper",
    "GoalFromObservationWrapper",
    "ReducedWorkspaceWrapper",
    "SuccessInfoWrapper",
    "add_goals",
    "add_success_info",
    "terminate_falls",
]


def _beneath_monitor(env: gym.Env, wrapper: type[gym.Wrapper], **kwargs: Any) -> gym.Env:
    """
    rl_zoo3 and ``make_vec_env`` apply wrappers on top of ``Monitor``. What it is to record has to reach it, and episodes have
    to end for it, too: SB3's evaluation counts those that it has seen.

    :param env: the environment
    :param wrapper: class of the wrapper
    :param kwargs: its arguments
    :return: the environment, wrapped beneath its ``Monitor`` if it has one
    """
    monitor = env
    while isinstance(monitor, gym.Wrapper) and not isinstance(monitor, Monitor):
        monitor = monitor.env
    if not isinstance(monitor, Monitor):
        return wrapper(env, **kwargs)
    monitor.env = wrapper(monitor.env, **kwargs)
    return env


class SuccessInfoWrapper(gym.Wrapper):
    """
    Give ``info["is_success"]``, which SB3 and rl_zoo3 log, to environments that say ``info["success"]``, as the mazes of
    gymnasium-robotics do. Where an info has neither key, nothing is added to it.

    :param env: the environment
    """

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: action of the environment
        :return: what the environment returned, with ``is_success`` in its info if that has ``success``
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        if "success" in info:
            # Where the environment says nothing, nothing is known: False would make a failure of each termination
            info.setdefault("is_success", bool(info["success"]))
        return obs, reward, terminated, truncated, info


def add_success_info(env: gym.Env) -> gym.Env:
    """
    Wrap in :class:`SuccessInfoWrapper`, beneath a ``Monitor`` if there is one.

    :param env: the environment
    :return: the environment with ``info["is_success"]``
    """
    return _beneath_monitor(env, SuccessInfoWrapper)


def add_goals(env: gym.Env, **kwargs: Any) -> gym.Env:
    """
    Wrap in :class:`GoalFromObservationWrapper`, beneath a ``Monitor`` if there is one.

    :param env: the environment
    :param kwargs: arguments of :class:`GoalFromObservationWrapper`
    :return: the goal-conditioned environment
    """
    return _beneath_monitor(env, GoalFromObservationWrapper, **kwargs)


class ActionLimitWrapper(gym.Wrapper):
    """
    Leave an agent a share of each action's range, where the rest does harm: MuJoCo's ant throws itself on its back with
    torques of full size, and cannot get up again.

    :param env: environment with a Box action space
    :param share: of the range around its middle, in (0, 1]
    """

    def __init__(self, env: gym.Env, share: float = 0.5):
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Box):
            raise ValueError(f"ActionLimitWrapper limits Box actions, not {env.action_space}: leave it out.")
        if not 0.0 < share <= 1.0:
            raise ValueError(f"`share` of the actions' range must be in (0, 1], not {share}.")
        low, high = env.action_space.low, env.action_space.high
        middle, half = 0.5 * (low + high), 0.5 * share * (high - low)
        self.action_space = spaces.Box(middle - half, middle + half, dtype=env.action_space.dtype.type)


class ReducedWorkspaceWrapper(gym.Wrapper):
    """
    Keep desired goals (and, if asked, the goals achieved at the start) within a box, as a first step of a curriculum: episodes
    are drawn until they fit.

    :param env: goal-conditioned environment
    :param low: lower bounds of the box, a number or one per dimension of the goal, in its units
    :param high: upper bounds of the box
    :param limit_start: whether episodes are to start in the box as well
    :param max_tries: resets before giving up
    """

    def __init__(
        self,
        env: gym.Env,
        low: float | list[float],
        high: float | list[float],
        limit_start: bool = False,
        max_tries: int = 1_000,
    ):
        super().__init__(env)
        self._low, self._high = np.asarray(low), np.asarray(high)
        if not np.all(self._low < self._high):
            raise ValueError(f"`low` must be below `high` in every dimension, not {low} and {high}.")
        self._limit_start, self._max_tries = limit_start, max_tries

    def _is_inside(self, goal: np.ndarray) -> bool:
        return bool(np.all((goal >= self._low) & (goal <= self._high)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: of the environment, for the first try
        :param options: of the environment
        :return: the first observation of an episode in the box, and its info
        """
        for _ in range(self._max_tries):
            obs, info = self.env.reset(seed=seed, options=options)
            if self._is_inside(obs["desired_goal"]) and (not self._limit_start or self._is_inside(obs["achieved_goal"])):
                return obs, info
            seed = None
        raise ValueError(
            f"None of {self._max_tries} episodes had its goal between {self._low} and {self._high}: widen the box, or check "
            "that it is given in the units of the desired goal."
        )


class FallTerminationWrapper(gym.Wrapper):
    """
    Terminate an episode when the robot has lain on its back for some steps: MuJoCo's ant cannot get up, and AntMaze would go
    on for hundreds of steps that teach nothing. An end that is no success (``is_success`` in the info, see
    :func:`add_success_info`) is the worst that can happen to both levels. Nothing is won by it in evaluation.

    To wrap an environment that has a ``Monitor`` already, as in the zoo or with ``make_vec_env``, use :func:`terminate_falls`.

    :param env: goal-conditioned environment whose observation has the torso's orientation, a quaternion (w, x, y, z)
    :param orientation: where the quaternion begins in the observation; AntMaze's comes after the height
    :param patience: steps on its back before the episode ends
    """

    def __init__(self, env: gym.Env, orientation: int = 1, patience: int = 5):
        super().__init__(env)
        if is_wrapped(env, Monitor):
            raise ValueError(
                "FallTerminationWrapper belongs beneath Monitor, which would not see episodes end: use "
                "`sb3_hrl.common.wrappers.terminate_falls` with the same arguments, also as `wrapper_class` or `env_wrapper`."
            )
        if patience < 1:
            raise ValueError(f"`patience` must be at least 1 (steps), not {patience}.")
        self._quaternion, self._patience, self._n_down = slice(orientation, orientation + 4), patience, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: of the environment
        :param options: of the environment
        :return: the first observation of an episode, and its info
        """
        self._n_down = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: action of the environment
        :return: what the environment returned, terminated if the robot is down for good
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        _, x, y, _ = obs["observation"][self._quaternion]
        # The z axis of the torso, seen along that of the world
        is_down = 1.0 - 2.0 * (x * x + y * y) < 0.0
        self._n_down = self._n_down + 1 if is_down else 0
        return obs, reward, terminated or self._n_down >= self._patience, truncated, info


def terminate_falls(env: gym.Env, **kwargs: Any) -> gym.Env:
    """
    Wrap in :class:`FallTerminationWrapper`, beneath a ``Monitor`` if there is one.

    :param env: the environment
    :param kwargs: arguments of :class:`FallTerminationWrapper`
    :return: the environment whose episodes end when the robot is down for good
    """
    return _beneath_monitor(env, FallTerminationWrapper, **kwargs)
