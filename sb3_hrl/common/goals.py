"""What reaching a goal means: success and tolerance, from a reward function and from probes."""

import numpy as np
from gymnasium import spaces

from sb3_hrl.common.probes import around, between, inscribed, probe_distances, unit_blocks
from sb3_hrl.common.rewards import ComputeReward, check_rewards, goal_rewards
from sb3_hrl.common.spaces import existing_goals, is_whole
from sb3_hrl.common.success import has_two_values

# Weight in the distance of an entry of the goal that does not count
LEAST_WEIGHT = 1e-9


class GoalTask:
    """
    Success of achieved goals, vectorised. It comes from the environment's own ``compute_reward`` or, if that does not define
    it, from other methods of the environment.

    A *sparse* reward takes two values, and success is the higher one. With any other reward, success is what the environment
    reports separately (:mod:`sb3_hrl.common.success`). If it reports nothing, success is a Euclidean distance of at most
    ``threshold``.

    **Subgoals** are reached at a distance of at most ``threshold``. If it is found by probing, the tolerance of each entry of
    the goal is found as well, and the distance is a weighted Euclidean one: the entry with the smallest tolerance has the
    weight 1, an entry that may differ five times as much a weight of 1/5, and an entry that does not count a weight of almost
    0. Every point within this distance is a success, in any direction: the ellipsoid lies inside the environment's own success
    region, and reaches its border in some direction. A ``threshold`` given by the user is a Euclidean distance, without
    weights.

    :param compute_reward: the environment's method, called with goals in the shape and type of ``goal_space``, and an array of
        empty infos
    :param goals: some desired goals of the environment, to probe with, shape (n, goal_dim)
    :param threshold: maximum distance at which a goal counts as reached; ``None`` to find it by probing
    :param ends_at_success: whether an episode ends when its goal is reached
    :param goal_space: space of the goals; ``None``: goals are passed to the environment as flat arrays, unchanged
    :param achieved: some achieved goals of the environment, shape (m, goal_dim), which also show the range of its goals
    :param compute_success: a sparse reward that defines success if ``compute_reward`` is dense
    """

    def __init__(
        self,
        compute_reward: ComputeReward,
        goals: np.ndarray,
        threshold: float | None = None,
        ends_at_success: bool = False,
        goal_space: spaces.Space | None = None,
        achieved: np.ndarray | None = None,
        compute_success: ComputeReward | None = None,
    ):
        self._take_goals(goals, goal_space, achieved)
        self._set(compute_reward, threshold, ends_at_success, compute_success)

    def _take_goals(self, goals: np.ndarray, space: spaces.Space | None, achieved: np.ndarray | None) -> None:
        """Store goals to probe with."""
        self.goal_space = space
        self._is_whole = is_whole(space)
        self._goals = goals
        seen = goals if achieved is None else np.concatenate([goals, achieved])
        self._seen, self._blocks = seen, [] if self._is_whole else unit_blocks(seen)

    def _set(
        self,
        compute_reward: ComputeReward,
        threshold: float | None,
        ends_at_success: bool,
        compute_success: ComputeReward | None = None,
    ) -> None:
        """Store the environment's methods, and probe them."""
        self.compute_reward, self.ends_at_success = compute_reward, ends_at_success
        self.compute_success = compute_reward if compute_success is None else compute_success
        self.best_reward = float(check_rewards(self._labels(self._goals, self._goals)).max())
        # A few goals are enough for probing
        goals, distances = self._goals[:4], probe_distances(self._is_whole)
        rewards = self._labels_around(goals, distances)
        self.is_sparse = is_sparse_reward(rewards, self.best_reward, threshold)
        is_paid = self.is_sparse and self.compute_success is compute_reward
        self._values = np.append(rewards, self.best_reward) if is_paid else np.zeros(0)
        self.weights = np.ones(goals.shape[1], dtype=np.float32)
        if threshold is not None:
            self.threshold = float(threshold)
        else:
            tolerances = self._tolerances(goals, distances, rewards)
            self.threshold = float(tolerances.min())
            # Not 0, so that points at infinity, which stand for no point at all, are far away
            self.weights[:] = np.maximum(self.threshold / tolerances, LEAST_WEIGHT)
            # Probes are not more exact than that
            self.weights[self.weights > 0.99] = 1.0

    def rewards(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """
        :param achieved: shape (n, goal_dim)
        :param desired: shape (n, goal_dim)
        :return: the environment's rewards, shape (n,)
        """
        return goal_rewards(self.compute_reward, self.goal_space, achieved, desired)

    def _labels(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """:return: rewards of which the higher value means success if there are two values, shape (n,)"""
        return goal_rewards(self.compute_success, self.goal_space, achieved, desired)

    def success(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """
        :param achieved: shape (n, goal_dim)
        :param desired: shape (n, goal_dim)
        :return: booleans, shape (n,)
        """
        if self.is_sparse:
            return is_best(check_rewards(self._labels(achieved, desired)), self.best_reward)
        return np.linalg.norm(achieved - desired, axis=-1) <= self.threshold

    def _labels_around(self, goals: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """
        :param goals: shape (n, goal_dim)
        :param distances: increasing
        :return: rewards of points at each distance from each goal, shape (len(distances), n_probes)
        """
        return self._labels(*self._probes(goals, distances)).reshape(len(distances), -1)

    def _probes(self, goals: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:return: points at each distance from each goal, and their goals, shapes (n_distances * n_probes, goal_dim)"""
        return paired(existing_goals(around(goals, distances, self._blocks), self.goal_space, self._seen), goals)

    def _tolerances(self, goals: np.ndarray, distances: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """
        :param goals: shape (n, goal_dim)
        :param distances: increasing
        :param rewards: rewards at these distances along the axes, with two values in total, shape (len(distances), n_probes)
        :return: semi-axes of an ellipsoid around each goal that contains only successes, infinite for entries of the goal that
            do not count, shape (goal_dim,)
        """
        dim = goals.shape[1]
        reached = self._reached_by_entry(rewards, goals)
        if not reached[0].all():
            if self._is_whole or np.array_equal(goals, np.rint(goals)):
                # Goals are compared for equality: two different goals differ by at least 1
                return np.full(dim, 0.5)
            raise ValueError(
                "No distance explains when a goal counts as reached: according to `compute_reward`, not even a distance of "
                f"{distances[0]:.0e} is close enough. Pass the distance at which a subgoal counts as reached as `threshold` "
                "in `subgoal_kwargs` (in the units of the achieved goal), or give `compute_reward` a tolerance: real "
                "numbers are never exactly equal."
            )
        tolerances = np.full(dim, np.inf)
        # Between the last distance at which all probes of an entry succeed and the next one
        inner = np.where(reached.all(axis=0), -1, reached.argmin(axis=0) - 1)
        for i in np.unique(inner[inner >= 0]):
            fine = between(distances[i], distances[i + 1], self._is_whole)
            still = self._reached_by_entry(self._labels_around(goals, fine), goals)
            entries = np.flatnonzero(inner == i)
            tolerances[entries] = [fine[np.flatnonzero(still[:, entry])[-1]] for entry in entries]
        if self._is_whole:
            return np.full(dim, tolerances.min())
        for block in self._blocks:
            tolerances[block] = tolerances[block].min()
        return tolerances * self._inscribed(goals, tolerances)

    def _reached_by_entry(self, rewards: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """
        :param rewards: rewards around some goals from :meth:`_labels_around`, shape (n_distances, n_probes)
        :param goals: these goals, shape (n, goal_dim)
        :return: whether all probes along an axis, in both directions, are successes, shape (n_distances, goal_dim)
        """
        by_axis = is_best(rewards, self.best_reward).reshape(len(rewards), 2, goals.shape[1], len(goals))
        return np.asarray(by_axis.all(axis=(1, 3)))

    def _inscribed(self, goals: np.ndarray, tolerances: np.ndarray) -> float:
        """
        :param goals: shape (n, goal_dim)
        :param tolerances: tolerance of each entry of the goal alone, shape (goal_dim,)
        :return: largest factor for all tolerances with which the ellipsoid contains only successes between the axes as well
        """
        factors, points = inscribed(goals, tolerances, self._blocks)
        labels = self._labels(*paired(existing_goals(points, self.goal_space, self._seen), goals)).reshape(len(factors), -1)
        still = np.asarray(np.all(is_best(labels, self.best_reward), axis=1))
        # The last factor is 1, up to rounding
        return 1.0 if still[-1] else float(factors[max(int(still.argmin()) - 1, 0)])


def paired(points: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param points: shape (..., n, goal_dim)
    :param goals: shape (n, goal_dim)
    :return: the points and the goal of each, both of shape (n_points, goal_dim)
    """
    achieved, desired = np.broadcast_arrays(points, goals)
    return achieved.reshape(-1, goals.shape[1]), desired.reshape(-1, goals.shape[1])


def is_best(rewards: np.ndarray, best_reward: float) -> np.ndarray:
    """
    :param rewards: any shape
    :param best_reward: reward of a goal for itself
    :return: whether each reward is that of a success, same shape
    """
    return np.greater_equal(rewards, best_reward - 1e-6)


def is_sparse_reward(rewards: np.ndarray, best_reward: float, threshold: float | None) -> bool:
    """
    :param rewards: rewards of probes at many distances; NaN if the reward of a probe is undefined
    :param best_reward: reward of a goal for itself
    :param threshold: maximum distance at which a goal counts as reached, if given
    :return: whether the reward has two values
    :raises ValueError: if the reward does not show what counts as reaching a goal
    """
    is_sparse = has_two_values(rewards, best_reward)
    if is_sparse and is_best(rewards, best_reward).all():
        raise ValueError(
            "`compute_reward` says that every goal is always reached, so there is nothing to learn. "
            "Check its `compute_reward(achieved_goal, desired_goal, info)`."
        )
    if not is_sparse and threshold is None:
        raise ValueError(
            "The environment's reward is dense, so the distance at which a goal counts as reached cannot be found by "
            "probing `compute_reward`, and nothing else defines success: neither a method `_is_success(achieved_goal, "
            "desired_goal)`, nor `info['is_success']` of random steps in a copy. Pass that distance as `threshold` in "
            "`subgoal_kwargs`, in the units of the achieved goal, such as `subgoal_kwargs=dict(threshold=0.05)`, or add the "
            "method."
        )
    return is_sparse
