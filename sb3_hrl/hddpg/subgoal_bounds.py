"""Bounds and radius of subgoals, estimated from the data: goal spaces such as Fetch's are unbounded."""

import numpy as np

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.spaces import GoalSpace, flat_limits, goal_space
from sb3_hrl.common.subgoals import SubgoalBounds, displacements, reachable_radius, visited_bounds
from sb3_hrl.hddpg.config import SubgoalConfig
from sb3_hrl.hddpg.validation import per_dimension

# Number of recent steps that the estimates use
WINDOW = 50_000


def initial_bounds(config: SubgoalConfig, goals: np.ndarray, threshold: float, space: GoalSpace) -> SubgoalBounds:
    """
    :param config: values set by the user, which are kept
    :param goals: the first achieved and desired goals, shape (n, goal_dim)
    :param threshold: maximum distance at which a subgoal counts as reached
    :param space: goal space
    :return: bounds around the goals, and a radius slightly larger than the threshold, arrays of shape (goal_dim,)
    """
    low, high = visited_bounds(goals, margin=2.0 * threshold, limits=flat_limits(space), quantile=0.0)
    return _with_given(config, SubgoalBounds(low, high, np.full_like(low, 2.0 * threshold)))


def fit_bounds(
    config: SubgoalConfig, bounds: SubgoalBounds, buffer: SharedMemoryReplayBuffer, threshold: float, n_steps: int
) -> SubgoalBounds:
    """
    Bounds of the goals seen so far, and the radius that the low level covers in a segment. Both only grow: a better low level
    can still reach everything that was within reach before.

    :param config: values set by the user, which are kept
    :param bounds: current bounds, arrays of shape (goal_dim,)
    :param buffer: replay buffer with the visited states
    :param threshold: maximum distance at which a subgoal counts as reached
    :param n_steps: approximate number of environment steps of a segment
    :return: new bounds, arrays of shape (goal_dim,)
    """
    shards = buffer.recent(WINDOW, ("achieved_goal", "next_achieved_goal", "desired_goal"))
    goals = [steps[field] for steps in shards for field in ("next_achieved_goal", "desired_goal")]
    moves = [displacements(steps["achieved_goal"], steps["next_achieved_goal"], steps["episode"], n_steps) for steps in shards]
    limits = flat_limits(goal_space(buffer.observation_space))
    low, high = visited_bounds(np.concatenate(goals), margin=threshold, limits=limits)
    low, high, radius = np.minimum(low, bounds.low), np.maximum(high, bounds.high), bounds.radius
    if sum(len(move) for move in moves) > 0:
        radius = np.maximum(radius, reachable_radius(np.concatenate(moves), low, high, threshold))
    return _with_given(config, SubgoalBounds(low, high, radius))


def _with_given(config: SubgoalConfig, bounds: SubgoalBounds) -> SubgoalBounds:
    """:return: the bounds, with the values that the user has set"""
    dim = len(bounds.radius)
    if config.bounds is not None:
        low, high = (per_dimension("bounds", bound, dim) for bound in config.bounds)
        bounds = bounds._replace(low=low, high=high)
    if config.radius is not None:
        bounds = bounds._replace(radius=per_dimension("radius", config.radius, dim))
    return bounds
