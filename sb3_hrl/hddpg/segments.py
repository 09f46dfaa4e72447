"""
Segments, the steps of the high level: where each environment stands in its own, when it ends, and how. Training, ``predict``,
evaluation and video all ask here.
"""

import math
from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.logger import Logger

from sb3_hrl.common.subgoals import N_MISSED, SegmentEnd, is_missed
from sb3_hrl.common.type_aliases import SubgoalState

# Plain numbers, for speed
_NONE, _REACHED, _OUT_OF_STEPS, _EPISODE_OVER = (int(end) for end in SegmentEnd)


class Segments:
    """
    The segments of environments side by side. A segment ends when its subgoal is reached, after ``max_steps`` environment
    steps, or with the episode.

    :param n_envs: number of environments; none of them has a subgoal yet
    :param goal_dim: length of a goal
    """

    def __init__(self, n_envs: int, goal_dim: int):
        self.needs_subgoal = list(range(n_envs))
        self.subgoals = np.zeros((n_envs, goal_dim), dtype=np.float32)
        self.steps = [0] * n_envs
        self._starts = np.zeros((n_envs, goal_dim), dtype=np.float32)
        # Starts and subgoals of the last segments of the episode, infinite but for those that missed
        self.missed = np.full((n_envs, N_MISSED, 2, goal_dim), np.inf, dtype=np.float32)
        # Plain numbers: for a few environments they are faster than arrays
        self._targets: list[list[float]] = self.subgoals.tolist()
        self._initial_distances = [0.0] * n_envs

    @classmethod
    def from_state(cls, state: SubgoalState) -> "Segments":
        """
        :param state: what :attr:`state` was; its arrays are copied
        :return: the segments, all with a subgoal
        """
        segments = cls(*state.subgoals.shape)
        segments.needs_subgoal = []
        segments.steps = np.asarray(state.steps).tolist()
        segments.missed[:] = state.missed
        segments._begin(list(range(len(segments.steps))), np.asarray(state.subgoals), np.asarray(state.starts))
        return segments

    @property
    def state(self) -> SubgoalState:
        """Where the environments stand, as arrays; all have a subgoal."""
        return SubgoalState(self.subgoals, np.array(self.steps, dtype=np.int64), self._starts, self.missed)

    def _begin(self, envs: list[int], subgoals: np.ndarray, starts: np.ndarray) -> None:
        self.subgoals[envs], self._starts[envs] = subgoals, starts
        distances = np.sqrt(np.square(subgoals - starts).sum(axis=1)).tolist()
        for env, subgoal, distance in zip(envs, subgoals.tolist(), distances, strict=True):
            self._targets[env], self._initial_distances[env] = subgoal, distance

    def start(self, subgoals: np.ndarray, achieved_goals: np.ndarray) -> None:
        """
        Begin a segment in the environments that need a subgoal.

        :param subgoals: for these, float32, shape (n, goal_dim)
        :param achieved_goals: achieved where the segments begin, float32, shape (n, goal_dim)
        """
        self._begin(self.needs_subgoal, subgoals, achieved_goals)
        for env in self.needs_subgoal:
            self.steps[env] = 0
        self.needs_subgoal = []

    def advance(
        self, achieved_goals: np.ndarray, episode_ends: Sequence[bool], max_steps: int, threshold: float
    ) -> np.ndarray:
        """
        Take in one environment step.

        :param achieved_goals: goals achieved now, float32, shape (n_envs, goal_dim)
        :param episode_ends: whether the episodes ended, shape (n_envs,)
        :param max_steps: environment steps after which a segment ends
        :param threshold: Euclidean distance at which a subgoal is reached, in the units of the goal
        :return: how the segments ended, each a :class:`~sb3_hrl.common.subgoals.SegmentEnd`, shape (n_envs,)
        """
        ends: list[int] = [_NONE] * len(self._targets)
        rows = zip(achieved_goals.tolist(), self._targets, episode_ends, strict=True)
        for env, (achieved, target, episode_over) in enumerate(rows):
            self.steps[env] += 1
            distance = math.dist(achieved, target)
            if distance <= threshold:
                ends[env] = _REACHED
            elif self.steps[env] >= max_steps:
                ends[env] = _OUT_OF_STEPS
            elif episode_over:
                ends[env] = _EPISODE_OVER
            else:
                continue
            self.needs_subgoal.append(env)
            if episode_over:
                self.missed[env] = np.inf
                continue
            missed = is_missed(ends[env] == _REACHED, distance, self._initial_distances[env])
            self.missed[env, :-1] = self.missed[env, 1:]
            self.missed[env, -1] = (self._starts[env], target) if missed else np.inf
        return np.array(ends, dtype=np.int8)


class SegmentStatistics:
    """What segments were like since the last log, as sums over them."""

    def __init__(self) -> None:
        self._sums = np.zeros(len(self._NAMES), dtype=np.int64)

    _NAMES = ("issued", "issued_reached", "replaced", "planned", "ended", "reached", "steps")

    def count_started(self, n: int, n_reached: int, n_replaced: int, n_planned: int) -> None:
        """
        :param n: segments that begin
        :param n_reached: of these: subgoals that are reached before the first step
        :param n_replaced: subgoals in place of a proposal of the actor that was reached or missed
        :param n_planned: subgoals that are waypoints of the planner
        """
        self._sums[:4] += (n, n_reached, n_replaced, n_planned)

    def count_ended(self, ends: np.ndarray, steps: Sequence[int]) -> None:
        """
        :param ends: how segments ended, see :meth:`Segments.advance`, shape (n_envs,)
        :param steps: environment steps of each segment so far, shape (n_envs,)
        """
        for env in np.flatnonzero(ends):
            self._sums[4:] += (1, int(ends[env] == _REACHED), steps[int(env)])

    def take(self) -> list[int]:
        """:return: sums over the segments since the last call or log, for :meth:`add` of the learner's"""
        sums = self._sums.tolist()
        self._sums[:] = 0
        return sums

    def add(self, sums: Sequence[int]) -> None:
        """
        :param sums: over segments from elsewhere, see :meth:`take`
        """
        self._sums += sums

    def log(self, logger: Logger) -> None:
        """
        Record means over the segments since the last call.

        :param logger: where to
        """
        sums = dict(zip(self._NAMES, self.take(), strict=True))
        if sums["ended"] > 0:
            logger.record("rollout/subgoal_success_rate", sums["reached"] / sums["ended"])
            logger.record("rollout/segment_length", sums["steps"] / sums["ended"])
        if sums["issued"] > 0:
            logger.record("rollout/subgoal_reached_at_issue", sums["issued_reached"] / sums["issued"])
            logger.record("rollout/subgoal_replaced", sums["replaced"] / sums["issued"])
            logger.record("rollout/subgoal_planned", sums["planned"] / sums["issued"])
