"""Where each training environment stands in its segment, and what segments were like since the last log."""

import numpy as np
from stable_baselines3.common.logger import Logger


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
        self._clear()

    def _clear(self) -> None:
        self._n_issued = self._n_issued_reached = self._n_replaced = 0
        self._n_ended = self._n_reached = self._n_steps = 0

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
        self._n_issued += len(envs)
        self._n_issued_reached += already_reached
        self._n_replaced += replaced

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
        self.steps_left[ended] = 0
        self._n_ended += int(ended.sum())
        self._n_reached += int((ended & reached).sum())
        self._n_steps += int(self._length[ended].sum())
        return ended

    def log(self, logger: Logger) -> None:
        """
        Record means over the segments since the last call.

        :param logger: where to
        """
        if self._n_ended > 0:
            logger.record("rollout/subgoal_success_rate", self._n_reached / self._n_ended)
            logger.record("rollout/segment_length", self._n_steps / self._n_ended)
        if self._n_issued > 0:
            logger.record("rollout/subgoal_reached_at_issue", self._n_issued_reached / self._n_issued)
            logger.record("rollout/subgoal_replaced", self._n_replaced / self._n_issued)
        self._clear()
