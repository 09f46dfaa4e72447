"""
Environments for `strangers.py`, on which this package is not tuned. Five of them are defined here in NumPy and registered
when this module is imported. The others come from their packages. `make` creates all of them.
"""

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

from sb3_hrl.common.wrappers import GoalFromObservationWrapper, add_success_info

Observation = dict[str, np.ndarray]


class SparseGoalEnv(gym.Env):
    """
    The reward is 0 within a tolerance of the goal, else -1. Episodes end at their time limit, or with a failure.

    :param observation_dim: dimensions of the observation
    :param goal_dim: dimensions of the goal
    :param action_dim: dimensions of the action, each in [-1, 1]
    :param tolerance: maximum distance from the goal that counts as success
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, observation_dim: int, goal_dim: int, action_dim: int, tolerance: float = 0.1):
        self.tolerance = tolerance
        goal = spaces.Box(-np.inf, np.inf, (goal_dim,), np.float32)
        observation = spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32)
        self.observation_space = spaces.Dict(observation=observation, achieved_goal=goal, desired_goal=goal)
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self.goal = np.zeros(goal_dim, np.float32)

    def _start(self) -> None:
        """Draw the initial state and the goal of an episode."""
        raise NotImplementedError

    def _move(self, action: np.ndarray) -> None:
        """:param action: action of one step, in [-1, 1]"""
        raise NotImplementedError

    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        """:return: observation and achieved goal"""
        raise NotImplementedError

    def _has_failed(self) -> bool:
        """:return: whether the episode ends without success"""
        return False

    def _observe(self) -> Observation:
        observation, achieved = (np.asarray(part, np.float32) for part in self._state())
        return {"observation": observation, "achieved_goal": achieved, "desired_goal": self.goal.copy()}

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        """
        :param achieved_goal: one goal or several, shape (..., goal_dim)
        :param desired_goal: goals of the same shape
        :param info: not used
        :return: 0 for success, else -1, shape (...)
        """
        distance = np.linalg.norm(np.asarray(achieved_goal) - desired_goal, axis=-1)
        return (distance <= self.tolerance).astype(np.float32) - 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """
        :param seed: seed of the initial state and of the goal
        :param options: not used
        :return: first observation and empty info
        """
        super().reset(seed=seed)
        self._start()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        :param action: in [-1, 1]
        :return: observation, reward, terminated, truncated (always False), and the info with ``is_success``
        """
        self._move(np.clip(np.asarray(action, np.float64), -1.0, 1.0))
        observation, failed = self._observe(), self._has_failed()
        reward = float(self.compute_reward(observation["achieved_goal"], self.goal, {}))
        return observation, reward, failed, False, {"is_success": reward == 0.0 and not failed}


class ArmEnv(SparseGoalEnv):
    """
    Planar arm with inertia and two links of length 1. An action accelerates the joints. The elbow bends by at most 2.5 rad.

    :param whole: whether the goal is the position of the elbow and the tip (4-D), or of the tip alone (2-D)
    """

    ELBOW_LIMIT = 2.5  # rad

    def __init__(self, whole: bool):
        super().__init__(observation_dim=6, goal_dim=4 if whole else 2, action_dim=2)
        self.whole = whole
        self.angles, self.velocities = np.zeros(2), np.zeros(2)

    def _draw_angles(self) -> np.ndarray:
        return self.np_random.uniform([-np.pi, -self.ELBOW_LIMIT], [np.pi, self.ELBOW_LIMIT])

    def _places(self, angles: np.ndarray) -> np.ndarray:
        """:return: positions of the elbow and the tip, or of the tip alone"""
        directions = np.cumsum(angles)
        places = np.cumsum(np.stack([np.cos(directions), np.sin(directions)], axis=1), axis=0)
        return (places.ravel() if self.whole else places[-1]).astype(np.float32)

    def _start(self) -> None:
        self.angles, self.velocities = self._draw_angles(), np.zeros(2)
        self.goal = self._places(self._draw_angles())

    def _move(self, action: np.ndarray) -> None:
        self.velocities = 0.5 * self.velocities + action
        self.angles = self.angles + 0.1 * self.velocities
        self.angles[1] = np.clip(self.angles[1], -self.ELBOW_LIMIT, self.ELBOW_LIMIT)

    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        observation = np.concatenate([np.cos(self.angles), np.sin(self.angles), self.velocities])
        return observation, self._places(self.angles)


class Point3DEnv(SparseGoalEnv):
    """A point with inertia in the box [-1, 1]^3. Walls stop it. An action accelerates it to at most 0.2 per step."""

    def __init__(self) -> None:
        super().__init__(observation_dim=6, goal_dim=3, action_dim=3)
        self.position, self.velocity = np.zeros(3), np.zeros(3)

    def _start(self) -> None:
        self.position, self.velocity = self.np_random.uniform(-1.0, 1.0, 3), np.zeros(3)
        self.goal = self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)

    def _move(self, action: np.ndarray) -> None:
        self.velocity = 0.9 * self.velocity + 0.02 * action
        moved = self.position + self.velocity
        self.position = np.clip(moved, -1.0, 1.0)
        self.velocity[moved != self.position] = 0.0

    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([self.position, self.velocity]), self.position


class QuadrotorEnv(SparseGoalEnv):
    """
    A quadrotor in a vertical plane. An action sets the thrust of its two propellers; without an action, it hovers. It fails if
    it leaves the square [-2, 2]^2 or tilts by more than 1.2 rad. The goal is a position within [-1.5, 1.5]^2.
    """

    GRAVITY, TORQUE, TIME_STEP, N_PARTS = 9.81, 12.0, 0.04, 2
    START, SIDE, TILT_LIMIT = 1.5, 2.0, 1.2

    def __init__(self) -> None:
        super().__init__(observation_dim=7, goal_dim=2, action_dim=2, tolerance=0.25)
        self.position, self.velocity, self.tilt, self.spin = np.zeros(2), np.zeros(2), 0.0, 0.0

    def _start(self) -> None:
        self.position, self.goal = self.np_random.uniform(-self.START, self.START, (2, 2))
        self.goal = self.goal.astype(np.float32)
        self.velocity, self.tilt, self.spin = np.zeros(2), 0.0, 0.0

    def _move(self, action: np.ndarray) -> None:
        thrust, torque = self.GRAVITY * (1.0 + 0.5 * action.sum()), self.TORQUE * (action[0] - action[1])
        for _ in range(self.N_PARTS):
            up = np.array([-np.sin(self.tilt), np.cos(self.tilt)])
            self.velocity = self.velocity + self.TIME_STEP * (thrust * up - [0.0, self.GRAVITY])
            self.spin = 0.95 * (self.spin + self.TIME_STEP * torque)
            self.position = self.position + self.TIME_STEP * self.velocity
            self.tilt += self.TIME_STEP * self.spin

    def _has_failed(self) -> bool:
        return bool((np.abs(self.position) > self.SIDE).any() or abs(self.tilt) > self.TILT_LIMIT)

    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        observation = [*self.position, np.cos(self.tilt), np.sin(self.tilt), *self.velocity, self.spin]
        return np.array(observation), self.position


class RoomsEnv(SparseGoalEnv):
    """
    A point in four rooms of a square with sides of 10. Doors of width 1.2 connect them. An action moves the point by at most
    0.4 in each direction. It does not slide along walls: a part of a step that would end in a wall is left out.
    """

    SIDE, CENTRE, N_PARTS = 10.0, 5.0, 4
    DOORS, HALF_DOOR, HALF_WALL = (2.5, 7.5), 0.6, 0.3

    def __init__(self) -> None:
        super().__init__(observation_dim=2, goal_dim=2, action_dim=2, tolerance=0.5)
        self.position = np.zeros(2)

    def _is_wall(self, position: np.ndarray) -> bool:
        """:return: whether a position is in one of the two walls that cross at the centre, and not in a door"""
        in_door = np.abs(position[:, None] - self.DOORS).min(axis=1) < self.HALF_DOOR
        return bool(((np.abs(position - self.CENTRE) < self.HALF_WALL) & ~in_door[::-1]).any())

    def _draw(self) -> np.ndarray:
        while True:
            position = self.np_random.uniform(0.0, self.SIDE, 2)
            if not self._is_wall(position):
                return position

    def _start(self) -> None:
        self.position, self.goal = self._draw(), self._draw().astype(np.float32)

    def _move(self, action: np.ndarray) -> None:
        for _ in range(self.N_PARTS):
            moved = np.clip(self.position + 0.1 * action, 0.0, self.SIDE)
            if not self._is_wall(moved):
                self.position = moved

    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        return self.position, self.position


gym.register("StrangerArmTip-v0", entry_point=ArmEnv, kwargs={"whole": False}, max_episode_steps=50)
gym.register("StrangerArm-v0", entry_point=ArmEnv, kwargs={"whole": True}, max_episode_steps=50)
gym.register("StrangerPoint3D-v0", entry_point=Point3DEnv, max_episode_steps=60)
gym.register("StrangerQuadrotor-v0", entry_point=QuadrotorEnv, max_episode_steps=100)
gym.register("StrangerRooms-v0", entry_point=RoomsEnv, max_episode_steps=100)


def _car(env_id: str) -> gym.Env:
    # The goal is a position, up to the flag, where episodes end
    return GoalFromObservationWrapper(gym.make(env_id), goal_indices=[0], threshold=0.05, high=0.45)


def _inverted_pendulum(env_id: str) -> gym.Env:
    # The goal is a position of the cart. The pole falls if the cart does not balance it all the time
    env = gym.make(env_id, max_episode_steps=200)
    return GoalFromObservationWrapper(env, goal_indices=[0], threshold=0.1, low=-0.7, high=0.7, ends_at_success=False)


def _pendulum(env_id: str) -> gym.Env:
    # The goal is to be upright: cosine 1 and sine 0 of the angle
    return GoalFromObservationWrapper(gym.make(env_id), goal_indices=[0, 1], threshold=0.2, goals=[[1.0, 0.0]])


def _robotics(env_id: str) -> gym.Env:
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    return gym.make(env_id)


def _maze(env_id: str) -> gym.Env:
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    # Episodes end at their goal; the wrapper adds `is_success`, because the mazes only report `success`
    return add_success_info(gym.make(env_id, continuing_task=False))


def _panda(env_id: str) -> gym.Env:
    import panda_gym

    gym.register_envs(panda_gym)
    return gym.make(env_id)


def _observe_quickly(self: Any) -> Observation:
    """
    `observe` of highway-env without pandas, which takes three quarters of the time of a step. The numbers are the same.

    :param self: highway-env's KinematicsGoalObservation
    :return: observation, achieved and desired goal
    """
    if not self.observer_vehicle:
        return {key: np.zeros(len(self.features)) for key in ("observation", "achieved_goal", "desired_goal")}
    own, goal = self.observer_vehicle.to_dict(), self.observer_vehicle.goal.to_dict()
    achieved, desired = (np.array([place[key] for key in self.features], np.float64) / self.scales for place in (own, goal))
    return {"observation": achieved, "achieved_goal": achieved.copy(), "desired_goal": desired}


def _highway(env_id: str) -> gym.Env:
    import highway_env
    from highway_env.envs.common.observation import KinematicsGoalObservation

    gym.register_envs(highway_env)
    KinematicsGoalObservation.observe = _observe_quickly
    return gym.make(env_id)


MAKERS: dict[str, Callable[[str], gym.Env]] = {
    "StrangerArmTip-v0": gym.make,
    "StrangerArm-v0": gym.make,
    "StrangerPoint3D-v0": gym.make,
    "StrangerQuadrotor-v0": gym.make,
    "StrangerRooms-v0": gym.make,
    "InvertedPendulum-v5": _inverted_pendulum,
    "MountainCarContinuous-v0": _car,
    "Pendulum-v1": _pendulum,
    "FetchReach-v4": _robotics,
    "PandaReach-v3": _panda,
    "PointMaze_Open-v3": _maze,
    "PointMaze_UMaze-v3": _maze,
    "PointMaze_Medium-v3": _maze,
    "PointMaze_Large-v3": _maze,
    "parking-v0": _highway,
    "FetchPush-v4": _robotics,
    "AntMaze_UMaze-v4": _maze,
}


def make(env_id: str) -> Monitor:
    """
    :param env_id: one of `MAKERS`
    :return: the environment in a `Monitor`, with ``is_success`` in its info
    """
    if env_id not in MAKERS:
        raise ValueError(
            f"{env_id} is not an environment of this benchmark: add it to MAKERS, or use one of {', '.join(MAKERS)}."
        )
    return Monitor(MAKERS[env_id](env_id))


def episode_steps(env: gym.Env) -> int:
    """
    :param env: an environment from `make`
    :return: the maximum length of an episode
    """
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return env.spec.max_episode_steps
    # highway-env has its own time limit: a duration in seconds, and decisions per second
    config = env.unwrapped.config
    return math.ceil(config["duration"] * config["policy_frequency"])
