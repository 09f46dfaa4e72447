"""What a planner is. It knows arrays and the reach of the low level, but no network, normaliser or copy of weights."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer


class Reach(Protocol):
    """What a planner may ask about the low level. Arrays are float32."""

    @property
    def horizon(self) -> float:
        """Environment steps up to which the low level's value is believed."""

    @property
    def longest_edge(self) -> float:
        """Environment steps from one waypoint to the next at most."""

    @property
    def pace(self) -> float:
        """Distance per environment step, in the units of the goal, that covers the subgoals' radius within the horizon."""

    def steps(self, observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
        """
        :param observations: of some states around each start, shape (n, n_members, obs_dim)
        :param achieved: goals achieved in these, shape (n, n_members, goal_dim)
        :param subgoals: shape (n, goal_dim)
        :return: environment steps to the subgoals by the low level's value (the mean over the members), infinite where it does
            not believe that it gets there, shape (n,)
        """

    def is_reached(self, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        """
        :param achieved_goal: shape (..., goal_dim)
        :param subgoal: shape (..., goal_dim)
        :return: whether subgoals are reached, shape (...,)
        """


class Planner(Protocol):
    """A planner, bound to the arrays that it has made: those of the learner's policy, or a worker's copy."""

    @property
    def is_ready(self) -> bool:
        """Whether it has been updated, so that it may know ways."""

    @property
    def places(self) -> np.ndarray:
        """Visited goals that lie far apart, shape (n_places, goal_dim)."""

    def update(self, buffer: SharedMemoryReplayBuffer, reach: Reach, goal_std: np.ndarray) -> dict[str, np.ndarray]:
        """
        :param buffer: what was visited
        :param reach: of the low level
        :param goal_std: standard deviation of goals, shape (goal_dim,)
        :return: new arrays, to be bound in place of these; they may be shorter than those of the layout
        """

    def waypoints(
        self, reach: Reach, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, missed: np.ndarray | None
    ) -> np.ndarray:
        """
        :param reach: of the low level
        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param goal: desired goals, shape (n, goal_dim)
        :param missed: starts and subgoals of recent segments that missed, shape (n, n_missed, 2, goal_dim), infinite for the
            others; ``None``: not to be avoided
        :return: where to go first, shape (n, goal_dim); NaN where no way is known
        """


class PlannerConfig(Protocol):
    """Settings of a planner, a frozen dataclass; an entry in PLANNERS makes it known to ``HierarchicalDDPG``."""

    @property
    def update_interval(self) -> int:
        """Environment steps between two updates."""

    @property
    def asks_values(self) -> bool:
        """Whether it asks for steps by the low level's value."""

    def layout(self, observation_dim: int, goal_dim: int) -> dict[str, tuple[int, ...]]:
        """
        :param observation_dim: length of an observation
        :param goal_dim: length of a goal
        :return: shapes of the arrays that the planner makes, that are saved with the policy and sent to workers
        """

    def when_idle(self, max_steps: int) -> tuple[str, str]:
        """
        :param max_steps: environment steps per segment at most
        :return: why it may hardly ever know a way, and what to set then, for the doctor
        """

    def bind(self, arrays: Mapping[str, np.ndarray]) -> Planner:
        """
        :param arrays: as of the layout, float32; zeros before the first update; looked at, not copied
        :return: a planner
        """
