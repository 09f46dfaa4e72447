"""Goals for environments that have none."""

from numbers import Real
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor

from sb3_hrl.common.subgoals import is_reached

Numbers = float | list[float] | np.ndarray


class GoalFromObservationWrapper(gym.Wrapper, RecordConstructorArgs):
    """
    Make an ordinary environment goal-conditioned, by choosing the entries of its observation that are the goal, as HIRO does
    with the ant's position (https://arxiv.org/abs/1805.08296). The observation becomes a Dict of the whole ``observation``,
    the chosen entries as ``achieved_goal``, and a ``desired_goal`` that is sampled for each episode.

    The reward becomes 0 within ``threshold`` of the goal, and -1 otherwise; the original reward is kept as
    ``info["original_reward"]``. ``info["is_success"]`` tells whether the goal is reached. The environment's own terminations
    are kept.

    To wrap an environment that already has a ``Monitor``, as in the zoo or with ``make_vec_env``, use
    :func:`~sb3_hrl.common.wrappers.add_goals`.

    :param env: environment whose observations are vectors (Box)
    :param goal_indices: indices of the observation's entries that are the goal
    :param threshold: maximum Euclidean distance at which a goal counts as reached, in the units of these entries
    :param low: lower bounds of the box from which goals are sampled uniformly, a number or one per entry of the goal;
        ``None``: the bounds of the observation space
    :param high: upper bounds of that box
    :param goals: points to sample goals from instead, shape (n_goals, goal_dim); with a single point the goal is fixed
    :param ends_at_success: whether an episode ends when its goal is reached. If not, the agent has to stay there, and an
        episode that the environment terminates (a fall, a crash) is no success, even at the goal
    :raises ValueError: if an argument does not fit the environment, or a goal could never be reached
    """

    def __init__(
        self,
        env: gym.Env,
        goal_indices: list[int],
        threshold: float,
        low: Numbers | None = None,
        high: Numbers | None = None,
        goals: list[list[float]] | np.ndarray | None = None,
        ends_at_success: bool = True,
    ):
        # The learner's process recreates the environment of a worker process from its spec
        RecordConstructorArgs.__init__(
            self,
            goal_indices=goal_indices,
            threshold=threshold,
            low=low,
            high=high,
            goals=goals,
            ends_at_success=ends_at_success,
        )
        super().__init__(env)
        observation = _checked_space(env)
        self._indices = _checked_indices(goal_indices, observation)
        if not isinstance(threshold, Real) or not 0.0 < threshold < np.inf:
            raise ValueError(f"`threshold` must be a positive distance, in the units of the goal, not {threshold!r}.")
        self._threshold: float = float(threshold)
        self._ends_at_success: bool = bool(ends_at_success)
        # Differences of unsigned integers would wrap around
        dtype = observation.dtype.type if np.issubdtype(observation.dtype, np.floating) else np.float32
        goal = spaces.Box(observation.low[self._indices], observation.high[self._indices], dtype=dtype)
        if goals is not None and (low is not None or high is not None):
            raise ValueError("Goals are sampled either from `goals` or between `low` and `high`: leave one of them out.")
        self._points: np.ndarray | None = None if goals is None else _checked_points(goals, goal)
        self._box: tuple[np.ndarray, ...] = _checked_box(low, high, goal) if goals is None else ()
        self._goal: np.ndarray = np.zeros(goal.shape, dtype=goal.dtype)
        self.observation_space = spaces.Dict(observation=observation, achieved_goal=goal, desired_goal=goal)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: seed of the environment, whose random numbers are also used to sample goals
        :param options: options of the environment
        :return: the first observation of an episode, with its goal, and its info
        """
        obs, info = self.env.reset(seed=seed, options=options)
        if self._points is not None:
            goal = self._points[self.np_random.integers(len(self._points))]
        else:
            goal = self.np_random.uniform(*self._box)
        self._goal = np.asarray(goal, dtype=self._goal.dtype)
        return self._with_goals(obs), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: action of the environment
        :return: the observation with its goals, -1 or 0 as the reward, and the info with ``is_success`` and
            ``original_reward``
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        goal_obs = self._with_goals(obs)
        achieved, desired = goal_obs["achieved_goal"], goal_obs["desired_goal"]
        success = bool(is_reached(achieved, desired, self._threshold)) and (self._ends_at_success or not terminated)
        info = info | {"is_success": success, "original_reward": float(reward)}
        terminated = terminated or self.compute_terminated(achieved, desired, info)
        return goal_obs, float(self.compute_reward(achieved, desired, info)), terminated, truncated, info

    def _with_goals(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        achieved = obs[self._indices].astype(self._goal.dtype)
        return {"observation": obs, "achieved_goal": achieved, "desired_goal": self._goal.copy()}

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        """
        :param achieved_goal: shape (..., goal_dim)
        :param desired_goal: shape (..., goal_dim)
        :param info: not used
        :return: 0 if the goal is reached, else -1, shape (...,)
        """
        return np.asarray(is_reached(achieved_goal, desired_goal, self._threshold), dtype=np.float64) - 1.0

    def compute_terminated(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> bool:
        """
        :param achieved_goal: shape (goal_dim,)
        :param desired_goal: shape (goal_dim,)
        :param info: not used
        :return: whether the episode ends because its goal is reached
        """
        return self._ends_at_success and bool(is_reached(achieved_goal, desired_goal, self._threshold))


def _checked_space(env: gym.Env) -> spaces.Box:
    """:return: the space of the environment's observations, which are vectors"""
    if is_wrapped(env, Monitor):
        raise ValueError(
            "GoalFromObservationWrapper must be below Monitor, which would otherwise not see episodes end at their goals: use "
            "`sb3_hrl.common.wrappers.add_goals` with the same arguments, also as `wrapper_class` or `env_wrapper`."
        )
    space = env.observation_space
    if isinstance(space, spaces.Dict) and "achieved_goal" in space.spaces:
        raise ValueError("The environment is already goal-conditioned: remove GoalFromObservationWrapper.")
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"GoalFromObservationWrapper needs observations that are vectors (Box), not {space}: apply "
            "`gymnasium.wrappers.FlattenObservation` first."
        )
    return space


def _checked_indices(goal_indices: list[int], observation: spaces.Box) -> np.ndarray:
    """:return: indices of the observation's entries that are the goal, shape (goal_dim,)"""
    indices, n = np.asarray(goal_indices), observation.shape[0]
    valid = indices.ndim == 1 and indices.size > 0 and np.issubdtype(indices.dtype, np.integer)
    if not valid or indices.min() < 0 or indices.max() >= n or len(set(indices.tolist())) < indices.size:
        raise ValueError(
            f"`goal_indices` must be a list of different whole numbers from 0 to {n - 1}, the entries of the observation that "
            f"are the goal, not {goal_indices!r}."
        )
    return indices


def _numbers(value: Any, dtype: Any) -> np.ndarray:
    """:return: the value as an array of numbers; NaN if it is not numeric"""
    try:
        return np.asarray(value, dtype=dtype)
    except (TypeError, ValueError):
        return np.asarray(np.nan, dtype=dtype)


def _checked_points(goals: list[list[float]] | np.ndarray, space: spaces.Box) -> np.ndarray:
    """:return: goals inside the goal space, shape (n_goals, goal_dim)"""
    points, dim = _numbers(goals, space.dtype), space.shape[0]
    if points.ndim != 2 or len(points) == 0 or points.shape[1] != dim or not np.isfinite(points).all():
        raise ValueError(
            f"`goals` must be a list of points of {dim} finite numbers each, one per entry of `goal_indices`, such as "
            f"{[[0.0] * dim]}, not {goals!r}."
        )
    _check_inside("goals", points, space)
    return points


def _checked_box(low: Numbers | None, high: Numbers | None, space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """:return: bounds for sampling goals, inside the goal space, each of shape (goal_dim,)"""
    bounds = []
    for name, value, default in (("low", low, space.low), ("high", high, space.high)):
        bound, dim = _numbers(default if value is None else value, space.dtype), space.shape[0]
        if bound.shape not in ((), (1,), (dim,)):
            raise ValueError(f"`{name}` must be a number or {dim} of them, one per entry of the goal, not {value!r}.")
        if not np.isfinite(bound).all():
            given = f"{value!r}" if value is not None else f"the observation space's {default.tolist()}"
            raise ValueError(
                f"`{name}` must be finite, not {given}: pass the box from which goals are sampled as `low` and `high`, or "
                "the goals themselves as `goals`."
            )
        bounds.append(np.broadcast_to(bound, (dim,)))
        _check_inside(name, bounds[-1], space)
    if np.any(bounds[0] > bounds[1]):
        raise ValueError(f"`low` must not be above `high`, not {low!r} and {high!r}.")
    return bounds[0], bounds[1]


def _check_inside(name: str, points: np.ndarray, space: spaces.Box) -> None:
    """Raise an error for goals that could never be reached."""
    if np.any(points < space.low) or np.any(points > space.high):
        raise ValueError(
            f"`{name}` is outside the environment's observations, which are between {space.low.tolist()} and "
            f"{space.high.tolist()}: check its units, and the order of `goal_indices`."
        )
