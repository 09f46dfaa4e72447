"""Everything specific to MuJoCo's rendering: finds an offscreen renderer that works, and draws markers in the scene."""

import functools
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sb3_hrl.common.checks import check_keys

# Red is also the colour of goals in gymnasium-robotics
GOAL_COLOUR = (0.9, 0.1, 0.1)
SUBGOAL_COLOUR = (1.0, 0.75, 0.0)
CAMERA_ATTRIBUTES = ("distance", "azimuth", "elevation", "lookat")
# In degrees; steep enough that the walls of a maze do not hide much
MAZE_ELEVATION = -75.0
# Relative to the size of the maze
MAZE_DISTANCE = 1.45
# In metres; the environments' default cameras show the whole robot, which makes the goals tiny
ROBOT_DISTANCE = 1.6
# Opacity of each subgoal of the trail, relative to the next newer one
FADING = 0.75
# In pixels; smaller letters cannot be read
MIN_FONT_SIZE = 10

_PROBE = "import mujoco; mujoco.GLContext(8, 8).make_current()"


@functools.cache
def _works(renderer: str) -> bool:
    """Whether rendering with it works, tested in another process: a library that fails to load would affect this one."""
    environment = os.environ | {"MUJOCO_GL": renderer}
    probe = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, check=False)
    # Without a display, GLFW only prints a warning
    return probe.returncode == 0 and b"GLFWError" not in probe.stderr


def use_offscreen_renderer() -> None:
    """
    Choose an offscreen renderer for MuJoCo: ``MUJOCO_GL`` if it is set, otherwise the first of GLFW (if there is a display),
    EGL and OSMesa that works. ``MUJOCO_GL`` is set accordingly. Call it before the first frame; it does nothing on systems
    other than Linux.

    :raises RuntimeError: if none works; the message names what to install
    """
    if sys.platform != "linux":
        return
    asked_for = os.environ.get("MUJOCO_GL", "").lower().strip()
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    candidates = [asked_for] if asked_for else ["glfw"] * has_display + ["egl", "osmesa"]
    for candidate in candidates:
        if _works(candidate):
            os.environ["MUJOCO_GL"] = candidate
            return
    tried = f"MUJOCO_GL={asked_for} does not work here" if asked_for else f"none of {', '.join(candidates)} works here"
    raise RuntimeError(
        f"No offscreen renderer for MuJoCo: {tried}. Install EGL with Mesa's software renderer, on Debian and Ubuntu with "
        "`apt-get install libegl1 libopengl0 libgl1-mesa-dri`, and do not set MUJOCO_GL (see docs/visual.md for more)."
    )


def draw_legend(frame: np.ndarray, has_subgoals: bool) -> np.ndarray:
    """
    :param frame: picture, uint8, shape (height, width, 3)
    :param has_subgoals: whether the agent has subgoals
    :return: a copy of the picture, with the colours of the goal and of subgoals in its upper left corner
    """
    size = max(len(frame) // 24, MIN_FONT_SIZE)
    image = Image.fromarray(frame)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    entries = [("goal", GOAL_COLOUR), ("subgoal", SUBGOAL_COLOUR)] if has_subgoals else [("goal", GOAL_COLOUR)]
    width = 2.2 * size + max(draw.textlength(text, font) for text, _ in entries)
    # A dark background: letters can be read on any scene
    draw.rectangle((0, 0, width, 1.4 * size * len(entries) + 0.3 * size), fill=(30, 30, 30))
    for row, (text, colour) in enumerate(entries):
        middle = size * (0.85 + 1.4 * row)
        rgb = tuple(round(255 * channel) for channel in colour)
        draw.ellipse((0.5 * size, middle - 0.4 * size, 1.3 * size, middle + 0.4 * size), fill=rgb)
        draw.text((1.7 * size, middle), text, fill=(255, 255, 255), font=font, anchor="lm")
    return np.asarray(image)


class Scene:
    """
    A MuJoCo environment, rendered with its goals and subgoals.

    :param env: environment with ``render_mode="rgb_array"`` and a ``MujocoRenderer``, such as all those of gymnasium-robotics
    :param threshold: maximum distance at which a subgoal counts as reached, in the units of the goal; 0 without subgoals
    :param camera: attributes of MuJoCo's ``MjvCamera`` (``distance``, ``azimuth``, ``elevation``, ``lookat``) to change; by
        default mazes are seen from above, and robots from nearby
    :raises ValueError: if the environment cannot be rendered with markers
    :raises RuntimeError: if there is no renderer on this machine that works
    """

    def __init__(self, env: gym.Env, threshold: float = 0.0, camera: Mapping[str, Any] | None = None):
        if env.render_mode != "rgb_array":
            raise ValueError(
                f"`env` must render to arrays, but its render_mode is {env.render_mode!r}: "
                'create it with `gymnasium.make(..., render_mode="rgb_array")`.'
            )
        use_offscreen_renderer()
        import mujoco
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        base = env.unwrapped
        # A maze contains the environment of the robot that moves in it
        holders = (base, *vars(base).values())
        renderers = (getattr(holder, "mujoco_renderer", None) for holder in holders)
        renderer = next((renderer for renderer in renderers if isinstance(renderer, MujocoRenderer)), None)
        if renderer is None:
            raise ValueError(
                f"`env` ({type(base).__name__}) has no `mujoco_renderer`, but MuJoCo draws the subgoals: record it without "
                "subgoals with `python -m rl_zoo3.record_video`."
            )
        check_keys("camera", camera or {}, CAMERA_ATTRIBUTES)
        self._env, self._threshold, self._camera = env, threshold, dict(camera or {})
        self._is_aimed = False
        # gymnasium declares the viewer as None, its value before the first frame
        self._renderer: Any = renderer
        maze = getattr(base, "maze", None)
        self._maze_size = maze.maze_size_scaling * max(maze.map_width, maze.map_length) if maze is not None else None
        # Large enough to be visible from the camera
        seen_from_afar = 0.006 * renderer.model.stat.extent if self._maze_size is None else 0.015 * self._maze_size
        self._radius = max(0.4 * threshold, seen_from_afar)
        self._sphere, self._disc = mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER

    def frame(self, goal: np.ndarray, subgoal: np.ndarray | None = None, past: Iterable[np.ndarray] = ()) -> np.ndarray:
        """
        Render the current state of the environment.

        :param goal: desired goal, shape (goal_dim,)
        :param subgoal: current subgoal, shape (goal_dim,), if any; its halo shows where it counts as reached
        :param past: previous subgoals, oldest first
        :return: picture, uint8, shape (height, width, 3)
        """
        if not self._is_aimed:
            self._aim()
        markers = self._markers(goal, GOAL_COLOUR, 1.0)
        for age, old in enumerate(reversed(list(past)), start=1):
            markers += self._markers(old, SUBGOAL_COLOUR, 0.6 * FADING**age, share=0.6)
        if subgoal is not None:
            markers += self._markers(subgoal, SUBGOAL_COLOUR, 1.0) + self._halo(subgoal)
        for marker in markers:
            self._renderer.viewer.add_marker(**marker)
        return np.ascontiguousarray(self._env.render())

    def _aim(self) -> None:
        # The first frame creates the viewer
        self._env.render()
        camera = self._renderer.viewer.cam
        if self._maze_size is None:
            camera.distance = min(camera.distance, ROBOT_DISTANCE)
        else:
            # Show the whole maze, which is centred at the origin
            camera.distance, camera.elevation = MAZE_DISTANCE * self._maze_size, MAZE_ELEVATION
            camera.lookat[:] = 0.0
        for name, value in self._camera.items():
            setattr(camera, name, value)
        self._is_aimed = True

    def _places(self, goal: np.ndarray) -> np.ndarray:
        """:return: the points of a goal in the scene, shape (n, 3)"""
        if len(goal) == 2:
            # On the floor
            return np.append(goal, self._radius)[None].astype(np.float64)
        if len(goal) % 3 == 0:
            return goal.reshape(-1, 3).astype(np.float64)
        raise ValueError(
            f"Goals of length {len(goal)} cannot be drawn, only positions with 2 or 3 coordinates each. "
            "Record the agent without goals with `python -m rl_zoo3.record_video`."
        )

    def _markers(
        self, goal: np.ndarray, colour: tuple[float, float, float], alpha: float, share: float = 1.0
    ) -> list[dict[str, Any]]:
        size, rgba = np.full(3, share * self._radius), np.array([*colour, alpha], dtype=np.float32)
        return [dict(type=self._sphere, pos=place, size=size, rgba=rgba) for place in self._places(goal)]

    def _halo(self, subgoal: np.ndarray) -> list[dict[str, Any]]:
        """A disc in a plane, otherwise spheres, whose radius is the threshold."""
        is_flat = len(subgoal) == 2
        size = np.array([self._threshold, 0.1 * self._radius, 0.0]) if is_flat else np.full(3, self._threshold)
        rgba = np.array([*SUBGOAL_COLOUR, 0.3], dtype=np.float32)
        places = self._places(subgoal)
        if is_flat:
            places[:, 2] = size[1]
        return [dict(type=self._disc if is_flat else self._sphere, pos=place, size=size, rgba=rgba) for place in places]
