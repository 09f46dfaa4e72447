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
            # An entry that is always 0, such as the velocity of a parked car, does not belong to the unit vector after it
            if part.shape[1] < size or not (part[:, 0].any() and part[:, -1].any()):
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
    return _moved(goals, distances[:, None, None, None] * axes[:, None, :], blocks)


def _moved(goals: np.ndarray, offsets: np.ndarray, blocks: list[slice]) -> np.ndarray:
    """
    :param goals: shape (n, goal_dim)
    :param offsets: shape (..., 1, goal_dim)
    :param blocks: entries of the goals' unit vectors; a part of an offset in such a block has the length of the chord (at most
        2), and points in the direction whose tangent the great circle follows
    :return: the goals plus the offsets, shape (..., n, goal_dim), in the precision of ``goals``
    """
    points: np.ndarray = goals + offsets.astype(goals.dtype)
    for block in blocks:
        chord = np.linalg.norm(offsets[..., block], axis=-1, keepdims=True)
        center, direction = goals[:, block].astype(np.float64), offsets[..., block] / np.maximum(chord, 1e-12)
        # The direction minus its projection on the vector
        tangent = direction - (direction * center).sum(axis=-1, keepdims=True) * center
        length = np.linalg.norm(tangent, axis=-1, keepdims=True)
        has_tangent = length > 1e-3
        tangent = np.where(has_tangent, tangent / np.maximum(length, 1e-3), 0.0)
        angle = 2.0 * np.arcsin(np.minimum(chord, 2.0) / 2.0)
        points[..., block] = np.where(has_tangent, np.cos(angle), 1.0) * center + np.sin(angle) * tangent
    return points


def inscribed(goals: np.ndarray, tolerances: np.ndarray, blocks: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """
    Points between the axes, where a norm other than the Euclidean one may exceed its tolerance. The entries of the goal differ
    by equal shares of their tolerances: all of them at once, where a (weighted) sum of absolute differences is exceeded first,
    and random subsets.

    :param goals: shape (n, goal_dim)
    :param tolerances: tolerance of each entry of the goal alone, infinite for entries that do not count
    :param blocks: entries of the goals' unit vectors
    :return: increasing factors of the tolerances, of which the last one is 1 up to rounding, shape (n_factors,), and the
        points, shape (n_factors, n_directions, n, goal_dim), in the precision of ``goals``
    """
    rng, dim = np.random.default_rng(0), len(tolerances)
    signs = rng.choice([-1.0, 1.0], size=(_N_SIGNS, dim))
    signs[:2] = [[1.0], [-1.0]]
    # The entries of a unit vector share its tolerance
    alone = [i for i in range(dim) if not any(block.start <= i < block.stop for block in blocks)]
    parts = [*blocks, *(slice(i, i + 1) for i in alone)]
    directions = np.zeros_like(signs)
    is_used = rng.random((_N_SIGNS, len(parts))) < 0.5
    is_used[: _N_SIGNS // 2] = True
    for part, used in zip(parts, is_used.T, strict=True):
        if np.isfinite(tolerances[part]).all():
            directions[:, part] = used[:, None] * signs[:, part] / np.sqrt(len(signs[0, part]))
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    scaled = directions * np.where(np.isfinite(tolerances), tolerances, 0.0)
    factors = np.append(np.linspace(0.01, 0.99, 99), 0.999)
    return factors, _moved(goals, factors[:, None, None, None] * scaled[:, None, :], blocks)
