"""Where each training environment stands in its segment, and what segments were like since the last log."""

import math
from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.logger import Logger

# Sums over segments: issued, reached at issue, replaced, ended, reached, steps of those that ended
_ISSUED, _ISSUED_REACHED, _REPLACED, _ENDED, _REACHED, _STEPS = range(6)


class SegmentTracker:
    """
    The segments that the training environments are in. A segment is one step of the high level: it ends when its subgoal is
    reached, after ``subgoal_steps`` environment steps, or with the episode.

    :param n_envs: number of environments
    :param goal_dim: length of a goal
    """

    def __init__(self, n_envs: int, goal_dim: int):
        self.subgoals = np.zeros((n_envs, goal_dim), dtype=np.float32)
        self.tested = np.zeros(n_envs, dtype=bool)
        self.over = list(range(n_envs))  # environments that are without a segment
        # Plain numbers: for a few environments they are faster than arrays
        self._targets: list[list[float]] = self.subgoals.tolist()
        self._steps_left = [0] * n_envs
        self._subgoal_steps = 0
        self._statistics = [0] * 6

    def start(self, subgoals: np.ndarray, tested: np.ndarray, subgoal_steps: int, already_reached: int, replaced: int) -> None:
        """
        Begin a segment in the environments that are without one.

        :param subgoals: their subgoals, shape (n, goal_dim)
        :param tested: which of them are subgoal tests, shape (n,)
        :param subgoal_steps: environment steps at most
        :param already_reached: how many of the subgoals are reached from the outset
        :param replaced: how many of the actor's proposals were replaced since they were
        """
        self._subgoal_steps = subgoal_steps
        self.subgoals[self.over] = subgoals
        self.tested[self.over] = tested
        for env, subgoal in zip(self.over, subgoals.tolist(), strict=True):
            self._targets[env], self._steps_left[env] = subgoal, subgoal_steps
        self._statistics[_ISSUED] += len(self.over)
        self._statistics[_ISSUED_REACHED] += already_reached
        self._statistics[_REPLACED] += replaced
        self.over = []

    def step(self, achieved_goals: np.ndarray, threshold: float, dones: Sequence[bool]) -> np.ndarray:
        """
        Take in one environment step.

        :param achieved_goals: goals achieved now, shape (n_envs, goal_dim)
        :param threshold: distance at which a subgoal counts as reached
        :param dones: whether the episodes ended, shape (n_envs,)
        :return: whether the segments end here, shape (n_envs,)
        """
        ended = np.zeros(len(self._targets), dtype=bool)
        for env, (achieved, target, done) in enumerate(zip(achieved_goals.tolist(), self._targets, dones, strict=True)):
            self._steps_left[env] -= 1
            reached = math.dist(achieved, target) <= threshold
            if reached or done or self._steps_left[env] <= 0:
                ended[env] = True
                self.over.append(env)
                self._statistics[_ENDED] += 1
                self._statistics[_REACHED] += reached
                self._statistics[_STEPS] += self._subgoal_steps - self._steps_left[env]
        return ended

    def take_statistics(self) -> list[int]:
        """:return: sums over the segments since the last call or log, for :meth:`add_statistics` of another tracker"""
        statistics, self._statistics = self._statistics, [0] * 6
        return statistics

    def add_statistics(self, statistics: Sequence[int]) -> None:
        """
        :param statistics: sums over segments from elsewhere
        """
        self._statistics = [a + b for a, b in zip(self._statistics, statistics, strict=True)]

    def log(self, logger: Logger) -> None:
        """
        Record means over the segments since the last call.

        :param logger: where to
        """
        sums = self.take_statistics()
        if sums[_ENDED] > 0:
            logger.record("rollout/subgoal_success_rate", sums[_REACHED] / sums[_ENDED])
            logger.record("rollout/segment_length", sums[_STEPS] / sums[_ENDED])
        if sums[_ISSUED] > 0:
            logger.record("rollout/subgoal_reached_at_issue", sums[_ISSUED_REACHED] / sums[_ISSUED])
            logger.record("rollout/subgoal_replaced", sums[_REPLACED] / sums[_ISSUED])
