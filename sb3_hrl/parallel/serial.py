"""The serial collector: same interface and same workers as the parallel one, but in this process and in a fixed order."""

from collections.abc import Callable

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_hrl.common.shards import Shards
from sb3_hrl.common.weight_sync import LocalWeights
from sb3_hrl.parallel.collecting import CLOSED
from sb3_hrl.parallel.collector import shares
from sb3_hrl.parallel.worker import CollectTask, Report, Worker, WorkerConfig


class SerialCollector(DummyVecEnv):
    """
    A :class:`~sb3_hrl.ParallelCollector` without processes: its workers take turns whenever the learner polls for reports. A
    run with a seed is exactly reproducible, so it serves as a reference for asynchronous runs, and helps to debug environments
    and callbacks.

    :param env_fns: environments
    :param flush_size: see ParallelCollector
    :param sync_interval: see ParallelCollector
    :param noise_spread: see ParallelCollector
    :param max_lag: see ParallelCollector
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        flush_size: int = 50,
        sync_interval: int = 400,
        noise_spread: float = 1.0,
        max_lag: int | None = None,
    ):
        super().__init__(env_fns)
        self.config = WorkerConfig(flush_size, sync_interval, noise_spread, max_lag)
        self.n_restarts, self.closed = 0, False
        self._workers: list[Worker] = []

    def start_collecting(self, task: CollectTask, shards: Shards, publish: Callable[[np.ndarray], None]) -> None:
        """See :meth:`Collector.start_collecting`."""
        self._check_open()
        self._weights = LocalWeights(task.agent.n_weights)
        self._weights.publish(publish)
        shards.release()
        writers = shards.writers()
        self._workers = [
            Worker([env], [self._observation(i)], i, self.num_envs, task, self.config, [writers[i]], self._weights)
            for i, env in enumerate(self.envs)
        ]
        self._allowed = np.zeros(self.num_envs, dtype=np.int64)
        self._written = np.zeros(self.num_envs, dtype=np.int64)

    def _observation(self, i: int) -> VecEnvObs:
        """Current observation of an environment, from DummyVecEnv's buffers."""
        if isinstance(self.observation_space, gym.spaces.Dict):
            return {key: self.buf_obs[key][i].copy() for key in self.observation_space.spaces}
        # SB3 stores observations that are no dict under None
        return self.buf_obs[None][i].copy()  # type: ignore[index]

    def publish(self, write: Callable[[np.ndarray], None], is_required: bool = False) -> int:
        """See :meth:`Collector.publish`."""
        return self._weights.publish(write, is_required)

    def grant(self, n_steps: int) -> None:
        """See :meth:`Collector.grant`."""
        self._check_open()
        self._allowed = shares(self._allowed, self._written, n_steps)

    def n_written(self) -> int:
        """See :meth:`Collector.n_written`."""
        return int(self._written.sum())

    def poll(self) -> list[Report]:
        """See :meth:`Collector.poll`. Each worker takes the steps that it is allowed, at most one block."""
        self._check_open()
        return [report for i in range(len(self._workers)) for report in self._advance(i)]

    def _advance(self, i: int) -> list[Report]:
        worker = self._workers[i]
        while worker.rounds < self._allowed[i] and not worker.is_full:
            worker.round()
        self._written[i] = worker.rounds
        return [worker.flush()] if worker.n_staged > 0 else []

    def stop_collecting(self) -> tuple[VecEnvObs | None, list[Report]]:
        """See :meth:`Collector.stop_collecting`."""
        if self.closed:
            return None, []
        for i, worker in enumerate(self._workers):
            self._save_obs(i, worker.observations[0])
        self._workers = []
        return self._obs_from_buf(), []

    def close(self) -> None:
        """Close the environments; may be called twice."""
        if not self.closed:
            self.closed, self._workers = True, []
            super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(CLOSED)
