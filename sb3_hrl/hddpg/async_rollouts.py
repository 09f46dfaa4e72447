"""The learner's side of asynchronous collection: lets workers go on at the asked pace, and takes in what they have made."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.shards import Shards
from sb3_hrl.common.twin import Attributes
from sb3_hrl.hddpg.exploration import WorkerAgent
from sb3_hrl.hddpg.inference import PolicySnapshot
from sb3_hrl.hddpg.segments import SegmentStatistics
from sb3_hrl.parallel.collector import Collector
from sb3_hrl.parallel.serial import SerialCollector
from sb3_hrl.parallel.worker import CollectTask, Report

# Seconds between looks for new steps when there are none
_NAP = 0.001
# Workers may be so many blocks ahead of the learner: one that is being used, and one that is being made
_LEAD_BLOCKS = 2


def collector_of(env: VecEnv) -> Collector:
    """
    :param env: the training environment
    :return: the collector in it
    :raises ValueError: unless there is one, and nothing between it and the agent that changes observations
    """
    inner = env
    while isinstance(inner, VecEnvWrapper):
        if not (isinstance(inner, VecNormalize) and not inner.norm_obs):
            raise ValueError(
                f"`async_collection=True` goes past {type(inner).__name__}, as workers step their environments themselves: "
                "use a wrapper of the single environments (`wrapper_class` of make_vec_env, `env_wrapper` in the zoo)."
            )
        inner = inner.venv
    if not hasattr(inner, "start_collecting"):
        raise ValueError(
            f"`async_collection=True` needs environments that step by themselves, not {type(inner).__name__}: make them by "
            "`make_vec_env(env_id, n_envs, vec_env_cls=ParallelCollector)`, in the zoo by `--vec-env subproc`; or pass "
            "`async_collection=False`."
        )
    return cast(Collector, inner)


def n_steps_to_take(n_timesteps: int, n_untaken: int, train_freq: TrainFreq, n_envs: int) -> int:
    """
    :param n_timesteps: environment steps that are left of the run, over all environments
    :param n_untaken: steps that were written in the run before, and not taken in
    :param train_freq: how much a rollout collects
    :param n_envs: number of environments
    :return: how many steps workers have to make, in whole rollouts as when collecting synchronously
    """
    per_rollout = n_envs * (train_freq.frequency if train_freq.unit == TrainFrequencyUnit.STEP else 1)
    return -(-n_timesteps // per_rollout) * per_rollout - n_untaken


@dataclass(frozen=True)
class Untaken:
    """What workers have written, and the learner has not taken in."""

    n_steps: int = 0  # environment steps, over all environments
    episodes: tuple[tuple[int, dict[str, Any]], ...] = ()  # environment and info of each episode that ended


def collect_task(
    snapshot: PolicySnapshot, buffer: SharedMemoryReplayBuffer, action_noise: ActionNoise | None, n_warm_up: int
) -> CollectTask:
    """
    :param snapshot: what it takes to act like the learner's policy
    :param buffer: where steps go
    :param action_noise: noise on the low level's actions, in place of its ``noise_std``
    :param n_warm_up: environment steps to be taken at random first, over all environments
    :return: what workers do
    """
    noise = getattr(action_noise, "base_noise", action_noise)
    goal_dim = buffer.columns["subgoal"].stop - buffer.columns["subgoal"].start
    assert isinstance(buffer.action_space, spaces.Box)
    return CollectTask(
        agent=WorkerAgent(snapshot, goal_dim, buffer.action_dim, noise),
        columns=buffer.columns,
        row_dim=buffer.shards.row_dim,
        action_space=buffer.action_space,
        warm_up_rounds=max(-(-n_warm_up // buffer.n_envs), 0),
        handle_timeout_termination=buffer.handle_timeout_termination,
        seed=int(buffer.rng.integers(2**31)),
    )


class AsyncRollouts:
    """
    Collection by workers during one call of ``learn``.

    :param collector: the environments
    :param shards: of the replay buffer, where steps go
    :param task: what workers do
    :param write_weights: writes the policy's weights into an array, see :meth:`~sb3_hrl.parallel.collector.Collector.publish`
    :param n_steps: how many steps workers make in this run, over all environments
    :param untaken: what is in the buffer and was not taken in before
    :param n_updates: gradient steps that the first weights have had
    :raises ValueError: if a block of steps does not fit into the buffer
    """

    def __init__(
        self,
        collector: Collector,
        shards: Shards,
        task: CollectTask,
        write_weights: Callable[[np.ndarray], None],
        n_steps: int,
        untaken: Untaken,
        n_updates: int,
    ):
        flush_size = collector.config.flush_size
        if flush_size > shards.capacity:
            raise ValueError(
                f"`flush_size` ({flush_size}) must not exceed the steps that the buffer holds of each environment "
                f"({shards.capacity}): raise `buffer_size`."
            )
        self._collector, self._shards, self._write_weights = collector, shards, write_weights
        self.statistics: SegmentStatistics = SegmentStatistics()
        self._n_envs: int = collector.num_envs
        self._block: int = flush_size * self._n_envs
        self._n_total: int = n_steps
        self._n_taken: int = -untaken.n_steps
        self._n_granted: int = 0
        self._n_available: int = 0
        self._published_at: int = 0
        self._published_updates: int = n_updates
        self._n_updates: int = n_updates
        self._updates_of: dict[int, int] = {1: n_updates}  # gradient steps by version of the weights
        self._lags: list[tuple[int, int]] = []  # steps and lag of the blocks since the last log
        self._episodes: list[deque[dict[str, Any]]] = [deque() for _ in range(self._n_envs)]
        self._n_episodes: int = 0
        self._add_episodes(untaken.episodes)
        self.attributes: Attributes | None = None  # of the first environment, as of the last report on it
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(self._n_envs)]
        self._no_dones: np.ndarray = np.zeros(self._n_envs, dtype=bool)
        collector.start_collecting(task, shards, write_weights)
        self._grant()

    @property
    def is_serial(self) -> bool:
        """Whether workers take their turns in this process, in a fixed order."""
        return isinstance(self._collector, SerialCollector)

    @property
    def is_over(self) -> bool:
        """Whether all steps of the run were taken in."""
        return self._n_taken >= self._n_total

    def _grant(self) -> None:
        """Let workers go on, up to their lead or to the end of the run; rather seldom and more at once."""
        limit = min(self._n_taken + _LEAD_BLOCKS * self._block, self._n_total)
        if limit - self._n_granted >= max(self._block // 2, 1) or limit == self._n_total != self._n_granted:
            self._n_granted = limit
            self._collector.grant(limit)

    def publish(self, n_updates: int) -> None:
        """
        Publish weights often enough that workers find them no older than a quarter of the time between their looks.

        :param n_updates: gradient steps that the weights have had
        """
        self._n_updates = n_updates
        interval = self._collector.config.sync_interval * self._n_envs // 4
        if n_updates > self._published_updates and self._n_taken - self._published_at >= interval:
            version = self._collector.publish(self._write_weights)
            self._updates_of[version] = self._published_updates = n_updates
            self._published_at = self._n_taken

    def take(self) -> tuple[list[dict[str, Any]], np.ndarray]:
        """
        Take in one step of each environment; waits until workers have made them.

        :return: infos and dones for one call of ``on_step``: of each environment at most one episode that has ended
        """
        while self._n_available - self._n_taken < self._n_envs:
            self._grant()
            self._n_available = self._collector.n_written()
            # Reports come before their steps are counted
            self._read(self._collector.poll())
            if self._n_available - self._n_taken < self._n_envs:
                time.sleep(_NAP)
        self._n_taken += self._n_envs
        return self._next_episodes()

    def _read(self, reports: list[Report]) -> None:
        for report in reports:
            self.statistics.add(report.statistics)
            self._lags.append((report.n_steps, self._n_updates - self._updates_of[report.version]))
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
        Record how old the weights were that workers acted with, in gradient steps, since the last call.

        :param logger: where to
        """
        self.statistics.log(logger)
        n_steps = sum(steps for steps, _ in self._lags)
        if n_steps > 0:
            logger.record("rollout/policy_lag", sum(steps * lag for steps, lag in self._lags) / n_steps)
            self._lags = []
        if self._collector.n_restarts > 0:
            logger.record("rollout/worker_restarts", self._collector.n_restarts)

    def stop(self) -> tuple[VecEnvObs | None, Untaken]:
        """
        Let the workers stop where they are; the environments can be stepped synchronously then.

        :return: current observations (``None`` if a failure has closed the environments), and what was not taken in
        """
        try:
            observations, reports = self._collector.stop_collecting()
            self._read(reports)
            episodes = tuple((env, info) for env, infos in enumerate(self._episodes) for info in infos)
            return observations, Untaken(self._collector.n_written() - self._n_taken, episodes)
        finally:
            self._shards.release()
