"""The learner's side of asynchronous collection: controls the pace of the workers, and processes their steps."""

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.shards import Shards
from sb3_hrl.common.twin import Attributes
from sb3_hrl.parallel.collector import Collector
from sb3_hrl.parallel.serial import SerialCollector
from sb3_hrl.parallel.worker import Agent, CollectTask, Report

# Seconds to sleep while there are no new steps
_NAP = 0.001
# Maximum lead of the workers over the learner, in blocks: one that is in use, and one that is being collected
_LEAD_BLOCKS = 2


def collector_of(env: VecEnv, uses_rewards: bool = False) -> Collector:
    """
    :param env: the training environment
    :param uses_rewards: whether the algorithm learns from the environment's rewards, so that a wrapper must not change them
    :return: its collector
    :raises ValueError: if there is none, or if a wrapper around it changes observations or rewards
    """
    inner = env
    while isinstance(inner, VecEnvWrapper):
        if uses_rewards or not (isinstance(inner, VecNormalize) and not inner.norm_obs):
            raise ValueError(
                f"`async_collection=True` bypasses {type(inner).__name__}, because workers step their environments "
                "themselves: wrap the single environments instead (`wrapper_class` of make_vec_env, `env_wrapper` in the "
                "zoo)."
            )
        inner = inner.venv
    if not hasattr(inner, "start_collecting"):
        raise ValueError(
            f"`async_collection=True` needs environments that step in the background, not {type(inner).__name__}: create "
            "them with `make_vec_env(env_id, n_envs, vec_env_cls=ParallelCollector)`, in the zoo with `--vec-env subproc`; "
            "or pass `async_collection=False`."
        )
    return cast(Collector, inner)


def n_steps_to_take(n_timesteps: int, n_untaken: int, train_freq: TrainFreq, n_envs: int) -> int:
    """
    :param n_timesteps: remaining environment steps of the run, over all environments
    :param n_untaken: steps that were written in the previous run, but not processed
    :param train_freq: length of a rollout
    :param n_envs: number of environments
    :return: number of steps that the workers have to take, in whole rollouts, as in synchronous collection
    """
    per_rollout = n_envs * (train_freq.frequency if train_freq.unit == TrainFrequencyUnit.STEP else 1)
    return -(-n_timesteps // per_rollout) * per_rollout - n_untaken


@dataclass(frozen=True)
class Untaken:
    """Steps that workers have written, but the learner has not processed."""

    n_steps: int = 0  # environment steps, over all environments
    episodes: tuple[tuple[int, dict[str, Any]], ...] = ()  # environment and info of each episode that ended


class RolloutStatistics(Protocol):
    """The learner's sums of what workers report, see :meth:`Agent.statistics`."""

    def add(self, sums: Sequence[float]) -> None:
        """
        :param sums: from a worker's report
        """

    def log(self, logger: Logger) -> None:
        """
        :param logger: the logger for means since the last call
        """


class NoStatistics:
    """For agents that report none."""

    def add(self, sums: Sequence[float]) -> None:
        """Does nothing."""

    def log(self, logger: Logger) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class Acting:
    """What an algorithm sends to the workers, and what it logs of their reports."""

    agent: Agent  # acts in the workers
    write_weights: Callable[[np.ndarray], None]  # writes the agent's current weights into an array, see `Collector.publish`
    statistics: RolloutStatistics


def collect_task(agent: Agent, buffer: SharedMemoryReplayBuffer, n_warm_up: int) -> CollectTask:
    """
    :param agent: acts in the workers
    :param buffer: the replay buffer that stores the steps
    :param n_warm_up: number of random environment steps at the start, over all environments
    :return: the task of the workers
    """
    assert isinstance(buffer.action_space, spaces.Box)
    return CollectTask(
        agent=agent,
        columns=buffer.columns,
        row_dim=buffer.shards.row_dim,
        observation_size=buffer.observation_size,
        packed_dtype=buffer.packed_dtype,
        action_space=buffer.action_space,
        warm_up_rounds=max(-(-n_warm_up // buffer.n_envs), 0),
        handle_timeout_termination=buffer.handle_timeout_termination,
        seed=int(buffer.rng.integers(2**31)),
    )


class AsyncRollouts:
    """
    Collection by workers, for the duration of one call of ``learn``.

    :param collector: the environments
    :param shards: shards of the replay buffer, for the steps
    :param task: task of the workers
    :param acting: the algorithm's part
    :param n_steps: number of steps that the workers take in this run, over all environments
    :param untaken: steps in the buffer that were not processed before
    :param n_updates: number of gradient steps before the first weights
    :raises ValueError: if a block of steps does not fit into the buffer
    """

    def __init__(
        self,
        collector: Collector,
        shards: Shards,
        task: CollectTask,
        acting: Acting,
        n_steps: int,
        untaken: Untaken,
        n_updates: int,
    ):
        flush_size = collector.config.flush_size
        if flush_size > shards.capacity:
            raise ValueError(
                f"`flush_size` ({flush_size}) must not exceed the number of steps that the buffer stores per environment "
                f"({shards.capacity}): raise `buffer_size`."
            )
        self._collector, self._shards = collector, shards
        self._write_weights, self.statistics = acting.write_weights, acting.statistics
        self._n_envs: int = collector.num_envs
        self._block: int = flush_size * self._n_envs
        self._n_total: int = n_steps
        self._n_taken: int = -untaken.n_steps
        self._n_granted: int = 0
        self._n_available: int = 0
        self._published_at: int = 0
        self._published_updates: int = n_updates
        self._n_updates: int = n_updates
        # Gradient steps by version of the weights, which start at 1; eight bytes each
        self._updates_of: array[int] = array("q", [n_updates, n_updates])
        self._required: int = 1  # the oldest version with which workers may act
        self._lags: list[tuple[int, int]] = []  # steps and lag of what was written since the last log
        self._episodes: list[deque[dict[str, Any]]] = [deque() for _ in range(self._n_envs)]
        self._n_episodes: int = 0
        self._add_episodes(untaken.episodes)
        self.attributes: Attributes | None = None  # of the first environment, from its last report
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(self._n_envs)]
        self._no_dones: np.ndarray = np.zeros(self._n_envs, dtype=bool)
        collector.start_collecting(task, shards, self._write_weights)
        shards.is_lent = True
        self._grant()

    @property
    def is_serial(self) -> bool:
        """Whether workers take turns in this process, in a fixed order."""
        return isinstance(self._collector, SerialCollector)

    @property
    def is_over(self) -> bool:
        """Whether all steps of the run have been processed."""
        return self._n_taken >= self._n_total

    def _grant(self) -> None:
        """Allow workers to continue, up to their maximum lead or the end of the run, in few but large grants."""
        limit = min(self._n_taken + _LEAD_BLOCKS * self._block, self._n_total)
        if limit - self._n_granted >= max(self._block // 2, 1) or limit == self._n_total != self._n_granted:
            self._n_granted = limit
            self._collector.grant(limit)

    def publish(self, n_updates: int) -> None:
        """
        Publish weights regularly: when workers check for new weights, these are at most a quarter of the check interval old.
        With ``max_lag``, weights are also published when those with which workers may act are older than that.

        :param n_updates: number of gradient steps before these weights
        """
        self._n_updates = n_updates
        config = self._collector.config
        is_due = self._n_taken - self._published_at >= config.sync_interval * self._n_envs // 4
        is_required = config.max_lag is not None and n_updates - self._updates_of[self._required] > config.max_lag
        if is_required or (is_due and n_updates > self._published_updates):
            version = self._collector.publish(self._write_weights, is_required)
            self._updates_of.append(n_updates)
            self._published_updates, self._published_at = n_updates, self._n_taken
            if is_required:
                self._required = version

    def take(self) -> tuple[list[dict[str, Any]], np.ndarray]:
        """
        Process one step of each environment; waits until workers have taken it.

        :return: infos and dones for one call of ``on_step``, with at most one finished episode per environment
        """
        while self._n_available - self._n_taken < self._n_envs:
            self._grant()
            self._n_available = self._collector.n_written()
            # Reports arrive before their steps are counted
            self._read(self._collector.poll())
            if self._n_available - self._n_taken < self._n_envs:
                time.sleep(_NAP)
        self._n_taken += self._n_envs
        return self._next_episodes()

    def _read(self, reports: list[Report]) -> None:
        for report in reports:
            self.statistics.add(report.statistics)
            self._lags += [(n_steps, self._n_updates - self._updates_of[version]) for version, n_steps in report.versions]
            self._add_episodes(report.episodes)
            self.attributes = report.attributes or self.attributes

    def _add_episodes(self, episodes: Iterable[tuple[int, dict[str, Any]]]) -> None:
        for env, info in episodes:
            self._episodes[env].append(info)
            self._n_episodes += 1

    def _next_episodes(self) -> tuple[list[dict[str, Any]], np.ndarray]:
        if self._n_episodes == 0:
            return self._no_infos, self._no_dones
        infos: list[dict[str, Any]] = [{} for _ in range(self._n_envs)]
        dones = np.zeros(self._n_envs, dtype=bool)
        for env, episodes in enumerate(self._episodes):
            if episodes:
                infos[env], dones[env] = episodes.popleft(), True
                self._n_episodes -= 1
        return infos, dones

    def log(self, logger: Logger) -> None:
        """
        Record the age of the workers' weights, in gradient steps: the mean and the maximum over the steps written since the
        last call. The age of a step is that of the weights which chose its action, when the learner has received the step.

        :param logger: the logger
        """
        self.statistics.log(logger)
        n_steps = sum(steps for steps, _ in self._lags)
        if n_steps > 0:
            logger.record("rollout/policy_lag", sum(steps * lag for steps, lag in self._lags) / n_steps)
            logger.record("rollout/policy_lag_max", max(lag for _, lag in self._lags))
            self._lags = []
        if self._collector.n_restarts > 0:
            logger.record("rollout/worker_restarts", self._collector.n_restarts)

    def stop(self) -> tuple[VecEnvObs | None, Untaken]:
        """
        Stop the workers where they are; afterwards the environments can be stepped synchronously.

        :return: current observations (``None`` if a failure has closed the environments), and the steps that were not
            processed
        """
        try:
            observations, reports = self._collector.stop_collecting()
            self._read(reports)
            episodes = tuple((env, info) for env, infos in enumerate(self._episodes) for info in infos)
            return observations, Untaken(self._collector.n_written() - self._n_taken, episodes)
        finally:
            self._shards.is_lent = False
            self._shards.release()
