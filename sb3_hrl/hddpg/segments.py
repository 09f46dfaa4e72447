"""Where each training environment stands in its segment, and what segments were like since the last log."""

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
        self.steps_left = np.zeros(n_envs, dtype=np.int64)
        self._length = np.zeros(n_envs, dtype=np.int64)
        self._statistics = np.zeros(6, dtype=np.int64)

    def start(
        self,
        envs: np.ndarray,
        subgoals: np.ndarray,
        tested: np.ndarray,
        subgoal_steps: int,
        already_reached: int,
        replaced: int,
    ) -> None:
        """
        Begin segments.

        :param envs: numbers of the environments, shape (n,)
        :param subgoals: their subgoals, shape (n, goal_dim)
        :param tested: which of them are subgoal tests, shape (n,)
        :param subgoal_steps: environment steps at most
        :param already_reached: how many of the subgoals are reached from the outset
        :param replaced: how many of the actor's proposals were replaced since they were
        """
        self.subgoals[envs] = subgoals
        self.tested[envs] = tested
        self.steps_left[envs] = subgoal_steps
        self._length[envs] = 0
        self._statistics[[_ISSUED, _ISSUED_REACHED, _REPLACED]] += (len(envs), already_reached, replaced)

    def step(self, reached: np.ndarray, dones: np.ndarray) -> np.ndarray:
        """
        Take in one environment step.

        :param reached: whether the subgoals are reached now, shape (n_envs,)
        :param dones: whether the episodes ended, shape (n_envs,)
        :return: whether the segments end here, shape (n_envs,)
        """
        self.steps_left -= 1
        self._length += 1
        ended = reached | dones | (self.steps_left <= 0)
        if ended.any():
            self.steps_left[ended] = 0
            sums = (int(ended.sum()), int((ended & reached).sum()), int(self._length[ended].sum()))
            self._statistics[[_ENDED, _REACHED, _STEPS]] += sums
        return ended

    def take_statistics(self) -> np.ndarray:
        """:return: sums over the segments since the last call or log, for :meth:`add_statistics` of another tracker"""
        statistics, self._statistics = self._statistics, np.zeros(6, dtype=np.int64)
        return statistics

    def add_statistics(self, statistics: np.ndarray) -> None:
        """
        :param statistics: sums over segments from elsewhere
        """
        self._statistics += statistics

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
