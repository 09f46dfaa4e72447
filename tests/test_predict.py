"""``predict`` carries the subgoal in its state; nothing is kept on the model."""

import numpy as np
import pytest
import torch as th
from conftest import point_vec_env

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.common.subgoals import decode_subgoal
from sb3_hrl.hddpg.copies import live_acting_policy


@pytest.fixture
def model(small):
    return HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small).learn(100)


def far_apart(model, obs):
    """Move subgoals out of reach, so that a segment lasts for all of its steps."""
    state = model.predict(obs, deterministic=True)[1]
    return state._replace(subgoals=state.subgoals + 100.0)


@pytest.mark.parametrize("n_envs", [1, 4])
def test_shapes(model, n_envs):
    obs = point_vec_env(n_envs).reset()
    action, state = model.predict(obs, deterministic=True)
    assert action.shape == (n_envs, 2)
    assert state.subgoals.shape == (n_envs, 2)
    assert state.steps_left.tolist() == [4] * n_envs
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
    for left in (3, 2, 1, 0):
        _, state = model.predict(obs, state=state, deterministic=True)
        np.testing.assert_array_equal(state[0], first[0])
        assert state[1].tolist() == [left, left]
    _, state = model.predict(obs, state=state, deterministic=True)
    assert (state[0] != first[0]).all()
    assert state[1].tolist() == [4, 4]


def test_a_reached_subgoal_is_replaced(model):
    obs = point_vec_env(2).reset()
    state = far_apart(model, obs)
    state.subgoals[1] = obs["achieved_goal"][1]
    _, state = model.predict(obs, state=state, deterministic=True)
    assert state.steps_left.tolist() == [3, 4]


def test_the_start_of_an_episode_plans_anew(model):
    obs = point_vec_env(3).reset()
    state = far_apart(model, obs)
    starts = np.array([False, True, False])
    _, new = model.predict(obs, state=state, episode_start=starts, deterministic=True)
    assert new.steps_left.tolist() == [3, 4, 3]
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
    np.testing.assert_array_equal(results[0][1][0], results[1][1][0])
    model.policy.avoid_reached_subgoals = False  # a replacement is the same each time
    model.policy._acting = None
    noisy = [model.predict(obs, deterministic=False) for _ in range(2)]
    assert (noisy[0][0] != noisy[1][0]).any()
    assert (noisy[0][1][0] != noisy[1][1][0]).any()


def test_without_a_state_it_plans_at_every_step(model):
    obs = point_vec_env(2).reset()
    for _ in range(3):
        _, state = model.predict(obs, deterministic=True)
        assert state.steps_left.tolist() == [4, 4]


def test_state_of_other_environments_is_refused(model):
    _, state = model.predict(point_vec_env(2).reset())
    with pytest.raises(ValueError, match="None to plan now"):
        model.predict(point_vec_env(3).reset(), state=state)


def test_observations_that_are_no_dicts_are_refused(model):
    with pytest.raises(ValueError, match="achieved_goal"):
        model.predict(np.zeros((1, 3)))


def test_reached_subgoals_are_not_issued_unless_the_goal_is_reached(model):
    policy = model.policy
    obs, achieved = np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float32)
    goals = np.array([[1.0, 1.0], [0.0, 0.0]], np.float32)
    with th.no_grad():
        for network in (policy.high.actor.mu, policy.high.critic.q_networks[0]):
            network.flat.zero_()  # the actor proposes to stay
    plan = policy.acting().plan(obs, achieved, goals)
    assert plan.replaced.tolist() == [True, False]
    assert policy.is_reached(achieved, plan.subgoals).tolist() == [False, True]
    policy.avoid_reached_subgoals = False
    assert live_acting_policy(policy).plan(obs, achieved, goals).subgoals.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_the_replacement_is_the_candidate_with_the_highest_value(model):
    policy = model.policy
    obs, achieved, goal = th.zeros(1, 3), th.zeros(1, 2), th.tensor([[1.0, 1.0]])
    with th.no_grad():
        policy.high.actor.mu.flat.zero_()
        subgoal = policy.acting().plan(obs.numpy(), achieved.numpy(), goal.numpy()).subgoals
        inputs = policy.high_inputs(obs, achieved, goal).repeat(64, 1)
        subgoals = decode_subgoal(policy.candidates, achieved.repeat(64, 1), policy.box, relative=True)
        values = policy.high.critic.q1_forward(inputs, policy.encode(subgoals, achieved))
        values[policy.is_reached(achieved, subgoals)] = -th.inf
    np.testing.assert_allclose(subgoal[0], subgoals[values.argmax()], rtol=1e-6)


def test_policy_alone_can_be_saved_and_loaded(model, tmp_path):
    model.policy.save(tmp_path / "policy.pt")
    loaded = type(model.policy).load(tmp_path / "policy.pt")
    obs = point_vec_env(3).reset()
    for a, b in zip(model.predict(obs, deterministic=True), loaded.predict(obs, deterministic=True), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
