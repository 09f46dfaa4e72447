"""Pure functions on subgoals, tested by their properties."""

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_hrl.common.hindsight import hindsight_count, sample_goal_steps
from sb3_hrl.common.subgoals import (
    SubgoalBounds,
    action_to_subgoal,
    displacements,
    is_missed,
    is_reached,
    reachable_radius,
    subgoal_to_action,
    visited_bounds,
)

unit = st.floats(-1.0, 1.0, width=32)
pair = st.tuples(unit, unit)
BOUNDS = SubgoalBounds(th.tensor([-2.0, -4.0]), th.tensor([3.0, 4.0]), th.tensor([0.5, 2.0]))


@given(pair, pair)
def test_subgoals_lie_within_their_bounds(action, achieved):
    subgoal = action_to_subgoal(th.tensor(action), 5.0 * th.tensor(achieved), BOUNDS)
    assert (subgoal >= BOUNDS.low).all()
    assert (subgoal <= BOUNDS.high).all()


@given(pair, pair)
def test_a_subgoal_tells_its_action(action, achieved):
    # Well within the bounds, so that nothing is clipped
    action, achieved = th.tensor(action), th.tensor(achieved)
    subgoal = action_to_subgoal(action, achieved, BOUNDS)
    assert th.allclose(subgoal_to_action(subgoal, achieved, BOUNDS), action, atol=1e-5)


@given(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), pair)
def test_actions_in_hindsight_are_actions(subgoal, achieved):
    action = subgoal_to_action(th.tensor(subgoal), th.tensor(achieved), BOUNDS)
    assert (action.abs() <= 1.0).all()


def test_subgoals_by_hand():
    assert action_to_subgoal(th.tensor([1.0, -0.5]), th.tensor([1.0, 1.0]), BOUNDS).tolist() == [1.5, 0.0]
    # Outside the bounds: clipped
    assert action_to_subgoal(th.tensor([1.0, 0.0]), th.tensor([2.9, 0.0]), BOUNDS).tolist() == [3.0, 0.0]
    assert subgoal_to_action(th.tensor([1.5, 9.0]), th.tensor([1.0, 0.0]), BOUNDS).tolist() == [1.0, 1.0]


@given(pair, pair)
def test_arrays_and_tensors_agree(action, achieved):
    one, other = (np.array(values, dtype=np.float32) for values in (action, achieved))
    bounds = SubgoalBounds(*(bound.numpy() for bound in BOUNDS))
    for function in (action_to_subgoal, subgoal_to_action):
        expected = function(th.from_numpy(one), th.from_numpy(other), BOUNDS)
        np.testing.assert_allclose(function(one, other, bounds), expected, rtol=1e-6)


def test_reached_is_an_inclusive_euclidean_distance():
    achieved = th.zeros(3, 2)
    subgoals = th.tensor([[3.0, 4.0], [3.0, 4.1], [0.0, 0.0]])
    assert is_reached(achieved, subgoals, 5.0).tolist() == [True, False, True]


def test_a_segment_misses_its_subgoal_if_more_than_half_of_the_way_is_left():
    reached, left, way = np.array([False, False, True]), np.array([0.51, 0.5, 0.9]), np.ones(3)
    assert is_missed(reached, left, way).tolist() == [True, False, False]
    assert is_missed(False, 0.3, 0.5)


def test_visited_bounds_drop_outliers():
    goals = np.concatenate([np.linspace(0, 1, 1000)[:, None], [[1e6]]])
    low, high = visited_bounds(goals, margin=0.5)
    assert -0.5 <= low[0] < -0.4
    assert 1.4 < high[0] <= 1.5


def test_radius_is_between_twice_the_threshold_and_half_the_box():
    low, high = np.array([-1.0, -1.0, -1.0]), np.array([1.0, 1.0, 1.0])
    moves = np.tile([[0.001, -0.3, 50.0]], (100, 1))
    np.testing.assert_allclose(reachable_radius(moves, low, high, threshold=0.05), [0.1, 0.3, 1.0])


def test_displacements_do_not_cross_episodes():
    achieved = np.arange(7.0)[:, None]
    episodes = np.array([0, 0, 0, 0, 4, 4, 4])
    moves = displacements(achieved, achieved + 1.0, episodes, 3)
    assert moves.ravel().tolist() == [3.0, 3.0, 3.0]
    assert len(displacements(achieved, achieved, episodes, 9)) == 0


@pytest.mark.parametrize(("n_sampled_goal", "expected"), [(0, 0), (1, 50), (4, 80)])
def test_hindsight_share_is_that_of_sb3(n_sampled_goal, expected):
    assert hindsight_count(100, n_sampled_goal) == expected


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50), st.integers(0, 2**31))
def test_goal_steps_lie_where_the_strategy_says(first, offset, rest, seed):
    rng = np.random.default_rng(seed)
    step, last = first + offset, first + offset + rest
    ones = np.ones(20, dtype=np.int64)
    args = (step * ones, first * ones, last * ones)
    future = sample_goal_steps(*args, GoalSelectionStrategy.FUTURE, rng)
    assert ((future >= step) & (future < last)).all()
    episode = sample_goal_steps(*args, GoalSelectionStrategy.EPISODE, rng)
    assert ((episode >= first) & (episode < last)).all()
    assert (sample_goal_steps(*args, GoalSelectionStrategy.FINAL, rng) == last - 1).all()


def test_future_reaches_every_later_step():
    ones = np.ones(2000, dtype=np.int64)
    steps = sample_goal_steps(3 * ones, 0 * ones, 7 * ones, GoalSelectionStrategy.FUTURE, np.random.default_rng(0))
    assert set(steps.tolist()) == {3, 4, 5, 6}
