"""Shortest paths in a graph of landmarks."""

from typing import NamedTuple

import numpy as np


class Edges(NamedTuple):
    """Edges from node to node, sorted by their starts."""

    starts: np.ndarray  # (n_edges,)
    ends: np.ndarray  # (n_edges,)
    lengths: np.ndarray  # (n_edges,)
    first: np.ndarray  # (m,), index of the first edge of each node that has edges


def edges_of(steps: np.ndarray) -> Edges:
    """
    :param steps: length of the edge from each node to each other node, infinite without an edge, shape (n, n)
    :return: the edges: a landmark has a few dozen of them to hundreds of others
    """
    starts, ends = np.nonzero(np.isfinite(steps))
    return Edges(starts, ends, steps[starts, ends], np.flatnonzero(np.diff(starts, prepend=-1)))


def costs_to_go(edges: Edges, to_goal: np.ndarray) -> np.ndarray:
    """
    Lengths of the shortest paths from each node to the goal (Bellman-Ford algorithm).

    :param edges: edges between n nodes
    :param to_goal: length of the edge from each node to the goal, infinite without an edge, shape (n,)
    :return: lengths of the shortest paths, infinite without a path, shape (n,)
    """
    costs, nodes, through = to_goal.copy(), edges.starts[edges.first], np.empty_like(edges.lengths)
    for _ in range(len(costs) if len(nodes) > 0 else 0):
        # `clip` writes into `through` without a buffer
        np.take(costs, edges.ends, out=through, mode="clip")
        through += edges.lengths
        before = costs[nodes]
        after = np.minimum(before, np.minimum.reduceat(through, edges.first))
        if np.array_equal(after, before):
            break
        costs[nodes] = after
    return costs
