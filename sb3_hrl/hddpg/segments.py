"""Where each training environment stands in its segment, and what segments were like since the last log."""

import math
from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.logger import Logger

from sb3_hrl.common.subgoals import is_missed
from sb3_hrl.hddpg.acting import N_MISSED, Plan, SegmentRules

# Sums over segments: issued, reached at issue, replaced, planned over landmarks, ended, reached, steps of those that ended
_ISSUED, _ISSUED_REACHED, _REPLACED, _PLANNED, _ENDED, _REACHED, _STEPS = range(7)


class SegmentTracker:
    """
    The segments that the training environments are in. A segment is one step of the high level: it ends when its subgoal is
    reached, after ``subgoal_steps`` environment steps, or with the episode.

    :param n_envs: number of environments
    :param goal_dim: length of a goal
    """

    def __init__(self, n_envs: int, goal_dim: int):
        self._rules = SegmentRules(1)
        self._threshold = 0.0
        self.subgoals = np.zeros((n_envs, goal_dim), dtype=np.float32)
        self.tested = np.zeros(n_envs, dtype=bool)
        self.over = list(range(n_envs))  # environments that are without a segment
        # Plain numbers: for a few environments they are faster than arrays
        self._targets: list[list[float]] = self.subgoals.tolist()
        # Starts and subgoals of the last segments of the episode, infinite but for those that missed
        self.missed = np.full((n_envs, N_MISSED, 2, goal_dim), np.inf, dtype=np.float32)
        self._starts = np.zeros((n_envs, goal_dim), dtype=np.float32)
        self._start_distances = [0.0] * n_envs
        self._held = [0] * n_envs
        self._steps = [0] * n_envs
        self._statistics = [0] * 7

    def start(self, plan: Plan, starts: np.ndarray, tested: np.ndarray, rules: SegmentRules, threshold: float) -> None:
        """
        Begin a segment in the environments that are without one.

        :param plan: their subgoals
        :param starts: goals achieved where they begin, shape (n, goal_dim)
        :param tested: which of them are subgoal tests, shape (n,)
        :param rules: when segments end
        :param threshold: distance at which a subgoal is at hand
        """
        self._rules, self._threshold = rules, threshold
        self.subgoals[self.over] = plan.subgoals
        self.tested[self.over] = tested
        self._starts[self.over] = starts
        for env, subgoal, distance in zip(self.over, plan.subgoals.tolist(), plan.distances.tolist(), strict=True):
            self._targets[env], self._start_distances[env] = subgoal, distance
            self._held[env] = self._steps[env] = 0
        self._statistics[_ISSUED] += len(self.over)
        self._statistics[_ISSUED_REACHED] += int((plan.distances <= threshold).sum())
        self._statistics[_REPLACED] += int(plan.replaced.sum())
        self._statistics[_PLANNED] += int(plan.planned.sum())
        self.over = []

    def step(self, achieved_goals: np.ndarray, dones: Sequence[bool]) -> np.ndarray:
        """
        Take in one environment step.

        :param achieved_goals: goals achieved now, shape (n_envs, goal_dim)
        :param dones: whether the episodes ended, shape (n_envs,)
        :return: whether the segments end here, shape (n_envs,)
        """
        rules, threshold = self._rules, self._threshold
        ended = np.zeros(len(self._targets), dtype=bool)
        for env, (achieved, target, done) in enumerate(zip(achieved_goals.tolist(), self._targets, dones, strict=True)):
            self._steps[env] += 1
            distance = math.dist(achieved, target)
            self._held[env] = self._held[env] + 1 if distance <= threshold else 0
            reached = self._held[env] >= rules.hold_steps
            if (reached and self._steps[env] >= rules.min_steps) or done or self._steps[env] >= rules.max_steps:
                ended[env] = True
                self.over.append(env)
                self._statistics[_ENDED] += 1
                self._statistics[_REACHED] += reached
                self._statistics[_STEPS] += self._steps[env]
                if done:
                    self.missed[env] = np.inf
                else:
                    missed = is_missed(reached, distance, self._start_distances[env])
                    self.missed[env, :-1] = self.missed[env, 1:]
                    self.missed[env, -1] = (self._starts[env], target) if missed else np.inf
        return ended

    def take_statistics(self) -> list[int]:
        """:return: sums over the segments since the last call or log, for :meth:`add_statistics` of another tracker"""
        statistics, self._statistics = self._statistics, [0] * 7
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
            logger.record("rollout/subgoal_planned", sums[_PLANNED] / sums[_ISSUED])
