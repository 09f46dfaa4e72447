"""All that knows MuJoCo's rendering: which offscreen renderer works on this machine, and markers in the scene."""

import functools
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hrl.common.checks import check_keys

# Red is the colour in which gymnasium-robotics draws goals itself
GOAL_COLOUR = (0.9, 0.1, 0.1)
SUBGOAL_COLOUR = (1.0, 0.75, 0.0)
CAMERA_ATTRIBUTES = ("distance", "azimuth", "elevation", "lookat")
# Degrees: walls of a maze are not to hide what is behind them
MAZE_ELEVATION = -75.0
# In sizes of the maze
MAZE_DISTANCE = 1.45
# Metres: the environments' cameras show the whole robot, and goals within its reach as dots
ROBOT_DISTANCE = 1.6
# Each subgoal of the trail is so much fainter than the one after it
FADING = 0.75

_PROBE = "import mujoco; mujoco.GLContext(8, 8).make_current()"


@functools.cache
def _works(renderer: str) -> bool:
    """Whether a process can render with it. Another one tries: a library that fails to load would spoil this one's."""
    environment = os.environ | {"MUJOCO_GL": renderer}
    probe = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, check=False)
    # GLFW without a display only warns
    return probe.returncode == 0 and b"GLFWError" not in probe.stderr


def use_offscreen_renderer() -> None:
    """
    Have MuJoCo render with what is there: what ``MUJOCO_GL`` says, or else the first of GLFW (if there is a display), EGL and
    OSMesa that works, for which ``MUJOCO_GL`` is set. Called before the first frame; other systems than Linux need nothing.

    :raises RuntimeError: if none works, with what to install
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
        f"No offscreen renderer for MuJoCo: {tried}. Install EGL with Mesa's software renderer, on Debian and Ubuntu by "
        "`apt-get install libegl1 libopengl0 libgl1-mesa-dri`, and leave MUJOCO_GL unset (docs/visual.md has more)."
    )


class Scene:
    """
    An environment of MuJoCo that is rendered with goals and subgoals in it.

    :param env: environment with ``render_mode="rgb_array"`` and a ``MujocoRenderer``, as all of gymnasium-robotics have
    :param threshold: distance at which a subgoal counts as reached, in the units of the goal; 0 if there are no subgoals
    :param camera: attributes of MuJoCo's ``MjvCamera`` (``distance``, ``azimuth``, ``elevation``, ``lookat``) that differ from
        the environment's; by default mazes are looked at from above, and robots from nearby
    :raises ValueError: if the environment cannot be rendered with markers
    :raises RuntimeError: if nothing on this machine can render
    """

    def __init__(self, env: gym.Env, threshold: float = 0.0, camera: Mapping[str, Any] | None = None):
        if env.render_mode != "rgb_array":
            raise ValueError(
                f"`env` must render to arrays, but its render_mode is {env.render_mode!r}: "
                'make it by `gymnasium.make(..., render_mode="rgb_array")`.'
            )
        use_offscreen_renderer()
        import mujoco
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        base = env.unwrapped
        # A maze holds the environment that moves in it
        holders = (base, *vars(base).values())
        renderers = (getattr(holder, "mujoco_renderer", None) for holder in holders)
        renderer = next((renderer for renderer in renderers if isinstance(renderer, MujocoRenderer)), None)
        if renderer is None:
            raise ValueError(
                f"`env` ({type(base).__name__}) has no `mujoco_renderer`, and subgoals are drawn by MuJoCo: record it by "
                "`python -m rl_zoo3.record_video`, which draws none."
            )
        check_keys("camera", camera or {}, CAMERA_ATTRIBUTES)
        self._env, self._threshold, self._camera = env, threshold, dict(camera or {})
        self._is_aimed = False
        # gymnasium declares its viewer as None, which it is before the first frame
        self._renderer: Any = renderer
        maze = getattr(base, "maze", None)
        self._maze_size = maze.maze_size_scaling * max(maze.map_width, maze.map_length) if maze is not None else None
        # Large enough to be seen from where the camera is
        seen_from_afar = 0.006 * renderer.model.stat.extent if self._maze_size is None else 0.015 * self._maze_size
        self._radius = max(0.4 * threshold, seen_from_afar)
        self._sphere, self._disc = mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER

    def frame(self, goal: np.ndarray, subgoal: np.ndarray | None = None, past: Iterable[np.ndarray] = ()) -> np.ndarray:
        """
        Render the environment as it is now.

        :param goal: desired goal, shape (goal_dim,)
        :param subgoal: the subgoal in force, shape (goal_dim,), if any; its halo is where it counts as reached
        :param past: the subgoals before it, the oldest first
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
        # The first frame makes the viewer
        self._env.render()
        camera = self._renderer.viewer.cam
        if self._maze_size is None:
            camera.distance = min(camera.distance, ROBOT_DISTANCE)
        else:
            # All of the maze, which lies around the origin
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
            f"Goals of length {len(goal)} cannot be drawn: only places can, of 2 or 3 coordinates each. "
            "Record the agent by `python -m rl_zoo3.record_video`, which draws no goals."
        )

    def _markers(
        self, goal: np.ndarray, colour: tuple[float, float, float], alpha: float, share: float = 1.0
    ) -> list[dict[str, Any]]:
        size, rgba = np.full(3, share * self._radius), np.array([*colour, alpha], dtype=np.float32)
        return [dict(type=self._sphere, pos=place, size=size, rgba=rgba) for place in self._places(goal)]

    def _halo(self, subgoal: np.ndarray) -> list[dict[str, Any]]:
        """In a plane a disc, else spheres, as large as the threshold."""
        is_flat = len(subgoal) == 2
        size = np.array([self._threshold, 0.1 * self._radius, 0.0]) if is_flat else np.full(3, self._threshold)
        rgba = np.array([*SUBGOAL_COLOUR, 0.3], dtype=np.float32)
        places = self._places(subgoal)
        if is_flat:
            places[:, 2] = size[1]
        return [dict(type=self._disc if is_flat else self._sphere, pos=place, size=size, rgba=rgba) for place in places]
