"""``predict`` keeps the subgoal in its state; the model stores nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th
from agents import WITHOUT_STEPS, make_model
from conftest import point_vec_env

from sb3_hrl.hddpg.config import SubgoalConfig


@pytest.fixture
def model(small):
    return make_model(small, **WITHOUT_STEPS).learn(100)


def far_apart(model, obs):
    """Move subgoals out of reach, so that segments use all of their steps."""
    state = model.predict(obs, deterministic=True)[1]
    return state._replace(subgoals=state.subgoals + 100.0)


@pytest.mark.parametrize("n_envs", [1, 4])
def test_shapes(model, n_envs):
    obs = point_vec_env(n_envs).reset()
    action, state = model.predict(obs, deterministic=True)
    assert action.shape == (n_envs, 2)
    assert state.subgoals.shape == (n_envs, 2)
    assert state.steps.tolist() == [0] * n_envs
    assert (action >= -2).all()
    assert (action <= 2).all()


def test_single_observation(model):
    obs = {key: value[0] for key, value in point_vec_env().reset().items()}
    action, state = model.predict(obs, deterministic=True)
    assert action.shape == (2,)
    assert state[0].shape == (1, 2)
    action, state = model.predict(obs, state=state, deterministic=True)
    assert action.shape == (2,)


def test_the_subgoal_stays_until_its_steps_are_over(model):
    obs = point_vec_env(2).reset()
    state = first = far_apart(model, obs)
    for steps in (1, 2, 3, 4):
        _, state = model.predict(obs, state=state, deterministic=True)
        np.testing.assert_array_equal(state.subgoals, first.subgoals)
        assert state.steps.tolist() == [steps, steps]
    _, state = model.predict(obs, state=state, deterministic=True)
    assert (state.subgoals != first.subgoals).all()
    assert state.steps.tolist() == [0, 0]


def test_a_reached_subgoal_is_replaced(model):
    obs = point_vec_env(2).reset()
    state = far_apart(model, obs)
    state.subgoals[1] = obs["achieved_goal"][1]
    _, state = model.predict(obs, state=state, deterministic=True)
    assert state.steps.tolist() == [1, 0]


def test_at_the_start_of_an_episode_there_is_a_new_subgoal(model):
    obs = point_vec_env(3).reset()
    state = far_apart(model, obs)
    starts = np.array([False, True, False])
    _, new = model.predict(obs, state=state, episode_start=starts, deterministic=True)
    assert new.steps.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(new.subgoals[[0, 2]], state.subgoals[[0, 2]])


def test_the_callers_arrays_stay_as_they_are(model):
    obs = point_vec_env(2).reset()
    state = far_apart(model, obs)
    starts = np.array([True, False])
    before = [array.copy() for array in (*state, starts)]
    model.predict(obs, state=state, episode_start=starts, deterministic=True)
    for array, expected in zip((*state, starts), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_deterministic_drives_both_levels(model):
    obs = point_vec_env(2).reset()
    torch_state, numpy_state = th.get_rng_state(), np.random.get_state()[1].copy()
    results = [model.predict(obs, deterministic=True) for _ in range(2)]
    assert th.equal(th.get_rng_state(), torch_state), "a deterministic prediction draws no random numbers"
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1].subgoals, results[1][1].subgoals)
    # A replacement is the same each time
    model.policy.config = replace(model.policy.config, subgoals=SubgoalConfig(steps=5, avoid_reached=False))
    noisy = [model.predict(obs, deterministic=False) for _ in range(2)]
    assert (noisy[0][0] != noisy[1][0]).any()
    assert (noisy[0][1].subgoals != noisy[1][1].subgoals).any()
    # Random numbers depend on SB3's seed
    seeded = []
    for _ in range(2):
        model.set_random_seed(3)
        seeded.append(model.predict(obs, deterministic=False)[0])
    np.testing.assert_array_equal(*seeded)


def test_without_a_state_there_are_new_subgoals_at_every_step(model):
    obs = point_vec_env(2).reset()
    for _ in range(3):
        _, state = model.predict(obs, deterministic=True)
        assert state.steps.tolist() == [0, 0]


def test_state_of_other_environments_is_refused(model):
    obs, (_, state) = point_vec_env(3).reset(), model.predict(point_vec_env(2).reset())
    for wrong in (state, state[:2], (np.zeros((3, 5)), *state[1:])):
        with pytest.raises(
            ValueError, match=r"`state` does not belong to 3 environments with goals of length 2.*None to choose"
        ):
            model.predict(obs, state=wrong)


def changed(**arrays):
    """:return: an observation of two environments, with some parts replaced"""
    obs = {key: np.zeros((2, 3 if key == "observation" else 2)) for key in ("observation", "achieved_goal", "desired_goal")}
    return {key: array for key, array in (obs | arrays).items() if array is not None}


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros((1, 3)), "not ndarray"),
        (None, "not NoneType"),
        (changed(desired_goal=None), r"a dict with the keys \['achieved_goal', 'observation'\]"),
        (changed(achieved_goal=np.array([[0.0, np.nan]] * 2)), "`achieved_goal` has values that are not finite"),
        (changed(desired_goal=np.full((2, 2), np.inf)), "`desired_goal` has values that are not finite"),
        (changed(observation=np.full((2, 3), -np.inf)), "`observation` has values that are not finite"),
        (changed(observation=np.zeros((2, 4))), r"`observation` has the shape \(2, 4\), but must have \(3,\), or \(n, ...\)"),
        (changed(achieved_goal=np.zeros((2, 1, 2))), r"`achieved_goal` has the shape \(2, 1, 2\)"),
        (changed(desired_goal=np.zeros(())), r"`desired_goal` has the shape \(\)"),
        (changed(desired_goal=np.zeros((3, 2))), "different numbers of environments"),
        (changed(desired_goal=np.zeros(2)), "different numbers of environments"),
    ],
)
def test_observations_that_do_not_fit_are_refused(model, observation, message):
    with pytest.raises(ValueError, match=message):
        model.predict(observation)


def test_policy_alone_can_be_saved_and_loaded(model, tmp_path):
    model.policy.save(tmp_path / "policy.pt")
    loaded = type(model.policy).load(tmp_path / "policy.pt")
    obs = point_vec_env(3).reset()
    for a, b in zip(model.predict(obs, deterministic=True), loaded.predict(obs, deterministic=True), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
