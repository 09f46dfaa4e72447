"""Data about an environment, from episodes with random actions."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_hrl.common.buffers import GOAL_KEYS
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.spaces import flatten
from sb3_hrl.hddpg.config import SubgoalConfig

Observation = dict[str, np.ndarray]

# Steps per probe: from one seed, with the lowest actions, the highest actions, and twice with the same random actions
PROBE_STEPS = 3


class Episode(NamedTuple):
    """An episode with random actions, of T steps."""

    observations: Observation  # T + 1 rows each
    rewards: np.ndarray  # (T,)
    infos: list[dict[str, Any]]  # T
    terminated: bool
    truncated: bool
    was_overwritten: bool  # whether the last observation changed when the environment was reset

    @property
    def is_over(self) -> bool:
        """Whether the episode ended by itself, and was not cut off by the survey."""
        return self.terminated or self.truncated

    def goals(self, key: str) -> np.ndarray:
        """
        :param key: ``achieved_goal`` or ``desired_goal``
        :return: the goals as the learner sees them, float32, shape (T + 1, goal_dim)
        """
        return _flat(self.observations[key])

    @property
    def moves(self) -> np.ndarray:
        """Offset of the achieved goal in each step, shape (T, goal_dim)."""
        return np.diff(self.goals("achieved_goal"), axis=0)


class Survey(NamedTuple):
    """The data that the checks use."""

    env: gym.Env
    episodes: list[Episode]
    starts: Observation  # first observations of many episodes, n_resets rows each
    probes: dict[str, list[Observation]]  # "low" and "high" actions, the "same" random ones twice ("again")
    resets: tuple[list[Observation], list[Observation]]  # a reset with a seed and one without, both repeated
    time_limit: int | None  # environment steps
    subgoals: SubgoalConfig = SubgoalConfig()
    planner: str | None = "landmarks"
    found_task: GoalTask | None = None  # set once the reward is known to make sense

    @property
    def task(self) -> GoalTask:
        """What counts as reaching a goal."""
        assert self.found_task is not None
        return self.found_task

    def start_goals(self, key: str) -> np.ndarray:
        """
        :param key: ``achieved_goal`` or ``desired_goal``
        :return: the goals of the first observations, float32, shape (n_resets, goal_dim)
        """
        return _flat(self.starts[key])

    @property
    def has_real_goals(self) -> bool:
        """Whether goals are real numbers, as opposed to bits or integers."""
        space = self.env.observation_space["desired_goal"]  # type: ignore[index]
        goals = self.starts["desired_goal"]
        return isinstance(space, spaces.Box) and not np.array_equal(goals, np.round(goals))


def time_limit_of(env: gym.Env) -> int | None:
    """
    :param env: environment
    :return: number of environment steps after which gymnasium truncates an episode, ``None`` if there is no limit
    """
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return int(env.spec.max_episode_steps)
    # A TimeLimit around an environment without a spec
    limit = env.get_wrapper_attr("_max_episode_steps") if env.has_wrapper_attr("_max_episode_steps") else None
    return None if limit is None else int(limit)


def _flat(values: np.ndarray) -> np.ndarray:
    return flatten(values, len(values))


def _stack(observations: list[Observation]) -> Observation:
    return {key: np.stack([np.asarray(obs[key]) for obs in observations]) for key in GOAL_KEYS}


def _copy(obs: Observation) -> Observation:
    return {key: np.array(obs[key]) for key in GOAL_KEYS}


def _record(env: gym.Env, max_steps: int) -> Episode:
    obs = env.reset()[0]
    observations = [_copy(obs)]
    rewards: list[float] = []
    infos: list[dict[str, Any]] = []
    terminated = truncated = False
    while len(rewards) < max_steps and not (terminated or truncated):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        observations.append(_copy(obs))
        rewards.append(float(reward))
        infos.append(dict(info))
    # A VecEnv keeps the last observation while the next episode begins
    env.reset()
    was_overwritten = any(not np.array_equal(obs[key], observations[-1][key], equal_nan=True) for key in GOAL_KEYS)
    return Episode(_stack(observations), np.array(rewards), infos, bool(terminated), bool(truncated), was_overwritten)


def _probe(env: gym.Env, seed: int, actions: list[np.ndarray]) -> list[Observation]:
    observations = [_copy(env.reset(seed=seed)[0])]
    for action in actions:
        obs, _, terminated, truncated, _ = env.step(action)
        observations.append(_copy(obs))
        if terminated or truncated:
            break
    return observations


def _reset_twice(env: gym.Env, seed: int) -> list[Observation]:
    """:return: first observations of two episodes: reset with a seed, then reset without a seed, as in training"""
    return [_copy(env.reset(seed=seed)[0]), _copy(env.reset()[0])]


def make_survey(
    env: gym.Env,
    n_episodes: int,
    n_resets: int,
    max_steps: int,
    seed: int,
) -> Survey:
    """
    Play episodes with random actions.

    :param env: goal-conditioned environment with bounded Box actions
    :param n_episodes: number of episodes to play
    :param n_resets: number of first observations to check
    :param max_steps: maximum number of environment steps per episode
    :param seed: seed of the environment and the actions
    :return: the collected data
    """
    space = env.action_space
    assert isinstance(space, spaces.Box)
    space.seed(seed)
    env.reset(seed=seed)
    starts = _stack([_copy(env.reset()[0]) for _ in range(n_resets)])
    episodes = [_record(env, max_steps) for _ in range(n_episodes)]
    same = [space.sample() for _ in range(PROBE_STEPS)]
    actions = {"low": [space.low] * PROBE_STEPS, "high": [space.high] * PROBE_STEPS, "same": same, "again": same}
    probes = {name: _probe(env, seed, tried) for name, tried in actions.items()}
    resets = (_reset_twice(env, seed), _reset_twice(env, seed))
    return Survey(env, episodes, starts, probes, resets, time_limit_of(env))


def differ(a: list[Observation], b: list[Observation], rounding: float = 0.0) -> bool:
    """
    :param a: consecutive observations
    :param b: the observations of another try
    :param rounding: tolerance for differences, relative and absolute
    :return: whether they differ
    """
    return len(a) != len(b) or any(
        not np.allclose(one[key], other[key], rtol=rounding, atol=rounding, equal_nan=True)
        for one, other in zip(a, b, strict=True)
        for key in GOAL_KEYS
    )
