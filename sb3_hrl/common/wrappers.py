"""Environment wrappers."""

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
    rl_zoo3 and ``make_vec_env`` apply wrappers on top of ``Monitor``. Wrappers that change infos or end episodes must be below
    it, so that it records the changes: SB3's evaluation only counts the episodes that ``Monitor`` has seen.

    :param env: the environment
    :param wrapper: class of the wrapper
    :param kwargs: keyword arguments of the wrapper
    :return: the environment, wrapped below its ``Monitor`` if it has one
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
    Add ``info["is_success"]``, which SB3 and rl_zoo3 log, to environments that report ``info["success"]``, such as the mazes
    of gymnasium-robotics. An info with neither key is not changed.

    :param env: the environment
    """

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: action of the environment
        :return: what the environment returned, with ``is_success`` added to an info that has ``success``
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        if "success" in info:
            # Without the key success is unknown: False would turn every termination into a failure
            info.setdefault("is_success", bool(info["success"]))
        return obs, reward, terminated, truncated, info


def add_success_info(env: gym.Env) -> gym.Env:
    """
    Wrap in :class:`SuccessInfoWrapper`, below a ``Monitor`` if there is one.

    :param env: the environment
    :return: the environment with ``info["is_success"]``
    """
    return _beneath_monitor(env, SuccessInfoWrapper)


def add_goals(env: gym.Env, **kwargs: Any) -> gym.Env:
    """
    Wrap in :class:`GoalFromObservationWrapper`, below a ``Monitor`` if there is one.

    :param env: the environment
    :param kwargs: keyword arguments of :class:`GoalFromObservationWrapper`
    :return: the goal-conditioned environment
    """
    return _beneath_monitor(env, GoalFromObservationWrapper, **kwargs)


class ActionLimitWrapper(gym.Wrapper):
    """
    Limit actions to a share of their range, if larger actions do harm: with maximum torques, MuJoCo's ant falls on its back
    and cannot get up again.

    :param env: environment with a Box action space
    :param share: share of the range, around its middle, in (0, 1]
    """

    def __init__(self, env: gym.Env, share: float = 0.5):
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Box):
            raise ValueError(f"ActionLimitWrapper needs a Box action space, not {env.action_space}: remove the wrapper.")
        if not 0.0 < share <= 1.0:
            raise ValueError(f"`share` of the actions' range must be in (0, 1], not {share}.")
        low, high = env.action_space.low, env.action_space.high
        middle, half = 0.5 * (low + high), 0.5 * share * (high - low)
        self.action_space = spaces.Box(middle - half, middle + half, dtype=env.action_space.dtype.type)


class ReducedWorkspaceWrapper(gym.Wrapper):
    """
    Keep desired goals (and optionally the goals achieved at the start) within a box, as the first step of a curriculum. It
    resets the environment until they are in the box.

    :param env: goal-conditioned environment
    :param low: lower bounds of the box, a number or one per dimension of the goal, in its units
    :param high: upper bounds of the box
    :param limit_start: whether episodes must also start in the box
    :param max_tries: maximum number of resets per episode
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
        :param seed: seed of the environment, for the first try
        :param options: options of the environment
        :return: the first observation of an episode in the box, and its info
        """
        for _ in range(self._max_tries):
            obs, info = self.env.reset(seed=seed, options=options)
            if self._is_inside(obs["desired_goal"]) and (not self._limit_start or self._is_inside(obs["achieved_goal"])):
                return obs, info
            seed = None
        raise ValueError(
            f"None of {self._max_tries} episodes had its goal between {self._low} and {self._high}: widen the box, or check "
            "that its bounds are in the units of the desired goal."
        )


class FallTerminationWrapper(gym.Wrapper):
    """
    Terminate an episode after the robot has been on its back for some steps. MuJoCo's ant cannot get up, and AntMaze would
    continue for hundreds of useless steps. Terminating without success (``is_success`` in the info, see
    :func:`add_success_info`) is the worst outcome for both levels. The wrapper does not improve the success rate of
    evaluations.

    To wrap an environment that already has a ``Monitor``, as in the zoo or with ``make_vec_env``, use :func:`terminate_falls`.

    :param env: goal-conditioned environment whose observation contains the torso's orientation, a quaternion (w, x, y, z)
    :param orientation: index of the quaternion's first entry in the observation; in AntMaze it follows the height
    :param patience: number of steps on its back after which the episode ends
    """

    def __init__(self, env: gym.Env, orientation: int = 1, patience: int = 5):
        super().__init__(env)
        if is_wrapped(env, Monitor):
            raise ValueError(
                "FallTerminationWrapper must be below Monitor, which would otherwise not see the episodes end: use "
                "`sb3_hrl.common.wrappers.terminate_falls` with the same arguments, also as `wrapper_class` or `env_wrapper`."
            )
        if patience < 1:
            raise ValueError(f"`patience` must be at least 1 (steps), not {patience}.")
        self._quaternion, self._patience, self._n_down = slice(orientation, orientation + 4), patience, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: seed of the environment
        :param options: options of the environment
        :return: the first observation of an episode, and its info
        """
        self._n_down = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: action of the environment
        :return: what the environment returned, terminated if the robot has been on its back for ``patience`` steps
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        _, x, y, _ = obs["observation"][self._quaternion]
        # The z component of the torso's own z axis
        is_down = 1.0 - 2.0 * (x * x + y * y) < 0.0
        self._n_down = self._n_down + 1 if is_down else 0
        return obs, reward, terminated or self._n_down >= self._patience, truncated, info


def terminate_falls(env: gym.Env, **kwargs: Any) -> gym.Env:
    """
    Wrap in :class:`FallTerminationWrapper`, below a ``Monitor`` if there is one.

    :param env: the environment
    :param kwargs: keyword arguments of :class:`FallTerminationWrapper`
    :return: the environment, whose episodes end when the robot lies on its back
    """
    return _beneath_monitor(env, FallTerminationWrapper, **kwargs)
