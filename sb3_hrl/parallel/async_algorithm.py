"""SB3's off-policy algorithm, extended by environments that step in the background."""

import io
import pathlib
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_pkl, open_path
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFreq
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer, new_generator
from sb3_hrl.common.files import replacing
from sb3_hrl.parallel.async_rollouts import Acting, AsyncRollouts, Untaken, collect_task, collector_of, n_steps_to_take

SelfAsync = TypeVar("SelfAsync", bound="AsyncOffPolicyAlgorithm")


class AsyncOffPolicyAlgorithm(OffPolicyAlgorithm):
    """Calls callbacks, logs and updates the progress as ``collect_rollouts`` does, also when workers collect."""

    replay_buffer: SharedMemoryReplayBuffer
    async_collection: bool = False
    _uses_rewards: ClassVar[bool] = False  # whether it learns from the environment's rewards
    _rollouts: AsyncRollouts | None = None  # while workers collect
    _untaken: Untaken = Untaken()  # steps that workers have written, but that learn() has not processed before it ended

    @abstractmethod
    def _acting(self) -> Acting:
        """:return: what the workers get, made anew for each call of ``learn``"""

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        :param seed: seed of all generators: Python, NumPy, torch, the environments, exploration and the replay buffer
        """
        super().set_random_seed(seed)
        if seed is not None and self.replay_buffer is not None:
            self.replay_buffer.rng = new_generator()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Any:
        is_reset = reset_num_timesteps or self._last_obs is None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if is_reset:
            self._begin_episodes()
        return result

    def _begin_episodes(self) -> None:
        """The environments were reset: their running episodes are over."""
        self.replay_buffer.end_episodes()
        self._untaken = Untaken()

    def learn(self: SelfAsync, total_timesteps: int, *args: Any, **kwargs: Any) -> SelfAsync:
        """
        :param total_timesteps: number of environment steps
        :param args: as in SB3
        :param kwargs: as in SB3
        :return: the trained model
        """
        if self.async_collection:
            assert self.env is not None, "You must set the environment before calling learn()"
            # Check before anything starts
            collector_of(self.env, self._uses_rewards)
        try:
            return super().learn(total_timesteps, *args, **kwargs)
        finally:
            self._stop_collecting()

    def _start_collecting(self) -> AsyncRollouts:
        """Send the policy to the workers, and start them."""
        assert self.env is not None
        assert isinstance(self.train_freq, TrainFreq)
        acting, n_left = self._acting(), self._total_timesteps - self.num_timesteps
        return AsyncRollouts(
            collector_of(self.env, self._uses_rewards),
            self.replay_buffer.shards,
            collect_task(acting.agent, self.replay_buffer, self.learning_starts - self.num_timesteps),
            acting,
            n_steps=n_steps_to_take(n_left, self._untaken.n_steps, self.train_freq, self.n_envs),
            untaken=self._untaken,
            n_updates=self._n_updates,
        )

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
        :param action_noise: noise on the actions
        :param learning_starts: number of steps before learning, with random actions
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

    def dump_logs(self) -> None:
        """Write log data."""
        if self._rollouts is not None:
            self._rollouts.log(self.logger)
        super().dump_logs()

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model in a zip file, as SB3 does. A file of this name is only replaced when the new one is complete.

        :param path: path of the file, or an open file
        :param exclude: names of attributes to leave out
        :param include: names of attributes to save that SB3 leaves out
        """
        if not isinstance(path, (str, pathlib.Path)):
            super().save(path, exclude, include)
            return
        with replacing(path, "zip") as file:
            super().save(file, exclude, include)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer as a pickle file. A file of this name is only replaced when the new one is complete.

        :param path: path of the file, or an open file
        """
        if not isinstance(path, (str, pathlib.Path)):
            super().save_replay_buffer(path)
            return
        with replacing(path, "pkl") as file:
            super().save_replay_buffer(file)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer from a pickle file. Its running episodes are closed, because the environments restart.

        Warning: a pickle file can run any code when it is loaded. Load only files from people you trust.

        :param path: path to the pickled replay buffer
        :param truncate_last_traj: not used, as in SB3 for any buffer other than HerReplayBuffer
        :raises ValueError: if the file is incomplete or damaged, or if the buffer is of another class or of other
            environments; the model then keeps its own buffer
        :raises RuntimeError: while workers write to the current buffer
        """
        if self._rollouts is not None:
            raise RuntimeError(
                "Workers are writing to the replay buffer, so it cannot be replaced now: call `load_replay_buffer` before or "
                "after `learn`."
            )
        try:
            saved = _load(path, self.verbose)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            # A pickle file that was cut off or damaged can raise almost anything
            raise ValueError(
                f"The replay buffer in {path} is incomplete or damaged, or another version of sb3-hrl wrote it "
                f"({type(error).__name__}: {error}). Load another file{_newest_other(path)}, or continue without a buffer (in "
                "the zoo move `replay_buffer.pkl` out of the agent's folder)."
            ) from error
        # Check before replacing: if the loaded buffer is refused, the model keeps its own
        self.replay_buffer.check_replacement(saved)
        saved.device = self.device
        saved.end_episodes()
        self.replay_buffer = saved

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_rollouts"]


def _load(path: Any, verbose: int) -> Any:
    """:return: the object in a pickle file; unlike SB3's function, it also closes the file after an error"""
    if not isinstance(path, (str, pathlib.Path)):
        return load_from_pkl(path, verbose)
    with open_path(path, "r", verbose, suffix="pkl") as file:
        return load_from_pkl(file, verbose)


def _newest_other(path: Any) -> str:
    """:return: the newest of the other buffers in a file's folder, such as that of the checkpoint before, for a message"""
    if not isinstance(path, (str, pathlib.Path)):
        return ""
    path = pathlib.Path(path)
    others = [file for file in path.parent.glob("*replay_buffer*.pkl") if file.name not in (path.name, f"{path.name}.pkl")]
    return f", such as {max(others, key=lambda file: file.stat().st_mtime)}" if others else ""
