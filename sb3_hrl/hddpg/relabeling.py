"""From samples of the buffer to what the two levels learn from: every equation of hindsight."""

import numpy as np
import torch as th

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.hindsight import hindsight_count
from sb3_hrl.common.subgoals import SegmentEnd, action_to_subgoal
from sb3_hrl.common.type_aliases import LowSamples, Transitions
from sb3_hrl.hddpg.policies import HierarchicalPolicy

# So many times a batch is drawn where trivial targets are left out, for enough others to be among them
_OVERSAMPLING = 4

# So many steps of a segment are looked at for the goal
_N_VISITED = 16


def low_batch(policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer) -> Transitions:
    """
    Low level: reach the subgoal. The reward is -1 per environment step until it is reached, and nothing follows. An episode
    that fails for good has the value of never reaching it.

    :param policy: gives inputs and says what is reached
    :param buffer: where to sample from
    :return: transitions of the low level
    """
    config = policy.config.low
    steps = _low_samples(policy, buffer)
    n_random = int(config.random_target_prob * config.batch_size)
    if n_random > 0:
        # The last entries, which are not in hindsight: what lies behind a wall is never achieved, so no hindsight tells of it
        achieved = steps.achieved_goals[-n_random:]
        steps.subgoals[-n_random:] = action_to_subgoal(2.0 * th.rand_like(achieved) - 1.0, achieved, policy.bounds)
    reached = policy.is_reached(steps.next_achieved_goals, steps.subgoals).float()[:, None]
    rewards = reached - 1.0
    if config.reward == "dense":
        rewards *= relative_distance(steps.next_achieved_goals, steps.subgoals, policy.bounds.radius)
    discounts = config.gamma * (1.0 - reached)
    rewards, discounts = terminate_with_penalty(rewards, discounts, steps.failed[:, None], config.min_value)
    return Transitions(
        inputs=policy.low_inputs(steps.observations, steps.achieved_goals, steps.subgoals),
        actions=steps.actions,
        next_inputs=policy.low_inputs(steps.next_observations, steps.next_achieved_goals, steps.subgoals),
        rewards=rewards,
        discounts=discounts,
    )


def _low_samples(policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer) -> LowSamples:
    """:return: steps for the low level, in hindsight first; few of those whose target in hindsight was reached before them"""
    config = policy.config.low
    window, batch_size = config.hindsight_window, config.batch_size
    if config.trivial_target_prob == 1.0:
        return buffer.sample_low(batch_size, config.n_sampled_goal, window)
    steps = buffer.sample_low(_OVERSAMPLING * batch_size, config.n_sampled_goal, window)
    n_hindsight, n_drawn = (hindsight_count(n, config.n_sampled_goal) for n in (batch_size, len(steps.actions)))
    is_trivial = policy.is_reached(steps.achieved_goals, steps.subgoals)[:n_drawn]
    in_hindsight = without_trivial(is_trivial, config.trivial_target_prob)[:n_hindsight]
    # As many in hindsight as ever, and as many that keep the subgoal that was commanded
    commanded = n_drawn + th.arange(batch_size - n_hindsight, device=in_hindsight.device)
    rows = th.cat([in_hindsight, commanded])
    return LowSamples(*(tensor[rows] for tensor in steps))


def high_batch(policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, task: GoalTask) -> Transitions:
    """
    High level: choose the subgoals that lead to the goal. The reward is -1 per segment until it is reached, nothing follows.
    An episode that fails for good has the value of never reaching it.

    :param policy: gives inputs and says what is reached
    :param buffer: where to sample from
    :param task: the environment's goals
    :return: transitions of the high level
    """
    config, hindsight, batch_size = policy.config.high, policy.config.hindsight, policy.config.high.batch_size
    # Where an episode ends at success, passing through the goal is enough; elsewhere it counts at the segment's end
    max_steps = _N_VISITED if task.ends_at_success else 1
    segments = buffer.sample_high(batch_size, config.n_sampled_goal, max_steps, config.hindsight_window)
    visited = segments.visited_goals.reshape(batch_size * max_steps, -1)
    goals = np.repeat(segments.goals.cpu().numpy(), max_steps, axis=0)
    success = task.success(visited, goals).reshape(batch_size, max_steps).any(axis=1)
    dones = th.as_tensor(success, dtype=th.float32, device=buffer.device)
    rewards = dones - 1.0
    if config.reward == "dense":
        size = policy.bounds.high - policy.bounds.low
        rewards *= relative_distance(segments.next_achieved_goals, segments.goals, size).squeeze(1)
    discounts = config.gamma * (1.0 - dones)
    rewards, discounts = terminate_with_penalty(rewards, discounts, segments.failed & (dones == 0.0), config.min_value)

    # HAC's subgoal tests: a subgoal that the low level missed without exploration is worth never reaching the goal. It had all
    # its steps: a segment that the episode's end has cut, or that led to the goal, says nothing against its subgoal
    missed = segments.tested & (segments.ends == SegmentEnd.OUT_OF_STEPS) & (dones == 0.0)
    rewards, discounts = terminate_with_penalty(rewards, discounts, missed, config.min_value)
    # HAC's hindsight action: what was achieved had been commanded. But a missed test punishes the action that was taken
    in_hindsight = (th.rand(batch_size, device=buffer.device) < hindsight.action_prob) & ~missed & ~segments.planned
    subgoals = th.where(in_hindsight[:, None], segments.next_achieved_goals, segments.subgoals)
    batch = Transitions(
        inputs=policy.high_inputs(segments.observations, segments.achieved_goals, segments.goals),
        actions=policy.subgoal_to_action(subgoals, segments.achieved_goals),
        next_inputs=policy.high_inputs(segments.next_observations, segments.next_achieved_goals, segments.goals),
        rewards=rewards[:, None],
        discounts=discounts[:, None],
        # Without a planner the actor's loss is that of DDPG
        imitated=None if policy.config.planner is None else segments.planned.float()[:, None],
    )
    if hindsight.trivial_segment_prob < 1.0:
        moved = (segments.next_achieved_goals - segments.achieved_goals).norm(dim=1)
        is_trivial = (moved < 0.5 * policy.subgoal_threshold) & (dones == 0.0)
        rows = without_trivial(is_trivial, hindsight.trivial_segment_prob)
        batch = Transitions(*(None if tensor is None else tensor[rows] for tensor in batch))  # type: ignore[arg-type]
    return batch


def relative_distance(achieved_goal: th.Tensor, target: th.Tensor, reach: th.Tensor) -> th.Tensor:
    """
    :param achieved_goal: shape (n, goal_dim)
    :param target: shape (n, goal_dim)
    :param reach: how far targets may be in each dimension, shape (goal_dim,)
    :return: Euclidean distance as a share of the farthest target's, at most 1, shape (n, 1)
    """
    return ((target - achieved_goal).norm(dim=1, keepdim=True) / reach.norm()).clamp(max=1.0)


def terminate_with_penalty(
    rewards: th.Tensor, discounts: th.Tensor, where: th.Tensor, penalty: float
) -> tuple[th.Tensor, th.Tensor]:
    """
    Let nothing follow some transitions but the worst. An episode that fails for good is one: with rewards of -1 an end
    without a penalty would be the best that can happen, and one that bootstraps as good as going on.

    :param rewards: shape (n,)
    :param discounts: of what follows, shape (n,)
    :param where: which transitions, booleans of shape (n,)
    :param penalty: their reward, the value of never reaching the goal: ``-1 / (1 - gamma)``
    :return: rewards and discounts, shapes (n,)
    """
    return rewards.masked_fill(where, penalty), discounts.masked_fill(where, 0.0)


def without_trivial(is_trivial: th.Tensor, keep_prob: float) -> th.Tensor:
    """
    Replace most of the entries that say little by others of the batch. A segment that went nowhere, in hindsight, teaches the
    high level to stay where it is; a target that was reached before the step teaches the low level nothing.

    :param is_trivial: which entries say little, shape (n,)
    :param keep_prob: probability of keeping such an entry
    :return: which rows to take in place of each one, shape (n,)
    """
    n = len(is_trivial)
    rows = th.arange(n, device=is_trivial.device)
    dropped = is_trivial & (th.rand(n, device=is_trivial.device) >= keep_prob)
    kept = rows[~dropped]
    if len(kept) == 0:
        return rows
    others = kept[th.randint(len(kept), (n,), device=is_trivial.device)]
    return th.where(dropped, others, rows)
