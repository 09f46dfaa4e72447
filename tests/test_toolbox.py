"""Each option of the toolbox against a case that was computed by hand."""

import itertools
import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import PointEnv, point_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.subgoals import shrinking_scale
from sb3_hrl.common.type_aliases import HighSamples, SegmentSteps
from sb3_hrl.common.wrappers import ActionLimitWrapper, FallTerminationWrapper, ReducedWorkspaceWrapper, terminate_falls
from sb3_hrl.hddpg.acting import N_MISSED, Plan, SegmentRules
from sb3_hrl.hddpg.batches import (
    HighBatchOptions,
    corrected_subgoals,
    high_batch,
    low_batch,
    relative_distance,
    without_trivial,
)
from sb3_hrl.hddpg.landmarks import costs_to_go, failed_edges, farthest_points, hit_rates, members_of, value_to_steps
from sb3_hrl.hddpg.mapping import update_landmarks
from sb3_hrl.hddpg.samplers import LowBatchMaker, _batch_tensors
from sb3_hrl.hddpg.segments import SegmentTracker
from sb3_hrl.parallel.serial import SerialCollector


def make_model(small, env=None, **kwargs) -> HierarchicalDDPG:
    return HierarchicalDDPG("MultiInputPolicy", env if env is not None else point_vec_env(), **(small | kwargs))


def float32(*rows) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def plan_of(subgoal, distance: float) -> Plan:
    no = np.zeros(1, dtype=bool)
    return Plan(float32(subgoal), np.array([distance]), no, no)


# ---------------------------------------------------------------------------------------------------- where subgoals come from


def test_the_goal_as_subgoal_is_flat_ddpg_with_hindsight(small):
    model = make_model(small, subgoal_source="goal", subgoal_steps=20).learn(100)
    obs = point_vec_env(3).reset()
    _, state = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(state.subgoals, obs["desired_goal"].astype(np.float32))
    stored = model.replay_buffer.recent(100, ("subgoal", "desired_goal"))[0]
    np.testing.assert_array_equal(stored["subgoal"], stored["desired_goal"])
    assert "train/high_critic_loss" not in model.logger.name_to_value


def test_random_subgoals_are_for_training_only(small):
    model = make_model(small, subgoal_source="random").learn(100)
    obs = point_vec_env().reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[1].subgoals, obs["desired_goal"].astype(np.float32))
    stored = model.replay_buffer.recent(100, ("subgoal",))[0]["subgoal"]
    assert len(np.unique(stored, axis=0)) > 10


def test_one_subgoal_for_ever(small):
    model = make_model(small, subgoal_source=[0.3, -0.2]).learn(100)
    np.testing.assert_allclose(model.predict(point_vec_env(2).reset())[1].subgoals, [[0.3, -0.2]] * 2, rtol=1e-6)


def towards_the_subgoal(observation, achieved_goal, subgoal):
    """PointEnv moves by 0.05 times its action, which goes from -2 to 2."""
    return (subgoal - achieved_goal) / 0.1


def test_an_oracle_in_place_of_the_low_level(small):
    model = make_model(small, low_level=towards_the_subgoal, subgoal_source="goal", seed=1)
    before = model.policy.low.state_dict()["actor.mu.flat"].clone()
    model.learn(200)
    assert th.equal(model.policy.low.state_dict()["actor.mu.flat"], before), "the low level does not learn"
    env = PointEnv(max_steps=40)
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        state = None
        for _ in range(40):
            action, state = model.predict(obs, state, deterministic=True)
            obs, _, _, _, info = env.step(action)
        assert info["is_success"]


def test_with_an_oracle_the_high_level_learns_alone(small):
    model = make_model(small, low_level=towards_the_subgoal)
    before = model.policy.high.actor.mu.flat.clone()
    model.learn(200)
    assert not th.equal(model.policy.high.actor.mu.flat, before)


def test_the_goal_is_the_subgoal_when_it_is_near(small):
    model = make_model(small, direct_goal=0.8, subgoal_steps=10).learn(100)
    acting = model.policy.acting()
    acting.steps_between = lambda observation, achieved_goal, subgoal: np.array([7.9, 8.1])
    goals = float32([0.5, 0.5], [-0.5, 0.5])
    subgoals = acting.plan(np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float32), goals).subgoals
    np.testing.assert_array_equal(subgoals[0], goals[0])
    assert (subgoals[1] != goals[1]).any()


def test_the_best_candidate_in_place_of_the_actors_proposal(small):
    model = make_model(small, select_by_value=True, subgoal_radius=1.0).learn(100)
    policy, acting = model.policy, model.policy.acting()
    obs, achieved, goal = np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32), float32([0.4, 0.4])
    plan = acting.plan(obs, achieved, goal)
    candidates = acting._decode(policy.candidates.numpy(), achieved)
    tensors = [th.from_numpy(array).repeat(len(candidates), 1) for array in (obs, achieved, goal)]
    with th.no_grad():
        actions = policy.encode(th.from_numpy(candidates), tensors[1])
        values = policy.high.critic.q1_forward(policy.high_inputs(*tensors), actions)[:, 0].numpy()
    values[policy.is_reached(achieved, candidates)] = -np.inf
    np.testing.assert_allclose(plan.subgoals[0], candidates[values.argmax()], rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------------- segments


def test_a_subgoal_has_to_be_held():
    tracker = SegmentTracker(1, 1)
    tracker.start(plan_of([1.0], 1.0), float32([0.0]), np.zeros(1, bool), SegmentRules(10, hold_steps=3), threshold=0.1)
    positions = [0.5, 1.0, 1.05, 0.5, 1.0, 0.95, 1.0]
    ends = [bool(tracker.step(float32([x]), [False])[0]) for x in positions]
    assert ends == [False] * 6 + [True]


def test_a_segment_has_a_shortest_length():
    tracker = SegmentTracker(1, 1)
    tracker.start(plan_of([1.0], 1.0), float32([0.0]), np.zeros(1, bool), SegmentRules(10, min_steps=3), threshold=0.1)
    assert [bool(tracker.step(float32([1.0]), [False])[0]) for _ in range(3)] == [False, False, True]


def test_missed_subgoals_are_remembered_for_some_segments():
    tracker, rules = SegmentTracker(1, 1), SegmentRules(1)

    def segment(subgoal: float, end: float) -> list[float]:
        tracker.start(plan_of([subgoal], abs(subgoal)), float32([0.0]), np.zeros(1, bool), rules, threshold=0.1)
        tracker.step(float32([end]), [False])
        assert (tracker.missed[0, :, 0] == 0.0).all() or np.isinf(tracker.missed[0]).any(), "all of them started at 0"
        return tracker.missed[0, :, 1, 0].tolist()

    assert segment(1.0, 0.4) == [np.inf] * (N_MISSED - 1) + [1.0], "more than half of the way is left"
    assert segment(2.0, 1.5)[-2:] == [1.0, np.inf], "not missed: most of the way is done"
    assert segment(3.0, 3.0)[-3:] == [1.0, np.inf, np.inf], "not missed: reached"
    for _ in range(N_MISSED - 3):
        assert 1.0 in segment(3.0, 3.0)
    assert 1.0 not in segment(3.0, 3.0)
    segment(1.0, 0.0)
    tracker.start(plan_of([1.0], 1.0), float32([0.0]), np.zeros(1, bool), rules, threshold=0.1)
    tracker.step(float32([0.0]), [True])
    assert np.isinf(tracker.missed).all(), "another episode"


def test_missed_subgoals_are_not_issued_again(small):
    model = make_model(small, avoid_missed_subgoals=True, subgoal_radius=1.0).learn(100)
    obs, achieved, goal = np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32), float32([0.9, 0.9])
    acting = model.policy.acting()
    first = acting.plan(obs, achieved, goal)
    missed = np.full((1, N_MISSED, 2, 2), np.inf, np.float32)
    missed[0, -1] = (achieved[0], first.subgoals[0])
    second = acting.plan(obs, achieved, goal, missed)
    assert second.replaced.tolist() == [True]
    assert np.linalg.norm(second.subgoals - first.subgoals) > acting.threshold


@pytest.mark.parametrize(
    "rules", [dict(), dict(subgoal_hold_steps=2), dict(min_segment_steps=3), dict(avoid_missed_subgoals=True)]
)
def test_prediction_and_training_agree_on_segments(small, rules):
    """The same subgoals at the same steps, by the state of ``predict`` and by the tracker of the training environments."""
    model = make_model(small, random_action_prob=0.0, noise_std=0.0, subgoal_radius=0.3, **rules).learn(60)
    model.learning_starts = 0
    env, explorer = PointEnv(max_steps=60), model._make_explorer()
    obs, _ = env.reset(seed=3)
    state = None
    for _ in range(60):
        arrays = model.policy.flatten_obs({key: value[None] for key, value in obs.items()})
        expected = explorer.act(model.policy.acting(), *arrays, is_warm_up=False)
        action, state = model.predict(obs, state, deterministic=True)
        np.testing.assert_allclose(model.policy.scale_action(action[None]), expected, atol=1e-5)
        np.testing.assert_array_equal(state.subgoals, explorer.tracker.subgoals)
        obs, *_ = env.step(action)
        explorer.step(obs["achieved_goal"][None].astype(np.float32), [False])


def test_noise_is_held(small):
    model = make_model(small, noise_hold_steps=4, subgoal_steps=100).learn(21)
    explorer = model._make_explorer()
    draws = [explorer._next_noise()[0] for _ in range(12)]
    assert [bool((a == b).all()) for a, b in itertools.pairwise(draws)] == [True, True, True, False] * 2 + [True] * 3


# -------------------------------------------------------------------------------------------------------------------- batches


def fill(model, subgoal=(1.0, 0.0), n: int = 12, step: float = 0.1, segment: int = 4, info=None) -> None:
    """An episode along the first axis: ``n`` steps of length ``step`` in segments of ``segment`` with one subgoal."""
    space = model.observation_space.spaces
    for i in range(n):
        obs, next_obs = (
            {
                "observation": np.zeros((1, 3)),
                "achieved_goal": np.array([[j * step, 0.0]]),
                "desired_goal": np.array([[5.0, 5.0]]),
            }
            for j in (i, i + 1)
        )
        assert set(obs) == set(space)
        model.replay_buffer.add(
            obs,
            next_obs,
            np.full((1, 2), 0.1 * i),
            np.zeros(1),
            np.array([i == n - 1]),
            [info or {}],
            subgoal=float32(subgoal),
            segment_done=np.array([(i + 1) % segment == 0 or i == n - 1]),
        )


@pytest.fixture
def task():
    env = PointEnv()
    return GoalTask(env.compute_reward, np.zeros((1, 2), np.float32))


def with_threshold(model, threshold: float = 0.15, radius: float = 1.0) -> HierarchicalDDPG:
    model.policy.subgoal_threshold.fill_(threshold)
    model.policy.set_box(np.full(2, -9.0), np.full(2, 9.0), np.full(2, radius))
    return model


def test_dense_rewards_are_distances(small):
    distance = relative_distance(th.zeros(2, 2), th.tensor([[0.3, 0.4], [9.0, 0.0]]), reach=th.tensor([3.0, 4.0]))
    assert distance.flatten().tolist() == pytest.approx([0.1, 1.0])
    model = with_threshold(make_model(small, low_kwargs=dict(reward="dense", n_sampled_goal=0)))
    fill(model)
    batch = low_batch(model.policy, model.replay_buffer, model._low, 64)
    # In units of the radius: x after the step, from what the inputs say of the distance left
    left = (batch.next_inputs[:, -2:]).norm(dim=1)
    expected = th.where(left <= 0.15 + 1e-6, 0.0, -(left / math.sqrt(2.0)).clamp(max=1.0))
    assert th.allclose(batch.rewards[:, 0], expected, atol=1e-5)
    assert th.allclose(batch.discounts[:, 0], th.where(left <= 0.15 + 1e-6, 0.0, model._low.gamma))


def test_progress_is_measured_by_the_pace_that_is_needed(small):
    model = with_threshold(make_model(small, subgoal_steps=4, low_kwargs=dict(reward="progress", n_sampled_goal=0)))
    fill(model, subgoal=(0.6, 0.0), step=0.1)
    batch = low_batch(model.policy, model.replay_buffer, model._low, 64)
    left = batch.next_inputs[:, -2]
    # Until 0.15 before it; the pace is a quarter of the radius' length
    assert th.allclose(batch.rewards[left > 0.16], th.tensor(-1.0 + 0.1 / (math.sqrt(2.0) / 4)), atol=1e-5)
    near = left.abs() < 0.05
    assert near.any()
    assert (batch.rewards[near] == 0.0).all(), "reached"
    assert (batch.rewards[left < -0.16] < -1.2).all(), "away from it"


def test_edges_that_failed():
    landmarks = np.array([[0.0], [1.0], [2.0]])
    starts = np.array([[0.1], [-0.1], [0.0], [0.9], [1.1], *[[1.9]] * 15])
    subgoals = np.array([[1.1], [0.9], [2.0], [2.2], [2.0], *[[1.0]] * 15])
    missed = np.array([True, True, True, True, *[False] * 16])
    # Twice in vain from 0 to 1, which comes by chance once in 25 times; once from 0 to 2; from 1 to 2 with one success
    assert failed_edges(starts, subgoals, missed, landmarks).tolist() == [[False, True, False], [False] * 3, [False] * 3]
    assert not failed_edges(starts[:0], subgoals[:0], missed[:0], landmarks).any()
    # Where half of the segments miss, two misses say nothing of an edge
    missed[10:] = True
    assert not failed_edges(starts, subgoals, missed, landmarks)[0].any()
    assert not failed_edges(starts, subgoals, missed | True, landmarks).any()


def test_rates_of_segments_that_do_not_miss():
    """Two landmarks at a distance of 1, which is the kernels' width: a segment counts by exp(-1/2) at the other landmark."""
    landmarks, e = np.array([[0.0], [1.0]]), math.exp(-0.5)
    starts, subgoals = np.array([[0.0], [0.0], [1.0]]), np.array([[1.0], [1.0], [0.0]])
    missed = np.array([False, False, True])
    # The two from 0 to 1 hit, the one back missed; and all of them together, 2 of 3, count as one
    expected = [[(2 * e + 2 / 3) / (3 * e + 1), (2 + 2 / 3) / (3 + e**2)], [(2 * e**2 + 2 / 3) / (2 * e**2 + 2), 0.0]]
    expected[1][1] = (2 * e + 2 / 3) / (3 * e + 1)
    np.testing.assert_allclose(hit_rates(starts, subgoals, missed, landmarks), expected)
    assert hit_rates(starts, subgoals, missed & False, landmarks).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert np.isfinite(hit_rates(starts, subgoals, missed, np.zeros((2, 1)))).all(), "landmarks in one place"


def test_ways_that_are_missed_cost_more(small, monkeypatch):
    """Segments of 4 steps of 0.1 from 0 towards 1.2: the first one misses (0.8 is left), the last one arrives."""
    config = dict(n_landmarks=3, n_visited=12, n_members=1, distance="euclidean")
    kwargs = dict(low_kwargs=dict(reward="dense"), planner="landmarks", planner_kwargs=config)
    model = with_threshold(make_model(small, **kwargs), 0.05, radius=2.0)
    fill(model, subgoal=(1.2, 0.0))
    monkeypatch.setattr("sb3_hrl.hddpg.landmarks.SIGNIFICANCE", 0.0)  # no edge fails for good
    steps = []
    for miss_cost in (0.0, 100.0):
        model.replay_buffer.rng = np.random.default_rng(0)
        update_landmarks(model.policy, model.replay_buffer, replace(model._landmark_config, miss_cost=miss_cost))
        steps.append(model.policy.landmark_steps.numpy().copy())
    goals, more = model.policy.landmark_goals[:, 0].numpy(), steps[1] - steps[0]
    first, last = goals.argmin(), goals.argmax()
    assert (more > 0.0).all()
    assert more[first, last] > more[last, last], "from the start, where segments missed"


def test_members_of_landmarks_lie_around_them():
    points = np.array([[0.0], [0.1], [5.0], [5.2], [5.3], [0.0]])
    members = members_of(points, np.array([0, 2]), 4, np.random.default_rng(0))
    assert members[:, 0].tolist() == [0, 2]
    assert set(members[0, 1:]) <= {0, 1, 5}
    assert set(members[1, 1:]) <= {2, 3, 4}


def test_steps_from_landmarks_are_the_means_of_their_members_values(small):
    config = dict(n_landmarks=3, n_visited=30, n_members=2, cutoff=1e9)
    model = make_model(small, planner="landmarks", planner_kwargs=config).learn(60)
    model.policy.set_box(np.full(2, -9.0), np.full(2, 9.0), np.full(2, 5.0))
    acting, rng = model.policy.acting(), np.random.default_rng(0)
    observations, achieved = rng.random((3, 2, 3), dtype=np.float32), rng.random((3, 2, 2), dtype=np.float32)
    subgoals = rng.random((4, 2), dtype=np.float32)
    steps = acting.steps_from_landmarks(observations, achieved, subgoals)
    for i in range(3):
        for j in range(4):
            values = acting._low_values(observations[i], achieved[i], subgoals[[j, j]])
            np.testing.assert_allclose(steps[i, j], value_to_steps(values.mean(), model._low.gamma), rtol=1e-4)
    far = acting.steps_from_landmarks(observations, achieved, subgoals + np.float32([7.0, 0.0]))
    assert np.isinf(far).all(), "beyond the radius"


def test_held_subgoals_end_the_low_levels_episode(small):
    model = with_threshold(make_model(small, subgoal_hold_steps=3, low_kwargs=dict(n_sampled_goal=0)))
    fill(model, subgoal=(0.5, 0.0))
    samples = model.replay_buffer.sample_low(256, 0, window=5, history=3)
    x = samples.next_achieved_goals[:, 0]
    history = samples.recent_goals[:, :, 0]
    assert th.equal(history[:, -1], x)
    first = x < 0.15
    assert th.isinf(history[first][:, :2]).all(), "there is nothing before the episode"
    later = x > 0.35
    assert th.allclose(history[later], x[later, None] + th.tensor([-0.2, -0.1, 0.0]), atol=1e-6)
    batch = low_batch(model.policy, model.replay_buffer, model._low, 256)
    x = 0.5 - batch.next_inputs[:, -2]
    at_hand = (x - 0.5).abs() < 0.151  # after the steps to 0.4, 0.5 and 0.6
    assert th.equal(batch.rewards[:, 0] == 0.0, at_hand)
    assert th.equal(batch.discounts[:, 0] == 0.0, (x - 0.6).abs() < 0.01), "at hand after three steps in a row"


def test_smdp_counts_time(small, task):
    model = with_threshold(make_model(small, subgoal_steps=8, high_kwargs=dict(n_sampled_goal=0, gamma=0.9)))
    fill(model, segment=4)
    options = HighBatchOptions(hindsight_action_prob=0.0)
    plain = high_batch(model.policy, model.replay_buffer, model._high, 8, task, options)
    assert plain.rewards.unique().tolist() == [-1.0]
    assert plain.discounts.unique().tolist() == pytest.approx([0.9])
    timed = high_batch(model.policy, model.replay_buffer, model._high, 8, task, options._replace(smdp=True))
    assert timed.rewards.unique().tolist() == [-0.5]
    assert timed.discounts.unique().tolist() == pytest.approx([0.9**0.5])


def test_trivial_segments_are_replaced():
    is_trivial = th.tensor([False, True, False, True])
    rows = without_trivial(is_trivial, 0.0)
    assert rows[[0, 2]].tolist() == [0, 2]
    assert set(rows[[1, 3]].tolist()) <= {0, 2}
    assert without_trivial(is_trivial, 1.0).tolist() == [0, 1, 2, 3]
    assert without_trivial(th.ones(3, dtype=th.bool), 0.0).tolist() == [0, 1, 2], "there is nothing else"


def test_segments_that_went_nowhere_are_not_learnt_of(small, task):
    model = with_threshold(make_model(small, high_kwargs=dict(n_sampled_goal=0)))
    fill(model, segment=4, step=0.01)  # 0.04 in a segment, the threshold is 0.15
    fill(model, segment=4, step=0.1)
    options = HighBatchOptions(hindsight_action_prob=1.0, trivial_segment_prob=0.0)
    batch = high_batch(model.policy, model.replay_buffer, model._high, 64, task, options)
    assert (batch.actions[:, 0] > 0.3).all(), "the move in hindsight, in units of the radius"


def test_off_policy_correction_finds_the_subgoal_that_explains_the_actions(small):
    model = with_threshold(make_model(small))
    policy = model.policy

    class Proportional(th.nn.Module):
        """Acts by the last two inputs, (subgoal - achieved) / radius."""

        def forward(self, inputs):
            return inputs[:, -2:].clamp(-1, 1)

    policy.low.actor.mu = Proportional()
    achieved = th.tensor([[[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]]]).repeat(2, 1, 1)
    meant = th.tensor([[0.3, 0.0], [0.7, 0.2]])  # what was achieved, and what was commanded
    actions = (meant[:, None] - achieved).clamp(-1, 1)
    actions[:, 2] = 9.0  # beyond the segments' length: to be ignored
    zeros = th.zeros(2, 3)
    segments = HighSamples(
        visited_goals=np.zeros((2, 1, 2)),
        observations=zeros,
        achieved_goals=th.zeros(2, 2),
        goals=th.zeros(2, 2),
        subgoals=th.tensor([[-0.9, -0.9], [0.7, 0.2]]),
        next_observations=zeros,
        next_achieved_goals=th.tensor([[0.3, 0.0], [0.3, 0.0]]),
        tested=th.zeros(2, dtype=th.bool),
        failed=th.zeros(2, dtype=th.bool),
        lengths=th.tensor([2.0, 2.0]),
        steps=SegmentSteps(th.zeros(2, 3, 3), achieved, actions),
    )
    assert th.allclose(corrected_subgoals(policy, segments), meant)


def test_steps_of_segments_come_with_them(small):
    model = with_threshold(make_model(small, subgoal_steps=4))
    fill(model, segment=3)
    samples = model.replay_buffer.sample_high(32, 0, 1, n_steps=4)
    assert samples.lengths.unique().tolist() == [3.0]
    x = samples.steps.achieved_goals[:, :, 0]
    assert th.allclose(x, samples.achieved_goals[:, :1] + th.tensor([0.0, 0.1, 0.2, 0.2]), atol=1e-6)
    assert th.allclose(samples.steps.actions[:, :, 0], x, atol=1e-6)


def test_hindsight_windows(small):
    model = make_model(small)
    fill(model, n=100, segment=10)
    ahead = 3
    high = model.replay_buffer.sample_high(256, 10**6, 1, window=ahead)
    moved = (high.goals - high.achieved_goals)[:255, 0]
    assert moved.min() > 0.09
    assert moved.max() < 0.1 * ahead + 0.01


def test_random_targets_are_within_reach(small):
    kwargs = dict(n_sampled_goal=1, random_target_prob=0.25)
    model = with_threshold(make_model(small, low_kwargs=kwargs), radius=0.2)
    fill(model, subgoal=(7.0, 0.0))
    model.policy.set_box(np.full(2, -9.0), np.full(2, 9.0), np.full(2, 0.2))
    batch = low_batch(model.policy, model.replay_buffer, model._low, 64)
    offsets = batch.inputs[:, -2:]
    assert (offsets[32:48, 0] == 5.0).all(), "commanded, and clipped"
    assert (offsets[48:].abs() <= 1.0 + 1e-5).all()
    assert len(offsets[48:, 1].unique()) == 16


def test_trivial_targets_are_left_out(small):
    """Steps of 0.1 and a threshold of 0.15: a target one step ahead is at hand, one of two steps or more is not."""
    kwargs = dict(n_sampled_goal=3, trivial_target_prob=0.0, hindsight_window=4)
    model = with_threshold(make_model(small, low_kwargs=kwargs), radius=0.2)
    fill(model, subgoal=(7.0, 0.0))
    model.policy.set_box(np.full(2, -9.0), np.full(2, 9.0), np.full(2, 0.2))
    batch = low_batch(model.policy, model.replay_buffer, model._low, 64)
    offsets = 0.2 * batch.inputs[:, -2]
    assert len(batch.inputs) == 64
    assert (offsets[:48] > 0.15).all()
    assert (offsets[:48] < 0.41).all()
    assert (offsets[48:] > 0.99).all(), "commanded ones stay, clipped here"
    everything = low_batch(model.policy, model.replay_buffer, replace(model._low, trivial_target_prob=1.0), 64)
    assert (everything.inputs[:48, -2] < 0.6).any()


FALL = {"is_success": False}


@pytest.mark.parametrize(
    ("info", "is_failure"),
    [(FALL, True), ({"is_success": True}, False), ({}, False), (FALL | {"TimeLimit.truncated": True}, False)],
)
def test_an_end_that_is_no_success_is_worth_never_reaching_it(small, task, info, is_failure):
    """Three steps, one segment, gamma 0.9 and 0.8 on the two levels: -10 and -5, and nothing follows."""
    kwargs = dict(low_kwargs=dict(gamma=0.9, n_sampled_goal=0), high_kwargs=dict(gamma=0.8, n_sampled_goal=0))
    model = with_threshold(make_model(small, subgoal_test_prob=0.0, **kwargs))
    fill(model, subgoal=(0.3, 0.0), n=3, info=info)
    low = low_batch(model.policy, model.replay_buffer, model._low, 64)
    achieved = low.inputs[:, -2] * model.policy.box.radius[0]
    is_last = achieved < 0.15  # of 0.3, 0.2 and 0.1 that are left
    assert is_last.any()
    # The subgoal is at hand after the last two steps, but an episode that has failed has not reached it
    assert low.rewards[is_last].unique().tolist() == [pytest.approx(-10.0) if is_failure else 0.0]
    assert (low.discounts[is_last] == 0.0).all()
    assert (low.rewards[~is_last] >= -1.0).all()
    high = high_batch(model.policy, model.replay_buffer, model._high, 64, task, HighBatchOptions())
    assert high.rewards.unique().tolist() == [pytest.approx(-5.0) if is_failure else -1.0]
    assert high.discounts.unique().tolist() == [0.0 if is_failure else pytest.approx(0.8)]


def test_a_goal_in_hindsight_that_was_passed_before_the_fall_is_reached(small, task):
    """Where episodes end at success, this one would have ended there."""
    task.ends_at_success = True
    model = with_threshold(make_model(small, high_kwargs=dict(n_sampled_goal=10**6)))
    fill(model, n=3, info=FALL)
    high = high_batch(model.policy, model.replay_buffer, model._high, 64, task, HighBatchOptions())
    assert (high.rewards[:63] == 0.0).all()


def test_workers_tell_failures_from_success():
    """The same episodes through SB3's loop and through a worker: falls are marked, and nothing else is."""

    class Falling(PointEnv):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated or self.steps >= 7, truncated, info

    for env in (DummyVecEnv([Falling] * 2), SerialCollector([Falling] * 2)):
        kwargs = dict(async_collection=True) if isinstance(env, SerialCollector) else {}
        model = HierarchicalDDPG("MultiInputPolicy", env, learning_starts=10**6, seed=0, **kwargs)
        model.learn(60)
        for steps in model.replay_buffer.recent(60, ("terminated", "failed", "next_achieved_goal", "desired_goal")):
            distances = np.linalg.norm(steps["next_achieved_goal"] - steps["desired_goal"], axis=1)
            is_end = steps["terminated"].ravel() > 0
            assert is_end.sum() >= 3
            assert ((steps["failed"].ravel() > 0) == is_end & (distances > PointEnv.threshold)).all()
        env.close()


def test_relative_subgoals_stay_where_they_are(small):
    """HIRO's transition h(s, g, s') = s + g - s' is a subgoal that stays while the low level sees the way that is left."""
    model = with_threshold(make_model(small))
    achieved, next_achieved, subgoal = th.zeros(1, 2), th.tensor([[0.1, -0.2]]), th.tensor([[0.5, 0.5]])
    before, after = (model.policy.low_inputs(th.zeros(1, 3), point, subgoal)[:, -2:] for point in (achieved, next_achieved))
    assert th.allclose(after, achieved + before - next_achieved)


# ------------------------------------------------------------------------------------------------------------------ thresholds


def test_thresholds_shrink(small):
    assert [shrinking_scale(3.0, 0.5, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [3.0, 2.0, 1.0, 1.0]
    assert shrinking_scale(3.0, 0.0, 0.0) == 1.0
    model, seen = make_model(small, threshold_scale=4.0), []
    model.learn(200, callback=lambda *_: seen.append(model.policy.subgoal_threshold.item()) is None)
    assert seen[0] == pytest.approx(0.4, rel=1e-3)
    assert sorted(seen, reverse=True) == seen
    assert seen[110] == pytest.approx(0.1, rel=1e-3)


# ------------------------------------------------------------------------------------------------------------------- landmarks


def test_farthest_points_by_hand():
    assert farthest_points(np.array([[0.0], [1.0], [2.0], [10.0], [5.5]]), 4).tolist() == [0, 3, 4, 2]


@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_values_are_steps(gamma):
    values = np.array([-sum(gamma**i for i in range(n)) for n in (0, 1, 7, 30)])
    np.testing.assert_allclose(value_to_steps(values, gamma), [0, 1, 7, 30], atol=1e-3)
    assert np.isinf(value_to_steps(np.array([-1.0 / (1.0 - gamma), -1000.0]), gamma)).all()
    assert value_to_steps(np.array([0.5]), gamma) == 0.0, "values above 0 are errors"


def test_costs_to_go_by_hand():
    inf = np.inf
    steps = np.array([[0.0, 1.0, 9.0, inf], [inf, 0.0, 2.0, inf], [1.0, inf, 0.0, inf], [1.0, inf, inf, 0.0]])
    assert costs_to_go(steps, np.array([inf, inf, 3.0, inf])).tolist() == [6.0, 5.0, 3.0, 7.0]
    assert np.isinf(costs_to_go(steps, np.array([inf, inf, inf, 1.0]))).tolist() == [True, True, True, False]


def steps_around_a_wall(observation, achieved_goal, subgoal):
    """10 steps per unit; a wall at x = 0 with a gap above y = 1."""
    crosses = (achieved_goal[:, 0] < 0) != (subgoal[:, 0] < 0)
    is_open = np.minimum(achieved_goal[:, 1], subgoal[:, 1]) > 0.9
    distance = 10 * np.linalg.norm(subgoal - achieved_goal, axis=1)
    return np.where(crosses & ~is_open, np.inf, distance).astype(np.float32)


@pytest.fixture
def planner(small):
    """A planner with landmarks on a grid, whose low level knows of a wall."""
    config = dict(n_landmarks=30, n_visited=30, cutoff=12.0, n_members=1)
    model = make_model(small, planner="landmarks", planner_kwargs=config, avoid_missed_subgoals=True, subgoal_steps=20)
    with_threshold(model, 0.1, radius=1.2)
    acting = model.policy.acting()
    acting.steps_between = steps_around_a_wall

    def steps_from_landmarks(observations, achieved, subgoals):
        steps = np.stack([steps_around_a_wall(None, achieved[:, 0], subgoal[None]) for subgoal in subgoals], axis=1)
        return np.where(steps <= 12.0, steps, np.inf)

    acting.steps_from_landmarks = steps_from_landmarks
    goals = float32(*[(x, y) for x in (-1.5, -0.5, 0.5, 1.5) for y in (-0.5, 0.5, 1.5)])
    n = len(goals)
    steps = steps_from_landmarks(None, goals[:, None], goals)
    model.policy.set_landmarks(np.zeros((n, 1, 3)), goals[:, None], steps)
    return acting


def plan_from(planner, start, goal, missed=None) -> Plan:
    missed = None if missed is None else np.array(missed, dtype=np.float32)[None]
    return planner.plan(np.zeros((1, 3), np.float32), float32(start), float32(goal), missed)


def test_the_first_waypoint_of_the_way_around_a_wall(planner):
    position, goal, way = np.array([-0.5, -0.5]), np.array([0.5, -0.5]), []
    for _ in range(10):
        plan = plan_from(planner, position, goal)
        assert plan.planned.all()
        position = plan.subgoals[0]
        way.append(position.tolist())
        if (position == goal).all():
            break
    assert way == [[-0.5, 0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, 0.5], [0.5, -0.5]]


def test_a_goal_within_reach_needs_no_waypoint(planner):
    plan = plan_from(planner, (0.2, 0.0), (1.0, 0.6))
    np.testing.assert_allclose(plan.subgoals, [[1.0, 0.6]], rtol=1e-6)


def missed_ways(*ways) -> np.ndarray:
    """Starts and subgoals that were missed, the last one latest."""
    missed = np.full((N_MISSED, 2, 2), np.inf, np.float32)
    if ways:
        missed[-len(ways) :] = ways
    return missed


REACHED = ((np.inf, np.inf), (np.inf, np.inf))


def test_a_way_that_is_missed_costs_more_each_time(planner):
    # Two ways of the same length around a corner
    start, goal = (-0.5, -0.5), (-1.5, 0.5)
    one, other = (start, (-1.5, -0.5)), (start, (-0.5, 0.5))

    def first_step(*ways) -> list[float]:
        return plan_from(planner, start, goal, missed_ways(*ways)).subgoals[0].tolist()

    assert first_step() == [-1.5, -0.5]
    assert first_step(one) == [-0.5, 0.5]
    assert first_step(one, *[REACHED] * 4, other) == [-1.5, -0.5], "not at once again"
    assert first_step(one, other, other, *[REACHED] * 4) == [-1.5, -0.5], "twice is more than once"
    assert first_step(((0.5, 0.5), (-1.5, -0.5))) == [-1.5, -0.5], "missed from elsewhere"


def test_ways_further_on_that_were_missed_cost_more(planner):
    start, goal, way = (-1.3, -1.3), (-0.5, 0.6), ((-0.5, -0.5), (-0.5, 0.5))
    assert plan_from(planner, start, goal, missed_ways()).subgoals[0].tolist() == [-0.5, -0.5]
    plan = plan_from(planner, start, goal, missed_ways(way, (way[0], goal), *[REACHED] * 4))
    assert plan.subgoals[0].tolist() == [-1.5, -0.5]


def test_a_goal_that_was_missed_is_approached_otherwise(planner):
    start, goal = (0.5, 0.5), (0.5, -0.4)
    assert plan_from(planner, start, goal, missed_ways()).subgoals.tolist() == [pytest.approx(goal)]
    assert plan_from(planner, start, goal, missed_ways((start, goal))).subgoals.tolist() != [pytest.approx(goal)]


def test_waypoints_are_within_the_radius(planner):
    planner._box.radius[:] = 0.9
    assert not plan_from(planner, (-0.5, -0.5), (0.5, -0.5)).planned.any()


def test_where_no_way_is_known_the_actor_decides(planner):
    plan = plan_from(planner, (-0.5, -0.5), (8.0, 8.0))
    assert not plan.planned.any()


def test_landmarks_of_a_low_level_without_steps_in_its_values(small):
    kwargs = dict(low_kwargs=dict(reward="dense"), planner="landmarks", subgoal_steps=20)
    with pytest.raises(ValueError, match="distance='euclidean'"):
        make_model(small, **kwargs)
    config = dict(n_landmarks=4, n_visited=4, n_members=2, distance="euclidean")
    model = make_model(small, planner_kwargs=config, avoid_missed_subgoals=True, **kwargs)
    with_threshold(model, 0.1, radius=1.0)
    model.policy.set_box(np.full(2, -9.0), np.full(2, 9.0), np.full(2, 1.0))
    acting, corners = model.policy.acting(), float32((0, 0), (0, 1), (1, 1), (2, 1))
    members = np.stack([corners, corners + 0.05], axis=1)  # the second ones are not asked
    steps = acting.steps_from_landmarks(np.zeros((4, 2, 3), np.float32), members, corners)
    one = 20.0 / math.sqrt(2.0)  # at the pace that covers the radius in 20 steps
    far = math.inf
    expected = [[0, one, 20, far], [one, 0, one, far], [20, one, 0, one], [far, far, one, 0]]
    np.testing.assert_allclose(steps, expected, rtol=1e-5)
    steps[0, 2] = far  # tried in vain
    model.policy.set_landmarks(np.zeros((4, 2, 3)), members, steps)
    assert plan_from(acting, (0.0, 0.0), (2.0, 1.2)).subgoals[0].tolist() == [1.0, 1.0], "as it has not been tried from here"
    missed = missed_ways(((0.0, 0.0), (1.0, 1.0)))
    assert plan_from(acting, (0.0, 0.0), (2.0, 1.2), missed).subgoals[0].tolist() == [0.0, 1.0]


def test_random_subgoals_are_not_replaced_by_waypoints(planner):
    obs, achieved, goal = np.zeros((1, 3), np.float32), float32((-0.5, -0.5)), float32((0.5, -0.5))
    rng = np.random.default_rng(0)
    assert not planner.plan(obs, achieved, goal, random_prob=1.0, rng=rng).planned.any()
    assert planner.plan(obs, achieved, goal, random_prob=0.0, rng=rng).planned.all()


def test_landmarks_are_learnt_saved_and_sent_to_workers(small, tmp_path):
    config = dict(n_landmarks=10, n_visited=50, update_interval=50)
    model = make_model(small, planner="landmarks", planner_kwargs=config, policy_kwargs=dict(net_arch=[16], n_critics=2))
    model.learn(200)
    policy = model.policy
    assert policy.landmark_count == 10
    assert len(np.unique(policy.landmark_goals.numpy(), axis=0)) == 10
    visited = np.concatenate([steps["achieved_goal"] for steps in model.replay_buffer.recent(200, ("achieved_goal",))])
    assert all((visited == goal).all(axis=1).any() for goal in policy.landmark_goals.numpy())
    model.save(tmp_path / "model")
    loaded = HierarchicalDDPG.load(tmp_path / "model")
    assert th.equal(loaded.policy.landmark_steps, policy.landmark_steps)
    obs = point_vec_env(4).reset()
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    # Goes on without the buffer of the first run
    loaded.set_env(point_vec_env())
    loaded.learn(100)
    assert not th.equal(loaded.policy.landmark_goals, policy.landmark_goals)


# ------------------------------------------------------------------------------------------------------ bad options, wrappers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(subgoal_source="oracle"), "subgoal_source"),
        (dict(subgoal_source=[1.0, 2.0, 3.0]), "subgoal_source"),
        (dict(min_segment_steps=6), "min_segment_steps"),
        (dict(subgoal_hold_steps=0), "subgoal_hold_steps"),
        (dict(noise_hold_steps=0), "noise_hold_steps"),
        (dict(trivial_segment_prob=1.5), "trivial_segment_prob"),
        (dict(direct_goal=-1.0), "direct_goal"),
        (dict(threshold_scale=0.5), "threshold_scale"),
        (dict(threshold_shrink_fraction=2.0), "threshold_shrink_fraction"),
        (dict(planner="astar"), "landmarks"),
        (dict(planner_kwargs=dict(cutoff=1)), "planner='landmarks'"),
        (dict(planner="landmarks", planner_kwargs=dict(n=1)), "Known keys"),
        (dict(planner="landmarks", planner_kwargs=dict(n_landmarks=1)), "n_landmarks"),
        (dict(planner="landmarks", planner_kwargs=dict(miss_cost=-1.0)), "miss_cost"),
        (dict(planner="landmarks", planner_kwargs=dict(cutoff=-1.0)), "cutoff"),
        (dict(low_level="oracle"), "low_level"),
        (dict(low_kwargs=dict(reward="shaped")), "'dense'"),
        (dict(high_kwargs=dict(reward="progress")), "'sparse', 'dense'"),
        (dict(low_kwargs=dict(policy_delay=0)), "policy_delay"),
        (dict(low_kwargs=dict(action_l2=-1.0)), "action_l2"),
        (dict(low_kwargs=dict(hindsight_window=0)), "hindsight_window"),
        (dict(low_kwargs=dict(random_target_prob=0.5)), "random_target_prob"),
        (dict(low_kwargs=dict(trivial_target_prob=-0.1)), "trivial_target_prob"),
        (dict(planner="landmarks", low_kwargs=dict(reward="dense")), "sparse"),
    ],
)
def test_bad_options_are_refused(small, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(small, **options)


def test_actions_are_limited():
    env = ActionLimitWrapper(gym.make("conftest:PointEnv-v0"), share=0.5)
    assert env.action_space.low.tolist() == [-1.0, -1.0]
    assert env.action_space.high.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="share"):
        ActionLimitWrapper(PointEnv(), share=0.0)


def test_goals_stay_in_the_reduced_workspace():
    env = ReducedWorkspaceWrapper(PointEnv(), low=[-0.5, 0.0], high=0.5, limit_start=True)
    for seed in range(10):
        obs, _ = env.reset(seed=seed)
        for point in (obs["desired_goal"], obs["achieved_goal"]):
            assert (point >= [-0.5, 0.0]).all()
            assert (point <= 0.5).all()
    with pytest.raises(ValueError, match="widen the box"):
        ReducedWorkspaceWrapper(PointEnv(), low=5.0, high=6.0, max_tries=3).reset()
    with pytest.raises(ValueError, match="below"):
        ReducedWorkspaceWrapper(PointEnv(), low=1.0, high=0.0)


def test_batches_that_are_prepared_ahead_follow_the_box(small):
    """Random targets and dense rewards depend on the box, which grows while the agent learns."""
    model = make_model(small).learn(60)
    maker = LowBatchMaker(model.policy, model.replay_buffer, model._low, 16, seed=0)
    weights = np.zeros(maker.n_weights, dtype=np.float32)
    maker.start(model.replay_buffer.shards.blocks(), weights)
    model.policy.set_box(np.full(2, -3.0), np.full(2, 4.0), np.full(2, 2.5))
    ends = np.cumsum([tensor.numel() for tensor in _batch_tensors(model.policy)])
    for tensor, end in zip(_batch_tensors(model.policy), ends, strict=True):
        weights[end - tensor.numel() : end] = tensor.detach().numpy().ravel()
    maker.refresh()
    for part, expected in zip(maker._policy.box, model.policy.box, strict=True):
        assert th.equal(part, expected)


class TurningEnv(PointEnv):
    """A PointEnv whose observation is an orientation: upright, then upside down from the third step on, but for the fifth."""

    def _obs(self):
        is_up = self.steps < 3 or self.steps == 5
        return super()._obs() | {"observation": np.array([1.0, 0.0, 0.0, 0.0]) if is_up else np.array([0.0, 1.0, 0.0, 0.0])}


def test_an_episode_ends_when_the_robot_lies_on_its_back():
    env = FallTerminationWrapper(TurningEnv(), orientation=0, patience=3)
    for _ in range(2):
        env.reset(seed=0)
        assert [env.step(np.zeros(2))[2] for _ in range(8)] == [False] * 7 + [True]
    with pytest.raises(ValueError, match="patience"):
        FallTerminationWrapper(TurningEnv(), patience=0)


def test_monitor_sees_the_falls():
    """Evaluation counts the episodes that Monitor has seen: those that ended by a fall were left out."""
    with pytest.raises(ValueError, match="terminate_falls"):
        FallTerminationWrapper(Monitor(TurningEnv()))
    env = terminate_falls(ActionLimitWrapper(Monitor(TurningEnv())), orientation=0, patience=3)
    assert isinstance(env, ActionLimitWrapper)
    env.reset(seed=0)
    for _ in range(8):
        _, _, terminated, _, info = env.step(np.zeros(2))
    assert terminated
    assert info["episode"]["l"] == 8
