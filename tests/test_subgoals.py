"""Subgoals and relabelling: pure functions, checked by their properties."""

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_hrl.common.relabeling import apply_subgoal_tests, hindsight_count, sample_goal_steps
from sb3_hrl.common.subgoals import (
    SubgoalBox,
    decode_subgoal,
    displacements,
    encode_subgoal,
    is_reached,
    reachable_radius,
    visited_bounds,
)

unit = st.floats(-1.0, 1.0, width=32)
pair = st.tuples(unit, unit)
BOX = SubgoalBox(th.tensor([-2.0, -4.0]), th.tensor([3.0, 4.0]), th.tensor([0.5, 2.0]))


@given(pair, pair, st.booleans())
def test_subgoals_lie_in_the_box(action, achieved, relative):
    subgoal = decode_subgoal(th.tensor(action), 5.0 * th.tensor(achieved), BOX, relative)
    assert (subgoal >= BOX.low).all()
    assert (subgoal <= BOX.high).all()


@given(pair, pair, st.booleans())
def test_encoding_undoes_decoding(action, achieved, relative):
    # Well inside the box, so that nothing is clipped
    action, achieved = th.tensor(action), th.tensor(achieved)
    subgoal = decode_subgoal(action, achieved, BOX, relative)
    assert th.allclose(encode_subgoal(subgoal, achieved, BOX, relative), action, atol=1e-5)


@given(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), pair, st.booleans())
def test_actions_in_hindsight_are_actions(subgoal, achieved, relative):
    action = encode_subgoal(th.tensor(subgoal), th.tensor(achieved), BOX, relative)
    assert (action.abs() <= 1.0).all()


def test_relative_subgoal_by_hand():
    subgoal = decode_subgoal(th.tensor([1.0, -0.5]), th.tensor([1.0, 1.0]), BOX, relative=True)
    assert subgoal.tolist() == [1.5, 0.0]
    # Beyond the box: clipped to it
    assert decode_subgoal(th.tensor([1.0, 0.0]), th.tensor([2.9, 0.0]), BOX, relative=True).tolist() == [3.0, 0.0]


def test_absolute_subgoal_by_hand():
    assert decode_subgoal(th.tensor([0.0, 1.0]), th.tensor([9.0, 9.0]), BOX, relative=False).tolist() == [0.5, 4.0]


def test_reached_is_an_inclusive_euclidean_distance():
    achieved = th.zeros(3, 2)
    subgoals = th.tensor([[3.0, 4.0], [3.0, 4.1], [0.0, 0.0]])
    assert is_reached(achieved, subgoals, 5.0).tolist() == [True, False, True]


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


def test_only_missed_tests_are_punished():
    rewards, discounts = th.tensor([-1.0, -1.0, -1.0, 0.0]), th.tensor([0.5, 0.5, 0.5, 0.0])
    tested, reached = th.tensor([True, True, False, True]), th.tensor([False, True, False, True])
    rewards, discounts = apply_subgoal_tests(rewards, discounts, tested, reached, penalty=-50.0)
    assert rewards.tolist() == [-50.0, -1.0, -1.0, 0.0]
    assert discounts.tolist() == [0.0, 0.5, 0.5, 0.0]
