"""The learner's side of asynchronous collection: takes in steps at the asked ratio, and keeps SB3's clock."""

import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_hrl.hddpg.copies import PolicyCopy
from sb3_hrl.hddpg.exploration import WorkerAgent
from sb3_hrl.parallel.collector import Collector
from sb3_hrl.parallel.serial import SerialCollector
from sb3_hrl.parallel.worker import CollectTask, Report

if TYPE_CHECKING:
    from sb3_hrl.hddpg.hddpg import HierarchicalDDPG

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


class AsyncRollouts:
    """
    Collection by workers during one call of ``learn``.

    :param model: the algorithm, its environment a collector
    """

    def __init__(self, model: "HierarchicalDDPG"):
        assert model.env is not None
        self._model = model
        self._collector = collector_of(model.env)
        self.is_serial = isinstance(self._collector, SerialCollector)
        self._n_envs = model.n_envs
        if self._collector.config.flush_size > model.replay_buffer.buffer_size:
            raise ValueError(
                f"`flush_size` ({self._collector.config.flush_size}) must not exceed the steps that the buffer holds of each "
                f"environment ({model.replay_buffer.buffer_size}): raise `buffer_size`."
            )
        self._block = self._collector.config.flush_size * self._n_envs
        assert isinstance(model.train_freq, TrainFreq)
        steps = model.train_freq.frequency if model.train_freq.unit == TrainFrequencyUnit.STEP else 1
        # What is left to do, in whole rollouts as when collecting synchronously; steps that were not taken in last time count
        per_rollout = steps * self._n_envs
        self._n_taken: int = -model._n_untaken
        self._n_total: int = -(-(model._total_timesteps - model.num_timesteps) // per_rollout) * per_rollout - model._n_untaken
        self._n_granted: int = 0
        self._n_available: int = 0
        self._published_at: int = 0
        self._published_updates: int = model._n_updates
        self._updates_of: dict[int, int] = {1: model._n_updates}  # gradient steps by version of the weights
        self._lags: list[tuple[int, int]] = []  # steps and lag of the blocks since the last log
        self._episodes: list[deque[dict[str, Any]]] = [deque() for _ in range(self._n_envs)]
        self._n_episodes: int = 0
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(self._n_envs)]
        self._no_dones: np.ndarray = np.zeros(self._n_envs, dtype=bool)

        self._copy: PolicyCopy = PolicyCopy(model.policy)
        self._collector.start_collecting(self._task(), model.replay_buffer.shards, self._write_weights)
        self._grant()

    def _task(self) -> CollectTask:
        model, buffer = self._model, self._model.replay_buffer
        noise = getattr(model.action_noise, "base_noise", model.action_noise)
        return CollectTask(
            agent=WorkerAgent(self._copy, model.exploration_config(), model.policy.goal_dim, buffer.action_dim, noise),
            columns=buffer.columns,
            row_dim=buffer.shards.row_dim,
            action_space=model.action_space,  # type: ignore[arg-type]
            warm_up_rounds=max(-(-(model.learning_starts - model.num_timesteps) // self._n_envs), 0),
            handle_timeout_termination=buffer.handle_timeout_termination,
            seed=int(buffer.rng.integers(2**31)),
        )

    def _write_weights(self, vector: np.ndarray) -> None:
        self._copy.write(self._model.policy, vector)

    def _grant(self) -> None:
        """Let workers go on, up to their lead or to the end of the run; rather seldom and more at once."""
        limit = min(self._n_taken + _LEAD_BLOCKS * self._block, self._n_total)
        if limit - self._n_granted >= max(self._block // 2, 1) or limit == self._n_total != self._n_granted:
            self._n_granted = limit
            self._collector.grant(limit)

    def _publish(self) -> None:
        """Publish weights often enough that workers find them no older than a quarter of the time between their looks."""
        model = self._model
        interval = self._collector.config.sync_interval * self._n_envs // 4
        if model._n_updates > self._published_updates and self._n_taken - self._published_at >= interval:
            version = self._collector.publish(self._write_weights)
            self._updates_of[version] = model._n_updates
            self._published_at, self._published_updates = self._n_taken, model._n_updates

    # ---------------------------------------------------------------- rollouts

    def collect(self, callback: BaseCallback, train_freq: TrainFreq, log_interval: int | None) -> RolloutReturn:
        """
        Take in one rollout's steps, as SB3's ``collect_rollouts``; waits until workers have made them.

        :param callback: its ``on_step`` is called once per ``n_envs`` steps
        :param train_freq: how much to take in
        :param log_interval: log data every so many episodes
        :return: as SB3
        """
        model, n_envs = self._model, self._n_envs
        self._publish()
        n_steps = n_episodes = 0
        callback.on_rollout_start()
        while should_collect_more_steps(train_freq, n_steps, n_episodes) and self._n_taken < self._n_total:
            self._wait()
            self._n_taken += n_envs
            model.num_timesteps += n_envs
            n_steps += 1
            has_episodes = self._n_episodes > 0
            infos, dones = self._take_episodes()
            # Give access to local variables
            callback.update_locals(locals())
            if not callback.on_step():
                return RolloutReturn(n_steps * n_envs, n_episodes, continue_training=False)
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
            model._on_step()
            if has_episodes:
                model._update_info_buffer(infos, dones)
                n_episodes += int(dones.sum())
                for _ in range(int(dones.sum())):
                    model._episode_num += 1
                    if log_interval is not None and model._episode_num % log_interval == 0:
                        model.dump_logs()
        callback.on_rollout_end()
        return RolloutReturn(n_steps * n_envs, n_episodes, continue_training=True)

    def _wait(self) -> None:
        """Wait until there are steps for one more call of ``on_step``."""
        while self._n_available - self._n_taken < self._n_envs:
            self._grant()
            self._n_available = self._collector.n_written()
            # Reports come before their steps are counted
            for report in self._collector.poll():
                self._take_report(report)
            if self._n_available - self._n_taken < self._n_envs:
                time.sleep(_NAP)

    def _take_report(self, report: Report) -> None:
        tracker = self._model._explorer.tracker
        tracker.add_statistics(report.statistics)
        self._lags.append((report.n_steps, self._model._n_updates - self._updates_of[report.version]))
        for env, info in report.episodes:
            self._episodes[env].append(info)
            self._n_episodes += 1

    def _take_episodes(self) -> tuple[list[dict[str, Any]], np.ndarray]:
        """:return: infos and dones for one call of ``on_step``: of each environment at most one episode that has ended"""
        if self._n_episodes == 0:
            return self._no_infos, self._no_dones
        infos: list[dict[str, Any]] = [{} for _ in range(self._n_envs)]
        dones = np.zeros(self._n_envs, dtype=bool)
        for env, episodes in enumerate(self._episodes):
            if episodes:
                infos[env], dones[env] = episodes.popleft(), True
                self._n_episodes -= 1
        return infos, dones

    def log(self) -> None:
        """Record how old the weights were that workers acted with, in gradient steps, since the last call."""
        logger, n_steps = self._model.logger, sum(steps for steps, _ in self._lags)
        if n_steps > 0:
            logger.record("rollout/policy_lag", sum(steps * lag for steps, lag in self._lags) / n_steps)
            self._lags = []
        if self._collector.n_restarts > 0:
            logger.record("rollout/worker_restarts", self._collector.n_restarts)

    def stop(self) -> None:
        """Let the workers stop where they are; the environments can be stepped synchronously then."""
        model = self._model
        try:
            observations, reports = self._collector.stop_collecting()
            for report in reports:
                self._take_report(report)
            model._n_untaken = self._collector.n_written() - self._n_taken
        finally:
            model.replay_buffer.shards.release()
        model._last_obs = observations  # type: ignore[assignment]
        model._explorer = model._make_explorer()
