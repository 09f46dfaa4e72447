"""Which subgoals are issued: each chooser, and their order."""

import numpy as np
import pytest
import torch as th
from agents import WITHOUT_STEPS, choose, float32, made_by, make_model, missed_ways, predict_steps, with_bounds
from conftest import PointEnv, point_env_fn, point_vec_env

from sb3_hrl import SerialCollector
from sb3_hrl.common.subgoals import action_to_subgoal
from sb3_hrl.hddpg.choosers import (
    CHOOSERS,
    HighNoise,
    actor_proposal,
    any_proposal,
    best_candidate,
    near_goal,
    random_subgoal,
)
from sb3_hrl.hddpg.inference import candidate_actions

ORIGIN = np.zeros((1, 2), np.float32)


@th.no_grad()
def let_the_actor_propose_to_stay(model) -> None:
    """Without weights, the actor outputs zeros."""
    for parameter in model.policy.high.actor.mu.parameters():
        parameter.zero_()


# ---------------------------------------------------------------------- sources


def test_the_goal_as_subgoal_is_flat_ddpg_with_hindsight(small):
    model = make_model(small, subgoal_kwargs=dict(source="goal"), subgoal_steps=20).learn(100)
    obs = point_vec_env(3).reset()
    _, state = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(state.subgoals, obs["desired_goal"].astype(np.float32))
    stored = model.replay_buffer.recent(100, ("subgoal", "desired_goal"))[0]
    np.testing.assert_array_equal(stored["subgoal"], stored["desired_goal"])
    assert "train/high_critic_loss" not in model.logger.name_to_value


def test_random_subgoals_are_for_training_only(small):
    model = make_model(small, subgoal_kwargs=dict(source="random")).learn(100)
    obs = point_vec_env().reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[1].subgoals, obs["desired_goal"].astype(np.float32))
    stored = model.replay_buffer.recent(100, ("subgoal",))[0]["subgoal"]
    assert len(np.unique(stored, axis=0)) > 10
    assert "train/high_critic_loss" not in model.logger.name_to_value


def test_one_subgoal_for_ever(small):
    model = make_model(small, subgoal_kwargs=dict(source=[0.3, -0.2])).learn(100)
    np.testing.assert_allclose(model.predict(point_vec_env(2).reset())[1].subgoals, [[0.3, -0.2]] * 2, rtol=1e-6)
    stored = model.replay_buffer.recent(100, ("subgoal",))[0]["subgoal"]
    np.testing.assert_array_equal(np.unique(stored, axis=0), float32((0.3, -0.2)))


def towards_the_subgoal(observation, achieved_goal, subgoal):
    """PointEnv moves by 0.05 times its action, which ranges from -2 to 2."""
    return (subgoal - achieved_goal) / 0.1


def test_an_oracle_in_place_of_the_low_level(small):
    low = dict(oracle=towards_the_subgoal)
    model = make_model(small, low_kwargs=low, subgoal_kwargs=dict(source="goal"), seed=1)
    before = [parameter.clone() for parameter in model.policy.low.parameters()]
    model.learn(200)
    for parameter, expected in zip(model.policy.low.parameters(), before, strict=True):
        assert th.equal(parameter, expected), "the low level does not learn"
    env = PointEnv(max_steps=40)
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        state = None
        for _ in range(40):
            action, state = model.predict(obs, state, deterministic=True)
            obs, _, _, _, info = env.step(action)
        assert info["is_success"]


def test_with_an_oracle_the_high_level_learns_alone(small):
    model = make_model(small, low_kwargs=dict(oracle=towards_the_subgoal))
    before = [parameter.clone() for parameter in model.policy.high.actor.parameters()]
    model.learn(200)
    changed = [not th.equal(*pair) for pair in zip(model.policy.high.actor.parameters(), before, strict=True)]
    assert any(changed)
    assert "train/low_critic_loss" not in model.logger.name_to_value


# --------------------------------------------------------------------- choosers


@pytest.mark.parametrize("planner", [None, "landmarks"])
def test_the_goal_is_the_subgoal_when_it_is_near(small, monkeypatch, planner):
    model = make_model(small, subgoal_steps=10, planner=planner).learn(100)
    predict_steps(monkeypatch, 10.0)
    goals = float32([0.6, 0.8], [-0.61, 0.81])  # 10 steps, and slightly more
    decision = choose(model, np.zeros((2, 2), np.float32), goals)
    np.testing.assert_array_equal(decision.subgoals[0], goals[0])
    assert decision.made_by(near_goal).tolist() == [True, False]


def test_a_near_goal_that_was_missed_is_not_the_subgoal(small, monkeypatch):
    model = make_model(small).learn(30)
    predict_steps(monkeypatch, 0.0)
    goal = float32([0.9, 0.9])
    assert made_by(choose(model, ORIGIN, goal), near_goal) == 1
    missed = [missed_ways((ORIGIN[0], goal[0]))]
    assert made_by(choose(model, ORIGIN, goal, missed), near_goal) == 0
    careless = make_model(small, subgoal_kwargs=dict(avoid_missed=False))
    assert made_by(choose(careless, ORIGIN, goal, missed), near_goal) == 1


@pytest.mark.parametrize("kwargs", [WITHOUT_STEPS, dict(low_kwargs=dict(oracle=towards_the_subgoal))])
def test_without_steps_in_the_low_levels_values_no_goal_is_near(small, kwargs):
    model = make_model(small, subgoal_kwargs=dict(avoid_reached=False), **kwargs)
    decision = choose(model, ORIGIN, ORIGIN)
    assert made_by(decision, actor_proposal) == 1
    assert np.isnan(decision.predicted_steps).all()


def test_reached_subgoals_are_not_issued_unless_the_goal_is_reached(small):
    goals = float32([1.0, 1.0], [0.0, 0.0])
    for avoid_reached, choosers in ((True, [best_candidate, actor_proposal]), (False, [actor_proposal, actor_proposal])):
        model = make_model(small, **WITHOUT_STEPS, subgoal_kwargs=dict(avoid_reached=avoid_reached, radius=0.5)).learn(30)
        let_the_actor_propose_to_stay(model)
        decision = choose(model, np.zeros((2, 2), np.float32), goals)
        assert [CHOOSERS[number] for number in decision.choosers] == choosers
        is_reached = model.policy.numpy_policy().is_reached(np.zeros((2, 2), np.float32), decision.subgoals).tolist()
        assert is_reached == [not avoid_reached, True]


def test_the_replacement_is_the_candidate_with_the_highest_value(small):
    model = make_model(small, **WITHOUT_STEPS, subgoal_kwargs=dict(radius=1.0)).learn(30)
    let_the_actor_propose_to_stay(model)
    policy, goal = model.policy, float32([1.0, 1.0])
    decision = choose(model, ORIGIN, goal)
    achieved, n = th.from_numpy(ORIGIN), 64
    with th.no_grad():
        subgoals = action_to_subgoal(th.from_numpy(candidate_actions(2).copy()), achieved, policy.bounds)
        inputs = policy.high_inputs(th.zeros(n, 3), achieved.repeat(n, 1), th.from_numpy(goal).repeat(n, 1))
        values = policy.high.critic.q1_forward(inputs, policy.subgoal_to_action(subgoals, achieved))[:, 0]
        values[policy.is_reached(achieved, subgoals)] = -th.inf
    np.testing.assert_allclose(decision.subgoals[0], subgoals[values.argmax()], rtol=1e-6)
    assert made_by(decision, best_candidate) == 1


def test_missed_subgoals_are_not_issued_again(small):
    model = make_model(small, **WITHOUT_STEPS, subgoal_kwargs=dict(radius=1.0)).learn(100)
    goal = float32([0.9, 0.9])
    first = choose(model, ORIGIN, goal)
    second = choose(model, ORIGIN, goal, [missed_ways((ORIGIN[0], first.subgoals[0]))])
    assert made_by(second, best_candidate) == 1
    assert not model.policy.numpy_policy().is_reached(second.subgoals, first.subgoals).any()
    ago = missed_ways((ORIGIN[0], first.subgoals[0]), *[((np.inf, np.inf), (np.inf, np.inf))] * 4)
    np.testing.assert_array_equal(choose(model, ORIGIN, goal, [ago]).subgoals, first.subgoals)


def test_where_all_candidates_are_reached_the_actor_proposes_anyway(small):
    model = make_model(small, **WITHOUT_STEPS, subgoal_kwargs=dict(radius=0.01, threshold=0.1)).learn(30)
    decision = choose(model, ORIGIN, float32([1.0, 1.0]))
    assert made_by(decision, any_proposal) == 1
    assert np.isfinite(decision.subgoals).all()


def test_random_subgoals_are_left_as_they_are(small):
    """Regression test: the critic's choice replaced random subgoals that were already reached or had been missed."""
    model = make_model(small, **WITHOUT_STEPS, subgoal_kwargs=dict(radius=1.0)).learn(30)
    actions = float32([0.01, 0.0], [0.5, 0.5], [0.0, 0.0])
    noise = HighNoise(np.zeros((3, 2), np.float32), np.array([True, True, False]), actions, np.zeros(3))
    missed = [missed_ways(((0.0, 0.0), (0.5, 0.5)))] * 3
    decision = choose(model, np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32), missed, noise)
    assert made_by(decision, random_subgoal) == 2
    expected = action_to_subgoal(actions[:2], np.zeros((2, 2), np.float32), model.policy.numpy_policy().bounds)
    np.testing.assert_array_equal(decision.subgoals[:2], expected)


def test_noise_is_added_to_proposals(small):
    model = with_bounds(make_model(small, **WITHOUT_STEPS, subgoal_kwargs=dict(avoid_reached=False)), radius=2.0)
    let_the_actor_propose_to_stay(model)
    noise = HighNoise(float32([0.25, -9.0]), np.zeros(1, dtype=bool), ORIGIN, np.zeros(1))
    np.testing.assert_allclose(choose(model, ORIGIN, ORIGIN, noise=noise).subgoals, [[0.5, -2.0]])


# ------------------------------------------------------------------ a new chooser


def north(policy, situation):
    """A user's chooser: if the goal is in the east, the subgoal is a step to the north; otherwise it does not decide."""
    subgoals = situation.achieved_goal + float32(0.0, 0.3)
    return np.where(situation.goal[:, :1] > 0.0, subgoals, np.float32(np.nan))


@pytest.fixture
def with_north(monkeypatch):
    monkeypatch.setattr("sb3_hrl.hddpg.choosers.CHOOSERS", (north, *CHOOSERS))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_another_chooser_is_one_function(small, with_north, asynchronous):
    env = SerialCollector([point_env_fn()] * 2, flush_size=10) if asynchronous else point_vec_env(2)
    model = make_model(small, env, async_collection=asynchronous).learn(200)
    fields = ("subgoal", "achieved_goal", "desired_goal", "observation")
    for steps in model.replay_buffer.recent(200, fields):
        starts = np.append(True, (steps["subgoal"][1:] != steps["subgoal"][:-1]).any(axis=1))
        is_east = steps["desired_goal"][:, 0] > 0.0
        offset = (steps["subgoal"] - steps["achieved_goal"])[starts & is_east]
        assert len(offset) > 3
        np.testing.assert_allclose(offset, [[0.0, 0.3]] * len(offset), atol=1e-6)
    decision = choose(model, np.zeros((2, 2), np.float32), float32([1.0, 0.0], [-1.0, 0.0]))
    np.testing.assert_allclose(decision.subgoals[0], [0.0, 0.3])
    assert decision.choosers[0] == 0 < decision.choosers[1]
    obs = env.reset()
    _, state = model.predict(obs, deterministic=True)
    is_east = obs["desired_goal"][:, 0] > 0.0
    expected = obs["achieved_goal"] + [0.0, 0.3]
    assert np.isclose(state.subgoals, expected, atol=1e-6).all(axis=1)[is_east].all()
