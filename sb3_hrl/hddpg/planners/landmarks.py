"""
Planning over landmarks: visited states that are far apart from each other, connected by an edge if the low level's value
predicts that it gets from one to the other within its horizon. The subgoal is the first waypoint of the shortest path to the
goal (Huang et al. 2019, https://arxiv.org/abs/1908.05451; between two levels as in DHRL). If no path is known, other rules
decide, see :mod:`sb3_hrl.hddpg.choosers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.checks import is_integer, is_number, require
from sb3_hrl.common.result_cache import ResultCache
from sb3_hrl.common.subgoals import N_MISSED_RECENTLY, SegmentEnd, displacements, is_missed
from sb3_hrl.hddpg.planners.base import Reach
from sb3_hrl.hddpg.planners.shortest_paths import Edges, costs_to_go, edges_of

DISTANCES = ("value", "euclidean")

# An edge counts as failed if the probability of as many consecutive misses by chance is lower than this
SIGNIFICANCE = 0.05

# Number of recent steps used to estimate the agent's speed
_N_RECENT = 20_000
# Distance between landmarks: how far the agent gets in so many steps. With larger distances, such as a quarter or half of the
# horizon, landmarks have too few edges: in PointMaze_Large no path is known for many of the decisions
SPACING_STEPS = 3
SPACING_QUANTILE = 0.9
LEAST_LANDMARKS = 100

# Number of goals whose distances are kept: an evaluation in several environments has several goals at the same time
_N_GOALS = 64


@dataclass(frozen=True)
class LandmarkConfig:
    """
    Settings of ``planner="landmarks"`` (``planner_kwargs``).

    :param n_landmarks: maximum number of landmarks. The first 100 are always used, more only while they are farther apart than
        the agent gets in 3 steps
    :param n_members: number of visited states around each landmark whose values are averaged. A single state may have a
        velocity that points the right way by chance, and the shortest path would consist of such lucky errors
    :param n_visited: number of states sampled from the replay buffer, from which the landmarks are chosen
    :param update_interval: number of environment steps between two updates of the landmarks
    :param distance: estimate of the number of steps between two states: ``value``, from the low level's value; or
        ``euclidean``, from the straight-line distance and the speed that covers the radius within the horizon. Use
        ``euclidean`` if the low level's reward is not sparse, and set ``subgoal_steps`` as well, because the horizon cannot be
        calibrated without values. The planner then has to try paths to find out which do not exist
    :param miss_cost: cost of a miss, in environment steps: an edge costs ``-miss_cost log p`` more, where ``p`` is the share
        of similar segments that did not miss their subgoals. A large cost favours the path that most likely leads to the goal,
        for low levels that get stuck or fall in some places; 0: the shortest path
    """

    n_landmarks: int = 400
    n_members: int = 8
    n_visited: int = 4_000
    update_interval: int = 2_000
    distance: str = "value"
    miss_cost: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "n_landmarks": (is_integer(self.n_landmarks, 2), "a whole number of at least 2"),
            "n_members": (is_integer(self.n_members, 1), "a whole number of at least 1"),
            "n_visited": (
                is_integer(self.n_visited, self.n_landmarks if is_integer(self.n_landmarks, 2) else 2),
                "a whole number of at least `n_landmarks`",
            ),
            "update_interval": (is_integer(self.update_interval, 1), "a whole number of at least 1 (environment steps)"),
            "distance": (self.distance in DISTANCES, f"one of {DISTANCES}"),
            "miss_cost": (is_number(self.miss_cost, 0.0), "at least 0 (environment steps)"),
        }
        for name, (valid, rule) in rules.items():
            require(valid, name, f"{rule} (in `planner_kwargs`)", getattr(self, name))

    @property
    def asks_values(self) -> bool:
        """See :class:`~sb3_hrl.hddpg.planners.PlannerConfig`."""
        return self.distance == "value"

    def layout(self, observation_dim: int, goal_dim: int) -> dict[str, tuple[int, ...]]:
        """See :meth:`~sb3_hrl.hddpg.planners.PlannerConfig.layout`: ``count`` is the number of entries in use."""
        n, n_members = self.n_landmarks, self.n_members
        return {
            "count": (),
            "speed": (),
            "observations": (n, n_members, observation_dim),
            "achieved": (n, n_members, goal_dim),
            "steps": (n, n),
        }

    def when_idle(self) -> tuple[str, str]:
        """See :meth:`~sb3_hrl.hddpg.planners.PlannerConfig.when_idle`."""
        n = 2 * self.n_landmarks
        cure = (
            "Train for longer, or explore more (`random_action_prob` in `exploration_kwargs`); in large spaces set "
            f"`planner_kwargs: {{n_landmarks: {n}, n_visited: {max(self.n_visited, 2 * n)}}}`."
        )
        return "the agent has not been near the goals, or landmarks are too far apart for edges between them", cure

    def bind(self, arrays: Mapping[str, np.ndarray]) -> "LandmarkPlanner":
        """See :meth:`~sb3_hrl.hddpg.planners.PlannerConfig.bind`."""
        return LandmarkPlanner(self, arrays)


class LandmarkPlanner:
    """
    See :class:`~sb3_hrl.hddpg.planners.Planner`.

    :param config: settings of the planner
    :param arrays: ``observations`` of the members of each landmark, shape (n, n_members, obs_dim); their ``achieved`` goals,
        shape (n, n_members, goal_dim), of which the first is the landmark itself; and the environment ``steps`` from each
        landmark to each other, infinite without an edge, shape (n, n); ``count`` entries are in use
    """

    def __init__(self, config: LandmarkConfig, arrays: Mapping[str, np.ndarray]):
        self.config = config
        self._arrays = arrays
        # To find edges takes longer than to see that the steps between landmarks have not changed. And while the weights are
        # the same, in evaluations and between two updates of a worker's weights, the steps to the goal are the same
        self._edges = ResultCache[Edges]()
        self._goal_steps = ResultCache[np.ndarray](_N_GOALS)

    @property
    def n_landmarks(self) -> int:
        """Number of landmarks, 0 before the first update."""
        return int(self._arrays["count"].item())

    @property
    def is_ready(self) -> bool:
        """See :attr:`~sb3_hrl.hddpg.planners.Planner.is_ready`."""
        return self.n_landmarks > 0

    @property
    def places(self) -> np.ndarray:
        """See :attr:`~sb3_hrl.hddpg.planners.Planner.places`: the landmarks, shape (n_landmarks, goal_dim)."""
        return self._arrays["achieved"][: self.n_landmarks, 0]

    @property
    def steps(self) -> np.ndarray:
        """Environment steps between each pair of landmarks, infinite without an edge, shape (n_landmarks, n_landmarks)."""
        return self._arrays["steps"][: self.n_landmarks, : self.n_landmarks]

    # ------------------------------------------------------------------- update

    def update(self, buffer: SharedMemoryReplayBuffer, reach: Reach, goal_std: np.ndarray) -> dict[str, np.ndarray]:
        """See :meth:`~sb3_hrl.hddpg.planners.Planner.update`: chooses landmarks, and finds the edges between them."""
        config, visited = self.config, buffer.sample_states(self.config.n_visited)
        # Landmarks are far apart in units in which all dimensions of the goal count equally
        points = visited["achieved_goal"] / goal_std
        speed, spacing = self._scale_of(buffer, reach.goal_weights, goal_std)
        members = members_of(
            points, farthest_points(points, config.n_landmarks, spacing, LEAST_LANDMARKS), config.n_members, buffer.rng
        )
        observations, achieved = visited["observation"][members], visited["achieved_goal"][members]
        steps = self._steps_to(reach, speed, observations, achieved, achieved[:, 0])
        if buffer.n_segments() > 0:
            starts, subgoals, missed = self._some_segments(buffer, reach)
            experience = (starts / goal_std, subgoals / goal_std, missed, achieved[:, 0] / goal_std)
            steps[failed_edges(*experience)] = np.inf
            if config.miss_cost > 0.0 and len(missed) > 0:
                # The minimum rate stands for edges on which no segment ever arrived
                steps -= config.miss_cost * np.log(np.maximum(hit_rates(*experience), 1e-6), dtype=np.float32)
        if config.asks_values:
            steps += self._steps_within_tolerance(reach, steps, achieved[:, 0])
        count = np.array(len(achieved), dtype=np.float32)
        return {"count": count, "speed": np.array(speed), "observations": observations, "achieved": achieved, "steps": steps}

    def _scale_of(self, buffer: SharedMemoryReplayBuffer, weights: np.ndarray, goal_std: np.ndarray) -> tuple[float, float]:
        """:return: the highest weighted distance per step, and the spacing of landmarks, divided by goal_std"""
        shards = buffer.recent(_N_RECENT, ("achieved_goal", "next_achieved_goal"))
        moves = [shard["next_achieved_goal"] - shard["achieved_goal"] for shard in shards]
        speed = np.linalg.norm(weights * np.concatenate(moves), axis=1).max()
        moves = [
            displacements(shard["achieved_goal"], shard["next_achieved_goal"], shard["episode"], SPACING_STEPS)
            for shard in shards
        ]
        lengths = np.linalg.norm(np.concatenate(moves) / goal_std, axis=1)
        return float(speed), float(np.quantile(lengths, SPACING_QUANTILE)) if len(lengths) > 0 else 0.0

    def _steps_within_tolerance(self, reach: Reach, steps: np.ndarray, landmarks: np.ndarray) -> np.float32:
        """
        :param steps: between landmarks, shape (n, n)
        :param landmarks: shape (n, goal_dim)
        :return: number of steps from the border of a landmark's tolerance to the landmark. A value ends at the border, but the
            next edge starts at the landmark. Without these steps, the path with the most landmarks looks like the shortest one
        """
        ways = _distances(reach, landmarks[:, None], landmarks) - reach.threshold
        is_long = np.isfinite(steps) & (ways > reach.threshold)
        if not is_long.any():
            return np.float32(0.0)
        return np.float32(reach.threshold * np.median(steps[is_long] / ways[is_long]))

    def _some_segments(self, buffer: SharedMemoryReplayBuffer, reach: Reach) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:return: starts of segments, their subgoals, and whether they missed them, without segments whose outcome is
        unknown"""
        segments = buffer.sample_high(self.config.n_visited, n_sampled_goal=0, max_steps=1)
        tensors = (segments.achieved_goals, segments.subgoals, segments.next_achieved_goals, segments.ends, segments.failed)
        starts, subgoals, last, ends, failed = (tensor.cpu().numpy() for tensor in tensors)
        left, way = (_distances(reach, points, subgoals) for points in (last, starts))
        missed = is_missed(ends == SegmentEnd.REACHED, left, way)
        # If the episode ended first (at its goal or by a time limit), the outcome is unknown; after a failure it is a miss
        is_known = (ends != SegmentEnd.EPISODE_OVER) | failed
        return starts[is_known], subgoals[is_known], missed[is_known]

    # ---------------------------------------------------------------- waypoints

    def waypoints(
        self, reach: Reach, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, missed: np.ndarray | None
    ) -> np.ndarray:
        """See :meth:`~sb3_hrl.hddpg.planners.Planner.waypoints`."""
        waypoints = np.full_like(goal, np.nan)
        if self.is_ready:
            for env in range(len(goal)):
                avoid = None if missed is None else missed[env]
                waypoints[env] = self._waypoint(reach, observation[env], achieved_goal[env], goal[env], avoid)
        return waypoints

    def _waypoint(
        self, reach: Reach, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, missed: np.ndarray | None
    ) -> np.ndarray | float:
        """:return: first waypoint of the shortest path to the goal, shape (goal_dim,); NaN if no path is known"""
        n, landmarks, steps = self.n_landmarks, self.places, self.steps
        edges = self._edges.get([steps], lambda: edges_of(steps))
        # Lengths of the first edges: from here to each landmark and (the last one) to the goal itself
        targets = np.concatenate([landmarks, goal[None]])
        speed = self._arrays["speed"].item()
        near = _may_be_near(reach, speed, achieved_goal, targets)
        # A landmark that is already reached leads nowhere
        near[:n] &= ~reach.is_reached(achieved_goal, landmarks)
        observations, achieved = (np.broadcast_to(array, (near.sum(), len(array))) for array in (observation, achieved_goal))
        from_here = np.full(n + 1, np.inf, dtype=np.float32)
        from_here[near] = self._cut(reach, self._steps_from(reach, observations[:, None], achieved[:, None], targets[near]))
        penalties = None
        if missed is not None and np.isfinite(missed).any():
            penalties, from_here = self._penalise(reach, missed, achieved_goal, targets, from_here)
            edges = edges._replace(lengths=edges.lengths + penalties[edges.starts, edges.ends])
        # The goal itself if it is within reach, unless it was missed from here
        if np.isfinite(self._cut(reach, from_here[n])):
            return goal
        total = from_here
        if np.isfinite(from_here[:n]).any():
            # Lengths of the last edges: from each landmark to the goal
            to_goal = self._steps_to_goal(reach, speed, goal)
            if penalties is not None:
                to_goal = to_goal + penalties[:, n]
            total = np.append(from_here[:n] + costs_to_go(edges, to_goal), from_here[n])
        best = int(total.argmin())
        return targets[best] if np.isfinite(total[best]) else np.nan

    def _steps_to_goal(self, reach: Reach, speed: float, goal: np.ndarray) -> np.ndarray:
        """:return: environment steps from each landmark to the goal, shape (n_landmarks,)"""
        observations, achieved = (self._arrays[name][: self.n_landmarks] for name in ("observations", "achieved"))

        def steps() -> np.ndarray:
            return self._steps_to(reach, speed, observations, achieved, goal[None])[:, 0]

        if self.config.distance == "euclidean":
            return steps()
        numbers = np.array([speed, reach.longest_edge])
        return self._goal_steps.get([*reach.steps_depend_on(), observations, achieved, numbers], steps, goal.tobytes())

    def _penalise(
        self, reach: Reach, missed: np.ndarray, achieved_goal: np.ndarray, targets: np.ndarray, from_here: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Each miss makes an edge longer by a whole segment, so that the planner finally gives up an edge that does not exist,
        and takes a longer path (as in learning real-time A*, Korf 1990).

        :return: additional lengths of the edges from each landmark to each landmark and to the goal, shape (n, n + 1), and the
            new lengths of those from here, shape (n + 1,)
        """
        cost = reach.horizon
        started_here = reach.is_reached(achieved_goal, missed[:, 0])
        from_landmarks = reach.is_reached(targets[:-1, None], missed[:, 0]).astype(np.float32)
        to_targets = reach.is_reached(targets[:, None], missed[:, 1]).astype(np.float32)
        penalties = cost * from_landmarks @ to_targets.T
        from_here = from_here + cost * to_targets @ started_here
        # Do not repeat a recent miss immediately, even without an alternative: then the rules after the planner decide
        recently = slice(-N_MISSED_RECENTLY, None)
        from_here[to_targets[:, recently] @ started_here[recently] > 0.0] = np.inf
        return penalties, from_here

    # -------------------------------------------------------------------- steps

    def _steps_from(self, reach: Reach, observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
        """
        :param observations: observations of the members of each start, shape (n, n_members, obs_dim)
        :param achieved: achieved goals of the members, shape (n, n_members, goal_dim); the first one is the start itself
        :param subgoals: shape (n, goal_dim)
        :return: environment steps to the subgoals, shape (n,)
        """
        if self.config.distance == "euclidean":
            return _distances(reach, achieved[:, 0], subgoals) / reach.pace
        return reach.steps(observations, achieved, subgoals)

    def _steps_to(
        self, reach: Reach, speed: float, observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray
    ) -> np.ndarray:
        """
        :param reach: reach of the low level
        :param speed: highest weighted distance per environment step, in the units of the goal
        :param observations: observations of the landmarks' members, shape (n_landmarks, n_members, obs_dim)
        :param achieved: achieved goals of the members, shape (n_landmarks, n_members, goal_dim); the first one is the landmark
        :param subgoals: shape (n_subgoals, goal_dim)
        :return: steps, infinite if they are too many for an edge, shape (n_landmarks, n_subgoals)
        """
        steps = np.full((len(achieved), len(subgoals)), np.inf, dtype=np.float32)
        for i, subgoal in enumerate(subgoals):
            near = np.flatnonzero(_may_be_near(reach, speed, achieved[:, 0], subgoal))
            targets = np.broadcast_to(subgoal, (len(near), len(subgoal)))
            steps[near, i] = self._steps_from(reach, observations[near], achieved[near], targets)
        return self._cut(reach, steps)

    def _cut(self, reach: Reach, steps: np.ndarray) -> np.ndarray:
        """:return: steps, infinite if they are too many for an edge"""
        return np.where(steps <= reach.longest_edge, steps, np.float32(np.inf))


def _distances(reach: Reach, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """:return: weighted distances in which a subgoal is reached, shape (...)"""
    return np.asarray(np.linalg.norm(reach.goal_weights * (ends - starts), axis=-1))


def _may_be_near(reach: Reach, speed: float, achieved_goal: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """:return: whether targets may be within an edge's length at the highest speed; values are only computed for these"""
    return np.asarray(_distances(reach, achieved_goal, targets) <= speed * reach.longest_edge)


def farthest_points(points: np.ndarray, n: int, spacing: float = 0.0, at_least: int = 2, first: int = 0) -> np.ndarray:
    """
    Farthest-point sampling (Gonzalez 1985): each new point is the one farthest from the points chosen before.

    :param points: shape (m, dim), m at least ``n``
    :param n: maximum number of points to choose
    :param spacing: minimum distance between two of them
    :param at_least: number of points to choose even if they are closer to each other, unless they coincide
    :param first: index of the first point
    :return: indices of the chosen points, which are all different, shape (n,) or shorter
    """
    chosen = np.empty(n, dtype=np.int64)
    distances = np.full(len(points), np.inf)
    for i in range(n):
        chosen[i] = first if i == 0 else distances.argmax()
        apart = distances[chosen[i]]
        # All points may coincide: an object that nobody has touched yet
        if apart == 0.0 or (i >= at_least and apart < spacing * spacing):
            return chosen[:i]
        distances = np.minimum(distances, np.square(points - points[chosen[i]]).sum(axis=1))
    return chosen


def members_of(points: np.ndarray, landmarks: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """
    Points around each landmark: the landmark itself, and random points that are closer to it than to any other landmark.

    :param points: shape (m, dim)
    :param landmarks: indices of the points that are landmarks, shape (n_landmarks,)
    :param n: number of members, including the landmark; sampled with replacement
    :param rng: random number generator
    :return: indices of points, shape (n_landmarks, n)
    """
    nearest = nearest_landmarks(points, points[landmarks])
    nearest[landmarks] = np.arange(len(landmarks))  # each landmark is its own member, even if two of them coincide
    others = [rng.choice(np.flatnonzero(nearest == i), n - 1) for i in range(len(landmarks))]
    return np.concatenate([landmarks[:, None], np.array(others).reshape(len(landmarks), n - 1)], axis=1)


def failed_edges(starts: np.ndarray, subgoals: np.ndarray, missed: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """
    Find edges that contradict experience: all segments that tried to get from one landmark to the other missed their subgoals,
    and there are too many of them for chance. The low level's value is too optimistic at thin walls.

    :param starts: achieved goals at the start of segments, shape (m, goal_dim)
    :param subgoals: subgoals of these segments, shape (m, goal_dim)
    :param missed: whether the segments missed their subgoals, shape (m,)
    :param landmarks: achieved goals of the landmarks, shape (n, goal_dim)
    :return: which edges have failed, shape (n, n)
    """
    n = len(landmarks)
    edges = nearest_landmarks(starts, landmarks) * n + nearest_landmarks(subgoals, landmarks)
    n_missed, n_tried = (np.bincount(which, minlength=n * n).reshape(n, n) for which in (edges[missed], edges))
    chance = np.mean(missed) ** n_tried if len(missed) > 0 else np.ones((n, n))
    return (n_missed == n_tried) & (chance < SIGNIFICANCE)


def hit_rates(starts: np.ndarray, subgoals: np.ndarray, missed: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """
    Estimate the probability that segments between landmarks do not miss their subgoals. It is a kernel estimate (Nadaraya and
    Watson) over segments with a nearby start and subgoal, in which the mean rate of all segments counts as one more
    observation. The width of the Gaussian kernels is the distance between landmarks: there are too few segments to count them
    for each edge.

    :param starts: achieved goals at the start of segments, shape (m, goal_dim)
    :param subgoals: subgoals of these segments, shape (m, goal_dim)
    :param missed: whether the segments missed their subgoals, shape (m,)
    :param landmarks: achieved goals of the landmarks, shape (n, goal_dim)
    :return: rates between 0 and 1, shape (n, n)
    """
    apart = _square_distances(landmarks, landmarks)
    np.fill_diagonal(apart, np.inf)
    width = max(np.sqrt(apart.min(axis=1)).mean(), 1e-6)
    from_, to = (np.exp(-0.5 * _square_distances(points, landmarks) / width**2) for points in (starts, subgoals))
    n_tried, n_hit = from_.T @ to, (from_ * ~missed[:, None]).T @ to
    return (n_hit + np.mean(~missed)) / (n_tried + 1.0)


def _square_distances(points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """:return: squared distances, shape (m, n)"""
    return np.asarray(np.square(points[:, None] - landmarks).sum(axis=2))


def nearest_landmarks(points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """
    :param points: shape (m, dim)
    :param landmarks: shape (n, dim)
    :return: index of the landmark closest to each point, shape (m,)
    """
    return _square_distances(points, landmarks).argmin(axis=1)
