"""Points at given distances from goals, used to find the tolerance of success by probing."""

import numpy as np

# In the units of the goal
_DISTANCES = np.logspace(-6, 4, 101)
# Sizes of unit vectors: quaternions, directions in space, angles as (cos, sin)
_BLOCK_SIZES = (4, 3, 2)
# Directions between the axes
_N_SIGNS = 32


def probe_distances(whole: bool) -> np.ndarray:
    """
    :param whole: whether goals are whole numbers or bits
    :return: increasing distances at which the reward is probed, in the units of the goal
    """
    return np.unique(np.rint(_DISTANCES[_DISTANCES >= 0.5])) if whole else _DISTANCES


def between(low: float, high: float, whole: bool) -> np.ndarray:
    """
    :param low: a distance
    :param high: a larger one
    :param whole: whether goals are whole numbers or bits
    :return: increasing distances between the two, for a finer search
    """
    return np.arange(low, high) if whole else np.linspace(low, high, 1001)


def unit_blocks(goals: np.ndarray) -> list[slice]:
    """
    Find the unit vectors in goals, such as quaternions: groups of entries whose norm is 1 in all goals. Rewards are undefined
    elsewhere.

    :param goals: goals of the environment, shape (n, goal_dim)
    :return: the entries of each unit vector
    """
    blocks, start, dim = [], 0, goals.shape[1]
    while start < dim:
        for size in _BLOCK_SIZES:
            part = goals[:, start : start + size]
            if part.shape[1] < size:
                continue
            # Goals like (1, 0) may have norm 1 by coincidence
            is_oblique = np.abs(part).max(axis=1).min() < 0.999
            if is_oblique and np.allclose(np.linalg.norm(part, axis=1), 1.0, rtol=0.0, atol=1e-5):
                blocks.append(slice(start, start + size))
                start += size - 1
                break
        start += 1
    return blocks


def around(goals: np.ndarray, distances: np.ndarray, blocks: list[slice]) -> np.ndarray:
    """
    Points at each distance from each goal, in both directions of each axis. Within a unit vector the points follow a great
    circle, and the distance (at most 2) is the length of the chord.

    :param goals: shape (n, goal_dim)
    :param distances: shape (n_distances,)
    :param blocks: entries of the goals' unit vectors, from :func:`unit_blocks`
    :return: points, shape (n_distances, 2 * goal_dim, n, goal_dim), in the precision of ``goals``
    """
    axes = np.concatenate([np.eye(goals.shape[1]), -np.eye(goals.shape[1])])
    offsets = (distances[:, None, None, None] * axes[:, None, :]).astype(goals.dtype)
    points: np.ndarray = goals + offsets
    for block in blocks:
        within = np.flatnonzero(axes[:, block].any(axis=1))
        center, direction = goals[:, block].astype(np.float64), axes[within][:, None, block]
        # The axis minus its projection on the vector, shape (2 * size, n, size)
        tangent = direction - (direction * center).sum(axis=-1, keepdims=True) * center
        length = np.linalg.norm(tangent, axis=-1, keepdims=True)
        has_tangent = length > 1e-3
        tangent = np.where(has_tangent, tangent / np.maximum(length, 1e-3), 0.0)
        angle = 2.0 * np.arcsin(np.minimum(distances, 2.0) / 2.0)[:, None, None, None]
        points[:, within, :, block] = np.where(has_tangent, np.cos(angle), 1.0) * center + np.sin(angle) * tangent
    return points


def inscribed(goals: np.ndarray, tolerances: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Points between the axes, where a norm other than the Euclidean one may exceed its tolerance. The directions are
    perpendicular to the plane through the tolerances on the axes, where a (weighted) sum of absolute differences is exceeded
    first.

    :param goals: shape (n, goal_dim)
    :param tolerances: tolerance of each entry of the goal alone, infinite for entries that do not count or must not change
    :param radius: maximum distance
    :return: increasing distances, of which the last one is ``radius`` up to rounding, shape (n_distances,), and the points,
        shape (n_distances, n_directions, n, goal_dim), in the precision of ``goals``
    """
    weights = np.where(np.isfinite(tolerances), radius / tolerances, 0.0)
    weights /= max(float(np.linalg.norm(weights)), 1e-12)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_N_SIGNS, len(weights)))
    signs[:2] = [[1.0], [-1.0]]
    distances = radius * np.append(np.linspace(0.01, 0.99, 99), 0.999)
    offsets = distances[:, None, None, None] * (signs * weights)[:, None, :]
    points: np.ndarray = goals + offsets.astype(goals.dtype)
    return distances, points
