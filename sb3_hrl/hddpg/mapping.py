"""The landmarks of a policy, chosen among what was visited."""

import numpy as np

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.subgoals import is_missed
from sb3_hrl.hddpg.landmarks import LandmarkConfig, failed_edges, farthest_points, hit_rates, members_of
from sb3_hrl.hddpg.policies import HierarchicalPolicy


def update_landmarks(policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, config: LandmarkConfig) -> None:
    """
    Choose landmarks among visited states, and find the ways between them.

    :param policy: gets the landmarks
    :param buffer: what was visited
    :param config: settings of the planner
    """
    visited, std = buffer.sample_states(config.n_visited), policy.goal_moments.std.cpu().numpy()
    points = visited["achieved_goal"] / std
    members = members_of(points, farthest_points(points, config.n_landmarks), config.n_members, buffer.rng)
    observations, achieved = visited["observation"][members], visited["achieved_goal"][members]
    steps = policy.acting().steps_from_landmarks(observations, achieved, achieved[:, 0])
    if buffer.n_segments() > 0:
        starts, subgoals, missed = _some_segments(policy, buffer, config.n_visited)
        experience = (starts / std, subgoals / std, missed, achieved[:, 0] / std)
        steps[failed_edges(*experience)] = np.inf
        if config.miss_cost > 0.0:
            # A rate of 0 is that of no segment that ever arrived
            steps -= config.miss_cost * np.log(np.maximum(hit_rates(*experience), 1e-6), dtype=np.float32)
    policy.set_landmarks(observations, achieved, steps)


def _some_segments(
    policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:return: where segments began, what they were to reach, and whether they missed it"""
    segments = buffer.sample_high(n, n_sampled_goal=0, max_steps=1)
    starts, subgoals, ends = (
        tensor.cpu().numpy() for tensor in (segments.achieved_goals, segments.subgoals, segments.next_achieved_goals)
    )
    left, way = (np.linalg.norm(subgoals - points, axis=1) for points in (ends, starts))
    return starts, subgoals, is_missed(policy.is_reached(ends, subgoals), left, way)
