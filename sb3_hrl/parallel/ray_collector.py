"""
The collector for several machines, based on Ray (``pip install sb3-hrl[ray]``). Actors on any node step their environments
with their own copies of the policy. Blocks of steps are sent through Ray's object store to the learner's buffer, and weights
are sent as one object per version. Ray handles all communication between machines.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

from sb3_hrl.common.notices import drop_notice
from sb3_hrl.common.shards import Shards
from sb3_hrl.common.weight_sync import LocalWeights
from sb3_hrl.parallel.collecting import RAISED, START_TIMEOUT, CollectingVecEnv
from sb3_hrl.parallel.collector import shares
from sb3_hrl.parallel.process import EnvServer
from sb3_hrl.parallel.worker import CollectTask, Report, Worker, WorkerConfig

# Number of blocks requested from an actor at once: it collects the next one while a block is being sent
_IN_FLIGHT = 2


@dataclass
class Block:
    """Steps of one environment."""

    rows: np.ndarray
    episode_ends: np.ndarray
    segment_ends: np.ndarray | None


class _BlockWriter:
    """Stores the steps that a worker writes, so that they can be sent."""

    def __init__(self) -> None:
        self.block: Block | None = None

    def write(self, rows: np.ndarray, episode_ends: np.ndarray, segment_ends: np.ndarray | None = None) -> None:
        self.block = Block(rows.copy(), episode_ends.copy(), None if segment_ends is None else segment_ends.copy())


class RayWorker:
    """
    The actor: environments on a node.

    :param env_fns: the environments
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]]):
        drop_notice()
        self._server = EnvServer(env_fns)
        self._worker: Worker | None = None

    def answer(self, i: int, command: str, data: Any) -> Any:
        """See :meth:`EnvServer.answer`."""
        return self._server.answer(i, command, data)

    def start(
        self,
        first_env: int,
        n_envs: int,
        task: CollectTask,
        config: WorkerConfig,
        weights: tuple[int, np.ndarray],
        rounds: int,
    ) -> None:
        """
        Start to collect.

        :param first_env: number of its first environment among all environments
        :param n_envs: total number of environments, over all workers
        :param task: what the worker has to do
        :param config: settings of the worker
        :param weights: version and weights
        :param rounds: number of steps of each environment that were written before
        """
        self._weights = LocalWeights(task.agent.n_weights)
        self._weights.put(*weights)
        self._writers = [_BlockWriter() for _ in self._server.envs]
        self._worker = Worker(
            self._server.envs,
            self._server.observations,
            first_env,
            n_envs,
            task,
            config,
            self._writers,
            self._weights,
            rounds,
        )

    def collect(self, rounds: int, weights: tuple[int, np.ndarray] | None) -> tuple[list[Block | None], Report]:
        """
        :param rounds: number of steps to take in each environment, at most ``flush_size``
        :param weights: newer weights, if there are any
        :return: the steps of each environment, and a report on them
        """
        assert self._worker is not None
        if weights is not None:
            self._weights.put(*weights)
        for _ in range(rounds):
            self._worker.round()
        report = self._worker.flush()
        return [writer.block for writer in self._writers], report

    def stop(self) -> list[Any]:
        """:return: current observations of the environments"""
        assert self._worker is not None
        self._server.observations = list(self._worker.observations)
        return self._worker.observations


class _Remote:
    """
    Replaces the pipe of SubprocVecEnv to an environment: it sends commands and receives answers.

    :param handle: the actor
    :param env: number of the environment, among those of the actor
    :param failure: creates the exception to raise from a description, Ray's error, and its text
    """

    def __init__(self, handle: "_Handle", env: int, failure: Callable[[str, Exception | None, str], Exception]):
        self._handle, self._env, self._failure = handle, env, failure

    def send(self, message: tuple[str, Any]) -> None:
        self._asked, self._answer = message[0], self._handle.actor.answer.remote(self._env, *message)

    def recv(self) -> Any:
        try:
            return ray.get(self._answer)
        except RayTaskError as error:
            failure = self._failure(f"{RAISED} in `{self._asked}`", _cause(error), str(error))
        except RayError as error:
            failure = self._failure(f"was lost at `{self._asked}`", error, str(error))
        raise failure from failure.__cause__


@dataclass
class _Handle:
    """The learner's data about an actor."""

    actor: Any
    asked: int = 0  # number of rounds requested since the start, including those that were lost
    version: int = 0  # version of the weights that were sent last
    pending: deque[tuple[Any, int]] = field(default_factory=deque)  # requested blocks, and their rounds
    last_seen: float = 0.0
    starting: Any = None  # set until it has started to collect


class RayCollector(CollectingVecEnv):
    """
    A :class:`~sb3_hrl.ParallelCollector` whose workers are Ray actors, on this machine or on others. Call ``ray.init`` first
    to connect to a cluster, otherwise it starts Ray on this machine. If a node is lost, only the steps that its actors had not
    sent are lost; the actors are restarted on nodes with free resources.

    :param env_fns: environments, created where the actors run
    :param envs_per_worker: see ParallelCollector
    :param flush_size: see ParallelCollector
    :param sync_interval: see ParallelCollector (weights are sent with the request for a block)
    :param noise_spread: see ParallelCollector
    :param step_timeout: seconds without a block after which an actor counts as hanging. To be placed, to start and to create
        its environments, it has five minutes
    :param max_restarts: see ParallelCollector
    :param actor_options: options of the actors, such as ``{"num_cpus": 1, "resources": {"simulator": 1}}``
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        envs_per_worker: int = 1,
        flush_size: int = 50,
        sync_interval: int = 400,
        noise_spread: float = 1.0,
        step_timeout: float = 60.0,
        max_restarts: int = 3,
        actor_options: dict[str, Any] | None = None,
    ):
        config = WorkerConfig(flush_size, sync_interval, noise_spread)
        super().__init__(env_fns, config, envs_per_worker, step_timeout, max_restarts)
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        # Ray itself limits the threads of its workers with OMP_NUM_THREADS
        self._actor_class = ray.remote(RayWorker).options(**({"num_cpus": 1} | (actor_options or {})))
        self._handles = [_Handle(self._spawn(worker)) for worker in range(self._n_workers)]
        self.processes = []
        self.remotes = [
            _Remote(handle, env, functools.partial(self._failure, worker))
            for worker, handle in enumerate(self._handles)
            for env in range(envs_per_worker)
        ]
        try:
            self.remotes[0].send(("get_spaces", None))
            VecEnv.__init__(self, len(env_fns), *self.remotes[0].recv())
        except BaseException:
            self.close()
            raise

    def _spawn(self, worker: int) -> Any:
        return self._actor_class.remote([self._env_fns[env] for env in self._envs_of(worker)])

    # --------------------------------------------------------------- collecting

    def start_collecting(self, task: CollectTask, shards: Shards, publish: Callable[[np.ndarray], None]) -> None:
        """See :meth:`Collector.start_collecting`. If it fails, no worker collects, and the VecEnv still works."""
        self._check_open()
        # First the parts that may fail
        self._task, self._shards = ray.put(task), shards
        self._vector = LocalWeights(task.agent.n_weights)
        self.publish(publish)
        shards.release()
        self._writers = shards.writers()
        self._allowed, self._written = np.zeros(self._n_workers, dtype=np.int64), np.zeros(self._n_workers, dtype=np.int64)
        self.is_collecting = True
        for worker in range(self._n_workers):
            self._start(worker)

    def _start(self, worker: int) -> None:
        handle, rounds, first_env = self._handles[worker], int(self._written[worker]), self._envs_of(worker).start
        handle.pending.clear()
        handle.asked, handle.version, handle.last_seen = rounds, self._vector.version, time.monotonic()
        handle.starting = handle.actor.start.remote(first_env, self.num_envs, self._task, self.config, self._weights, rounds)

    def publish(self, write: Callable[[np.ndarray], None], is_required: bool = False) -> int:
        """See :meth:`Collector.publish`. Without ``max_lag``, because an actor gets weights only once per block."""
        version = self._vector.publish(write)
        self._weights = ray.put((version, self._vector.vector))
        return version

    def grant(self, n_steps: int) -> None:
        """See :meth:`Collector.grant`."""
        self._check_open()
        self._allowed = shares(self._allowed, self._written, n_steps // self.envs_per_worker)

    def n_written(self) -> int:
        """See :meth:`Collector.n_written`."""
        return int(self._written.sum()) * self.envs_per_worker

    def poll(self) -> list[Report]:
        """See :meth:`Collector.poll`."""
        reports: list[Report] = []
        with self._lock:
            self._check_open()
            for worker in range(self._n_workers):
                self._look_after(worker, reports)
                if self.is_collecting:
                    self._ask_for_blocks(worker)
        return reports

    def _ask_for_blocks(self, worker: int) -> None:
        handle = self._handles[worker]
        while len(handle.pending) < _IN_FLIGHT and handle.asked < self._allowed[worker]:
            rounds = min(int(self._allowed[worker]) - handle.asked, self.config.flush_size)
            newer = None
            if handle.version != self._vector.version:
                newer, handle.version = self._weights, self._vector.version
            if not handle.pending:
                handle.last_seen = time.monotonic()
            handle.pending.append((handle.actor.collect.remote(rounds, newer), rounds))
            handle.asked += rounds

    def _look_after(self, worker: int, reports: list[Report]) -> None:
        """Write the blocks that have arrived; replace an actor that is lost, has raised an exception, or hangs."""
        handle = self._handles[worker]
        try:
            self._take_blocks(worker, reports)
        except RayError as error:
            self._replace_after(worker, error)
            return
        elapsed = time.monotonic() - handle.last_seen
        if handle.starting is not None:
            if elapsed > max(START_TIMEOUT, self.step_timeout):
                self._replace(worker, f"did not start within {elapsed:.0f} seconds")
        elif handle.pending and elapsed > self.step_timeout:
            self._replace(worker, f"sent nothing for {self.step_timeout:g} seconds (`step_timeout`)")

    def _take_blocks(self, worker: int, reports: list[Report]) -> None:
        """Write the blocks that have arrived, in order."""
        handle = self._handles[worker]
        if handle.starting is not None:
            if not _is_there(handle.starting):
                return
            ray.get(handle.starting)
            handle.starting, handle.last_seen = None, time.monotonic()
        while handle.pending and _is_there(handle.pending[0][0]):
            result, rounds = handle.pending.popleft()
            blocks, report = ray.get(result)
            for env, block in zip(self._envs_of(worker), blocks, strict=True):
                self._writers[env].write(block.rows.copy(), block.episode_ends, block.segment_ends)
            self._written[worker] += rounds
            handle.last_seen, self._counts[worker].n_failures = time.monotonic(), 0
            reports.append(report)

    def _replace_after(self, worker: int, error: RayError) -> None:
        if isinstance(error, RayTaskError):
            self._replace(worker, RAISED, _cause(error), str(error))
        else:
            self._replace(worker, f"was lost ({type(error).__name__})")

    def _replace(self, worker: int, what: str, error: Exception | None = None, trace: str | None = None) -> None:
        """Replace a failed actor, or give up."""
        handle = self._handles[worker]
        ray.kill(handle.actor)
        self._account_for_failure(worker, what, error, trace)
        # The environments' episodes are over; the steps that had not arrived are collected again
        for env in self._envs_of(worker):
            self._writers[env].end_episode()
        handle.actor = self._spawn(worker)
        self._start(worker)

    def stop_collecting(self) -> tuple[VecEnvObs | None, list[Report]]:
        """See :meth:`Collector.stop_collecting`."""
        reports: list[Report] = []
        self.is_collecting = False
        while not self.closed and any(handle.pending for handle in self._handles):
            reports += self.poll()
            time.sleep(0.001)
        if self.closed:
            return None, reports
        observations = [observation for worker in range(self._n_workers) for observation in self._stop(worker)]
        return _stack_obs(observations, self.observation_space), reports

    def _stop(self, worker: int) -> list[Any]:
        """:return: current observations of an actor's environments"""
        while True:
            handle = self._handles[worker]
            try:
                if handle.starting is not None:
                    ray.get(handle.starting, timeout=max(START_TIMEOUT, self.step_timeout))
                    handle.starting = None
                return ray.get(handle.actor.stop.remote(), timeout=self.step_timeout)
            except RayError as error:
                self._replace_after(worker, error)

    def close(self) -> None:
        """End the actors; may be called twice. Ray keeps running."""
        with self._lock:
            if self.closed:
                return
            self.closed, self.is_collecting = True, False
            for handle in self._handles:
                handle.pending.clear()
                ray.kill(handle.actor)


def _is_there(result: Any) -> bool:
    """:return: whether Ray has the result, which may be an error"""
    return bool(ray.wait([result], timeout=0)[0])


def _cause(error: RayTaskError) -> Exception | None:
    """:return: the exception of the environment"""
    return error.cause if isinstance(error.cause, Exception) else None
