"""
Segments, the steps of the high level: their state in each environment, when they end, and how. Used in training, in
``predict``, in evaluation and for videos.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from stable_baselines3.common.logger import Logger

from sb3_hrl.common.subgoals import N_MISSED, SegmentEnd, is_missed
from sb3_hrl.common.type_aliases import SubgoalState

# As plain integers, for speed
_NONE, _REACHED, _OUT_OF_STEPS, _EPISODE_OVER = (int(end) for end in SegmentEnd)


class Segments:
    """
    The current segments of several environments. A segment ends when its subgoal is reached, when its maximum number of
    environment steps is reached, or with the episode.

    :param n_envs: number of environments; none of them has a subgoal yet
    :param goal_dim: length of a goal
    """

    def __init__(self, n_envs: int, goal_dim: int):
        self.needs_subgoal = list(range(n_envs))
        self.subgoals = np.zeros((n_envs, goal_dim), dtype=np.float32)
        self.steps = [0] * n_envs
        self.max_steps = [1] * n_envs
        self._starts = np.zeros((n_envs, goal_dim), dtype=np.float32)
        # Starts and subgoals of the last segments of the episode, infinite for those that were not missed
        self.missed = np.full((n_envs, N_MISSED, 2, goal_dim), np.inf, dtype=np.float32)
        # Python numbers: for a few environments they are faster than arrays
        self._targets: list[list[float]] = self.subgoals.tolist()

    @classmethod
    def from_state(cls, state: SubgoalState) -> "Segments":
        """
        :param state: a previous value of :attr:`state`; its arrays are copied
        :return: the segments, all with a subgoal
        """
        segments = cls(*state.subgoals.shape)
        segments.needs_subgoal = []
        segments.steps, segments.max_steps = np.asarray(state.steps).tolist(), np.asarray(state.max_steps).tolist()
        segments.missed[:] = state.missed
        segments._begin(list(range(len(segments.steps))), np.asarray(state.subgoals), np.asarray(state.starts))
        return segments

    @property
    def state(self) -> SubgoalState:
        """State of the segments as arrays; all environments have a subgoal."""
        steps, max_steps = np.array(self.steps, dtype=np.int64), np.array(self.max_steps, dtype=np.int64)
        return SubgoalState(self.subgoals, steps, self._starts, max_steps, self.missed)

    def _begin(self, envs: list[int], subgoals: np.ndarray, starts: np.ndarray) -> None:
        self.subgoals[envs], self._starts[envs] = subgoals, starts
        for env, subgoal in zip(envs, subgoals.tolist(), strict=True):
            self._targets[env] = subgoal

    def start(self, subgoals: np.ndarray, achieved_goals: np.ndarray, max_steps: np.ndarray) -> None:
        """
        Start a segment in the environments that need a subgoal.

        :param subgoals: subgoals for these environments, float32, shape (n, goal_dim)
        :param achieved_goals: achieved goals at the start of the segments, float32, shape (n, goal_dim)
        :param max_steps: maximum number of environment steps of the segments, shape (n,)
        """
        self._begin(self.needs_subgoal, subgoals, achieved_goals)
        for env, most in zip(self.needs_subgoal, max_steps.tolist(), strict=True):
            self.steps[env], self.max_steps[env] = 0, most
        self.needs_subgoal = []

    def advance(
        self,
        achieved_goals: np.ndarray,
        episode_ends: Sequence[bool],
        threshold: float,
        weights: Sequence[float] | None = None,
    ) -> np.ndarray:
        """
        Process one environment step.

        :param achieved_goals: current achieved goals, float32, shape (n_envs, goal_dim)
        :param episode_ends: whether the episodes ended, shape (n_envs,)
        :param threshold: maximum distance at which a subgoal counts as reached, in the units of the goal
        :param weights: weight of each entry of the goal in the distance, shape (goal_dim,); ``None`` if all are 1
        :return: how the segments ended, each a :class:`~sb3_hrl.common.subgoals.SegmentEnd`, shape (n_envs,)
        """
        ends: list[int] = [_NONE] * len(self._targets)
        rows = zip(achieved_goals.tolist(), self._targets, episode_ends, strict=True)
        for env, (achieved, target, episode_over) in enumerate(rows):
            self.steps[env] += 1
            distance = _distance(achieved, target, weights)
            if distance <= threshold:
                ends[env] = _REACHED
            elif self.steps[env] >= self.max_steps[env]:
                ends[env] = _OUT_OF_STEPS
            elif episode_over:
                ends[env] = _EPISODE_OVER
            else:
                continue
            self.needs_subgoal.append(env)
            if episode_over:
                self.missed[env] = np.inf
                continue
            way = _distance(self._starts[env].tolist(), target, weights)
            missed = is_missed(ends[env] == _REACHED, distance, way)
            self.missed[env, :-1] = self.missed[env, 1:]
            self.missed[env, -1] = (self._starts[env], target) if missed else np.inf
        return np.array(ends, dtype=np.int8)


def _distance(start: Sequence[float], end: Sequence[float], weights: Sequence[float] | None) -> float:
    """:return: weighted Euclidean distance"""
    if weights is None:
        return math.dist(start, end)
    return math.hypot(*(weight * (a - b) for weight, a, b in zip(weights, start, end, strict=True)))


class SegmentStatistics:
    """
    Statistics of the segments since the last log, as sums. Segments that start at the goal are not counted: the agent stays
    there, so they tell nothing about subgoals.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(len(self._NAMES), dtype=np.float64)

    _NAMES = (
        *("issued", "reached_at_issue", "goals", "waypoints", "replaced"),
        *("ended", "reached", "steps", "predicted", "predicted_steps", "needed_steps"),
    )

    def count_started(self, is_at_goal: np.ndarray, **kinds: np.ndarray) -> None:
        """
        :param is_at_goal: whether segments start at the goal, booleans of shape (n,)
        :param kinds: booleans of shape (n,): ``reached_at_issue``, subgoals that are already reached when they are issued;
            ``goals``, subgoals that are the goal itself; ``waypoints``, subgoals of the planner; ``replaced``, subgoals that
            replace an actor's proposal, because it was already reached or recently missed
        """
        self._add("issued", (~is_at_goal).sum())
        for name, is_kind in kinds.items():
            self._add(name, (is_kind & ~is_at_goal).sum())

    def count_ended(self, is_at_goal: np.ndarray, ends: np.ndarray, steps: Sequence[int], predicted_steps: np.ndarray) -> None:
        """
        :param is_at_goal: whether segments started at the goal, booleans of shape (n_envs,)
        :param ends: how segments ended, see :meth:`Segments.advance`, shape (n_envs,)
        :param steps: environment steps of each segment so far, shape (n_envs,)
        :param predicted_steps: predicted environment steps to its subgoal, infinite or NaN without a prediction, shape
            (n_envs,)
        """
        for env in np.flatnonzero(ends):
            if is_at_goal[env]:
                continue
            is_reached, n_steps = ends[env] == _REACHED, steps[int(env)]
            for name, value in (("ended", 1), ("reached", is_reached), ("steps", n_steps)):
                self._add(name, value)
            if is_reached and math.isfinite(predicted_steps[env]):
                for name, value in (("predicted", 1), ("predicted_steps", predicted_steps[env]), ("needed_steps", n_steps)):
                    self._add(name, value)

    def _add(self, name: str, value: float) -> None:
        self._sums[self._NAMES.index(name)] += value

    def take(self) -> list[float]:
        """:return: sums over the segments since the last call or log, as arguments for :meth:`add` of the learner's
        statistics"""
        sums: list[float] = self._sums.tolist()
        self._sums[:] = 0
        return sums

    def add(self, sums: Sequence[float]) -> None:
        """
        :param sums: sums over segments of a worker, see :meth:`take`
        """
        self._sums += sums

    def log(self, logger: Logger) -> None:
        """
        Record means over the segments since the last call.

        :param logger: the logger
        """
        sums = dict(zip(self._NAMES, self.take(), strict=True))
        means = {
            "ended": {"rollout/subgoal_success_rate": "reached", "rollout/segment_length": "steps"},
            "issued": {
                "rollout/subgoal_reached_at_issue": "reached_at_issue",
                "rollout/subgoal_is_goal": "goals",
                "rollout/subgoal_planned": "waypoints",
                "rollout/subgoal_replaced": "replaced",
            },
            "predicted": {
                "rollout/subgoal_predicted_steps": "predicted_steps",
                "rollout/subgoal_needed_steps": "needed_steps",
            },
        }
        record_means(logger, sums, means)


def record_means(logger: Logger, sums: Mapping[str, float], means: Mapping[str, Mapping[str, str]]) -> None:
    """
    Record means, except those over nothing.

    :param logger: the logger
    :param sums: sums and numbers of summands by name
    :param means: by the name of a number of summands: keys of the log, and the names of their sums
    """
    for count, names in means.items():
        for key, name in names.items():
            if sums[count] > 0:
                logger.record(key, sums[name] / sums[count])
