"""What a policy takes from the replay buffer beside gradients: input statistics, the subgoals' bounds, the planner."""

import numpy as np

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.goals import EnvGoalTask
from sb3_hrl.common.subgoals import SubgoalBounds
from sb3_hrl.common.twin import Attributes
from sb3_hrl.hddpg.horizon import N_RECENT, calibrated_horizon
from sb3_hrl.hddpg.policies import HierarchicalPolicy
from sb3_hrl.hddpg.subgoal_bounds import fit_bounds, initial_bounds

# Input statistics are refreshed once so many new steps are there; once per so many steps the environment is asked again what
# success is, and the subgoals' bounds are fitted
NORMALIZER_INTERVAL = 100
BOUNDS_INTERVAL = 1_000
HORIZON_INTERVAL = 500


class Statistics:
    """Keeps count of the steps of a buffer that were taken in. It is saved with the algorithm."""

    def __init__(self) -> None:
        self._has_bounds = False
        self._normalized = np.zeros(0, dtype=np.int64)  # how many steps of each shard the normalisers have seen
        self._n_bounds = 0  # steps of the buffer when the bounds were fitted
        self._n_planned = 0  # steps of the buffer when the planner was updated
        self._n_calibrated = 0  # steps of the buffer when the horizon was calibrated

    def begin(self, policy: HierarchicalPolicy, goals: np.ndarray, threshold: float) -> None:
        """
        :param policy: gets the threshold, and its first bounds
        :param goals: the first goals achieved and desired, shape (n, goal_dim)
        :param threshold: distance at which a subgoal counts as reached
        """
        policy.subgoal_threshold.fill_(threshold)
        if not self._has_bounds:
            self._has_bounds = True
            policy.set_bounds(initial_bounds(policy.config.subgoals, goals, threshold, policy.goal_space))

    def update(
        self,
        policy: HierarchicalPolicy,
        buffer: SharedMemoryReplayBuffer,
        task: EnvGoalTask,
        attributes: Attributes | None = None,
    ) -> None:
        """
        Take in new steps, as far as it is time to.

        :param policy: learns from them
        :param buffer: has them
        :param task: the environment's goals
        :param attributes: of the environment, see :meth:`~sb3_hrl.common.goals.EnvGoalTask.ask_again`
        """
        heads = buffer.shards.head.copy()
        n_added = int(heads.sum())
        # A buffer that was not saved with the model starts from 0
        for name in ("_n_bounds", "_n_planned", "_n_calibrated"):
            setattr(self, name, min(getattr(self, name), n_added))
        if policy.normalize_inputs:
            self._normalize(policy, buffer, heads)
        if n_added - self._n_bounds >= BOUNDS_INTERVAL or self._n_bounds == 0:
            task.ask_again(attributes)
            task.check_paid(buffer.recent(BOUNDS_INTERVAL, ("next_achieved_goal", "desired_goal", "reward")))
            policy.subgoal_threshold.fill_(task.threshold)
            bounds = SubgoalBounds(*(bound.cpu().numpy() for bound in policy.bounds))
            n_steps = round(policy.numpy_policy().horizon)
            policy.set_bounds(fit_bounds(policy.config.subgoals, bounds, buffer, task.threshold, n_steps))
            self._n_bounds = n_added
        is_calibrated = policy.config.subgoals.steps is None and policy.config.asks_values
        if is_calibrated and n_added - self._n_calibrated >= HORIZON_INTERVAL:
            horizon = calibrated_horizon(buffer.recent_segments(N_RECENT), policy.numpy_policy().horizon)
            policy.horizon.fill_(horizon)
            self._n_calibrated = n_added
        planner = policy.config.planner
        if planner is not None and n_added - self._n_planned >= planner.update_interval:
            policy.update_planner(buffer)
            self._n_planned = n_added

    def _normalize(self, policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, heads: np.ndarray) -> None:
        if len(self._normalized) != len(heads):
            self._normalized = np.zeros_like(heads)
        self._normalized = np.minimum(self._normalized, heads)
        # Each shard has its own pace: every step is taken in once
        n_new = heads - self._normalized
        if n_new.sum() < (NORMALIZER_INTERVAL if self._normalized.any() else 1):
            return
        for steps in buffer.between(self._normalized, heads, ("observation", "next_achieved_goal", "desired_goal")):
            goals = np.concatenate([steps["next_achieved_goal"], steps["desired_goal"]])
            policy.update_moments(steps["observation"], goals)
        self._normalized = heads
