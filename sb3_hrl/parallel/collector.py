"""Environments in processes that can step in the background: a SubprocVecEnv that also collects asynchronously."""

import contextlib
import functools
import multiprocessing as mp
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper, VecEnvObs
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

from sb3_hrl.common.checks import require
from sb3_hrl.common.notices import WorkerPickle
from sb3_hrl.common.shards import Shards
from sb3_hrl.common.shared_memory import SharedArrays
from sb3_hrl.common.weight_sync import WeightPublisher
from sb3_hrl.parallel.collecting import RAISED, START_TIMEOUT
from sb3_hrl.parallel.healing import HealingVecEnv
from sb3_hrl.parallel.observation_slots import ObservationSlots, slots_layout
from sb3_hrl.parallel.process import ALLOWED, BEGUN, N_CONTROLS, SENT, WRITTEN, main
from sb3_hrl.parallel.remote import EnvRemote, Failure, Raised
from sb3_hrl.parallel.worker import CollectTask, Report, WorkerConfig

# Seconds between checks of the workers, for closing them, and between checks whether they have stopped
_CHECK_INTERVAL, _CLOSE_TIMEOUT, _NAP = 0.2, 5.0, 0.001


class Collector(Protocol):
    """A VecEnv whose environments can also step in the background, see :class:`ParallelCollector`."""

    num_envs: int
    config: WorkerConfig
    n_restarts: int

    def start_collecting(self, task: CollectTask, shards: Shards, publish: Callable[[np.ndarray], None]) -> None:
        """
        :param task: what the workers have to do
        :param shards: the shards to store steps in, one per environment
        :param publish: function that writes the initial weights into an array of shape (n_weights,)
        """

    def publish(self, write: Callable[[np.ndarray], None], is_required: bool = False) -> int:
        """
        :param write: function that writes new weights into an array of shape (n_weights,)
        :param is_required: whether workers must fetch these weights before their next action; only with ``config.max_lag``
        :return: their version; the weights of ``start_collecting`` have version 1
        """

    def grant(self, n_steps: int) -> None:
        """
        :param n_steps: total number of steps allowed since the start, over all environments (a multiple of their number)
        """

    def n_written(self) -> int:
        """:return: number of steps written since the start, over all environments"""

    def poll(self) -> list[Report]:
        """:return: the workers' reports since the last call; failed workers are replaced"""

    def stop_collecting(self) -> tuple[VecEnvObs | None, list[Report]]:
        """
        :return: current observations, as from ``reset`` (``None`` if a failure has closed the environments), and the last
            reports
        """


@dataclass
class _Handle:
    """The learner's data about a worker."""

    process: BaseProcess
    messages: Connection
    n_received: int = 0
    progress: tuple[int, int] = (0, 0)
    stalled: float = 0.0
    observations: list[Any] | None = None  # current observations, once it has stopped


class ParallelCollector(HealingVecEnv):
    """
    Environments in worker processes. As a VecEnv it works like SB3's ``SubprocVecEnv``. With
    ``HierarchicalDDPG(..., async_collection=True)``, or an algorithm of SB3 made by :func:`~sb3_hrl.asynchronous`, the workers
    step in the background while the learner trains: each worker acts with its own copy of the policy, writes blocks of steps
    into its own shards of the replay buffer, and regularly fetches new weights. Only the infos of episodes are pickled.

    A worker that crashes or hangs, or whose environment raises an exception, is replaced, with every algorithm of SB3. A
    RuntimeWarning has the reason and the traceback. If the environments step in step, the running episode of each environment
    of this worker ends as truncated. Its last info contains ``worker_restarted``. While workers collect, steps that it had not
    written are lost, and are collected again by the new worker. Attributes that were set by ``set_attr`` are set again.

    Exceptions in other methods, such as ``env_method``, and with ``max_restarts=0`` all exceptions, are raised with their
    traceback, as a RuntimeError, ValueError or AttributeError. Their ``__cause__`` is the original exception if that can be
    pickled. The worker keeps running. After an exception in ``step``, call ``reset``, because the other environments have
    already taken the step.

    When they first start to collect, workers lower their priority (``nice`` 10) below that of the learner. It stays low
    afterwards, because a process without privileges cannot raise its priority.

    :param env_fns: environments to run in subprocesses
    :param start_method: method used to start the processes: ``forkserver`` (the default if available), ``spawn`` or ``fork``
    :param envs_per_worker: number of environments per process; a single call of the policy serves all of them
    :param flush_size: number of steps per environment that are written at once
    :param sync_interval: number of environment steps after which a worker checks for new weights
    :param noise_spread: the exploration noise ranges from 1 / noise_spread to noise_spread times that of the agent, in equal
        ratios from environment to environment (as in Ape-X, https://arxiv.org/abs/1803.00933); 1 for the same noise everywhere
    :param max_lag: maximum age, in gradient steps, of the weights that choose an action: a worker whose weights are older than
        that fetches new ones first, whatever ``sync_interval`` is; ``None``: no maximum. With 0, workers always act with the
        newest weights
    :param step_timeout: seconds without progress after which a worker counts as hanging. To start, to create its environments
        and to reset them at the beginning, it has five minutes
    :param max_restarts: maximum number of exceptions of a worker, and of consecutive crashes without ``flush_size`` steps in
        between; one more ends the run. 0: failed workers are not replaced
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        start_method: str | None = None,
        envs_per_worker: int = 1,
        flush_size: int = 50,
        sync_interval: int = 400,
        noise_spread: float = 1.0,
        max_lag: int | None = None,
        step_timeout: float = 60.0,
        max_restarts: int = 3,
    ):
        config = WorkerConfig(flush_size, sync_interval, noise_spread, max_lag)
        super().__init__(env_fns, config, envs_per_worker, step_timeout, max_restarts)
        methods = mp.get_all_start_methods()
        if start_method is None:
            start_method = "forkserver" if "forkserver" in methods else "spawn"
        require(start_method in methods, "start_method", f"one of {', '.join(methods)}", start_method)
        self._context = mp.get_context(start_method)

        self._control_block = SharedArrays({"control": ((self._n_workers, N_CONTROLS), "int64")})
        self._control = self._control_block["control"]
        self._reports: list[Report] = []
        self._handles: list[_Handle] = []
        self.remotes = []
        try:
            for worker in range(self._n_workers):
                handle, remotes = self._spawn(worker)
                self._handles.append(handle)
                self.remotes += remotes
            self.remotes[0].send(("get_spaces", None))
            VecEnv.__init__(self, len(env_fns), *self.remotes[0].recv())
            for worker in range(self._n_workers):
                self._share_observations(worker)
            self._heals = max_restarts > 0
        except BaseException:
            self.close()
            raise

    def _spawn(self, worker: int, is_replacement: bool = False) -> tuple[_Handle, list[EnvRemote]]:
        """Start a worker process. If it replaces another one, it continues the files of that one's Monitors."""
        envs = self._envs_of(worker)
        pairs = [self._context.Pipe() for _ in envs]
        reader, sender = self._context.Pipe(duplex=False)
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        env_fns = [WorkerPickle(self._env_fns[env]) for env in envs]
        attributes = WorkerPickle([self._attributes[env] for env in envs])
        process = self._context.Process(  # type: ignore[attr-defined]
            target=main, args=(theirs, ours, sender, env_fns, attributes, is_replacement), daemon=True
        )
        self._control[worker, SENT] = self._control[worker, BEGUN] = 0
        process.start()
        for connection in (*theirs, sender):
            connection.close()

        lost, failed = functools.partial(self._lost, worker), functools.partial(self._error_of, worker)
        remotes = [EnvRemote(connection, process, self.step_timeout, lost, failed) for connection in ours]
        return _Handle(process, reader), remotes

    def _share_observations(self, worker: int) -> None:
        """Let a worker write the observations of its steps into shared memory, if they are large."""
        layout, connection = slots_layout(self.observation_space, self.envs_per_worker), self._connection(worker)
        if layout is None:
            return
        # A worker that has already ended is noticed in the next step
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(("share", ()))
            slots = ObservationSlots.send(layout, connection)
            for i, env in enumerate(self._envs_of(worker)):
                self.remotes[env].read_observation = functools.partial(slots.read, i)

    def _lost(self, worker: int) -> Failure:
        """:return: how a worker process has ended"""
        if self.closed:
            return Failure("was closed")
        handle = self._handles[worker]
        handle.process.join(_CLOSE_TIMEOUT)
        raised = self._receive(worker)
        if raised is not None:
            what = RAISED if self.is_collecting else "could not make its environments"
            return Failure(what, raised)
        hint = 'see its output above (if it could not start, does the script lack `if __name__ == "__main__":`?)'
        return Failure(f"died (exit code {handle.process.exitcode}), {hint}")

    @property
    def processes(self) -> list[BaseProcess]:  # type: ignore[override]
        """The workers' processes."""
        return [handle.process for handle in self._handles]

    # --------------------------------------------------------------- collecting

    def start_collecting(self, task: CollectTask, shards: Shards, publish: Callable[[np.ndarray], None]) -> None:
        """See :meth:`Collector.start_collecting`. If it fails, no worker collects, and the VecEnv still works."""
        self._check_open()
        # First the parts that may fail
        try:
            self._task = pickle.dumps(CloudpickleWrapper(task))
        except Exception as error:
            raise TypeError(
                f"The task of the workers cannot be pickled ({error}): leave files, locks and the like out of `oracle`, "
                "`action_noise` and your own classes, or collect with `SerialCollector`."
            ) from error
        self._weights = WeightPublisher(task.agent.n_weights)
        self._weights.publish(publish)
        self._shards, self._blocks = shards, (self._control_block, *shards.blocks(), self._weights.block)
        shards.release()
        self._base = shards.head.copy()
        self._control[:], self._reports = 0, []
        self._last_check = time.monotonic()
        for handle in self._handles:
            handle.n_received, handle.observations, handle.stalled = 0, None, 0.0
        for counts in self._counts:
            counts.n_failures = 0
        self._renewed, self._recovering = {}, {}
        self.is_collecting = True
        try:
            for worker in range(self._n_workers):
                self._send_task(worker)
        except BaseException:
            # A worker that has received half of the messages cannot understand later ones
            self.is_collecting = False
            for worker in range(self._n_workers):
                self._start_anew(worker)
            raise

    def _send_task(self, worker: int) -> None:
        envs, connection = self._envs_of(worker), self._connection(worker)
        data = (envs.start, self.num_envs, self._task, self.config, worker, self._shards.trim_interval)
        try:
            connection.send(("collect", data))
            for block in self._blocks:
                block.send(connection)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the process has ended meanwhile, which the next check detects

    def _connection(self, worker: int) -> Connection:
        """:return: the pipe for the collector's own commands"""
        return self.remotes[worker * self.envs_per_worker].connection

    def publish(self, write: Callable[[np.ndarray], None], is_required: bool = False) -> int:
        """See :meth:`Collector.publish`."""
        return self._weights.publish(write, is_required)

    def grant(self, n_steps: int) -> None:
        """See :meth:`Collector.grant`. Workers with the smallest lead get the most steps."""
        self._check_open()
        allowed = self._control[:, ALLOWED]
        allowed[:] = shares(allowed.copy(), self._control[:, WRITTEN], n_steps // self.envs_per_worker)

    def n_written(self) -> int:
        """See :meth:`Collector.n_written`."""
        return int(self._control[:, WRITTEN].sum()) * self.envs_per_worker

    def poll(self) -> list[Report]:
        """See :meth:`Collector.poll`."""
        with self._lock:
            self._check_open()
            if (self._control[:, SENT] != [handle.n_received for handle in self._handles]).any():
                for worker in range(self._n_workers):
                    raised = self._receive(worker)
                    if raised is not None:
                        self._replace(worker, RAISED, raised)
            now = time.monotonic()
            if now - self._last_check > _CHECK_INTERVAL:
                # If the learner itself was suspended, it has not seen the workers' progress
                elapsed = min(now - self._last_check, 1.0)
                self._last_check = now
                for worker in range(self._n_workers):
                    self._look_after(worker, elapsed)
            reports, self._reports = self._reports, []
            return reports

    def _receive(self, worker: int) -> Raised | None:
        """
        Receive the messages of a worker.

        :return: the exception that ended the worker, if any
        """
        handle = self._handles[worker]
        while handle.n_received < self._control[worker, SENT] or handle.messages.poll():
            try:
                kind, content = handle.messages.recv()
            except (EOFError, OSError):
                return None  # it ended while it was sending
            handle.n_received += 1
            if kind == "report":
                self._counts[worker].n_failures = 0
                self._reports.append(content)
            elif kind == "stopped":
                handle.observations = content
            else:
                return content
        return None

    def _look_after(self, worker: int, elapsed: float) -> None:
        handle, control = self._handles[worker], self._control[worker]
        if not handle.process.is_alive():
            raised = self._receive(worker)
            self._replace(worker, RAISED if raised is not None else f"died (exit code {handle.process.exitcode})", raised)
            return
        progress = int(control[BEGUN]), int(control[WRITTEN])
        waits = control[WRITTEN] == control[ALLOWED] if self.is_collecting else handle.observations is not None
        handle.stalled = 0.0 if waits or progress != handle.progress else handle.stalled + elapsed
        handle.progress = progress
        if control[BEGUN] == 0:
            if handle.stalled > max(START_TIMEOUT, self.step_timeout):
                self._replace(worker, f"did not come to its first step within {handle.stalled:.0f} seconds")
        elif handle.stalled > self.step_timeout:
            self._replace(worker, f"made no progress for {self.step_timeout:g} seconds (`step_timeout`)")

    def _replace(self, worker: int, what: str, raised: Raised | None = None) -> None:
        """Replace a failed worker process, or give up."""
        error, trace = (None, None) if raised is None else (raised.error, raised.trace)
        _kill(self._handles[worker].process)
        self._account_for_failure(worker, what, error, trace)
        # Steps that it had not counted are dropped, and the running episodes of its environments are over
        for env in self._envs_of(worker):
            self._shards.roll_back(env, int(self._base[env] + self._control[worker, WRITTEN]))
        self._start_anew(worker)
        self._send_task(worker)
        if not self.is_collecting:
            # The new worker sends the first observations of its environments
            _try_send(self._connection(worker), "stop")

    def _start_anew(self, worker: int) -> None:
        """Replace a worker process by a new one."""
        envs, old = self._envs_of(worker), self._handles[worker]
        _kill(old.process)
        old.messages.close()
        for remote in self.remotes[envs.start : envs.stop]:
            remote.close()
        self._handles[worker], self.remotes[envs.start : envs.stop] = self._spawn(worker, is_replacement=True)
        self._share_observations(worker)

    def _replace_collecting(self, worker: int, failure: Failure) -> None:
        with self._lock:
            self._check_open()
            self._replace(worker, failure.what, failure.raised)

    def stop_collecting(self) -> tuple[VecEnvObs | None, list[Report]]:
        """See :meth:`Collector.stop_collecting`."""
        reports: list[Report] = []
        if self.is_collecting and not self.closed:
            self.is_collecting = False
            for worker, handle in enumerate(self._handles):
                handle.stalled = 0.0
                _try_send(self._connection(worker), "stop")
            while any(handle.observations is None for handle in self._handles):
                reports += self.poll()
                time.sleep(_NAP)
        self.is_collecting = False
        if self.closed:
            return None, reports
        observations: list[Any] = [observation for handle in self._handles for observation in handle.observations or []]
        self._observations, self._rewards = observations, [0.0] * self.num_envs
        return _stack_obs(observations, self.observation_space), reports

    def close(self) -> None:
        """End the worker processes; may be called twice."""
        with self._lock:
            if self.closed:
                return
            self.closed, self.is_collecting = True, False
            for remote in self.remotes:
                _try_send(remote.connection, "close")
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
    Distribute the allowed rounds: workers with the fewest rounds ahead get theirs first.

    :param allowed: number of rounds that each worker is allowed so far, shape (n_workers,)
    :param written: number of rounds that each worker has written, shape (n_workers,)
    :param total: total number of rounds, over all workers
    :return: number of rounds that each worker is allowed now, never fewer than before, shape (n_workers,)
    """
    # Read `written` only once, because workers continue meanwhile
    lead = allowed - written
    ahead = np.sort(lead)
    rest = total - int(allowed.sum())
    if rest <= 0:
        return allowed
    # Raise the lowest ones to a common level
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


def _try_send(connection: Connection, command: str) -> None:
    """Errors are ignored: the next check of the workers detects a dead worker."""
    with contextlib.suppress(OSError):
        connection.send((command, ()))
