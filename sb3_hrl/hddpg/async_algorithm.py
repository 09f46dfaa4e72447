"""SB3's off-policy algorithm, extended by environments that step in the background."""

from abc import abstractmethod

from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv

from sb3_hrl.hddpg.async_rollouts import AsyncRollouts, Untaken


class AsyncOffPolicyAlgorithm(OffPolicyAlgorithm):
    """Calls callbacks, logs and updates the progress as ``collect_rollouts`` does, also when workers collect."""

    async_collection: bool = False
    _rollouts: AsyncRollouts | None = None  # while workers collect
    _untaken: Untaken = Untaken()  # steps that workers have written, but that learn() has not processed before it ended

    @abstractmethod
    def _start_collecting(self) -> AsyncRollouts:
        """Send the policy to the workers, and start them."""

    def _stop_collecting(self) -> None:
        """Stop the workers where they are; may be called twice."""
        rollouts, self._rollouts = self._rollouts, None
        if rollouts is not None:
            self._last_obs, self._untaken = rollouts.stop()  # type: ignore[assignment]

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """
        Collect experience, or process experience that workers have collected (``async_collection``).

        :param env: the training environment
        :param callback: called after each step of all environments
        :param train_freq: amount of experience to collect
        :param replay_buffer: replay buffer to store it in
        :param action_noise: noise on the low level's actions, replaces its ``noise_std``
        :param learning_starts: number of steps before learning, with random actions (and, without a planner, random subgoals)
        :param log_interval: log data every ``log_interval`` episodes
        """
        if not self.async_collection:
            return super().collect_rollouts(
                env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
            )
        if self._rollouts is None:
            self._rollouts = self._start_collecting()
        self._rollouts.publish(self._n_updates)
        n_steps = n_episodes = 0
        callback.on_rollout_start()
        while should_collect_more_steps(train_freq, n_steps, n_episodes) and not self._rollouts.is_over:
            infos, dones = self._rollouts.take()
            self.num_timesteps += self.n_envs
            n_steps += 1
            # Give access to local variables
            callback.update_locals(locals())
            # Only stop training if return value is False, not when it is None.
            if not callback.on_step():
                return RolloutReturn(n_steps * self.n_envs, n_episodes, continue_training=False)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
            if dones.any():
                # Retrieve reward and episode length if using Monitor wrapper
                self._update_info_buffer(infos, dones)
            for _ in range(int(dones.sum())):
                n_episodes += 1
                self._episode_num += 1
                if log_interval is not None and self._episode_num % log_interval == 0:
                    self.dump_logs()
        callback.on_rollout_end()
        return RolloutReturn(n_steps * self.n_envs, n_episodes, continue_training=True)
