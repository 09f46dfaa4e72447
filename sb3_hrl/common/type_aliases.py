"""Named tuples shared by the buffer, the policy and the algorithm."""

from typing import NamedTuple

import numpy as np
import torch as th


class SubgoalState(NamedTuple):
    """What ``predict`` carries between calls, one row per environment."""

    subgoals: np.ndarray  # (n, goal_dim), in force
    steps: np.ndarray  # (n,), environment steps since they were issued, without the one that the action is for: 0 if new
    starts: np.ndarray  # (n, goal_dim), goals achieved when the subgoals were issued
    max_steps: np.ndarray  # (n,), environment steps after which the segments end
    missed: np.ndarray  # (n, n_missed, 2, goal_dim), starts and subgoals of segments that missed, infinite for the others


class LowSamples(NamedTuple):
    """A batch of environment steps for the low level (float32, one row a step)."""

    observations: th.Tensor  # (batch, obs_dim)
    achieved_goals: th.Tensor  # (batch, goal_dim)
    subgoals: th.Tensor  # (batch, goal_dim), some of them in hindsight
    actions: th.Tensor  # (batch, action_dim), scaled to [-1, 1]
    next_observations: th.Tensor  # (batch, obs_dim)
    next_achieved_goals: th.Tensor  # (batch, goal_dim)
    failed: th.Tensor  # (batch,) booleans, whether the episode ended here for good, and not at its goal


class HighSamples(NamedTuple):
    """A batch of segments for the high level (float32, one row a segment)."""

    visited_goals: np.ndarray  # (batch, steps, goal_dim), achieved after each step (the last one repeats); for compute_reward
    observations: th.Tensor  # (batch, obs_dim), at the segment's start
    achieved_goals: th.Tensor  # (batch, goal_dim), at the segment's start
    goals: th.Tensor  # (batch, goal_dim), some of them in hindsight
    subgoals: th.Tensor  # (batch, goal_dim), as commanded
    next_observations: th.Tensor  # (batch, obs_dim), at the segment's end
    next_achieved_goals: th.Tensor  # (batch, goal_dim), at the segment's end
    tested: th.Tensor  # (batch,) booleans, whether the low level ran without exploration (HAC's subgoal test)
    planned: th.Tensor  # (batch,) booleans, whether the subgoal is a planner's waypoint to this goal
    failed: th.Tensor  # (batch,) booleans, whether the episode ended with the segment for good, and not at its goal
    ends: th.Tensor  # (batch,), how the segments ended, each a SegmentEnd


class SegmentOutcomes(NamedTuple):
    """What came of segments, one row each."""

    predicted_steps: np.ndarray  # (n,), environment steps to the subgoal, predicted when it was issued; NaN: no prediction
    steps: np.ndarray  # (n,), environment steps of the segment
    ends: np.ndarray  # (n,), how it ended, a SegmentEnd


class Transitions(NamedTuple):
    """What a level learns from: the same five tensors for both."""

    inputs: th.Tensor  # (batch, input_dim)
    actions: th.Tensor  # (batch, action_dim), in [-1, 1]
    next_inputs: th.Tensor  # (batch, input_dim)
    rewards: th.Tensor  # (batch, 1)
    discounts: th.Tensor  # (batch, 1), of what follows: 0 where nothing does
    imitated: th.Tensor | None = None  # (batch, 1), 1 where the actor is to imitate the action


class TDBatch(NamedTuple):
    """The same with the targets of the critics, which is all that an update needs."""

    inputs: th.Tensor  # (batch, input_dim)
    actions: th.Tensor  # (batch, action_dim), in [-1, 1]
    rewards: th.Tensor  # (batch, 1)
    target_q_values: th.Tensor  # (batch, 1)
    imitated: th.Tensor | None = None  # (batch, 1)
