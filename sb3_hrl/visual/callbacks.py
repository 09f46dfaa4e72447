"""Pictures of the agent in TensorBoard during training."""

import copy
import io
import warnings

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv

from sb3_hrl.common.checks import require
from sb3_hrl.visual.episodes import check_fit, single_env
from sb3_hrl.visual.maze import check_map, plot_maze, subgoal_policy
from sb3_hrl.visual.rendering import Scene
from sb3_hrl.visual.video import agent_frames, check_numbers, open_video


class _PictureCallback(BaseCallback):
    """
    Logs a picture to TensorBoard at regular intervals of environment steps.

    :param eval_env: environment for the pictures; ``None``: one that is created like those of training, from their ``spec``
    :param render_freq: environment steps between two pictures, over all environments
    :param verbose: 1 to print a message for each picture
    """

    render_mode: str | None = None

    def __init__(self, eval_env: gym.Env | VecEnv | None, render_freq: int, verbose: int):
        super().__init__(verbose)
        require(render_freq >= 1, "render_freq", "at least 1 (environment steps)", render_freq)
        self.eval_env = None if eval_env is None else single_env(eval_env)
        self.render_freq = render_freq
        self._made_env = False
        self._last_picture = 0

    def _on_training_start(self) -> None:
        self._outputs = [output for output in self.logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
        self._last_picture = self.num_timesteps
        if not self._outputs:
            warnings.warn(
                f"{type(self).__name__} has no TensorBoard to log to, and makes no pictures: pass `tensorboard_log` to the "
                "algorithm, or `-tb FOLDER` to the zoo.",
                stacklevel=2,
            )
            return
        if self.eval_env is None:
            self.eval_env, self._made_env = self._twin(), True
        # Raise errors now, not only at the first picture
        check_fit(self.model, self.eval_env)
        self._check(self.eval_env)

    def _twin(self) -> gym.Env:
        spec = self.training_env.get_attr("spec", 0)[0]
        if spec is None:
            raise ValueError(
                f"{type(self).__name__} cannot create an environment like those of training, because they have no `spec`: "
                "pass `eval_env`, or create them with `gymnasium.make`."
            )
        # It may be impossible to rebuild wrappers from a spec, and pictures do not need them
        spec = copy.deepcopy(spec)
        spec.additional_wrappers = ()
        return gym.make(spec, render_mode=self.render_mode) if self.render_mode else gym.make(spec)

    def _on_step(self) -> bool:
        if self._outputs and self.num_timesteps - self._last_picture >= self.render_freq:
            self._last_picture = self.num_timesteps
            if self.verbose > 0:
                print(f"{type(self).__name__}: picture at {self.num_timesteps} steps")
            assert self.eval_env is not None
            self._log_picture(self.eval_env)
        return True

    def _on_training_end(self) -> None:
        if self._made_env and self.eval_env is not None:
            self.eval_env.close()
            self.eval_env, self._made_env = None, False

    def _check(self, env: gym.Env) -> None:
        """Raise an error if pictures of the environment are impossible."""
        raise NotImplementedError

    def _log_picture(self, env: gym.Env) -> None:
        raise NotImplementedError


class SubgoalVideoCallback(_PictureCallback):
    """
    Log episodes with the goal and the subgoals in the scene, as ``visual/episode`` (see
    :func:`~sb3_hrl.visual.record_agent`).

    :param eval_env: MuJoCo environment with ``render_mode="rgb_array"``; ``None``: one like those of training
    :param render_freq: environment steps between two videos, over all environments
    :param n_episodes: number of episodes per video
    :param fps: frames per second
    :param frame_skip: environment steps per frame
    :param deterministic: whether the agent acts without noise
    :param seed: seed of the environment's first reset in each video, so that all videos show the same episodes
    :param max_steps: maximum number of environment steps per episode
    :param verbose: 1 to print a message for each video
    """

    render_mode = "rgb_array"

    def __init__(
        self,
        eval_env: gym.Env | VecEnv | None = None,
        render_freq: int = 10_000,
        n_episodes: int = 1,
        fps: float = 25.0,
        frame_skip: int = 2,
        deterministic: bool = True,
        seed: int | None = 0,
        max_steps: int = 1_000,
        verbose: int = 0,
    ):
        super().__init__(eval_env, render_freq, verbose)
        check_numbers(n_episodes, frame_skip, fps, max_steps=max_steps)
        self.n_episodes, self.fps, self.frame_skip, self.max_steps = n_episodes, fps, frame_skip, max_steps
        self.deterministic, self.seed = deterministic, seed

    def _check(self, env: gym.Env) -> None:
        Scene(env)

    def _log_picture(self, env: gym.Env) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        file, size = io.BytesIO(), (0, 0)
        with open_video(file, self.fps, ".gif") as add:
            for _, frame in agent_frames(
                self.model,
                env,
                self.n_episodes,
                self.deterministic,
                self.seed,
                self.frame_skip,
                max_steps=self.max_steps,
            ):
                add(frame)
                size = frame.shape[:2]
        # Not SB3's `Video`: with moviepy 2, as used by SB3, torch 2.13 logs an empty video (it needs moviepy.editor)
        image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=file.getvalue())
        for output in self._outputs:
            assert output.writer.file_writer is not None
            summary = Summary(value=[Summary.Value(tag="visual/episode", image=image)])
            output.writer.file_writer.add_summary(summary, self.num_timesteps)
            output.writer.flush()


class SubgoalPlotCallback(_PictureCallback):
    """
    Log a map with an episode, its subgoals and the high level's value, as ``visual/map`` (see
    :func:`~sb3_hrl.visual.plot_maze`).

    :param eval_env: the environment; ``None``: one like those of training
    :param render_freq: environment steps between two maps, over all environments
    :param deterministic: whether the agent acts without noise
    :param seed: seed of the environment's reset in each map, so that all maps show the same episode
    :param n_states: number of visited states to draw from the replay buffer
    :param max_steps: maximum number of environment steps per episode
    :param verbose: 1 to print a message for each map
    """

    def __init__(
        self,
        eval_env: gym.Env | VecEnv | None = None,
        render_freq: int = 10_000,
        deterministic: bool = True,
        seed: int | None = 0,
        n_states: int = 10_000,
        max_steps: int = 1_000,
        verbose: int = 0,
    ):
        super().__init__(eval_env, render_freq, verbose)
        require(n_states >= 1, "n_states", "at least 1 (visited states)", n_states)
        require(max_steps >= 1, "max_steps", "at least 1 (environment steps)", max_steps)
        self.deterministic, self.seed, self.n_states, self.max_steps = deterministic, seed, n_states, max_steps

    def _check(self, env: gym.Env) -> None:
        subgoal_policy(self.model)
        check_map(env)

    def _log_picture(self, env: gym.Env) -> None:
        figure = plot_maze(self.model, env, self.deterministic, self.seed, self.n_states, max_steps=self.max_steps)
        for output in self._outputs:
            output.write({"visual/map": Figure(figure, close=True)}, {"visual/map": ()}, self.num_timesteps)
