"""A callback that evaluates agents of this package and of SB3 in the same episodes, while the clock of the training stops."""

import time
from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
from learning import Row
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, sync_envs_normalization

N_EVAL_ENVS = 20


class Evaluation(BaseCallback):
    """
    Evaluates when the training has reached certain numbers of steps. The clock of the training stops meanwhile.

    :param make_env: creates an environment for the evaluation
    :param name: printed with each evaluation
    :param marks: environment steps at which to evaluate
    :param seed: seed of the run; the seed of the evaluation is 10,000 more
    :param n_episodes: episodes per evaluation
    :param started: value of ``time.monotonic()`` at which the clock started; ``None``: when ``learn`` starts
    :param stop_at: success rate at which the training ends; ``None``: it does not end early
    :param then: called after each evaluation
    :param rows: evaluations so far if a training goes on; its clock goes on as well
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        name: str,
        marks: Sequence[int],
        seed: int,
        n_episodes: int,
        started: float | None = None,
        stop_at: float | None = None,
        then: Callable[[], None] | None = None,
        rows: Sequence[Row] = (),
    ):
        super().__init__()
        self.make_env, self.name, self.marks, self.seed, self.n_episodes = make_env, name, list(marks), seed, n_episodes
        self.started, self.stop_at, self.then = started, stop_at, then
        self.env: VecEnv | None = None
        # Seed, environment steps, success rate, and seconds so far without evaluations
        self.rows = list(rows)

    def _on_training_start(self) -> None:
        if self.started is None:
            self.started = time.monotonic() - (self.rows[-1][3] if self.rows else 0.0)

    def _on_step(self) -> bool:
        if not self.marks or self.num_timesteps < self.marks[0]:
            return True
        paused = time.monotonic()
        assert self.started is not None
        while self.marks and self.num_timesteps >= self.marks[0]:
            self.marks.pop(0)
        rate = self.success_rate()
        self.rows.append((self.seed, self.num_timesteps, rate, round(paused - self.started, 1)))
        print(f"{self.name} seed {self.seed}: {self.rows[-1][1:]}", flush=True)
        if self.then is not None:
            self.then()
        self.started += time.monotonic() - paused
        return self.stop_at is None or rate < self.stop_at

    def _on_training_end(self) -> None:
        if self.env is not None:
            self.env.close()

    def _evaluation_env(self) -> VecEnv:
        env: VecEnv = DummyVecEnv([self.make_env] * min(N_EVAL_ENVS, self.n_episodes))
        if isinstance(self.training_env, VecNormalize):
            return VecNormalize(env, training=False, norm_reward=False)
        return env

    def success_rate(self) -> float:
        """:return: share of deterministic episodes that end with success"""
        if self.env is None:
            self.env = self._evaluation_env()
        if isinstance(self.env, VecNormalize):
            sync_envs_normalization(self.training_env, self.env)
        # The same episodes in each evaluation and for each algorithm. Every environment plays its share of them, however
        # short they are
        n_envs = self.env.num_envs
        n_left = (self.n_episodes + np.arange(n_envs)) // n_envs
        self.env.seed(self.seed + 10_000)
        obs, state, starts, n_successes = self.env.reset(), None, np.ones(n_envs, dtype=bool), 0
        # SB3's evaluate_policy sets `episode_start` in each step of an environment that has played its share: a planning
        # agent would plan in each of these steps
        while n_left.any():
            action, state = self.model.predict(obs, state=state, episode_start=starts, deterministic=True)
            obs, _, starts, infos = self.env.step(action)
            for i in np.flatnonzero(starts & (n_left > 0)):
                n_left[i] -= 1
                n_successes += bool(infos[i]["is_success"])
        return n_successes / self.n_episodes
