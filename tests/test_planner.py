"""Planning over landmarks, and users' own planners."""

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from agents import WITHOUT_STEPS, choose, fill, float32, made_by, make_model, missed_ways, with_bounds
from conftest import PointEnv, point_env_fn, point_vec_env

from sb3_hrl import HierarchicalDDPG, SerialCollector
from sb3_hrl.common.subgoals import is_reached
from sb3_hrl.hddpg.choosers import HighNoise, Situation, actor_proposal, choose_subgoals, planned_waypoint, random_subgoal
from sb3_hrl.hddpg.inference import PolicySnapshot, value_to_steps
from sb3_hrl.hddpg.planners import PLANNERS, LandmarkConfig
from sb3_hrl.hddpg.planners.landmarks import LandmarkPlanner, failed_edges, farthest_points, hit_rates, members_of
from sb3_hrl.hddpg.planners.shortest_paths import costs_to_go, edges_of

# --------------------------------------------------------------------- functions


def test_farthest_points_by_hand():
    assert farthest_points(np.array([[0.0], [1.0], [2.0], [10.0], [5.5]]), 4).tolist() == [0, 3, 4, 2]
    twice = np.array([[0.0], [1.0], [0.0], [1.0], [1.0]])
    assert farthest_points(twice, 4, at_least=4).tolist() == [0, 1], "points that coincide are one landmark"


@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_values_are_steps(gamma):
    values = np.array([-sum(gamma**i for i in range(n)) for n in (0, 1, 7, 30)])
    np.testing.assert_allclose(value_to_steps(values, gamma), [0, 1, 7, 30], atol=1e-3)
    assert np.isinf(value_to_steps(np.array([-1.0 / (1.0 - gamma), -1000.0]), gamma)).all()
    assert value_to_steps(np.array([0.5]), gamma) == 0.0, "values above 0 are errors"


def test_steps_are_those_of_the_mean_value_of_the_most_pessimistic_critic(small):
    model = with_bounds(make_model(small).learn(60))
    policy, rng = model.policy, np.random.default_rng(0)
    observations, achieved = rng.random((3, 2, 3), dtype=np.float32), rng.random((3, 2, 2), dtype=np.float32)
    subgoals = rng.random((3, 2), dtype=np.float32)
    steps = policy.numpy_policy().steps(observations, achieved, subgoals)
    for i in range(3):
        parts = (th.from_numpy(array) for array in (observations[i], achieved[i], subgoals[[i, i]]))
        with th.no_grad():
            inputs = policy.low_inputs(*parts)
            values = th.cat(policy.low.critic(inputs, policy.low.actor(inputs)), dim=1).amin(dim=1).mean()
        np.testing.assert_allclose(steps[i], value_to_steps(values.numpy()[None], 0.99)[0], rtol=1e-3, atol=1e-3)


def test_costs_to_go_by_hand():
    inf = np.inf
    steps = np.array([[0.0, 1.0, 9.0, inf], [inf, 0.0, 2.0, inf], [1.0, inf, 0.0, inf], [1.0, inf, inf, 0.0]])
    assert costs_to_go(edges_of(steps), np.array([inf, inf, 3.0, inf])).tolist() == [6.0, 5.0, 3.0, 7.0]
    assert np.isinf(costs_to_go(edges_of(steps), np.array([inf, inf, inf, 1.0]))).tolist() == [True, True, True, False]


def test_edges_that_failed():
    landmarks = np.array([[0.0], [1.0], [2.0]])
    starts = np.array([[0.1], [-0.1], [0.0], [0.9], [1.1], *[[1.9]] * 15])
    subgoals = np.array([[1.1], [0.9], [2.0], [2.2], [2.0], *[[1.0]] * 15])
    missed = np.array([True, True, True, True, *[False] * 16])
    # Two misses from 0 to 1, with a probability of 1/25 by chance; one miss from 0 to 2; one success from 1 to 2
    assert failed_edges(starts, subgoals, missed, landmarks).tolist() == [[False, True, False], [False] * 3, [False] * 3]
    assert not failed_edges(starts[:0], subgoals[:0], missed[:0], landmarks).any()
    # If half of the segments miss, two misses tell nothing about an edge
    missed[10:] = True
    assert not failed_edges(starts, subgoals, missed, landmarks)[0].any()
    assert not failed_edges(starts, subgoals, missed | True, landmarks).any()


def test_rates_of_segments_that_do_not_miss():
    """Two landmarks with distance 1, which is also the width of the kernels: a segment at the other one has weight
    exp(-1/2)."""
    landmarks, e = np.array([[0.0], [1.0]]), math.exp(-0.5)
    starts, subgoals = np.array([[0.0], [0.0], [1.0]]), np.array([[1.0], [1.0], [0.0]])
    missed = np.array([False, False, True])
    # Both segments from 0 to 1 hit, the one back missed; the mean rate of all segments, 2/3, counts as one more
    expected = [[(2 * e + 2 / 3) / (3 * e + 1), (2 + 2 / 3) / (3 + e**2)], [(2 * e**2 + 2 / 3) / (2 * e**2 + 2), 0.0]]
    expected[1][1] = (2 * e + 2 / 3) / (3 * e + 1)
    np.testing.assert_allclose(hit_rates(starts, subgoals, missed, landmarks), expected)
    assert hit_rates(starts, subgoals, missed & False, landmarks).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert np.isfinite(hit_rates(starts, subgoals, missed, np.zeros((2, 1)))).all(), "landmarks in one place"


def test_members_of_landmarks_lie_around_them():
    points = np.array([[0.0], [0.1], [5.0], [5.2], [5.3], [0.0]])
    members = members_of(points, np.array([0, 2]), 4, np.random.default_rng(0))
    assert members[:, 0].tolist() == [0, 2]
    assert set(members[0, 1:]) <= {0, 1, 5}
    assert set(members[1, 1:]) <= {2, 3, 4}


# ---------------------------------------------------------------------- waypoints


class WalledReach:
    """A low level that needs 25 steps per unit; a wall at x = 0 has a gap above y = 1."""

    horizon, threshold, radius, goal_weights = 30.0, 0.1, 1.2, float32(1.0, 1.0)

    def __init__(self) -> None:
        self.steps_per_unit, self.n_asked = np.array(25.0), 0

    @property
    def longest_edge(self) -> float:
        return max(self.horizon, 20.0)

    @property
    def pace(self) -> float:
        return self.radius * math.sqrt(2.0) / self.horizon

    def steps(self, observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
        start = achieved[:, 0]
        crosses = (start[:, 0] < 0) != (subgoals[:, 0] < 0)
        is_open = np.minimum(start[:, 1], subgoals[:, 1]) > 0.9
        distance = self.steps_per_unit * np.linalg.norm(subgoals - start, axis=1)
        self.n_asked += len(start)
        return np.where(crosses & ~is_open, np.inf, distance).astype(np.float32)

    def steps_depend_on(self) -> list[np.ndarray]:
        return [self.steps_per_unit]

    def is_reached(self, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        return is_reached(achieved_goal, subgoal, self.threshold)


def visited(goals: np.ndarray, speed: float) -> SimpleNamespace:
    """:return: a buffer of states that were visited once, at this speed along the first axis, without segments"""
    states = {"observation": np.zeros((len(goals), 3), np.float32), "achieved_goal": goals}
    x = np.linspace(0.0, 100 * speed, 101, dtype=np.float32)[:, None] * float32(1.0, 0.0)
    recent = [{"achieved_goal": x[:-1], "next_achieved_goal": x[1:], "episode": np.zeros(100, np.int64)}]
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        sample_states=lambda n: states, rng=rng, n_segments=lambda: 0, recent=lambda n_steps, fields: recent
    )


def learnt(config: LandmarkConfig, goals: np.ndarray, reach: WalledReach, speed: float = 0.04) -> LandmarkPlanner:
    """:return: a planner with these landmarks"""
    first = config.bind({name: np.zeros(shape, np.float32) for name, shape in config.layout(3, 2).items()})
    assert first.n_landmarks == 0
    assert np.isnan(waypoint(first, (0.5, 0.5), (0.6, 0.5))).all(), "no landmarks, no way"
    return config.bind(first.update(visited(goals, speed), reach, np.ones(2)))


def waypoint(planner: LandmarkPlanner, start, goal, missed=None, reach: WalledReach | None = None) -> list[float]:
    missed = None if missed is None else np.array(missed, dtype=np.float32)[None]
    reach = reach or WalledReach()
    return planner.waypoints(reach, np.zeros((1, 3), np.float32), float32(start), float32(goal), missed)[0].tolist()


@pytest.fixture
def planner() -> LandmarkPlanner:
    """Landmarks on a grid, on both sides of the wall."""
    goals = float32(*[(x, y) for x in (-1.5, -0.5, 0.5, 1.5) for y in (-0.5, 0.5, 1.5)])
    return learnt(LandmarkConfig(n_landmarks=12, n_visited=12, n_members=1), goals, WalledReach())


def test_the_first_waypoint_of_the_way_around_a_wall(planner):
    position, goal, way = [-0.5, -0.5], [0.5, -0.5], []
    for _ in range(10):
        position = waypoint(planner, position, goal)
        way.append(position)
        if position == goal:
            break
    assert way == [[-0.5, 0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, 0.5], [0.5, -0.5]]


def test_a_goal_within_reach_needs_no_waypoint(planner):
    assert waypoint(planner, (0.2, 0.0), (1.0, 0.6)) == pytest.approx([1.0, 0.6])


REACHED = ((np.inf, np.inf), (np.inf, np.inf))


def test_a_way_that_is_missed_costs_more_each_time(planner):
    # Two paths of the same length around a corner
    start, goal = (-0.5, -0.5), (-1.5, 0.5)
    ways = {end: (start, end) for end in ((-1.5, -0.5), (-0.5, 0.5))}

    def first_step(*missed) -> tuple[float, ...]:
        return tuple(waypoint(planner, start, goal, missed_ways(*missed)))

    one = first_step()
    (other,) = set(ways) - {one}
    assert first_step(ways[one]) == other
    assert first_step(ways[one], *[REACHED] * 4, ways[other]) == one, "not at once again"
    assert first_step(ways[one], ways[other], ways[other], *[REACHED] * 4) == one, "twice is more than once"
    assert first_step(((0.5, 0.5), one)) == one, "missed from elsewhere"


def test_ways_further_on_that_were_missed_cost_more(planner):
    start, goal, way = (-1.3, -1.3), (-0.5, 0.6), ((-0.5, -0.5), (-0.5, 0.5))
    assert waypoint(planner, start, goal, missed_ways()) == [-0.5, -0.5]
    assert waypoint(planner, start, goal, missed_ways(way, (way[0], goal), *[REACHED] * 4)) == [-1.5, -0.5]


def test_a_goal_that_was_missed_is_approached_otherwise(planner):
    start, goal = (0.5, 0.5), (0.5, -0.4)
    assert waypoint(planner, start, goal, missed_ways()) == pytest.approx(goal)
    assert waypoint(planner, start, goal, missed_ways((start, goal))) != pytest.approx(goal)


def test_edges_are_within_the_horizon(planner):
    reach = WalledReach()
    assert np.isfinite(waypoint(planner, (-0.5, -0.5), (0.5, -0.5), reach=reach)).all()
    reach.horizon = 24.0  # the distance between landmarks is 25 steps
    assert np.isnan(waypoint(planner, (-0.5, -0.5), (0.5, -0.5), reach=reach)).all()


def test_edges_of_some_steps_are_believed_before_the_horizon_is_as_long():
    reach, goals = WalledReach(), float32(*[(x, y) for x in (0.5, 1.1, 1.7) for y in (0.0, 0.6)])
    reach.horizon = 10.0
    planner = learnt(LandmarkConfig(n_landmarks=6, n_visited=6, n_members=1), goals, reach)
    assert waypoint(planner, (0.5, 0.1), (1.7, 0.1), reach=reach) == pytest.approx([1.1, 0.0]), "15 steps"
    assert np.isinf(planner.steps[planner.steps > 20.0]).all()


def test_no_value_is_asked_of_what_is_too_far_at_the_highest_speed():
    """For this low level's value everything is near; within a horizon of 30 steps it moves at most 1.2."""
    reach = WalledReach()
    reach.steps = lambda observations, achieved, subgoals: np.ones(len(subgoals), np.float32)
    goals = float32((0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 0.0))
    planner = learnt(LandmarkConfig(n_landmarks=4, n_visited=4, n_members=1), goals, reach)
    apart = np.linalg.norm(planner.places[:, None] - planner.places, axis=2)
    assert (np.isfinite(planner.steps) == (apart <= 1.2)).all()
    assert waypoint(planner, (0.1, 0.0), (3.0, 0.1), reach=reach) == [1.0, 0.0]


@pytest.mark.parametrize("speed", [0.1, 0.2, 0.4])
def test_the_number_of_landmarks_follows_their_spacing(monkeypatch, speed):
    """Points at a distance of 0.1 from 0 to 40, shuffled, and an agent that moves by ``speed`` per step."""
    monkeypatch.setattr("sb3_hrl.hddpg.planners.landmarks.LEAST_LANDMARKS", 5)
    reach, x = WalledReach(), np.random.default_rng(0).permutation(401).astype(np.float32) / 10
    points = x[:, None] * float32(1.0, 0.0)
    config = LandmarkConfig(n_landmarks=401, n_visited=401, n_members=1)
    landmarks = np.sort(learnt(config, points, reach, speed).places[:, 0])
    assert np.diff(landmarks).min() >= 3.0 * speed - 1e-3, "no closer to each other"
    assert np.abs(x[:, None] - landmarks).min(axis=1).max() <= 3.0 * speed + 1e-3, "no place without one"
    for n in (3, 7):
        config = LandmarkConfig(n_landmarks=n, n_visited=401, n_members=1)
        assert learnt(config, points, reach, speed).n_landmarks == n, "at most, and at least some"


def test_landmarks_on_the_way_do_not_make_it_shorter():
    """A value ends at the tolerance of its target, so each landmark on the way seems to save some steps."""
    reach, x = WalledReach(), np.arange(0.0, 3.01, 0.25)
    reach.threshold = 0.2

    def steps(observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
        ways = np.linalg.norm(subgoals - achieved[:, 0], axis=1) - reach.threshold
        return (np.maximum(25.0 * ways, 1.0) + 0.5).astype(np.float32)

    reach.steps = steps
    config = LandmarkConfig(n_landmarks=len(x), n_visited=len(x), n_members=1)
    planner = learnt(config, x[:, None] * float32(1.0, 0.0), reach)
    first, _ = waypoint(planner, (0.0, 0.0), (3.0, 0.0), reach=reach)
    assert first >= 1.0, "one of the farthest landmarks within the horizon, not the next one"


def test_no_way_is_known(planner):
    assert np.isnan(waypoint(planner, (-0.5, -0.5), (8.0, 8.0))).all()


def test_edges_that_change_in_place_are_seen(planner):
    assert waypoint(planner, (-0.5, -0.5), (0.5, -0.5)) == [-0.5, 0.5]
    # As after an update of the learner's planner, or when a worker gets new weights
    planner.steps[:] = np.inf
    assert np.isnan(waypoint(planner, (-0.5, -0.5), (0.5, -0.5))).all()


def new_weights(planner: LandmarkPlanner, reach: WalledReach) -> None:
    reach.steps_per_unit[...] = 26.0


def new_landmarks(planner: LandmarkPlanner, reach: WalledReach) -> None:
    planner._arrays["achieved"][:, :, 1] += 0.01


def longer_horizon(planner: LandmarkPlanner, reach: WalledReach) -> None:
    reach.horizon = 31.0


@pytest.mark.parametrize("change", [new_weights, new_landmarks, longer_horizon])
def test_steps_to_a_goal_are_asked_for_again_if_they_have_changed(planner, change):
    reach, goal = WalledReach(), (0.5, -0.5)

    def n_asked(planner: LandmarkPlanner) -> int:
        before = reach.n_asked
        # A new planner asks for all steps
        assert waypoint(planner, (-0.5, -0.5), goal, reach=reach) == waypoint(unused(planner), (-0.5, -0.5), goal, reach=reach)
        return reach.n_asked - before

    def unused(planner: LandmarkPlanner) -> LandmarkPlanner:
        return planner.config.bind(planner._arrays)

    first, again = n_asked(planner), n_asked(planner)
    assert 0 < again < first
    change(planner, reach)
    assert n_asked(planner) > again
    goal = (0.5, -0.4)
    assert n_asked(planner) > again, "another goal"
    goal = (0.5, -0.5)
    assert n_asked(planner) == again, "not forgotten"


def test_landmarks_of_a_low_level_without_steps_in_its_values():
    reach, corners = WalledReach(), float32((0, 0), (0, 1), (1, 1), (2, 1))
    reach.radius, reach.horizon = 1.01, 20.0
    reach.steps = None  # it is not called
    planner = learnt(LandmarkConfig(n_landmarks=4, n_visited=4, n_members=2, distance="euclidean"), corners, reach, 0.1)
    order = [planner.places.tolist().index(corner) for corner in corners.tolist()]
    # At the speed that covers the radius in a horizon of 20 steps
    one, diagonal = 20.0 / (1.01 * math.sqrt(2.0)), 20.0 / 1.01
    far = math.inf
    expected = [[0, one, diagonal, far], [one, 0, one, far], [diagonal, one, 0, one], [far, far, one, 0]]
    np.testing.assert_allclose(planner.steps[np.ix_(order, order)], expected, rtol=1e-5)
    planner.steps[order[0], order[2]] = far  # an edge that failed
    assert waypoint(planner, (0, 0), (2.0, 1.2), reach=reach) == [1.0, 1.0], "as it has not been tried from here"
    missed = missed_ways(((0.0, 0.0), (1.0, 1.0)))
    assert waypoint(planner, (0, 0), (2.0, 1.2), missed, reach) == [0.0, 1.0]


def test_ways_that_are_missed_cost_more(small, monkeypatch):
    """Segments of 4 steps of 0.1 from 0 towards 1.2: the first one misses (with 0.8 left), the last one arrives."""
    config = LandmarkConfig(n_landmarks=3, n_visited=12, n_members=1, distance="euclidean")
    model = with_bounds(make_model(small, subgoal_steps=20), 0.05, radius=2.0)
    fill(model, subgoal=(1.2, 0.0))
    monkeypatch.setattr("sb3_hrl.hddpg.planners.landmarks.SIGNIFICANCE", 0.0)  # edges never fail
    planners = []
    for miss_cost in (0.0, 100.0):
        model.replay_buffer.rng = np.random.default_rng(0)
        planner = replace(config, miss_cost=miss_cost)
        planner = planner.bind({name: np.zeros(shape, np.float32) for name, shape in planner.layout(3, 2).items()})
        planners.append(planner.config.bind(planner.update(model.replay_buffer, model.policy.numpy_policy(), np.ones(2))))
    np.testing.assert_array_equal(planners[0].places, planners[1].places)
    more, goals = planners[1].steps - planners[0].steps, planners[0].places[:, 0]
    first, last = goals.argmin(), goals.argmax()
    assert (more > 0.0).all()
    assert more[first, last] > more[last, last], "from the start, where segments missed"


def test_landmarks_are_learnt_saved_and_sent_to_workers(small, tmp_path):
    config = dict(n_landmarks=10, n_visited=50, update_interval=50, distance="euclidean")
    kwargs = dict(planner="landmarks", planner_kwargs=config, policy_kwargs=dict(net_arch=[16], n_critics=2))
    kwargs |= dict(subgoal_kwargs=dict(radius=0.5), subgoal_steps=10) | WITHOUT_STEPS
    model = make_model(small, **kwargs).learn(200)
    planner = model.policy.numpy_policy().planner
    assert planner.n_landmarks == 10
    assert len(np.unique(planner.places, axis=0)) == 10
    seen = np.concatenate([steps["achieved_goal"] for steps in model.replay_buffer.recent(200, ("achieved_goal",))])
    assert all((seen == goal).all(axis=1).any() for goal in planner.places)
    model.save(tmp_path / "model")
    loaded = HierarchicalDDPG.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.policy.numpy_policy().planner.steps, planner.steps)
    env = point_vec_env(16)
    env.seed(0)
    obs = env.reset()
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    # Continue without the buffer of the first run
    loaded.set_env(point_vec_env())
    loaded.learn(100)
    assert not np.array_equal(loaded.policy.numpy_policy().planner.places, planner.places)
    snapshot = PolicySnapshot(model.policy)
    vector = np.zeros(snapshot.n_weights, dtype=np.float32)
    snapshot.write(model.policy, vector)
    worker = snapshot.bind(vector)
    np.testing.assert_array_equal(worker.planner.places, planner.places)
    situation = Situation(*model.policy.flatten_obs(obs), np.stack([missed_ways()] * 16))
    decisions = [choose_subgoals(policy, situation) for policy in (worker, model.policy.numpy_policy())]
    np.testing.assert_array_equal(decisions[0].subgoals, decisions[1].subgoals)
    assert made_by(decisions[0], planned_waypoint) == made_by(decisions[1], planned_waypoint) > 0


# --------------------------------------------------------------- a planner of one's own


class RestingEnv(PointEnv):
    """The achieved goal is the position of an object that never moves."""

    def _obs(self) -> dict[str, np.ndarray]:
        return super()._obs() | {"achieved_goal": np.array([0.5, 0.5])}


def test_landmarks_of_an_object_that_nobody_has_moved():
    size = dict(learning_starts=20, batch_size=16, policy_kwargs=dict(net_arch=[16]), buffer_size=1000, seed=0)
    often = dict(planner_kwargs=dict(update_interval=50))
    model = HierarchicalDDPG("MultiInputPolicy", RestingEnv(), **size, **often).learn(100)
    assert model.policy.numpy_policy().planner.n_landmarks == 1


class CentrePlanner:
    """Leads to the mean of all visited states, if the goal is in the east."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.centre = arrays["centre"]

    @property
    def is_ready(self) -> bool:
        return bool(self.centre.any())

    @property
    def places(self) -> np.ndarray:
        return self.centre[None]

    def update(self, buffer, reach, goal_std) -> dict[str, np.ndarray]:
        assert reach.horizon == 5
        assert goal_std.shape == (2,)
        return {"centre": buffer.sample_states(100)["achieved_goal"].mean(axis=0)}

    def waypoints(self, reach, observation, achieved_goal, goal, missed) -> np.ndarray:
        is_known = (goal[:, :1] > 0.0) & self.is_ready
        return np.where(is_known, self.centre, np.float32(np.nan))


@dataclass(frozen=True)
class CentreConfig:
    update_interval: int = 30
    asks_values: bool = False

    def layout(self, observation_dim: int, goal_dim: int) -> dict[str, tuple[int, ...]]:
        return {"centre": (goal_dim,)}

    def bind(self, arrays: Mapping[str, np.ndarray]) -> CentrePlanner:
        return CentrePlanner(arrays)


@pytest.fixture
def centre(monkeypatch) -> dict[str, object]:
    """Arguments that select the planner of these tests."""
    monkeypatch.setitem(PLANNERS, "centre", CentreConfig)
    return WITHOUT_STEPS | dict(planner="centre", planner_kwargs=dict(update_interval=25))


EAST_AND_WEST = float32([0.5, 0.5], [-0.5, 0.5])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_another_planner_is_one_class(small, centre, asynchronous, tmp_path):
    env = SerialCollector([point_env_fn()] * 2, flush_size=10, sync_interval=10) if asynchronous else point_vec_env(2)
    with closing(env):
        model = make_model(small, env, async_collection=asynchronous, **centre).learn(250)
        planner = model.policy.numpy_policy().planner
        assert planner.centre.any()
        decision = choose(model, np.zeros((2, 2), np.float32), EAST_AND_WEST)
        np.testing.assert_array_equal(decision.subgoals[0], planner.centre)
        assert made_by(decision, planned_waypoint) == 1
        # During training: one subgoal for all goals in the east, and a different one after each update
        for steps in model.replay_buffer.recent(100, ("subgoal", "desired_goal")):
            is_east = steps["desired_goal"][:, 0] > 0.0
            assert is_east.any()
            assert len(np.unique(steps["subgoal"][is_east], axis=0)) < 0.2 * is_east.sum() + 2
        model.save(tmp_path / "model")
        model.policy.save(tmp_path / "policy.pt")
        obs = point_vec_env(8).reset()
        _, state = model.predict(obs, deterministic=True)
        is_east = obs["desired_goal"][:, 0] > 0.0
        assert ((state.subgoals == planner.centre).all(axis=1) == is_east).all()
        others = (HierarchicalDDPG.load(tmp_path / "model").policy, type(model.policy).load(tmp_path / "policy.pt"))
        for policy in others:
            np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[1].subgoals, state.subgoals)


def test_random_subgoals_are_not_replaced_by_waypoints(small, centre):
    model = make_model(small, **centre).learn(100)
    noise = HighNoise(np.zeros((2, 2), np.float32), np.array([True, False]), np.ones((2, 2), np.float32), np.zeros(2))
    decision = choose(model, np.zeros((2, 2), np.float32), np.abs(EAST_AND_WEST), noise=noise)
    assert made_by(decision, random_subgoal) == made_by(decision, planned_waypoint) == 1


def test_where_no_way_is_known_and_no_steps_the_actor_decides(small, centre):
    model = make_model(small, **centre, subgoal_kwargs=dict(avoid_reached=False))
    decision = choose(model, np.zeros((2, 2), np.float32), EAST_AND_WEST)
    assert made_by(decision, actor_proposal) == 2, "there was no update yet"


NO_WAYS = np.full((2, 2), np.nan, np.float32)


def test_a_planner_is_told_what_to_avoid(small, centre, monkeypatch):
    seen = []
    monkeypatch.setattr(CentrePlanner, "waypoints", lambda *args: [seen.append(args[-1]), NO_WAYS][1])
    for avoid_missed in (True, False):
        model = make_model(small, **centre, subgoal_kwargs=dict(avoid_missed=avoid_missed))
        choose(model, np.zeros((2, 2), np.float32), EAST_AND_WEST)
    assert seen[0].shape == (2, 20, 2, 2)
    assert seen[1] is None
