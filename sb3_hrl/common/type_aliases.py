"""Named tuples shared by the buffer, the policy and the algorithm."""

from typing import NamedTuple, TypeAlias

import numpy as np
import torch as th

# What ``predict`` carries between calls: the subgoals in force, shape (n_envs, goal_dim),
# and the environment steps that each has left, shape (n_envs,).
SubgoalState: TypeAlias = tuple[np.ndarray, np.ndarray]


class LowSamples(NamedTuple):
    """A batch of environment steps for the low level (float32, one row a step)."""

    observations: th.Tensor  # (batch, obs_dim)
    achieved_goals: th.Tensor  # (batch, goal_dim)
    subgoals: th.Tensor  # (batch, goal_dim), some of them in hindsight
    actions: th.Tensor  # (batch, action_dim), scaled to [-1, 1]
    next_observations: th.Tensor  # (batch, obs_dim)
    next_achieved_goals: th.Tensor  # (batch, goal_dim)


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


class LevelSamples(NamedTuple):
    """What a level learns from: the same five tensors for both."""

    inputs: th.Tensor  # (batch, input_dim)
    actions: th.Tensor  # (batch, action_dim), in [-1, 1]
    next_inputs: th.Tensor  # (batch, input_dim)
    rewards: th.Tensor  # (batch, 1)
    dones: th.Tensor  # (batch, 1), 1 where nothing follows


class TargetedSamples(NamedTuple):
    """The same with what the critics are to say about it, which is all that an update needs."""

    inputs: th.Tensor  # (batch, input_dim)
    actions: th.Tensor  # (batch, action_dim), in [-1, 1]
    rewards: th.Tensor  # (batch, 1)
    target_q_values: th.Tensor  # (batch, 1)
