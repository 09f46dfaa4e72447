"""Common parts of the collectors with workers, which may be processes or actors."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from stable_baselines3.common import monitor
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_hrl.common.checks import require
from sb3_hrl.parallel.worker import WorkerConfig

# Maximum time in seconds until a worker's first step: it imports modules, and creates and resets its environments
START_TIMEOUT = 300.0

# Reason for replacing a worker
RAISED = "raised an exception"

CLOSED = (
    "The environments are closed and cannot collect any more: close them after `learn` only, and continue with new ones by "
    "`model.set_env(env)`."
)


@dataclass
class FailureCounts:
    """Number of failures of a worker."""

    n_failures: int = 0  # consecutive failures, without a written block in between
    n_errors: int = 0  # total number of exceptions


class CollectingVecEnv(SubprocVecEnv):
    """
    Common base class of the collectors with workers. It groups environments by worker, and makes sure that nobody else steps
    them while the workers collect.

    :param env_fns: environments
    :param config: settings of the workers
    :param envs_per_worker: number of environments per worker
    :param step_timeout: seconds without progress after which a worker counts as hanging
    :param max_restarts: maximum number of failures of a worker
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        config: WorkerConfig,
        envs_per_worker: int,
        step_timeout: float,
        max_restarts: int,
    ):
        # Do not call SubprocVecEnv's constructor: it would start a process per environment
        n_envs = len(env_fns)
        fits = envs_per_worker >= 1 and n_envs % envs_per_worker == 0
        require(n_envs >= 1, "env_fns", "at least one environment", env_fns)
        require(fits, "envs_per_worker", f"a divisor of the number of environments ({n_envs})", envs_per_worker)
        require(step_timeout > 0, "step_timeout", "positive (seconds)", step_timeout)
        require(max_restarts >= 0, "max_restarts", "at least 0", max_restarts)
        self.config = config
        self.envs_per_worker, self.step_timeout, self.max_restarts = envs_per_worker, step_timeout, max_restarts
        self.n_restarts = 0
        self.waiting, self.closed, self.is_collecting = False, False, False
        self._env_fns = list(env_fns)
        self._n_workers = n_envs // envs_per_worker
        self._counts = [FailureCounts() for _ in range(self._n_workers)]
        # Another thread may close the workers while this one checks or replaces them
        self._lock = threading.RLock()

    def _envs_of(self, worker: int) -> range:
        return range(worker * self.envs_per_worker, (worker + 1) * self.envs_per_worker)

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: one action per environment
        """
        self._check_not_collecting("step")
        super().step_async(actions)

    def reset(self) -> VecEnvObs:
        """:return: first observations of all environments"""
        self._check_not_collecting("reset")
        return super().reset()

    def make_env(self, i: int) -> gym.Env:
        """
        :param i: number of the environment
        :return: another environment of the same kind, in this process; the caller must close it
        """
        with _no_monitor_files():
            return _patch_env(self._env_fns[i]())

    def _account_for_failure(self, worker: int, what: str, error: Exception | None = None, trace: str | None = None) -> None:
        """Warn that a worker is replaced; after too many failures, close everything and raise an error."""
        counts = self._counts[worker]
        counts.n_failures += 1
        counts.n_errors += trace is not None
        n_restarts = max(counts.n_failures, counts.n_errors) - 1
        if n_restarts == self.max_restarts:
            self.close()
            raise self._failure(worker, f"{what}, after {n_restarts} restarts", error, trace)
        warnings.warn(f"Worker {worker} {what}: it is replaced.\n{trace or ''}", RuntimeWarning, stacklevel=3)
        self.n_restarts += 1

    def _failure(self, worker: int, what: str, error: Exception | None = None, trace: str | None = None) -> Exception:
        """:return: the error that ends the run; it is a ValueError (the zoo then prunes the trial) if an environment raised
        one"""
        envs = self._envs_of(worker)
        which = f"environment {envs.start}" if len(envs) == 1 else f"environments {envs.start} to {envs.stop - 1}"
        message = f"Worker {worker} ({which}) {what}.\n{trace or ''}"
        # SB3 requests attributes that may not exist, and expects an AttributeError
        kind = next((kind for kind in (ValueError, AttributeError) if isinstance(error, kind)), RuntimeError)
        failure = kind(message)
        failure.__cause__ = error
        return failure

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(CLOSED)

    def _check_not_collecting(self, what: str) -> None:
        if self.is_collecting:
            raise RuntimeError(
                f"The environments step in the background while the agent learns (`async_collection=True`): do not {what} the "
                "training environment from a callback, use separate environments for evaluation."
            )


@contextlib.contextmanager
def _no_monitor_files() -> Iterator[None]:
    """In this context a new Monitor does not write a file, because it would overwrite that of a worker's environment."""
    writer = monitor.ResultsWriter
    monitor.ResultsWriter = lambda *args, **kwargs: None  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        monitor.ResultsWriter = writer  # type: ignore[misc]
