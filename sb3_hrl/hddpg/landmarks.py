"""
Planning over landmarks: visited states that lie far apart, joined where the low level's value says that it gets from one to
the other. The first waypoint of the shortest way to the goal is the subgoal (Huang et al. 2019,
https://arxiv.org/abs/1908.05451; between two levels as in DHRL).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

DISTANCES = ("value", "euclidean")

# An edge has failed if as many misses in a row would come by chance less often than this
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class LandmarkConfig:
    """
    Settings of ``planner="landmarks"``, given as ``planner_kwargs``.

    :param n_landmarks: how many visited states are joined to a graph
    :param n_members: visited states around each landmark whose values are averaged: with a single one, whose velocity may
        point the right way by chance, the shortest path is that of the luckiest errors
    :param n_visited: drawn from the buffer, for the landmarks to be chosen from
    :param cutoff: environment steps above which the low level's estimate of a distance is not believed; ``None``:
        ``subgoal_steps``
    :param update_interval: environment steps between two choices of landmarks
    :param distance: what says how many steps it is from one place to another: ``value``, the low level's own; or
        ``euclidean``, the straight way at the pace that covers the radius in ``subgoal_steps``, for low levels whose reward
        is not sparse. Which ways do not exist is found by trying them, then
    :param miss_cost: environment steps that a miss is worth: an edge costs ``-miss_cost log p`` more, where ``p`` is the share
        of similar segments that did not miss their subgoals. With a large one the path is that which most likely leads to the
        goal, for low levels that get stuck or fall at some places; 0: the shortest one
    """

    n_landmarks: int = 100
    n_members: int = 4
    n_visited: int = 2_000
    cutoff: float | None = None
    update_interval: int = 2_000
    distance: str = "value"
    miss_cost: float = 0.0

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any] | None) -> "LandmarkConfig":
        """
        :param kwargs: settings that differ from the defaults
        :return: the settings, checked
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(kwargs or {}) - set(known))
        if unknown:
            raise ValueError(f"Unknown keys in `planner_kwargs`: {', '.join(unknown)}. Known keys: {', '.join(known)}.")
        config = cls(**(kwargs or {}))
        rules = {
            "n_landmarks": (config.n_landmarks >= 2, "at least 2"),
            "n_members": (config.n_members >= 1, "at least 1"),
            "n_visited": (config.n_visited >= config.n_landmarks, "at least `n_landmarks`"),
            "cutoff": (
                config.cutoff is None or config.cutoff > 0,
                "positive (environment steps), or None for `subgoal_steps`",
            ),
            "update_interval": (config.update_interval >= 1, "at least 1 (environment steps)"),
            "distance": (config.distance in DISTANCES, f"one of {DISTANCES}"),
            "miss_cost": (config.miss_cost >= 0.0, "at least 0 (environment steps)"),
        }
        for name, (valid, rule) in rules.items():
            if not valid:
                raise ValueError(f"`{name}` in `planner_kwargs` must be {rule}, not {getattr(config, name)}.")
        return config


def farthest_points(points: np.ndarray, n: int, first: int = 0) -> np.ndarray:
    """
    Farthest-point sampling (Gonzalez 1985): each point is the one that is farthest from those chosen before it.

    :param points: shape (m, dim), m at least ``n``
    :param n: how many to choose
    :param first: the point to begin with
    :return: indices of the chosen points, shape (n,)
    """
    chosen = np.empty(n, dtype=np.int64)
    distances = np.full(len(points), np.inf)
    for i in range(n):
        chosen[i] = first if i == 0 else distances.argmax()
        distances = np.minimum(distances, np.square(points - points[chosen[i]]).sum(axis=1))
    return chosen


def members_of(points: np.ndarray, landmarks: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """
    Points around each landmark: the landmark itself, and others out of those that are nearer to it than to any other landmark.

    :param points: shape (m, dim)
    :param landmarks: indices of those that are landmarks, shape (n_landmarks,)
    :param n: how many members, the landmark included; drawn with replacement
    :param rng: source of randomness
    :return: indices of points, shape (n_landmarks, n)
    """
    nearest = nearest_landmarks(points, points[landmarks])
    nearest[landmarks] = np.arange(len(landmarks))  # each has a member, even where two of them coincide
    others = [rng.choice(np.flatnonzero(nearest == i), n - 1) for i in range(len(landmarks))]
    return np.concatenate([landmarks[:, None], np.array(others).reshape(len(landmarks), n - 1)], axis=1)


def failed_edges(starts: np.ndarray, subgoals: np.ndarray, missed: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """
    Edges that experience speaks against: from the one landmark to the other all segments that were tried missed their
    subgoals, and these are more than chance explains. The low level's value is optimistic where a wall is thin.

    :param starts: goals achieved where segments began, shape (m, goal_dim)
    :param subgoals: what they were to reach, shape (m, goal_dim)
    :param missed: whether they missed it, shape (m,)
    :param landmarks: goals achieved at the landmarks, shape (n, goal_dim)
    :return: which edges failed, shape (n, n)
    """
    n = len(landmarks)
    edges = nearest_landmarks(starts, landmarks) * n + nearest_landmarks(subgoals, landmarks)
    n_missed, n_tried = (np.bincount(which, minlength=n * n).reshape(n, n) for which in (edges[missed], edges))
    chance = np.mean(missed) ** n_tried if len(missed) > 0 else np.ones((n, n))
    return (n_missed == n_tried) & (chance < SIGNIFICANCE)


def hit_rates(starts: np.ndarray, subgoals: np.ndarray, missed: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """
    How likely segments from one landmark to the other are not to miss: a kernel estimate (Nadaraya and Watson) over segments
    that began and were to end nearby, with the rate of all segments as one more observation. Gaussian kernels, as wide as
    landmarks lie apart: there are too few segments to count them by edge.

    :param starts: goals achieved where segments began, shape (m, goal_dim)
    :param subgoals: what they were to reach, shape (m, goal_dim)
    :param missed: whether they missed it, shape (m,)
    :param landmarks: goals achieved at the landmarks, shape (n, goal_dim)
    :return: rates between 0 and 1, shape (n, n)
    """
    apart = _square_distances(landmarks, landmarks)
    np.fill_diagonal(apart, np.inf)
    width = max(np.sqrt(apart.min(axis=1)).mean(), 1e-6)
    from_, to = (np.exp(-0.5 * _square_distances(points, landmarks) / width**2) for points in (starts, subgoals))
    n_tried, n_hit = from_.T @ to, (from_ * ~missed[:, None]).T @ to
    return (n_hit + np.mean(~missed)) / (n_tried + 1.0)


def _square_distances(points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """:return: shape (m, n)"""
    return np.asarray(np.square(points[:, None] - landmarks).sum(axis=2))


def nearest_landmarks(points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """
    :param points: shape (m, dim)
    :param landmarks: shape (n, dim)
    :return: index of the landmark that is nearest to each point, shape (m,)
    """
    return _square_distances(points, landmarks).argmin(axis=1)


def value_to_steps(values: np.ndarray, gamma: float) -> np.ndarray:
    """
    Number of steps that a value stands for, if each step costs 1 until the target is reached: the inverse of
    ``Q(d) = -(1 - gamma^d) / (1 - gamma)``.

    :param values: values, any shape
    :param gamma: discount factor
    :return: steps, infinite where the value is that of never, the same shape
    """
    remaining = np.minimum(1.0 + (1.0 - gamma) * values, 1.0)
    steps = np.full(np.shape(values), np.inf, dtype=np.float32)
    possible = remaining > 0.0
    steps[possible] = np.log(remaining[possible]) / np.log(gamma)
    return steps


def costs_to_go(steps: np.ndarray, to_goal: np.ndarray) -> np.ndarray:
    """
    Lengths of the shortest paths from each node to the goal (Bellman and Ford).

    :param steps: length of the edge from each node to each other one, infinite where there is none, shape (n, n)
    :param to_goal: length of the edge from each node to the goal, infinite where there is none, shape (n,)
    :return: lengths of the shortest paths, infinite where there is none, shape (n,)
    """
    costs = to_goal
    for _ in range(len(costs)):
        new = np.minimum(costs, (steps + costs).min(axis=1))
        if np.array_equal(new, costs):
            break
        costs = new
    return costs
