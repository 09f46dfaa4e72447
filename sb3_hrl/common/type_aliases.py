"""Named tuples shared by the buffer, the policy and the algorithm."""

from typing import NamedTuple

import numpy as np
import torch as th


class SubgoalState(NamedTuple):
    """State of ``predict`` between calls, one row per environment."""

    subgoals: np.ndarray  # (n, goal_dim), current subgoals
    steps: np.ndarray  # (n,), environment steps since the subgoal was issued, 0 for a new one (without the next action)
    starts: np.ndarray  # (n, goal_dim), goals achieved when the subgoals were issued
    max_steps: np.ndarray  # (n,), maximum number of environment steps of the segments
    missed: np.ndarray  # (n, n_missed, 2, goal_dim), starts and subgoals of missed segments, infinite for unused entries


class LowSamples(NamedTuple):
    """A batch of environment steps for the low level (float32, one row per step)."""

    observations: th.Tensor  # (batch, obs_dim)
    achieved_goals: th.Tensor  # (batch, goal_dim)
    subgoals: th.Tensor  # (batch, goal_dim), some of them in hindsight
    actions: th.Tensor  # (batch, action_dim), scaled to [-1, 1]
    next_observations: th.Tensor  # (batch, obs_dim)
    next_achieved_goals: th.Tensor  # (batch, goal_dim)
    failed: th.Tensor  # (batch,) booleans, whether the episode terminated here without success


class HighSamples(NamedTuple):
    """A batch of segments for the high level (float32, one row per segment)."""

    visited_goals: np.ndarray  # (batch, steps, goal_dim), achieved after each step (the last one repeats); for compute_reward
    observations: th.Tensor  # (batch, obs_dim), at the segment's start
    achieved_goals: th.Tensor  # (batch, goal_dim), at the segment's start
    goals: th.Tensor  # (batch, goal_dim), some of them in hindsight
    subgoals: th.Tensor  # (batch, goal_dim), as issued
    next_observations: th.Tensor  # (batch, obs_dim), at the segment's end
    next_achieved_goals: th.Tensor  # (batch, goal_dim), at the segment's end
    tested: th.Tensor  # (batch,) booleans, whether the low level acted without noise (HAC's subgoal test)
    planned: th.Tensor  # (batch,) booleans, whether the subgoal is a planner's waypoint to this goal
    failed: th.Tensor  # (batch,) booleans, whether the episode terminated with the segment, without success
    ends: th.Tensor  # (batch,), how the segments ended, each a SegmentEnd


class SegmentOutcomes(NamedTuple):
    """Outcomes of segments, one row each."""

    predicted_steps: np.ndarray  # (n,), environment steps to the subgoal, predicted when it was issued; NaN if not predicted
    steps: np.ndarray  # (n,), number of environment steps of the segment
    ends: np.ndarray  # (n,), how the segment ended, a SegmentEnd


class Transitions(NamedTuple):
    """Transitions of a level: the same tensors for both levels."""

    inputs: th.Tensor  # (batch, input_dim)
    actions: th.Tensor  # (batch, action_dim), in [-1, 1]
    next_inputs: th.Tensor  # (batch, input_dim)
    rewards: th.Tensor  # (batch, 1)
    discounts: th.Tensor  # (batch, 1), discount of the next value: 0 if the transition is terminal
    imitated: th.Tensor | None = None  # (batch, 1), 1 if the actor should imitate the action


class TDBatch(NamedTuple):
    """Transitions with the targets of the critics, as needed for an update."""

    inputs: th.Tensor  # (batch, input_dim)
    actions: th.Tensor  # (batch, action_dim), in [-1, 1]
    rewards: th.Tensor  # (batch, 1)
    target_q_values: th.Tensor  # (batch, 1)
    imitated: th.Tensor | None = None  # (batch, 1)
