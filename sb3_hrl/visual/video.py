"""A GIF or MP4 of an agent with its subgoals in the scene."""

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_hrl.common.checks import require
from sb3_hrl.hddpg.policies import HierarchicalPolicy
from sb3_hrl.visual.episodes import Moment, check_fit, play, single_env
from sb3_hrl.visual.rendering import GOAL_COLOUR, SUBGOAL_COLOUR, Scene, draw_legend

SUFFIXES = (".gif", ".mp4")
# GIFs store durations in hundredths of a second, and browsers slow down faster ones
MAX_GIF_FPS = 50


def agent_frames(
    model: BaseAlgorithm,
    env: gym.Env,
    n_episodes: int,
    deterministic: bool = True,
    seed: int | None = None,
    frame_skip: int = 1,
    n_past: int = 10,
    max_steps: int = 1_000,
    camera: Mapping[str, Any] | None = None,
    n_timesteps: int | None = None,
) -> Iterator[tuple[Moment, np.ndarray]]:
    """
    Frames of :func:`record_agent`, rendered one by one.

    :return: moments and their frames, uint8, shape (height, width, 3)
    """
    check_fit(model, env)
    policy = model.policy
    scene = Scene(env, policy.subgoal_threshold.item() if isinstance(policy, HierarchicalPolicy) else 0.0, camera)
    past: list[np.ndarray] = []
    newest: np.ndarray | None = None
    n_taken = 0
    for moment in play(model, env, n_episodes, deterministic, seed, max_steps):
        if moment.step == 0:
            past, newest = [], None
        if moment.issued:
            past += [] if newest is None else [newest]
            newest = moment.subgoal
        n_taken += moment.step > 0
        is_end = n_taken == n_timesteps
        if moment.step % frame_skip == 0 or moment.is_last or is_end:
            frame = scene.frame(moment.goal, moment.subgoal, past[-n_past:] if n_past else [])
            yield moment, draw_legend(frame, has_subgoals=moment.subgoal is not None)
        if is_end:
            return


def check_path(path: Path) -> None:
    """
    :param path: path of the video to write
    :raises ValueError: if it is neither a GIF nor an MP4
    :raises ImportError: if a required package is missing
    """
    require(path.suffix.lower() in SUFFIXES, "path", f"a file that ends in {' or '.join(SUFFIXES)}", path.name)
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("An MP4 needs imageio-ffmpeg: `pip install sb3-hrl[visual]`, or write a .gif instead.")


def check_numbers(
    n_episodes: int,
    frame_skip: int,
    fps: float | None = None,
    n_past: int = 0,
    max_steps: int = 1,
    n_timesteps: int | None = None,
) -> None:
    """
    Check numbers for :func:`record_agent`.

    :raises ValueError: if one of them is out of range
    """
    require(n_episodes >= 1, "n_episodes", "at least 1 (episodes)", n_episodes)
    require(frame_skip >= 1, "frame_skip", "at least 1 (environment steps per frame)", frame_skip)
    require(fps is None or fps > 0, "fps", "positive (frames per second)", fps)
    require(n_past >= 0, "n_past", "at least 0 (past subgoals)", n_past)
    require(max_steps >= 1, "max_steps", "at least 1 (environment steps)", max_steps)
    require(n_timesteps is None or n_timesteps >= 1, "n_timesteps", "at least 1 (environment steps)", n_timesteps)


def record_agent(
    model: BaseAlgorithm,
    env: gym.Env | VecEnv,
    path: str | Path,
    n_episodes: int = 3,
    fps: float | None = None,
    deterministic: bool = True,
    seed: int | None = None,
    frame_skip: int = 1,
    n_past: int = 10,
    max_steps: int = 1_000,
    camera: Mapping[str, Any] | None = None,
    n_timesteps: int | None = None,
) -> list[bool]:
    """
    Record an agent as a GIF or MP4, with the desired goal (red) and the subgoals (amber) in the scene, and a legend in the
    upper left corner. The halo of the current subgoal shows the distance at which it counts as reached; previous subgoals
    fade. Agents without subgoals, such as SB3's own DDPG, are recorded with only the goal.

    :param model: a :class:`~sb3_hrl.HierarchicalDDPG`, or another algorithm of SB3
    :param env: goal-conditioned MuJoCo environment with ``render_mode="rgb_array"``, or a ``DummyVecEnv`` of one
    :param path: file to write, ``.gif`` or ``.mp4`` (which needs ffmpeg: ``pip install sb3-hrl[visual]``)
    :param n_episodes: number of episodes
    :param fps: frames per second; by default real time, at most 30
    :param deterministic: whether the agent acts without noise
    :param seed: seed of the environment's first reset
    :param frame_skip: environment steps per frame, for smaller files
    :param n_past: number of previous subgoals of the episode to draw
    :param max_steps: maximum number of environment steps per episode
    :param camera: ``distance`` (metres), ``azimuth``, ``elevation`` (degrees) or ``lookat`` (a point) of MuJoCo's camera; by
        default mazes are seen from above, and robots from nearby
    :param n_timesteps: number of environment steps after which the recording ends, even within an episode
    :return: for each completed episode, whether it ended in success
    :raises ValueError: if an argument is out of range, or the environment cannot be drawn
    :raises RuntimeError: if there is no offscreen renderer; the message names what to install
    """
    path = Path(path)
    check_path(path)
    check_numbers(n_episodes, frame_skip, fps, n_past, max_steps, n_timesteps)
    env = single_env(env)
    if fps is None:
        fps = min(env.metadata.get("render_fps", 30) / frame_skip, 30.0)
    frames = agent_frames(model, env, n_episodes, deterministic, seed, frame_skip, n_past, max_steps, camera, n_timesteps)
    # Render the first frame before a file is opened: it fails if rendering is impossible
    moment, frame = next(frames)
    successes: list[bool] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_video(path, fps, path.suffix.lower()) as add:
        add(frame)
        for moment, frame in frames:
            add(frame)
            if moment.is_last:
                successes.append(moment.success)
    return successes


@contextlib.contextmanager
def open_video(target: str | Path | io.BytesIO, fps: float, suffix: str) -> Iterator[Callable[[np.ndarray], Any]]:
    """
    :param target: a path, or a file object
    :param fps: frames per second
    :param suffix: ``.gif`` or ``.mp4``
    :return: a context with a function that adds a frame, uint8, shape (height, width, 3)
    """
    if suffix == ".gif":
        images: list[Image.Image] = []
        palettes: list[Image.Image] = []

        def add(frame: np.ndarray) -> None:
            if not palettes:
                palettes.append(_palette(frame))
            images.append(Image.fromarray(frame).quantize(palette=palettes[0], dither=Image.Dither.NONE))

        yield add
        duration = round(1000.0 / min(fps, MAX_GIF_FPS))
        images[0].save(target, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
        return
    from imageio.v2 import get_writer

    # imageio's newer interface cannot write a video frame by frame
    with get_writer(target, format="FFMPEG", mode="I", fps=fps, macro_block_size=2) as writer:
        yield writer.append_data  # type: ignore[attr-defined]


def _palette(frame: np.ndarray) -> Image.Image:
    """One palette for all frames, which halves the size of a GIF. It contains the markers' colours, even if they are small."""
    shades = np.linspace(0.3, 1.0, 8)[:, None, None]
    swatches = 255.0 * shades * np.array([GOAL_COLOUR, SUBGOAL_COLOUR])
    n_rows = max(len(frame) // 40, 1)
    strips = [np.broadcast_to(swatch, (n_rows, frame.shape[1], 3)) for swatch in swatches.reshape(-1, 1, 1, 3)[:, 0]]
    return Image.fromarray(np.concatenate([frame, *strips]).astype(np.uint8)).quantize(256)
