"""From samples of the buffer to what the two levels learn from."""

import numpy as np
import torch as th

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.relabeling import apply_subgoal_tests
from sb3_hrl.common.type_aliases import LevelSamples
from sb3_hrl.hddpg.levels import LevelConfig
from sb3_hrl.hddpg.policies import HierarchicalPolicy


def low_batch(
    policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, config: LevelConfig, batch_size: int
) -> LevelSamples:
    """
    Low level: reach the subgoal. The reward is -1 per environment step until it is reached, and nothing follows.

    :param policy: gives inputs and says what is reached
    :param buffer: where to sample from
    :param config: settings of the low level
    :param batch_size: number of steps
    :return: transitions of the low level
    """
    steps = buffer.sample_low(batch_size, config.n_sampled_goal, window=policy.subgoal_steps)
    reached = policy.is_reached(steps.next_achieved_goals, steps.subgoals).float()[:, None]
    return LevelSamples(
        inputs=policy.low_inputs(steps.observations, steps.achieved_goals, steps.subgoals),
        actions=steps.actions,
        next_inputs=policy.low_inputs(steps.next_observations, steps.next_achieved_goals, steps.subgoals),
        rewards=reached - 1.0,
        dones=reached,
    )


def high_batch(
    policy: HierarchicalPolicy,
    buffer: SharedMemoryReplayBuffer,
    config: LevelConfig,
    batch_size: int,
    task: GoalTask,
    hindsight_action_prob: float,
) -> LevelSamples:
    """
    High level: choose the subgoals that lead to the goal. The reward is -1 per segment until it is reached, nothing follows.

    :param policy: gives inputs and says what is reached
    :param buffer: where to sample from
    :param config: settings of the high level
    :param batch_size: number of segments
    :param task: the environment's goals
    :param hindsight_action_prob: share of the batch whose action is the subgoal that was achieved
    :return: transitions of the high level
    """
    # Where an episode ends at success, passing through the goal is enough; elsewhere it counts at the segment's end
    max_steps = policy.subgoal_steps if task.ends_at_success else 1
    segments = buffer.sample_high(batch_size, config.n_sampled_goal, max_steps)
    visited = segments.visited_goals.reshape(batch_size * max_steps, -1)
    goals = np.repeat(segments.goals.cpu().numpy(), max_steps, axis=0)
    success = task.success(visited, goals).reshape(batch_size, max_steps).any(axis=1)
    dones = th.as_tensor(success, dtype=th.float32, device=buffer.device)
    rewards = dones - 1.0

    # HAC's hindsight action: what was achieved had been commanded. But a missed test punishes the action that was taken
    reached = policy.is_reached(segments.next_achieved_goals, segments.subgoals)
    rewards, dones = apply_subgoal_tests(rewards, dones, segments.tested, reached, config.min_value)
    in_hindsight = th.rand(batch_size, device=buffer.device) < hindsight_action_prob
    in_hindsight &= reached | ~segments.tested
    subgoals = th.where(in_hindsight[:, None], segments.next_achieved_goals, segments.subgoals)
    return LevelSamples(
        inputs=policy.high_inputs(segments.observations, segments.achieved_goals, segments.goals),
        actions=policy.encode(subgoals, segments.achieved_goals),
        next_inputs=policy.high_inputs(segments.next_observations, segments.next_achieved_goals, segments.goals),
        rewards=rewards[:, None],
        dones=dones[:, None],
    )
