"""Converts samples of the replay buffer to transitions for the two levels: all equations of hindsight."""

import numpy as np
import torch as th

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.hindsight import hindsight_count
from sb3_hrl.common.subgoals import SegmentEnd, action_to_subgoal
from sb3_hrl.common.type_aliases import LowSamples, Transitions
from sb3_hrl.hddpg.policies import HierarchicalPolicy

# Factor by which the batch is enlarged before trivial targets are dropped, so that enough others are left
_OVERSAMPLING = 4

# Maximum share of trivial targets among the low level's targets in hindsight
MOST_TRIVIAL = 0.75

# Number of steps of a segment that are compared with the goal
_N_VISITED = 16


def low_batch(policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer) -> Transitions:
    """
    Low level: reach the subgoal. The reward is -1 per environment step until the subgoal is reached. That transition is
    terminal, unless the low level has to learn to stay there, see :mod:`sb3_hrl.hddpg.staying`. An episode that terminates
    without success gets the value of never reaching the subgoal.

    :param policy: policy that computes the inputs, and decides what is reached
    :param buffer: replay buffer to sample from
    :return: transitions of the low level
    """
    config = policy.config.low
    steps = _low_samples(policy, buffer)
    n_random = int(config.random_target_prob * config.batch_size)
    if n_random > 0:
        # The last entries are not in hindsight. Hindsight never contains targets behind a wall, because they are never
        # achieved
        achieved = steps.achieved_goals[-n_random:]
        steps.subgoals[-n_random:] = action_to_subgoal(2.0 * th.rand_like(achieved) - 1.0, achieved, policy.bounds)
    reached = policy.is_reached(steps.next_achieved_goals, steps.subgoals).float()[:, None]
    rewards = reached - 1.0
    if config.reward == "dense":
        rewards *= relative_distance(steps.next_achieved_goals, steps.subgoals, policy.bounds.radius, policy.goal_weights)
    discounts = config.gamma * (1.0 - (1.0 - policy.stays) * reached)
    rewards, discounts = terminate_with_penalty(rewards, discounts, steps.failed[:, None], config.min_value)
    return Transitions(
        inputs=policy.low_inputs(steps.observations, steps.achieved_goals, steps.subgoals),
        actions=steps.actions,
        next_inputs=policy.low_inputs(steps.next_observations, steps.next_achieved_goals, steps.subgoals),
        rewards=rewards,
        discounts=discounts,
    )


def _low_samples(policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer) -> LowSamples:
    """:return: steps for the low level, first those in hindsight, with few whose target was reached before the step"""
    config = policy.config.low
    window, batch_size, keep_prob = config.hindsight_window, config.batch_size, config.trivial_target_prob
    n_hindsight = hindsight_count(batch_size, config.n_sampled_goal)
    if keep_prob is None or keep_prob == 1.0:
        steps = buffer.sample_low(batch_size, config.n_sampled_goal, window)
        if keep_prob == 1.0 or _trivial(policy, steps, n_hindsight).float().mean() <= MOST_TRIVIAL:
            return steps
    steps = buffer.sample_low(_OVERSAMPLING * batch_size, config.n_sampled_goal, window)
    n_drawn = hindsight_count(len(steps.actions), config.n_sampled_goal)
    is_trivial = _trivial(policy, steps, n_drawn)
    if keep_prob is None:
        keep_prob = share_to_keep(is_trivial.float().mean().item())
    in_hindsight = without_trivial(is_trivial, keep_prob)[:n_hindsight]
    # The numbers of entries with and without hindsight stay the same
    commanded = n_drawn + th.arange(batch_size - n_hindsight)
    rows = th.cat([in_hindsight, commanded])
    return LowSamples(*(tensor[rows] for tensor in steps))


def _trivial(policy: HierarchicalPolicy, steps: LowSamples, n_hindsight: int) -> th.Tensor:
    """:return: whether the targets in hindsight were reached before the step, shape (n_hindsight,)"""
    return policy.is_reached(steps.achieved_goals[:n_hindsight], steps.subgoals[:n_hindsight])


def share_to_keep(trivial_share: float) -> float:
    """
    :param trivial_share: share of trivial entries in a sample
    :return: probability of keeping a trivial entry, so that at most :data:`MOST_TRIVIAL` of the result are trivial if the
        others replace those that are dropped
    """
    n_others = MOST_TRIVIAL * (1.0 - trivial_share)
    return min(1.0, n_others / max(trivial_share * (1.0 - MOST_TRIVIAL), 1e-9))


def high_batch(policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, task: GoalTask) -> Transitions:
    """
    High level: choose subgoals that lead to the goal. The reward is -1 per segment until the goal is reached; that
    transition is terminal. An episode that terminates without success gets the value of never reaching the goal.

    :param policy: policy that computes the inputs, and decides what is reached
    :param buffer: replay buffer to sample from
    :param task: the environment's goals
    :return: transitions of the high level
    """
    config, hindsight, batch_size = policy.config.high, policy.config.hindsight, policy.config.high.batch_size
    # If episodes end at success, passing through the goal is enough; otherwise only the end of the segment counts
    max_steps = _N_VISITED if task.ends_at_success else 1
    segments = buffer.sample_high(batch_size, config.n_sampled_goal, max_steps, config.hindsight_window)
    visited = segments.visited_goals.reshape(batch_size * max_steps, -1)
    goals = np.repeat(segments.goals.cpu().numpy(), max_steps, axis=0)
    success = task.success(visited, goals).reshape(batch_size, max_steps).any(axis=1)
    dones = th.as_tensor(success, dtype=th.float32)
    rewards = dones - 1.0
    if config.reward == "dense":
        size = policy.bounds.high - policy.bounds.low
        rewards *= relative_distance(segments.next_achieved_goals, segments.goals, size, policy.goal_weights).squeeze(1)
    discounts = config.gamma * (1.0 - dones)
    rewards, discounts = terminate_with_penalty(rewards, discounts, segments.failed & (dones == 0.0), config.min_value)

    # HAC's subgoal tests: a subgoal that the low level misses without exploration gets the value of never reaching the goal,
    # if the segment used all its steps. A segment that was cut off by the end of the episode, or that reached the goal, is not
    # penalised
    missed = segments.tested & (segments.ends == SegmentEnd.OUT_OF_STEPS) & (dones == 0.0)
    rewards, discounts = terminate_with_penalty(rewards, discounts, missed, config.min_value)
    # HAC's hindsight action: replace the subgoal by the achieved goal, except after a missed test, which penalises the real
    # action
    in_hindsight = (th.rand(batch_size) < hindsight.action_prob) & ~missed & ~segments.planned
    subgoals = th.where(in_hindsight[:, None], segments.next_achieved_goals, segments.subgoals)
    batch = Transitions(
        inputs=policy.high_inputs(segments.observations, segments.achieved_goals, segments.goals),
        actions=policy.subgoal_to_action(subgoals, segments.achieved_goals),
        next_inputs=policy.high_inputs(segments.next_observations, segments.next_achieved_goals, segments.goals),
        rewards=rewards[:, None],
        discounts=discounts[:, None],
        # Without a planner, the actor's loss is that of DDPG
        imitated=None if policy.config.planner is None else segments.planned.float()[:, None],
    )
    if hindsight.trivial_segment_prob < 1.0:
        moved = (policy.goal_weights * (segments.next_achieved_goals - segments.achieved_goals)).norm(dim=1)
        is_trivial = (moved < 0.5 * policy.subgoal_threshold) & (dones == 0.0)
        rows = without_trivial(is_trivial, hindsight.trivial_segment_prob)
        batch = Transitions(*(None if tensor is None else tensor[rows] for tensor in batch))  # type: ignore[arg-type]
    return batch


def relative_distance(achieved_goal: th.Tensor, target: th.Tensor, reach: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    :param achieved_goal: shape (n, goal_dim)
    :param target: shape (n, goal_dim)
    :param reach: maximum distance of targets in each dimension, shape (goal_dim,)
    :param weights: weight of each entry of the goal in the distance, shape (goal_dim,)
    :return: weighted Euclidean distance divided by that of the farthest possible target, at most 1, shape (n, 1)
    """
    distances = (weights * (target - achieved_goal)).norm(dim=1, keepdim=True)
    return (distances / (weights * reach).norm()).clamp(max=1.0)


def terminate_with_penalty(
    rewards: th.Tensor, discounts: th.Tensor, where: th.Tensor, penalty: float
) -> tuple[th.Tensor, th.Tensor]:
    """
    Make some transitions terminal, with the worst possible value as the reward. One case is an episode that terminates without
    success: as all rewards are -1, a termination without penalty would be the best outcome, and with bootstrapping it would be
    as good as continuing.

    :param rewards: shape (n,)
    :param discounts: discounts of the next values, shape (n,)
    :param where: which transitions to change, booleans of shape (n,)
    :param penalty: their reward, the value of never reaching the goal: ``-1 / (1 - gamma)``
    :return: rewards and discounts, shapes (n,)
    """
    return rewards.masked_fill(where, penalty), discounts.masked_fill(where, 0.0)


def without_trivial(is_trivial: th.Tensor, keep_prob: float) -> th.Tensor:
    """
    Replace most of the trivial entries by other entries of the batch. In hindsight, a segment that did not move teaches the
    high level to stay where it is; a target that was reached before the step teaches the low level nothing.

    :param is_trivial: which entries are trivial, shape (n,)
    :param keep_prob: probability of keeping a trivial entry
    :return: for each entry the row to use instead, shape (n,)
    """
    n = len(is_trivial)
    rows = th.arange(n)
    dropped = is_trivial & (th.rand(n) >= keep_prob)
    kept = rows[~dropped]
    if len(kept) == 0:
        return rows
    others = kept[th.randint(len(kept), (n,))]
    return th.where(dropped, others, rows)
