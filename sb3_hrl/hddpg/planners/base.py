"""Interface of planners. They use arrays and the reach of the low level, but no networks, normalisation or weights."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer


class Reach(Protocol):
    """Information about the low level for planners. Arrays are float32."""

    @property
    def horizon(self) -> float:
        """Number of environment steps up to which the low level's value is trusted."""

    @property
    def longest_edge(self) -> float:
        """Maximum number of environment steps between two consecutive waypoints."""

    @property
    def threshold(self) -> float:
        """Distance at which a subgoal counts as reached, in the units of the goal."""

    @property
    def goal_weights(self) -> np.ndarray:
        """Weight of each entry of the goal in this distance, shape (goal_dim,)."""

    @property
    def pace(self) -> float:
        """Weighted distance per environment step at which the radius of subgoals is covered within the horizon, in the units
        of the goal."""

    def steps(self, observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
        """
        :param observations: observations of several states near each start, shape (n, n_members, obs_dim)
        :param achieved: achieved goals of these states, shape (n, n_members, goal_dim)
        :param subgoals: shape (n, goal_dim)
        :return: environment steps to the subgoals from the low level's value (the mean over the members), infinite if the low
            level does not expect to arrive, shape (n,)
        """

    def steps_depend_on(self) -> list[np.ndarray]:
        """:return: all arrays that :meth:`steps` depends on in addition to its arguments, not copied"""

    def is_reached(self, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        """
        :param achieved_goal: shape (..., goal_dim)
        :param subgoal: shape (..., goal_dim)
        :return: whether subgoals are reached, shape (...,)
        """


class Planner(Protocol):
    """A planner, bound to its arrays: those of the learner's policy, or a worker's copy."""

    @property
    def is_ready(self) -> bool:
        """Whether it has been updated, so that it may know paths."""

    @property
    def places(self) -> np.ndarray:
        """Visited goals that are far apart from each other, shape (n_places, goal_dim)."""

    def update(self, buffer: SharedMemoryReplayBuffer, reach: Reach, goal_std: np.ndarray) -> dict[str, np.ndarray]:
        """
        :param buffer: replay buffer with the visited states
        :param reach: reach of the low level
        :param goal_std: standard deviation of goals, infinite for entries that do not count for success, shape (goal_dim,)
        :return: new values of the arrays; they may be shorter than those of the layout
        """

    def waypoints(
        self, reach: Reach, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, missed: np.ndarray | None
    ) -> np.ndarray:
        """
        :param reach: reach of the low level
        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param goal: desired goals, shape (n, goal_dim)
        :param missed: starts and subgoals of recently missed segments, shape (n, n_missed, 2, goal_dim), infinite for unused
            entries; ``None``: do not avoid them
        :return: first waypoints, shape (n, goal_dim); NaN if no path is known
        """


class PlannerConfig(Protocol):
    """Settings of a planner, a frozen dataclass. Add an entry to PLANNERS to use it in ``HierarchicalDDPG``."""

    @property
    def update_interval(self) -> int:
        """Number of environment steps between two updates."""

    @property
    def asks_values(self) -> bool:
        """Whether it uses numbers of steps from the low level's value."""

    def layout(self, observation_dim: int, goal_dim: int) -> dict[str, tuple[int, ...]]:
        """
        :param observation_dim: length of an observation
        :param goal_dim: length of a goal
        :return: shapes of the planner's arrays, which are saved with the policy and sent to workers
        """

    def when_idle(self) -> tuple[str, str]:
        """
        :return: reason why it may rarely know a path, and the cure, for the doctor
        """

    def bind(self, arrays: Mapping[str, np.ndarray]) -> Planner:
        """
        :param arrays: arrays of the layout, float32; zeros before the first update; not copied
        :return: a planner
        """
