"""From samples of the buffer to what the two levels learn from."""

from typing import NamedTuple

import numpy as np
import torch as th

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.relabeling import apply_subgoal_tests, end_worthless, hindsight_count
from sb3_hrl.common.subgoals import decode_subgoal
from sb3_hrl.common.type_aliases import HighSamples, LevelSamples, LowSamples
from sb3_hrl.hddpg.levels import LevelConfig
from sb3_hrl.hddpg.policies import HierarchicalPolicy


def relative_progress(
    achieved_goal: th.Tensor, next_achieved_goal: th.Tensor, target: th.Tensor, pace: th.Tensor
) -> th.Tensor:
    """
    :param achieved_goal: before the step, shape (n, goal_dim)
    :param next_achieved_goal: after it, shape (n, goal_dim)
    :param target: shape (n, goal_dim)
    :param pace: progress of 1, in the units of the goal per step
    :return: how much nearer to the target the step led, shape (n, 1)
    """
    before, after = (target - achieved_goal).norm(dim=1), (target - next_achieved_goal).norm(dim=1)
    return ((before - after) / pace)[:, None]


# So many times a batch is drawn where trivial targets are to be left out: there are to be enough others among them
_OVERSAMPLING = 4


class HighBatchOptions(NamedTuple):
    """How segments are relabelled for the high level, see :class:`~sb3_hrl.HierarchicalDDPG`."""

    hindsight_action_prob: float = 0.5
    off_policy_correction: bool = False
    smdp: bool = False
    trivial_segment_prob: float = 1.0


def low_batch(
    policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, config: LevelConfig, batch_size: int
) -> LevelSamples:
    """
    Low level: reach the subgoal. The reward is -1 per environment step until it is reached, and nothing follows. An episode
    that fails for good has the value of never reaching it.

    :param policy: gives inputs and says what is reached
    :param buffer: where to sample from
    :param config: settings of the low level
    :param batch_size: number of steps
    :return: transitions of the low level
    """
    window = config.hindsight_window or policy.subgoal_steps
    n_drawn = batch_size if config.trivial_target_prob == 1.0 else _OVERSAMPLING * batch_size
    steps = buffer.sample_low(n_drawn, config.n_sampled_goal, window, history=policy.rules.hold_steps)
    if n_drawn > batch_size:
        # Fewer targets in hindsight that were at hand before the step; as many in hindsight as ever
        n_hindsight, first_commanded = (hindsight_count(n, config.n_sampled_goal) for n in (batch_size, n_drawn))
        is_trivial = policy.is_reached(steps.achieved_goals, steps.subgoals)[:first_commanded]
        rows = without_trivial(is_trivial, config.trivial_target_prob)[:n_hindsight]
        commanded = first_commanded + th.arange(batch_size - n_hindsight, device=rows.device)
        kept = th.cat([rows, commanded])
        steps = LowSamples(*(tensor[kept] for tensor in steps))
    n_random = int(config.random_target_prob * batch_size)
    if n_random > 0:
        # The last entries, which are not in hindsight: what lies behind a wall is never achieved, and would not be learnt of
        achieved = steps.achieved_goals[-n_random:]
        actions = 2.0 * th.rand_like(achieved) - 1.0
        steps.subgoals[-n_random:] = decode_subgoal(actions, achieved, policy.box, policy.relative_subgoals)
    reached = policy.is_reached(steps.next_achieved_goals, steps.subgoals).float()[:, None]
    rewards = reached - 1.0
    # Nothing follows when the subgoal has been held for long enough
    held = policy.is_reached(steps.recent_goals, steps.subgoals[:, None]).all(dim=1).float()[:, None]
    if config.reward == "dense":
        rewards *= relative_distance(steps.next_achieved_goals, steps.subgoals, policy.box.radius)
    elif config.reward == "progress":
        pace = policy.box.radius.norm() / policy.subgoal_steps
        rewards += relative_progress(steps.achieved_goals, steps.next_achieved_goals, steps.subgoals, pace)
        rewards.clamp_(max=0.0)
    rewards, discounts = end_worthless(rewards, config.gamma * (1.0 - held), steps.failed[:, None], config.min_value)
    return LevelSamples(
        inputs=policy.low_inputs(steps.observations, steps.achieved_goals, steps.subgoals),
        actions=steps.actions,
        next_inputs=policy.low_inputs(steps.next_observations, steps.next_achieved_goals, steps.subgoals),
        rewards=rewards,
        discounts=discounts,
    )


def relative_distance(achieved_goal: th.Tensor, target: th.Tensor, reach: th.Tensor) -> th.Tensor:
    """
    :param achieved_goal: shape (n, goal_dim)
    :param target: shape (n, goal_dim)
    :param reach: how far targets may be in each dimension, shape (goal_dim,)
    :return: Euclidean distance as a share of the farthest target's, at most 1, shape (n, 1)
    """
    return ((target - achieved_goal).norm(dim=1, keepdim=True) / reach.norm()).clamp(max=1.0)


def high_batch(
    policy: HierarchicalPolicy,
    buffer: SharedMemoryReplayBuffer,
    config: LevelConfig,
    batch_size: int,
    task: GoalTask,
    options: HighBatchOptions,
) -> LevelSamples:
    """
    High level: choose the subgoals that lead to the goal. The reward is -1 per segment until it is reached, nothing follows.
    An episode that fails for good has the value of never reaching it.

    :param policy: gives inputs and says what is reached
    :param buffer: where to sample from
    :param config: settings of the high level
    :param batch_size: number of segments
    :param task: the environment's goals
    :param options: how segments are relabelled
    :return: transitions of the high level
    """
    # Where an episode ends at success, passing through the goal is enough; elsewhere it counts at the segment's end
    max_steps = policy.subgoal_steps if task.ends_at_success else 1
    n_steps = policy.subgoal_steps if options.off_policy_correction else 0
    segments = buffer.sample_high(batch_size, config.n_sampled_goal, max_steps, config.hindsight_window, n_steps)
    visited = segments.visited_goals.reshape(batch_size * max_steps, -1)
    goals = np.repeat(segments.goals.cpu().numpy(), max_steps, axis=0)
    success = task.success(visited, goals).reshape(batch_size, max_steps).any(axis=1)
    dones = th.as_tensor(success, dtype=th.float32, device=buffer.device)
    rewards = dones - 1.0
    if config.reward == "dense":
        box_size = policy.box.high - policy.box.low
        rewards *= relative_distance(segments.next_achieved_goals, segments.goals, box_size).squeeze(1)
    discounts = config.gamma * (1.0 - dones)
    if options.smdp:
        # A segment of k of the c steps costs k / c, and what follows is discounted by gamma^(k / c)
        durations = segments.lengths / policy.subgoal_steps
        rewards, discounts = rewards * durations, config.gamma**durations * (1.0 - dones)

    rewards, discounts = end_worthless(rewards, discounts, segments.failed & (dones == 0.0), config.min_value)

    # HAC's hindsight action: what was achieved had been commanded. But a missed test punishes the action that was taken
    reached = policy.is_reached(segments.next_achieved_goals, segments.subgoals)
    rewards, discounts = apply_subgoal_tests(rewards, discounts, segments.tested, reached, config.min_value)
    in_hindsight = th.rand(batch_size, device=buffer.device) < options.hindsight_action_prob
    in_hindsight &= reached | ~segments.tested
    subgoals = segments.subgoals
    if options.off_policy_correction:
        subgoals = corrected_subgoals(policy, segments)
        subgoals = th.where((segments.tested & ~reached)[:, None], segments.subgoals, subgoals)
    subgoals = th.where(in_hindsight[:, None], segments.next_achieved_goals, subgoals)
    batch = LevelSamples(
        inputs=policy.high_inputs(segments.observations, segments.achieved_goals, segments.goals),
        actions=policy.encode(subgoals, segments.achieved_goals),
        next_inputs=policy.high_inputs(segments.next_observations, segments.next_achieved_goals, segments.goals),
        rewards=rewards[:, None],
        discounts=discounts[:, None],
    )
    if options.trivial_segment_prob < 1.0:
        moved = (segments.next_achieved_goals - segments.achieved_goals).norm(dim=1)
        is_trivial = (moved < 0.5 * policy.subgoal_threshold) & (dones == 0.0)
        rows = without_trivial(is_trivial, options.trivial_segment_prob)
        batch = LevelSamples(*(tensor[rows] for tensor in batch))
    return batch


def without_trivial(is_trivial: th.Tensor, keep_prob: float) -> th.Tensor:
    """
    Replace most of the segments that went nowhere by others of the batch: those teach the high level to stay where it is.

    :param is_trivial: which segments went nowhere, shape (n,)
    :param keep_prob: probability of keeping such a segment
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


def corrected_subgoals(policy: HierarchicalPolicy, segments: HighSamples) -> th.Tensor:
    """
    HIRO's off-policy correction (section 3.3, https://arxiv.org/abs/1805.08296): of ten candidates (the subgoal that was
    commanded, what was achieved, and eight around that) the one under which the low level of today would have acted most as
    it did, ``argmax -1/2 sum_t |a_t - pi_low(s_t, g)|^2``.

    :param policy: has the low level
    :param segments: with their environment steps
    :return: subgoals, shape (batch, goal_dim)
    """
    assert segments.steps is not None
    steps, batch_size = segments.steps, len(segments.subgoals)
    achieved = segments.next_achieved_goals[:, None]
    # HIRO's standard deviation: half of half the range
    around = achieved + 0.5 * policy.box.radius * th.randn(batch_size, 8, policy.goal_dim, device=achieved.device)
    around = around.clip(policy.box.low, policy.box.high)
    candidates = th.cat([segments.subgoals[:, None], achieved, around], dim=1)
    n_steps = steps.actions.shape[1]
    # (batch, candidates, steps, dim)
    shape = (batch_size, candidates.shape[1], n_steps)
    observations, achieved_goals = (
        tensor[:, None].expand(*shape, -1).reshape(-1, tensor.shape[-1])
        for tensor in (steps.observations, steps.achieved_goals)
    )
    targets = candidates[:, :, None].expand(*shape, -1).reshape(-1, policy.goal_dim)
    inputs = policy.low_inputs(observations, achieved_goals, targets)
    with th.no_grad():
        actions = policy.low.networks[0](inputs).view(*shape, -1)
    errors = (actions - steps.actions[:, None]).square().sum(dim=-1)
    # The last step repeats where a segment is shorter
    is_step = th.arange(n_steps, device=errors.device) < segments.lengths[:, None]
    log_probs = -0.5 * (errors * is_step[:, None]).sum(dim=-1)
    best = log_probs.argmax(dim=1)
    return candidates[th.arange(batch_size, device=best.device), best]
