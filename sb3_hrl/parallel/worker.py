"""What a worker does, in whatever process: it steps its environments with its own copy of the policy, and writes blocks."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from sb3_hrl.common.checks import require
from sb3_hrl.common.spaces import ActionBorder
from sb3_hrl.common.step_storage import check_finite, is_failure
from sb3_hrl.common.subgoals import SegmentEnd
from sb3_hrl.common.twin import Attributes, plain_attributes
from sb3_hrl.common.weight_sync import WeightSource

# What comes home of an info when an episode ends: what SB3's Monitor adds, and what SB3's logger and callbacks read
EPISODE_KEYS = ("episode", "is_success", "TimeLimit.truncated")


class Agent(Protocol):
    """An exploring policy, on flat float32 arrays. It is pickled to a worker and started there."""

    n_weights: int

    def start(self, n_envs: int, weights: np.ndarray, rng: np.random.Generator, noise_scale: np.ndarray) -> None:
        """
        :param n_envs: number of environments
        :param weights: its weights, shape (n_weights,); looked at, not copied
        :param rng: source of randomness
        :param noise_scale: factor of the exploration noise of each environment, shape (n_envs,)
        """

    def refresh(self) -> None:
        """The weights have changed."""

    def act(self, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, is_warm_up: bool) -> np.ndarray:
        """
        :param observation: shape (n_envs, obs_dim)
        :param achieved_goal: shape (n_envs, goal_dim)
        :param goal: shape (n_envs, goal_dim)
        :param is_warm_up: whether to act at random
        :return: actions scaled to [-1, 1], shape (n_envs, action_dim)
        """

    def fields(self) -> dict[str, np.ndarray]:
        """:return: what else belongs into the buffer's rows of this step, by field, shapes (n_envs, dim)"""

    def step(self, next_achieved_goal: np.ndarray, dones: Sequence[bool]) -> np.ndarray:
        """
        :param next_achieved_goal: shape (n_envs, goal_dim)
        :param dones: whether the episodes ended, shape (n_envs,)
        :return: how the segments ended, each a :class:`~sb3_hrl.common.subgoals.SegmentEnd`, shape (n_envs,)
        """

    def statistics(self) -> list[float]:
        """:return: sums over the segments since the last call, for the learner's log"""


class Writer(Protocol):
    """Where the steps of one environment go, such as a :class:`~sb3_hrl.common.shards.ShardWriter`."""

    def write(self, rows: np.ndarray, episode_ends: np.ndarray, segment_ends: np.ndarray | None = None) -> None:
        """
        :param rows: packed rows of consecutive steps, shape (n, row_dim)
        :param episode_ends: shape (n,)
        :param segment_ends: shape (n,)
        """


@dataclass(frozen=True)
class CollectTask:
    """
    What workers are asked to do, the same for all of them.

    :param agent: the exploring policy
    :param columns: where each field lies in a packed row of the buffer
    :param row_dim: length of a packed row
    :param action_space: to unscale actions
    :param warm_up_rounds: how many steps of each environment are taken at random at first
    :param handle_timeout_termination: whether a time limit is no termination
    :param seed: of all randomness
    """

    agent: Agent
    columns: dict[str, slice]
    row_dim: int
    action_space: gym.spaces.Box
    warm_up_rounds: int
    handle_timeout_termination: bool
    seed: int


@dataclass(frozen=True)
class WorkerConfig:
    """
    How workers go about it, see :class:`~sb3_hrl.parallel.collector.ParallelCollector`.

    :param flush_size: steps of each environment that are written at once
    :param sync_interval: environment steps after which a worker looks for new weights
    :param noise_spread: the noise of the environments lies between 1 / noise_spread and noise_spread times that of the agent
    """

    flush_size: int = 50
    sync_interval: int = 400
    noise_spread: float = 1.0

    def __post_init__(self) -> None:
        require(self.flush_size >= 1, "flush_size", "at least 1 (steps written at once)", self.flush_size)
        require(
            self.sync_interval >= 1, "sync_interval", "at least 1 (steps between looks for new weights)", self.sync_interval
        )
        require(
            self.noise_spread >= 1, "noise_spread", "at least 1 (1: the same noise in all environments)", self.noise_spread
        )

    def noise_scales(self, n_envs: int) -> np.ndarray:
        """
        :param n_envs: number of environments over all workers
        :return: factor of the noise of each one, from the smallest to the largest in equal ratios, shape (n_envs,)
        """
        return self.noise_spread ** np.linspace(-1.0, 1.0, n_envs) if n_envs > 1 else np.ones(1)


class Report(NamedTuple):
    """What a worker tells the learner when it has written a block."""

    n_steps: int  # over its environments
    version: int  # of the weights that it acted with
    episodes: list[tuple[int, dict[str, Any]]]  # environment and info of each episode that ended
    statistics: list[float]  # sums over segments, see Agent.statistics
    attributes: Attributes | None = None  # of the first of all environments, from the worker that has it


class Worker:
    """
    Steps a few environments side by side.

    :param envs: the environments
    :param observations: their current observations; ``None`` where one is to be reset first
    :param first_env: number of the first of them among all environments
    :param n_envs: number of all environments, of all workers
    :param task: what to do
    :param config: how to go about it
    :param writers: where the steps of each environment go
    :param weights: where weights come from; a version has been published
    :param rounds: steps of each environment that were written by a worker before this one
    """

    def __init__(
        self,
        envs: Sequence[gym.Env],
        observations: Sequence[dict[str, np.ndarray] | None],
        first_env: int,
        n_envs: int,
        task: CollectTask,
        config: WorkerConfig,
        writers: Sequence[Writer],
        weights: WeightSource,
        rounds: int = 0,
    ):
        self.rounds = rounds
        self._envs, self._first_env, self._task, self._config = envs, first_env, task, config
        self._writers, self._weights = writers, weights
        n, columns = len(envs), task.columns
        # A worker in another's place draws other numbers
        seeds = np.random.SeedSequence([task.seed, first_env, rounds])
        self._vector = np.empty(task.agent.n_weights, dtype=np.float32)
        self._version = weights.fetch(self._vector)
        self._since_sync = 0
        # Serial workers share a task, but not what an agent knows of its environments
        self._agent = copy.copy(task.agent)
        self._agent.start(n, self._vector, np.random.default_rng(seeds), config.noise_scales(n_envs)[first_env:][:n])
        self._agent.refresh()

        self._staging = np.zeros((n, config.flush_size, task.row_dim), dtype=np.float32)
        self._episode_ends = np.zeros((n, config.flush_size), dtype=bool)
        self._segment_ends = np.zeros((n, config.flush_size), dtype=bool)
        self._episodes: list[tuple[int, dict[str, Any]]] = []
        self.n_staged = 0

        # The fields that an observation gives are the first ones of a row
        self._current = np.zeros((n, columns["desired_goal"].stop), dtype=np.float32)
        self._inputs = [self._current[:, columns[key]] for key in ("observation", "achieved_goal", "desired_goal")]
        self._action_border = ActionBorder(task.action_space)
        self.observations: list[dict[str, np.ndarray]] = []
        for i, (env, observation) in enumerate(zip(envs, observations, strict=True)):
            if observation is None:
                observation, _ = env.reset(seed=int(seeds.spawn(1)[0].generate_state(1)[0]))
            self.observations.append(observation)
            self._set_current(i, observation)

    def _set_current(self, i: int, observation: dict[str, np.ndarray]) -> None:
        for key, part in zip(("observation", "achieved_goal", "desired_goal"), self._inputs, strict=True):
            # A row converts what is written into it: `flatten` would do so twice
            part[i] = np.asarray(observation[key]).ravel()

    @property
    def is_full(self) -> bool:
        """Whether there is a block to flush."""
        return self.n_staged == self._config.flush_size

    def round(self) -> None:
        """Take one step in every environment."""
        if self._since_sync >= self._config.sync_interval:
            self._since_sync = 0
            if self._weights.version != self._version:
                self._version = self._weights.fetch(self._vector)
                self._agent.refresh()
        agent, columns = self._agent, self._task.columns
        rows = self._staging[:, self.n_staged]
        observation, achieved_goal, goal = self._inputs
        scaled = agent.act(observation, achieved_goal, goal, self.rounds < self._task.warm_up_rounds)
        rows[:, : self._current.shape[1]] = self._current
        rows[:, columns["action"]] = scaled
        for field, value in agent.fields().items():
            rows[:, columns[field]] = value
        actions = self._action_border.unflatten(scaled)
        dones = [self._step_env(i, env, actions[i], rows[i]) for i, env in enumerate(self._envs)]
        self._episode_ends[:, self.n_staged] = dones
        segment_ends = agent.step(rows[:, columns["next_achieved_goal"]], dones)
        rows[:, columns["segment_end"]] = segment_ends[:, None]
        self._segment_ends[:, self.n_staged] = segment_ends != SegmentEnd.NONE
        self.n_staged += 1
        self.rounds += 1
        self._since_sync += len(self._envs)

    def _step_env(self, i: int, env: gym.Env, action: np.ndarray, row: np.ndarray) -> bool:
        columns = self._task.columns
        observation, reward, terminated, truncated, info = env.step(action)
        row[columns["next_observation"]] = np.asarray(observation["observation"]).ravel()
        row[columns["next_achieved_goal"]] = np.asarray(observation["achieved_goal"]).ravel()
        row[columns["reward"]] = reward
        done = bool(terminated or truncated)
        row[columns["terminated"]] = terminated if self._task.handle_timeout_termination else done
        row[columns["failed"]] = is_failure(terminated, info)
        if done:
            info["TimeLimit.truncated"] = truncated and not terminated
            self._episodes.append((self._first_env + i, {key: info[key] for key in EPISODE_KEYS if key in info}))
            observation, _ = env.reset()
        self.observations[i] = observation
        self._set_current(i, observation)
        return done

    def flush(self) -> Report:
        """:return: a report on the steps that were staged, and that are written now"""
        n = self.n_staged
        for i, writer in enumerate(self._writers):
            rows = self._staging[i, :n]
            check_finite(rows, self._task.columns)
            writer.write(rows, self._episode_ends[i, :n], self._segment_ends[i, :n])
        episodes, self._episodes, self.n_staged = self._episodes, [], 0
        attributes = plain_attributes(self._envs[0]) if self._first_env == 0 else None
        return Report(n * len(self._envs), self._version, episodes, self._agent.statistics(), attributes)
