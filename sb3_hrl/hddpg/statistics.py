"""Statistics that a policy computes from the replay buffer: input normalisation, bounds of subgoals, the planner's arrays."""

import numpy as np

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.env_goals import EnvGoalTask
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.subgoals import SubgoalBounds
from sb3_hrl.common.twin import Attributes
from sb3_hrl.hddpg.horizon import N_RECENT, calibrated_horizon
from sb3_hrl.hddpg.policies import HierarchicalPolicy
from sb3_hrl.hddpg.staying import N_STEPS, leaves_its_goals
from sb3_hrl.hddpg.subgoal_bounds import fit_bounds, initial_bounds

# Number of new steps after which the statistics of inputs are updated; after which the definition of success is checked again
# and the bounds of subgoals are fitted, and whether agents stay at their goals; and after which the horizon is calibrated
NORMALIZER_INTERVAL = 100
BOUNDS_INTERVAL = 1_000
HORIZON_INTERVAL = 500


class Statistics:
    """Updates the statistics, and counts the steps that they have used. It is saved with the algorithm."""

    def __init__(self) -> None:
        self._has_bounds = False
        self._normalized = np.zeros(0, dtype=np.int64)  # number of steps of each shard that the normalisation has used
        self._n_bounds = 0  # number of steps in the buffer when the bounds were fitted
        self._n_planned = 0  # number of steps in the buffer when the planner was updated
        self._n_calibrated = 0  # number of steps in the buffer when the horizon was calibrated

    def begin(self, policy: HierarchicalPolicy, goals: np.ndarray, task: GoalTask) -> None:
        """
        :param policy: policy that gets the tolerance of subgoals, and its first bounds
        :param goals: the first achieved and desired goals, shape (n, goal_dim)
        :param task: the environment's goals
        """
        policy.set_tolerance(task.threshold, task.weights)
        if not self._has_bounds:
            self._has_bounds = True
            policy.set_bounds(initial_bounds(policy.config.subgoals, goals, task.threshold, policy.goal_space))

    def update(
        self,
        policy: HierarchicalPolicy,
        buffer: SharedMemoryReplayBuffer,
        task: EnvGoalTask,
        attributes: Attributes | None = None,
    ) -> None:
        """
        Update the statistics that are due.

        :param policy: policy to update
        :param buffer: replay buffer with the steps
        :param task: the environment's goals
        :param attributes: plain attributes of the environment, see :meth:`~sb3_hrl.common.env_goals.EnvGoalTask.ask_again`
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
            policy.set_tolerance(task.threshold, task.weights)
            bounds = SubgoalBounds(*(bound.cpu().numpy() for bound in policy.bounds))
            n_steps = round(policy.numpy_policy().horizon)
            policy.set_bounds(fit_bounds(policy.config.subgoals, bounds, buffer, task.threshold, n_steps))
            if not policy.stays:
                policy.stays.fill_(_leaves_its_goals(buffer, task))
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
        # Shards grow at different speeds: each step is used once
        n_new = heads - self._normalized
        if n_new.sum() < (NORMALIZER_INTERVAL if self._normalized.any() else 1):
            return
        for steps in buffer.between(self._normalized, heads, ("observation", "next_achieved_goal", "desired_goal")):
            goals = np.concatenate([steps["next_achieved_goal"], steps["desired_goal"]])
            policy.update_moments(steps["observation"], goals)
        self._normalized = heads


def _leaves_its_goals(buffer: SharedMemoryReplayBuffer, task: GoalTask) -> bool:
    """See :func:`~sb3_hrl.hddpg.staying.leaves_its_goals`."""
    fields = ("next_achieved_goal", "desired_goal", "failed")
    shards = buffer.recent(N_STEPS, fields)
    achieved, desired, failed = (np.concatenate([steps[field] for steps in shards]) for field in fields)
    is_new = np.concatenate([_starts(steps["episode"], steps["desired_goal"]) for steps in shards])
    return leaves_its_goals(task.success(achieved, desired), failed.ravel() > 0, is_new)


def _starts(episodes: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """:return: whether an episode, or a new goal in it, begins with a step, shape (n,)"""
    is_new = np.ones(len(episodes), dtype=bool)
    is_new[1:] = (np.diff(episodes) != 0) | (goals[1:] != goals[:-1]).any(axis=1)
    return is_new
