"""Where subgoals may lie, found from the data: goal spaces such as Fetch's are unbounded."""

import numpy as np

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.subgoals import displacements, reachable_radius, visited_bounds
from sb3_hrl.hddpg.policies import HierarchicalPolicy

# How many of the newest steps are looked at
WINDOW = 50_000


def first_box(goals: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    :param goals: the first goals achieved and desired, shape (n, goal_dim)
    :param threshold: distance at which a subgoal counts as reached
    :return: bounds around them, and a radius that is just beyond the threshold: low, high, radius of shape (goal_dim,)
    """
    low, high = visited_bounds(goals, margin=2.0 * threshold, quantile=0.0)
    return low, high, np.full_like(low, 2.0 * threshold)


def calibrated_box(
    policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Bounds of the goals seen so far, and the radius that the low level covers in a segment. Both only grow: what was within
    reach once is within reach of a better low level.

    :param policy: has the box so far
    :param buffer: what was visited
    :param threshold: distance at which a subgoal counts as reached
    :return: low, high, radius, each of shape (goal_dim,)
    """
    shards = buffer.recent(WINDOW, ("achieved_goal", "next_achieved_goal", "desired_goal"))
    goals = [steps[field] for steps in shards for field in ("next_achieved_goal", "desired_goal")]
    moves = [
        displacements(steps["achieved_goal"], steps["next_achieved_goal"], steps["episode"], policy.subgoal_steps)
        for steps in shards
    ]
    old_low, old_high, radius = (array.cpu().numpy() for array in policy.box)
    low, high = visited_bounds(np.concatenate(goals), margin=threshold)
    low, high = np.minimum(low, old_low), np.maximum(high, old_high)
    if sum(len(move) for move in moves) > 0:
        radius = np.maximum(radius, reachable_radius(np.concatenate(moves), low, high, threshold))
    return low, high, radius
