"""A worker, in any process: it steps its environments with its own copy of the policy, and writes blocks of steps."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from sb3_hrl.common.checks import require
from sb3_hrl.common.spaces import ActionBorder
from sb3_hrl.common.step_storage import GOAL_KEYS, check_finite, float_columns, is_failure, pack, unpack
from sb3_hrl.common.subgoals import SegmentEnd
from sb3_hrl.common.twin import Attributes, plain_attributes
from sb3_hrl.common.weight_sync import WeightSource

# Keys of an info that are sent when an episode ends: those that SB3's Monitor adds, and those that SB3's logger reads
EPISODE_KEYS = ("episode", "is_success", "TimeLimit.truncated")


class Agent(Protocol):
    """
    An exploring policy on flat arrays: float32, or the dtype of packed observations. It is pickled, sent to a worker, and
    started there.
    """

    n_weights: int

    def start(self, n_envs: int, weights: np.ndarray, rng: np.random.Generator, noise_scale: np.ndarray) -> None:
        """
        :param n_envs: number of environments
        :param weights: its weights, shape (n_weights,); not copied
        :param rng: random number generator
        :param noise_scale: factor of the exploration noise of each environment, shape (n_envs,)
        """

    def refresh(self) -> None:
        """Called when the weights have changed."""

    def act(self, inputs: Sequence[np.ndarray], is_warm_up: bool) -> np.ndarray:
        """
        :param inputs: observation, achieved and desired goal, shapes (n_envs, dim); without goals only the observation
        :param is_warm_up: whether to take random actions
        :return: actions scaled to [-1, 1], shape (n_envs, action_dim)
        """

    def fields(self) -> dict[str, np.ndarray]:
        """:return: other values for the buffer's rows of this step, by field, shapes (n_envs, dim)"""

    def step(self, next_inputs: Sequence[np.ndarray], dones: Sequence[bool]) -> np.ndarray | None:
        """
        :param next_inputs: next observation and achieved goal, shapes (n_envs, dim); without goals only the next observation
        :param dones: whether the episodes ended, shape (n_envs,)
        :return: how the segments ended, each a :class:`~sb3_hrl.common.subgoals.SegmentEnd`, shape (n_envs,); ``None`` without
            a hierarchy
        """

    def statistics(self) -> list[float]:
        """:return: sums over the steps since the last call, for the learner's log"""


class Writer(Protocol):
    """Destination of the steps of one environment, such as a :class:`~sb3_hrl.common.shards.ShardWriter`."""

    def write(self, rows: np.ndarray, episode_ends: np.ndarray, segment_ends: np.ndarray | None = None) -> None:
        """
        :param rows: packed rows of consecutive steps, shape (n, row_dim)
        :param episode_ends: shape (n,)
        :param segment_ends: shape (n,)
        """


@dataclass(frozen=True)
class CollectTask:
    """
    What the workers have to do, the same for all of them.

    :param agent: the exploring policy
    :param columns: position of each field in a packed row of the buffer
    :param row_dim: length of a packed row
    :param observation_size: number of values of an observation
    :param packed_dtype: dtype of packed observations, see :func:`~sb3_hrl.common.step_storage.pack`; ``None``: float32
    :param action_space: action space, to unscale actions
    :param warm_up_rounds: number of random steps of each environment at the start
    :param handle_timeout_termination: whether a time limit does not count as a termination
    :param seed: seed of all random numbers
    """

    agent: Agent
    columns: dict[str, slice]
    row_dim: int
    observation_size: int
    packed_dtype: np.dtype | None
    action_space: gym.spaces.Box
    warm_up_rounds: int
    handle_timeout_termination: bool
    seed: int


@dataclass(frozen=True)
class WorkerConfig:
    """
    Settings of the workers, see :class:`~sb3_hrl.parallel.collector.ParallelCollector`.

    :param flush_size: number of steps per environment that are written at once
    :param sync_interval: number of environment steps after which a worker checks for new weights
    :param noise_spread: the exploration noise ranges from 1 / noise_spread to noise_spread times that of the agent
    :param max_lag: maximum age, in gradient steps, of the weights that choose an action; ``None``: no maximum
    """

    flush_size: int = 50
    sync_interval: int = 400
    noise_spread: float = 1.0
    max_lag: int | None = None

    def __post_init__(self) -> None:
        require(self.flush_size >= 1, "flush_size", "at least 1 (steps written at once)", self.flush_size)
        require(
            self.sync_interval >= 1, "sync_interval", "at least 1 (steps between checks for new weights)", self.sync_interval
        )
        require(
            self.noise_spread >= 1, "noise_spread", "at least 1 (1: the same noise in all environments)", self.noise_spread
        )
        require(
            self.max_lag is None or self.max_lag >= 0,
            "max_lag",
            "at least 0 (gradient steps), or None for no maximum",
            self.max_lag,
        )

    def noise_scales(self, n_envs: int) -> np.ndarray:
        """
        :param n_envs: number of environments, over all workers
        :return: factor of the noise of each environment, increasing in equal ratios, shape (n_envs,)
        """
        return self.noise_spread ** np.linspace(-1.0, 1.0, n_envs) if n_envs > 1 else np.ones(1)


class Report(NamedTuple):
    """A worker's report to the learner about a written block."""

    versions: list[tuple[int, int]]  # version of the weights that it acted with, and number of steps over all environments
    episodes: list[tuple[int, dict[str, Any]]]  # environment and info of each episode that ended
    statistics: list[float]  # see Agent.statistics
    attributes: Attributes | None = None  # of the first of all environments, from the worker that steps it


class Worker:
    """
    Steps a few environments together.

    :param envs: the environments
    :param observations: their current observations; ``None`` to reset the environment first
    :param first_env: number of its first environment among all environments
    :param n_envs: number of environments, over all workers
    :param task: what the worker has to do
    :param config: settings of the worker
    :param writers: destination of the steps, one per environment
    :param weights: source of the weights, which already has a version
    :param rounds: number of steps of each environment that a previous worker has written
    """

    def __init__(
        self,
        envs: Sequence[gym.Env],
        observations: Sequence[Any],
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
        # A replacement worker draws other random numbers
        seeds = np.random.SeedSequence([task.seed, first_env, rounds])
        self._vector = np.empty(task.agent.n_weights, dtype=np.float32)
        self._version = weights.fetch(self._vector)
        self._versions: list[tuple[int, int]] = []
        self._since_sync = self._n_reported = 0
        # Serial workers share a task, but each needs its own agent with its own state
        self._agent = copy.copy(task.agent)
        self._agent.start(n, self._vector, np.random.default_rng(seeds), config.noise_scales(n_envs)[first_env:][:n])
        self._agent.refresh()

        self._staging = np.zeros((n, config.flush_size, task.row_dim), dtype=np.float32)
        self._episode_ends = np.zeros((n, config.flush_size), dtype=bool)
        self._segment_ends: np.ndarray | None = None  # without a hierarchy
        self._episodes: list[tuple[int, dict[str, Any]]] = []
        self.n_staged = 0

        # The fields of an observation come first in a row
        self._has_goals = "desired_goal" in columns
        self._keys = GOAL_KEYS if self._has_goals else ("observation",)
        self._current = np.zeros((n, columns[self._keys[-1]].stop), dtype=np.float32)
        self._inputs = [self._current[:, columns[key]] for key in self._keys]
        self._dtype = task.packed_dtype
        if self._dtype is not None:
            self._inputs = [unpack(self._inputs[0], task.observation_size, self._dtype)]
        self._float_columns = float_columns(columns, self._dtype)
        next_fields = ("next_observation", "next_achieved_goal") if self._has_goals else ("next_observation",)
        self._next_columns = [columns[field] for field in next_fields]
        self._action_border = ActionBorder(task.action_space)
        self.observations: list[Any] = []
        for i, (env, observation) in enumerate(zip(envs, observations, strict=True)):
            if observation is None:
                observation, _ = env.reset(seed=int(seeds.spawn(1)[0].generate_state(1)[0]))
            self.observations.append(observation)
            self._set_current(i, observation)

    def _set_current(self, i: int, observation: Any) -> None:
        values = observation if self._has_goals else {"observation": observation}
        for key, part in zip(self._keys, self._inputs, strict=True):
            # The assignment converts the type: `flatten` would convert it twice
            part[i] = np.asarray(values[key]).ravel()

    @property
    def is_full(self) -> bool:
        """Whether a block is complete and must be flushed."""
        return self.n_staged == self._config.flush_size

    def round(self) -> None:
        """Take one step in every environment."""
        # With `max_lag` the learner determines which weights have become too old
        if self._since_sync >= self._config.sync_interval or self._version < self._weights.required:
            self._since_sync = 0
            if self._weights.version != self._version:
                self._close_version()
                self._version = self._weights.fetch(self._vector)
                self._agent.refresh()
        agent, columns = self._agent, self._task.columns
        rows = self._staging[:, self.n_staged]
        scaled = agent.act(self._inputs, self.rounds < self._task.warm_up_rounds)
        rows[:, : self._current.shape[1]] = self._current
        rows[:, columns["action"]] = scaled
        for field, value in agent.fields().items():
            rows[:, columns[field]] = value
        actions = self._action_border.unflatten(scaled)
        dones = [self._step_env(i, env, actions[i], rows[i]) for i, env in enumerate(self._envs)]
        self._episode_ends[:, self.n_staged] = dones
        segment_ends = agent.step([rows[:, part] for part in self._next_columns], dones)
        if segment_ends is not None:
            rows[:, columns["segment_end"]] = segment_ends[:, None]
            if self._segment_ends is None:
                self._segment_ends = np.zeros_like(self._episode_ends)
            self._segment_ends[:, self.n_staged] = segment_ends != SegmentEnd.NONE
        self.n_staged += 1
        self.rounds += 1
        self._since_sync += len(self._envs)

    def _close_version(self) -> None:
        """Note how many of the staged steps were taken with the current weights."""
        if self.n_staged > self._n_reported:
            self._versions.append((self._version, (self.n_staged - self._n_reported) * len(self._envs)))
            self._n_reported = self.n_staged

    def _step_env(self, i: int, env: gym.Env, action: np.ndarray, row: np.ndarray) -> bool:
        columns = self._task.columns
        observation, reward, terminated, truncated, info = env.step(action)
        if self._has_goals:
            row[columns["next_observation"]] = np.asarray(observation["observation"]).ravel()
            row[columns["next_achieved_goal"]] = np.asarray(observation["achieved_goal"]).ravel()
            row[columns["failed"]] = is_failure(terminated, info)
        elif self._dtype is None:
            row[columns["next_observation"]] = np.asarray(observation).ravel()
        else:
            row[columns["next_observation"]] = pack(observation, 1, self._dtype)[0]
        row[columns["reward"]] = reward
        done = bool(terminated or truncated)
        row[columns["terminated"]] = terminated if self._task.handle_timeout_termination else done
        if done:
            info["TimeLimit.truncated"] = truncated and not terminated
            self._episodes.append((self._first_env + i, {key: info[key] for key in EPISODE_KEYS if key in info}))
            observation, _ = env.reset()
        self.observations[i] = observation
        self._set_current(i, observation)
        return done

    def flush(self) -> Report:
        """Write the staged steps. :return: a report on them"""
        n = self.n_staged
        for i, writer in enumerate(self._writers):
            rows = self._staging[i, :n]
            check_finite(rows, self._float_columns)
            segment_ends = None if self._segment_ends is None else self._segment_ends[i, :n]
            writer.write(rows, self._episode_ends[i, :n], segment_ends)
        self._close_version()
        versions, self._versions = self._versions, []
        episodes, self._episodes = self._episodes, []
        self.n_staged = self._n_reported = 0
        attributes = plain_attributes(self._envs[0]) if self._first_env == 0 else None
        return Report(versions, episodes, self._agent.statistics(), attributes)
