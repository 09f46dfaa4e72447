"""What collectors with workers have in common, whether these are processes or actors."""

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

# Seconds that a worker may take until its first step: it imports, makes its environments and resets them
START_TIMEOUT = 300.0

# Why a worker is replaced
RAISED = "raised an exception"

CLOSED = (
    "The environments are closed and cannot collect any more: close them after `learn` only, and go on with new ones by "
    "`model.set_env(env)`."
)


@dataclass
class FailureCounts:
    """How often a worker has failed."""

    n_failures: int = 0  # in a row, without a written block between them
    n_errors: int = 0  # exceptions over all


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
        # Another thread may close what this one looks after, and replaces
        self._lock = threading.RLock()

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

    def make_env(self, i: int) -> gym.Env:
        """
        :param i: number of an environment
        :return: another one like it, in this process and the caller's to close
        """
        with _no_monitor_files():
            return _patch_env(self._env_fns[i]())

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
        which = f"environment {envs.start}" if len(envs) == 1 else f"environments {envs.start} to {envs.stop - 1}"
        message = f"Worker {worker} ({which}) {what}.\n{trace or ''}"
        # SB3 asks for attributes that may be missing
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
                f"The environments step by themselves while the agent learns (`async_collection=True`): do not {what} the "
                "training environment from a callback, evaluate on environments of their own."
            )


@contextlib.contextmanager
def _no_monitor_files() -> Iterator[None]:
    """A Monitor that is made meanwhile writes no file: that of a worker's environment would be overwritten."""
    writer = monitor.ResultsWriter
    monitor.ResultsWriter = lambda *args, **kwargs: None  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        monitor.ResultsWriter = writer  # type: ignore[misc]
