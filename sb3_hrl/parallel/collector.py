"""Environments in processes that step by themselves: a SubprocVecEnv that also collects asynchronously."""

import contextlib
import multiprocessing as mp
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper, VecEnvObs
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

from sb3_hrl.common.shards import Shards
from sb3_hrl.common.shared_memory import SharedArrays
from sb3_hrl.common.weight_sync import WeightPublisher
from sb3_hrl.parallel.process import ALLOWED, BEGUN, N_CONTROLS, SENT, WRITTEN, main
from sb3_hrl.parallel.worker import CollectTask, Report, WorkerConfig

# Seconds between looks after the workers, that they may take to close, and between looks whether they have stopped
_CHECK_INTERVAL, _CLOSE_TIMEOUT, _NAP = 0.2, 5.0, 0.001


class Collector(Protocol):
    """A VecEnv whose environments also step by themselves, see :class:`ParallelCollector`."""

    num_envs: int
    config: WorkerConfig
    n_restarts: int

    def start_collecting(self, task: CollectTask, shards: Shards, publish: Callable[[np.ndarray], None]) -> None:
        """
        :param task: what to do
        :param shards: where steps go, one shard per environment
        :param publish: writes the first weights into an array of shape (n_weights,)
        """

    def publish(self, write: Callable[[np.ndarray], None]) -> int:
        """
        :param write: writes new weights into an array of shape (n_weights,)
        :return: their version, 1 for those of ``start_collecting``
        """

    def grant(self, n_steps: int) -> None:
        """
        :param n_steps: how many steps may be taken since the start, over all environments (a multiple of their number)
        """

    def n_written(self) -> int:
        """:return: how many steps were written since the start, over all environments"""

    def poll(self) -> list[Report]:
        """:return: what workers have reported since the last call; workers that have failed are replaced"""

    def stop_collecting(self) -> tuple[VecEnvObs | None, list[Report]]:
        """
        :return: current observations, as those of ``reset`` (``None`` if a failure has closed them), and the last reports
        """


@dataclass
class FailureCounts:
    """How often a worker has failed."""

    n_failures: int = 0  # in a row, without a written block between them
    n_errors: int = 0  # exceptions over all


@dataclass
class _Handle:
    """The learner's view of a worker."""

    process: BaseProcess
    messages: Connection
    counts: FailureCounts = field(default_factory=FailureCounts)
    n_received: int = 0
    progress: tuple[int, int] = (0, 0)
    stalled: float = 0.0
    observations: list[dict[str, np.ndarray]] | None = None  # where it stopped


class CollectingVecEnv(SubprocVecEnv):
    """
    What collectors with workers have in common: groups of environments, and that nobody else steps them meanwhile.

    :param env_fns: environments
    :param config: how workers go about it
    :param envs_per_worker: environments that a worker steps in turns
    :param step_timeout: seconds without progress after which a worker counts as hanging
    :param max_restarts: how often a worker may fail
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        config: WorkerConfig,
        envs_per_worker: int,
        step_timeout: float,
        max_restarts: int,
    ):
        # Not SubprocVecEnv's constructor: it would start a process per environment
        rules = {
            "envs_per_worker": (
                envs_per_worker >= 1 and len(env_fns) % envs_per_worker == 0,
                f"a divisor of the number of environments ({len(env_fns)})",
            ),
            "step_timeout": (step_timeout > 0, "positive (seconds)"),
            "max_restarts": (max_restarts >= 0, "at least 0"),
        }
        for name, (valid, rule) in rules.items():
            if not valid:
                raise ValueError(f"`{name}` must be {rule}, not {locals()[name]}.")
        self.config = config
        self.envs_per_worker, self.step_timeout, self.max_restarts = envs_per_worker, step_timeout, max_restarts
        self.n_restarts = 0
        self.waiting, self.closed, self.is_collecting = False, False, False
        self._env_fns = list(env_fns)
        self._n_workers = len(env_fns) // envs_per_worker

    def _envs_of(self, worker: int) -> range:
        return range(worker * self.envs_per_worker, (worker + 1) * self.envs_per_worker)

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: one per environment
        """
        self._check_not_collecting("step")
        super().step_async(actions)

    def reset(self) -> VecEnvObs:
        """:return: first observations of all environments"""
        self._check_not_collecting("reset")
        return super().reset()

    def _account_for_failure(
        self, worker: int, counts: FailureCounts, what: str, error: Exception | None = None, trace: str | None = None
    ) -> None:
        """Say that a worker is replaced, or give up: close everything and raise what ends the run."""
        counts.n_failures += 1
        counts.n_errors += trace is not None
        n_restarts = max(counts.n_failures, counts.n_errors) - 1
        if n_restarts == self.max_restarts:
            self.close()
            raise self._failure(worker, f"{what}, after {n_restarts} restarts", error, trace)
        warnings.warn(f"Worker {worker} {what}: it is replaced.\n{trace or ''}", RuntimeWarning, stacklevel=3)
        self.n_restarts += 1

    def _failure(self, worker: int, what: str, error: Exception | None = None, trace: str | None = None) -> Exception:
        """:return: what ends the run: a ValueError, for which the zoo prunes a trial, if an environment raised one"""
        envs = self._envs_of(worker)
        message = f"Worker {worker} (environments {envs.start} to {envs.stop - 1}) {what}.\n{trace or ''}"
        failure = ValueError(message) if isinstance(error, ValueError) else RuntimeError(message)
        failure.__cause__ = error
        return failure

    def _check_not_collecting(self, what: str) -> None:
        if self.is_collecting:
            raise RuntimeError(
                f"The environments step by themselves while the agent learns (`async_collection=True`): do not {what} the "
                "training environment from a callback, evaluate on environments of their own."
            )


class ParallelCollector(CollectingVecEnv):
    """
    Environments in worker processes. As a VecEnv it is SB3's ``SubprocVecEnv``. With
    ``HierarchicalDDPG(..., async_collection=True)`` the workers step by themselves while the learner trains: each one acts
    with its own copy of the policy, writes blocks of steps into its own shards of the replay buffer, and looks for new weights
    now and then. Nothing is pickled on the way but the infos of episodes.

    A worker that dies or hangs is replaced; what it had not written is lost, and its share is collected anew.

    :param env_fns: environments to run in subprocesses
    :param start_method: how to start them: ``forkserver`` (the default where there is one), ``spawn`` or ``fork``
    :param envs_per_worker: environments that a process steps in turns, with one call of the policy for all
    :param flush_size: steps of each environment that are written at once
    :param sync_interval: environment steps after which a worker looks for new weights
    :param noise_spread: the noise of the environments lies between 1 / noise_spread and noise_spread times that of the agent,
        in equal ratios (as in Ape-X, https://arxiv.org/abs/1803.00933); 1 for the same in all
    :param step_timeout: seconds without progress after which a worker counts as hanging (in a step, or in its start)
    :param max_restarts: how often a worker may raise an exception, or die or hang without having written anything, before that
        ends the run
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        start_method: str | None = None,
        envs_per_worker: int = 1,
        flush_size: int = 50,
        sync_interval: int = 400,
        noise_spread: float = 1.0,
        step_timeout: float = 60.0,
        max_restarts: int = 3,
    ):
        config = WorkerConfig(flush_size, sync_interval, noise_spread)
        super().__init__(env_fns, config, envs_per_worker, step_timeout, max_restarts)
        if start_method is None:
            start_method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        self._context = mp.get_context(start_method)

        self._control_block = SharedArrays({"control": ((self._n_workers, N_CONTROLS), "int64")})
        self._control = self._control_block["control"]
        self.remotes: list[Connection] = [None] * len(env_fns)  # type: ignore[list-item]
        self._handles = [self._spawn(worker) for worker in range(self._n_workers)]
        try:
            self.remotes[0].send(("get_spaces", None))
            VecEnv.__init__(self, len(env_fns), *self.remotes[0].recv())
        except (EOFError, ConnectionError):
            error = self._failure_at_start()
            self.close()
            raise error from error.__cause__

    def _spawn(self, worker: int) -> _Handle:
        """Start the process of a worker; its pipes replace those of its predecessor."""
        envs = self._envs_of(worker)
        pairs = [self._context.Pipe() for _ in envs]
        reader, sender = self._context.Pipe(duplex=False)
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        env_fns = [CloudpickleWrapper(self._env_fns[env]) for env in envs]
        process = self._context.Process(  # type: ignore[attr-defined]
            target=main, args=(theirs, ours, sender, env_fns), daemon=True
        )
        process.start()
        for connection in (*theirs, sender):
            connection.close()
        self.remotes[envs.start : envs.stop] = ours
        self._control[worker, SENT] = 0
        return _Handle(process, reader)

    @property
    def processes(self) -> list[BaseProcess]:  # type: ignore[override]
        """The workers' processes."""
        return [handle.process for handle in self._handles]

    # --------------------------------------------------------------- collecting

    def start_collecting(self, task: CollectTask, shards: Shards, publish: Callable[[np.ndarray], None]) -> None:
        """See :meth:`Collector.start_collecting`."""
        self._task, self._shards = task, shards
        self._weights = WeightPublisher(task.agent.n_weights)
        self._weights.publish(publish)
        shards.release()
        self._base = shards.head.copy()
        self._control[:] = 0
        self._last_check = time.monotonic()
        self.is_collecting = True
        for worker, handle in enumerate(self._handles):
            handle.n_received = handle.counts.n_failures = 0
            handle.observations, handle.stalled = None, 0.0
            self._send_task(worker)

    def _send_task(self, worker: int) -> None:
        envs, remote = self._envs_of(worker), self.remotes[worker * self.envs_per_worker]
        data = (envs.start, self.num_envs, self._task, self.config, worker, self._shards.trim_interval)
        try:
            remote.send(("collect", data))
            for block in (self._control_block, *self._shards.blocks(), self._weights.block):
                block.send(remote)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has died since; that is noticed where workers are looked after

    def publish(self, write: Callable[[np.ndarray], None]) -> int:
        """See :meth:`Collector.publish`."""
        return self._weights.publish(write)

    def grant(self, n_steps: int) -> None:
        """See :meth:`Collector.grant`. Those that have got least ahead get most."""
        allowed = self._control[:, ALLOWED]
        allowed[:] = shares(allowed.copy(), self._control[:, WRITTEN], n_steps // self.envs_per_worker)

    def n_written(self) -> int:
        """See :meth:`Collector.n_written`."""
        return int(self._control[:, WRITTEN].sum()) * self.envs_per_worker

    def poll(self) -> list[Report]:
        """See :meth:`Collector.poll`."""
        reports: list[Report] = []
        if (self._control[:, SENT] != [handle.n_received for handle in self._handles]).any():
            for worker in range(len(self._handles)):
                self._receive(worker, reports)
        now = time.monotonic()
        if now - self._last_check > _CHECK_INTERVAL:
            # A learner that was stopped itself has not seen the workers' progress
            elapsed = min(now - self._last_check, 1.0)
            self._last_check = now
            for worker in range(len(self._handles)):
                self._look_after(worker, elapsed, reports)
        return reports

    def _receive(self, worker: int, reports: list[Report]) -> None:
        """Take in the messages of a worker."""
        handle = self._handles[worker]
        while handle.n_received < self._control[worker, SENT] or handle.messages.poll():
            try:
                kind, content = handle.messages.recv()
            except (EOFError, OSError):
                return  # it died while it was sending
            handle.n_received += 1
            if kind == "report":
                handle.counts.n_failures = 0
                reports.append(content)
            elif kind == "stopped":
                handle.observations = content
            else:
                self._replace(worker, "raised an exception", *content)
                return

    def _look_after(self, worker: int, elapsed: float, reports: list[Report]) -> None:
        handle, control = self._handles[worker], self._control[worker]
        if not handle.process.is_alive():
            self._receive(worker, reports)
            # It may have been replaced because of what it said
            if handle is self._handles[worker]:
                self._replace(worker, f"died (exit code {handle.process.exitcode})")
            return
        progress = int(control[BEGUN]), int(control[WRITTEN])
        waits = control[WRITTEN] == control[ALLOWED] if self.is_collecting else handle.observations is not None
        handle.stalled = 0.0 if waits or progress != handle.progress else handle.stalled + elapsed
        handle.progress = progress
        if handle.stalled > self.step_timeout:
            self._replace(worker, f"made no progress for {self.step_timeout:g} seconds (`step_timeout`)")

    def _replace(self, worker: int, what: str, error: Exception | None = None, trace: str | None = None) -> None:
        """Start another process in the place of one that failed, or give up."""
        handle = self._handles[worker]
        _kill(handle.process)
        handle.messages.close()
        self._account_for_failure(worker, handle.counts, what, error, trace)
        # What it had not counted is not there, and what its environments were in the middle of is over
        for env in self._envs_of(worker):
            self.remotes[env].close()
            self._shards.roll_back(env, int(self._base[env] + self._control[worker, WRITTEN]))
        self._handles[worker] = self._spawn(worker)
        self._handles[worker].counts = handle.counts
        if self.is_collecting:
            self._send_task(worker)
        else:
            self._reset_envs(worker)

    def _failure_at_start(self) -> Exception:
        for worker, handle in enumerate(self._handles):
            with contextlib.suppress(EOFError, OSError):
                if handle.messages.poll(_CLOSE_TIMEOUT):
                    _, content = handle.messages.recv()
                    return self._failure(worker, "could not make its environments", *content)
        return self._failure(0, "ended before it could make its environments, see above")

    def stop_collecting(self) -> tuple[VecEnvObs | None, list[Report]]:
        """See :meth:`Collector.stop_collecting`."""
        reports: list[Report] = []
        if self.is_collecting and not self.closed:
            self.is_collecting = False
            for worker, handle in enumerate(self._handles):
                handle.stalled = 0.0
                _try_send(self.remotes[worker * self.envs_per_worker], ("stop", None))
            while any(handle.observations is None for handle in self._handles):
                reports += self.poll()
                time.sleep(_NAP)
        self.is_collecting = False
        if self.closed:
            return None, reports
        observations: list[Any] = [observation for handle in self._handles for observation in handle.observations or []]
        return _stack_obs(observations, self.observation_space), reports

    def _reset_envs(self, worker: int) -> None:
        """Give a worker that was replaced while it was to stop observations to stop with."""
        observations = []
        for env in self._envs_of(worker):
            _try_send(self.remotes[env], ("reset", (None, {})))
        try:
            for env in self._envs_of(worker):
                if not self.remotes[env].poll(self.step_timeout):
                    return  # it hangs: likewise
                observations.append(self.remotes[env].recv()[0])
        except (EOFError, OSError):
            return  # it has died as well, that is noticed where workers are looked after
        self._handles[worker].observations = observations

    def close(self) -> None:
        """End the workers' processes; twice is fine."""
        if self.closed:
            return
        self.closed, self.is_collecting = True, False
        for remote in self.remotes:
            _try_send(remote, ("close", None))
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        for handle in self._handles:
            handle.process.join(max(deadline - time.monotonic(), 0.0))
            _kill(handle.process)
            handle.messages.close()
        for remote in self.remotes:
            remote.close()
        self._control_block.close()


def shares(allowed: np.ndarray, written: np.ndarray, total: int) -> np.ndarray:
    """
    Distribute leave to go on: those with the fewest rounds ahead of them get it first.

    :param allowed: rounds that each worker is allowed so far, shape (n_workers,)
    :param written: rounds that each worker has written, shape (n_workers,)
    :param total: rounds over all workers
    :return: rounds that each worker is allowed now, none less than before, shape (n_workers,)
    """
    # Workers go on meanwhile: look at them once only
    lead = allowed - written
    ahead = np.sort(lead)
    rest = total - int(allowed.sum())
    if rest <= 0:
        return allowed
    # Fill up the lowest ones to a common level
    costs = np.arange(len(ahead)) * ahead - np.concatenate(([0], np.cumsum(ahead)[:-1]))
    n_filled = int(np.searchsorted(costs, rest, side="right"))
    level, remainder = divmod(rest + int(ahead[:n_filled].sum()), n_filled)
    gifts = np.maximum(level - lead, 0)
    lowest = np.flatnonzero(lead <= level)[:remainder]
    gifts[lowest] += 1
    return allowed + gifts


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def _try_send(remote: Connection, message: tuple[str, Any]) -> None:
    """A worker that has died is noticed where workers are looked after."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, OSError):
        remote.send(message)
