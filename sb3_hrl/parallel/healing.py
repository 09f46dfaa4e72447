"""A VecEnv that replaces workers that fail while it steps."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

from sb3_hrl.parallel.collecting import CLOSED, CollectingVecEnv
from sb3_hrl.parallel.remote import EnvRemote, Failure
from sb3_hrl.parallel.worker import WorkerConfig


class HealingVecEnv(CollectingVecEnv):
    """
    The steps of a VecEnv whose workers may fail. A worker that ends, hangs, or whose environment raises an exception in
    ``step`` or ``reset``, is replaced. The episodes of its environments end as truncated, and their infos contain
    ``worker_restarted``. With ``max_restarts=0``, the failure is raised instead.

    :param env_fns: environments
    :param config: settings of the workers
    :param envs_per_worker: number of environments per worker
    :param step_timeout: maximum time of a step in seconds
    :param max_restarts: maximum number of failures of a worker
    """

    remotes: list[EnvRemote]

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        config: WorkerConfig,
        envs_per_worker: int,
        step_timeout: float,
        max_restarts: int,
    ):
        super().__init__(env_fns, config, envs_per_worker, step_timeout, max_restarts)
        n_envs = len(env_fns)
        # An environment that cannot be created at all raises its exception at once
        self._heals = False
        # Last observation of each environment, from the worker: the caller may change the arrays that it gets
        self._observations: Sequence[Any] | None = None
        # Last reward of each environment in its running episode
        self._rewards = [0.0] * n_envs
        # First observation and info of environments in new workers, until a step tells that the old episode is over
        self._renewed: dict[int, tuple[Any, dict[str, Any]]] = {}
        # Number of steps of each new worker, until they suffice
        self._recovering: dict[int, int] = {}
        # Attributes that were set and last seeds, for new workers
        self._attributes: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        self._base_seeds: list[int | None] = [None] * n_envs

    @abstractmethod
    def _start_anew(self, worker: int) -> None:
        """Replace a worker by a new one, with the attributes that were set."""

    @abstractmethod
    def _replace_collecting(self, worker: int, failure: Failure) -> None:
        """Replace a worker while it collects, or give up."""

    # ------------------------------------------------------------------ stepping

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: one action per environment
        """
        self._check_not_collecting("step")
        for env, (remote, action) in enumerate(zip(self.remotes, actions, strict=True)):
            if env not in self._renewed:
                remote.send(("step", action))
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """:return: observations, rewards, dones and infos"""
        results, failures = self._take(self._stepping())
        self.waiting = False
        if failures:
            self._check_healing(failures)
            self._renew(failures)
        if self._renewed:
            for env, first in self._renewed.items():
                results[env] = self._cut(env, results[env], *first)
            self._renewed = {}
        elif self._recovering:
            self._count_recovery()
        self._observations, rewards, dones, infos, self.reset_infos = zip(*results, strict=True)  # type: ignore[assignment]
        self._rewards = [0.0 if done else reward for reward, done in zip(rewards, dones, strict=True)]
        stacked = _stack_obs(self._observations, self.observation_space)
        return stacked, np.stack(rewards), np.stack(dones), infos  # type: ignore[return-value]

    def _stepping(self) -> Sequence[int]:
        """:return: the environments that take the step"""
        envs = range(self.num_envs)
        return [env for env in envs if env not in self._renewed] if self._renewed else envs

    def reset(self) -> VecEnvObs:
        """:return: first observations of all environments"""
        self._check_not_collecting("reset")
        for remote, *arguments in zip(self.remotes, self._seeds, self._options, strict=True):
            remote.send(("reset", tuple(arguments)))
        results, failures = self._take(range(self.num_envs))
        if failures:
            self._check_healing(failures)
            self._renew(failures, self._options)
            for env, first in self._renewed.items():
                results[env] = first
        self._renewed = {}
        self._observations, self.reset_infos = zip(*results, strict=True)  # type: ignore[assignment]
        self._rewards = [0.0] * self.num_envs
        # Seeds and options are only used once
        self._reset_seeds()
        self._reset_options()
        return _stack_obs(self._observations, self.observation_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        :param seed: seed of the first environment
        :return: the seed of each environment
        """
        self._base_seeds = list(super().seed(seed))
        return self._seeds

    def _take(self, envs: Sequence[int]) -> tuple[list[Any], dict[int, Failure]]:
        """
        Wait for the answers to a command that was sent to these environments.

        :return: the answer of each of all environments, ``None`` if there is none, and the failures of workers
        """
        answers: list[Any] = [None] * self.num_envs
        failures: dict[int, Failure] = {}
        limit, last_worker = None, -1
        for env in envs:
            worker = env // self.envs_per_worker
            if worker in failures:
                continue
            # They all had the same time. But an environment whose worker has just answered for another one has just begun
            answer = self.remotes[env].take(limit if worker != last_worker else None)
            last_worker = worker
            if isinstance(answer, Failure):
                failures[worker] = answer
                if answer.hangs:
                    limit = 0.0
            else:
                answers[env] = answer
        return answers, failures

    def _check_healing(self, failures: dict[int, Failure]) -> None:
        if not self._heals:
            self._raise(failures)

    def _raise(self, failures: dict[int, Failure]) -> NoReturn:
        """Raise the first failure."""
        self._check_open()
        worker, failure = next(iter(failures.items()))
        error = self._error_of(worker, failure)
        raise error from error.__cause__

    def _error_of(self, worker: int, failure: Failure) -> Exception:
        """:return: the exception to raise for a failure"""
        if self.closed:
            return RuntimeError(CLOSED)
        error, trace = (None, None) if failure.raised is None else (failure.raised.error, failure.raised.trace)
        return self._failure(worker, failure.what, error, trace)

    # ------------------------------------------------------------------- healing

    def _renew(self, failures: dict[int, Failure], options: Sequence[dict[str, Any]] | None = None) -> None:
        """Replace failed workers, and reset their environments with new seeds."""
        while failures:
            for worker, (what, raised, *_) in failures.items():
                with self._lock:
                    self._check_open()
                    error, trace = (None, None) if raised is None else (raised.error, raised.trace)
                    self._account_for_failure(worker, what, error, trace)
                    self._start_anew(worker)
                self._recovering[worker] = 0
            envs = [env for worker in failures for env in self._envs_of(worker)]
            for env in envs:
                self.remotes[env].send(("reset", (self._new_seed(env), options[env] if options else {})))
            firsts, failures = self._take(envs)
            self._renewed |= {env: firsts[env] for env in envs if firsts[env] is not None}

    def _new_seed(self, env: int) -> int | None:
        """:return: a seed that was not used before, determined by the one that was given; ``None`` if none was given"""
        seed = self._base_seeds[env]
        return None if seed is None else int(np.random.SeedSequence([seed, self.n_restarts]).generate_state(1)[0])

    def _cut(self, env: int, result: Any, observation: Any, reset_info: dict[str, Any]) -> tuple[Any, ...]:
        """
        :param result: result of the step, ``None`` if it is lost
        :param observation: first observation of the new environment
        :param reset_info: its info
        :return: result of a step in which the episode ends, because the worker was replaced
        """
        if result is None:
            # The caller has to get a step: it is one in which nothing happens. A reward of 0 could mean success
            last = observation if self._observations is None else self._observations[env]
            result = last, self._rewards[env], False, {}, None
        last, reward, done, info, _ = result
        if not done:
            info |= {"terminal_observation": last, "TimeLimit.truncated": True}
        return observation, reward, True, info | {"worker_restarted": True}, reset_info

    def _count_recovery(self) -> None:
        """As when collecting, crashes are consecutive if there is no block of steps in between."""
        for worker in list(self._recovering):
            self._recovering[worker] += 1
            if self._recovering[worker] >= self.config.flush_size:
                self._counts[worker].n_failures = 0
                del self._recovering[worker]

    # ------------------------------------------------------------ other commands

    def _ask(self, command: str, data: Any, indices: VecEnvIndices = None) -> list[Any]:
        """Ask environments. If their worker is lost, ask again: whatever they did is lost as well."""
        asked = list(self._get_indices(indices))
        answers: dict[int, Any] = {}
        while missing := [env for env in asked if env not in answers]:
            for env in missing:
                self.remotes[env].send((command, data))
            received, failures = self._take(missing)
            lost = {worker: failure for worker, failure in failures.items() if failure.is_lost and self._heals}
            if lost and self.is_collecting:
                for worker, failure in lost.items():
                    self._replace_collecting(worker, failure)
            elif lost:
                self._renew(lost)
            if len(lost) < len(failures):
                self._raise({worker: failure for worker, failure in failures.items() if worker not in lost})
            answers |= {env: received[env] for env in missing if env // self.envs_per_worker not in failures}
        return [answers[env] for env in asked]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """See ``VecEnv.get_attr``."""
        return self._ask("get_attr", attr_name, indices)

    def has_attr(self, attr_name: str) -> bool:
        """See ``VecEnv.has_attr``."""
        return all(self._ask("has_attr", attr_name))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """See ``VecEnv.set_attr``. The attribute is set again in new workers."""
        self._ask("set_attr", (attr_name, value), indices)
        for env in self._get_indices(indices):
            self._attributes[env][attr_name] = value

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """See ``VecEnv.env_method``."""
        return self._ask("env_method", (method_name, method_args, method_kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """See ``VecEnv.env_is_wrapped``."""
        return self._ask("is_wrapped", wrapper_class, indices)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """See ``VecEnv.get_images``."""
        return self._ask("render", None) if self.render_mode == "rgb_array" else super().get_images()
