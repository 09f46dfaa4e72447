"""The transitions that both levels learn from, compared with results that were computed by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from agents import fill, make_model, with_bounds
from conftest import PointEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.common.goals import LEAST_WEIGHT, GoalTask
from sb3_hrl.common.subgoals import SubgoalBounds
from sb3_hrl.common.type_aliases import Transitions
from sb3_hrl.hddpg.batch_source import BatchSource, LowBatchMaker, batch_tensors, write_tensors
from sb3_hrl.hddpg.relabeling import (
    MOST_TRIVIAL,
    high_batch,
    low_batch,
    relative_distance,
    share_to_keep,
    terminate_with_penalty,
    without_trivial,
)
from sb3_hrl.parallel.serial import SerialCollector


@pytest.fixture
def task() -> GoalTask:
    return GoalTask(PointEnv().compute_reward, np.zeros((1, 2), np.float32))


def low(model: HierarchicalDDPG, batch_size: int = 64) -> Transitions:
    """:return: a batch of the low level"""
    set_batch_size(model, batch_size)
    return low_batch(model.policy, model.replay_buffer)


def high(model: HierarchicalDDPG, task: GoalTask, batch_size: int = 64) -> Transitions:
    """:return: a batch of the high level"""
    set_batch_size(model, batch_size)
    return high_batch(model.policy, model.replay_buffer, task)


def set_batch_size(model: HierarchicalDDPG, batch_size: int) -> None:
    config = model.policy.config
    levels = {name: replace(getattr(config, name), batch_size=batch_size) for name in ("high", "low")}
    model.policy.config = replace(config, **levels)


# --------------------------------------------------------------------- rewards


def test_sparse_rewards_end_at_the_subgoal(small):
    """The subgoal is at 0.5, and is reached at 0.4, 0.5 and 0.6."""
    model = with_bounds(make_model(small, low_kwargs=dict(n_sampled_goal=0, gamma=0.9)))
    fill(model, subgoal=(0.5, 0.0))
    batch = low(model)
    is_reached = batch.next_inputs[:, -2].abs() < 0.101
    assert th.equal(batch.rewards[:, 0], is_reached.float() - 1.0)
    assert th.allclose(batch.discounts[:, 0], 0.9 * (~is_reached))
    assert 0 < is_reached.sum() < 64


def test_entries_of_a_goal_that_do_not_count_are_hidden(small):
    model = make_model(small, planner="landmarks")
    fill(model)
    policy = model.policy
    policy.update_moments(np.random.default_rng(0).normal(size=(50, 3)), np.random.default_rng(1).normal(size=(50, 2)))
    observation, achieved, target = th.rand(5, 3), th.rand(5, 2), th.rand(5, 2)
    other = target + th.tensor([0.0, 1.0])
    for inputs in (policy.low_inputs, policy.high_inputs):
        assert not th.equal(inputs(observation, achieved, target), inputs(observation, achieved, other))
    policy.set_tolerance(0.1, np.array([1.0, LEAST_WEIGHT], dtype=np.float32))
    for inputs in (policy.low_inputs, policy.high_inputs):
        hidden = inputs(observation, achieved, target)
        assert th.equal(hidden, inputs(observation, achieved, other))
        assert not th.equal(hidden, inputs(observation, achieved, target + th.tensor([1.0, 0.0])))
        # The agent's own entry is not hidden
        assert not th.equal(hidden, inputs(observation, achieved + th.tensor([0.0, 1.0]), target))
    # Landmarks are apart in the entry that counts
    policy.update_planner(model.replay_buffer)
    places = policy.numpy_policy().planner.places
    assert len(np.unique(places[:, 0])) == len(places)


def test_dense_rewards_are_distances(small, task):
    distance = relative_distance(
        th.zeros(2, 2), th.tensor([[0.3, 0.4], [9.0, 0.0]]), reach=th.tensor([3.0, 4.0]), weights=th.ones(2)
    )
    assert distance.flatten().tolist() == pytest.approx([0.1, 1.0])
    weighted = relative_distance(th.zeros(1, 2), th.tensor([[0.3, 9.0]]), th.tensor([3.0, 4.0]), th.tensor([1.0, 0.0]))
    assert weighted.item() == pytest.approx(0.1)
    kwargs = dict(reward="dense", n_sampled_goal=0)
    model = with_bounds(make_model(small, low_kwargs=kwargs, high_kwargs=kwargs))
    fill(model)
    batch = low(model)
    # In units of the radius; the remaining distance is an entry of the inputs
    left = (batch.next_inputs[:, -2:]).norm(dim=1)
    expected = th.where(left <= 0.15 + 1e-6, 0.0, -(left / math.sqrt(2.0)).clamp(max=1.0))
    assert th.allclose(batch.rewards[:, 0], expected, atol=1e-5)
    assert th.allclose(batch.discounts[:, 0], th.where(left <= 0.15 + 1e-6, 0.0, model.gamma))
    # In units of the bounds, from -9 to 9: the goal is (5, 5), segments end at 0.4, 0.8 and 1.2
    expected = sorted(-math.dist((x, 0.0), (5.0, 5.0)) / math.dist((0.0, 0.0), (18.0, 18.0)) for x in (0.4, 0.8, 1.2))
    assert high(model, task).rewards.unique().tolist() == pytest.approx(expected)


def test_the_rewards_of_segments_count_segments(small, task):
    model = with_bounds(make_model(small, subgoal_steps=8, high_kwargs=dict(n_sampled_goal=0, gamma=0.9)))
    fill(model, segment=4)
    batch = high(model, task, 8)
    assert batch.rewards.unique().tolist() == [-1.0]
    assert batch.discounts.unique().tolist() == pytest.approx([0.9])


FALL = {"is_success": False}


@pytest.mark.parametrize(
    ("info", "is_failure"),
    [(FALL, True), ({"is_success": True}, False), ({}, False), (FALL | {"TimeLimit.truncated": True}, False)],
)
def test_an_end_that_is_no_success_is_worth_never_reaching_it(small, task, info, is_failure):
    """Three steps, one segment, gamma 0.9 and 0.8 on the two levels: values of -10 and -5, and terminal transitions."""
    kwargs = dict(low_kwargs=dict(gamma=0.9, n_sampled_goal=0), high_kwargs=dict(gamma=0.8, n_sampled_goal=0))
    model = with_bounds(make_model(small, **kwargs))
    fill(model, subgoal=(0.3, 0.0), n=3, info=info)
    batch = low(model)
    is_last = batch.inputs[:, -2] < 0.15  # of the remaining distances 0.3, 0.2 and 0.1
    assert is_last.any()
    # The subgoal is within reach after the last two steps, but in a failed episode it does not count as reached
    assert batch.rewards[is_last].unique().tolist() == [pytest.approx(-10.0) if is_failure else 0.0]
    assert (batch.discounts[is_last] == 0.0).all()
    assert (batch.rewards[~is_last] >= -1.0).all()
    batch = high(model, task)
    assert batch.rewards.unique().tolist() == [pytest.approx(-5.0) if is_failure else -1.0]
    assert batch.discounts.unique().tolist() == [0.0 if is_failure else pytest.approx(0.8)]


def test_a_goal_in_hindsight_that_was_passed_before_the_fall_is_reached(small, task):
    """If episodes end at success, this one would have ended there."""
    task.ends_at_success = True
    model = with_bounds(make_model(small, high_kwargs=dict(n_sampled_goal=10**6)))
    fill(model, n=3, info=FALL)
    assert (high(model, task).rewards[:63] == 0.0).all()


def test_workers_tell_failures_from_success():
    """The same episodes in SB3's loop and in a worker: falls are marked as failures, and nothing else is."""

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


# -------------------------------------------------------- subgoals in hindsight


def test_a_penalty_ends_a_transition():
    rewards, discounts = th.tensor([-1.0, -1.0, 0.0]), th.tensor([0.5, 0.5, 0.0])
    rewards, discounts = terminate_with_penalty(rewards, discounts, th.tensor([True, False, False]), penalty=-50.0)
    assert rewards.tolist() == [-50.0, -1.0, 0.0]
    assert discounts.tolist() == [0.0, 0.5, 0.0]


@pytest.mark.parametrize(("tested", "subgoal", "is_punished"), [(1, 9.0, True), (0, 9.0, False), (1, 0.4, False)])
def test_only_missed_tests_are_punished(small, task, tested, subgoal, is_punished):
    """One segment of 4 steps from 0 to 0.4, with a subgoal at 9 or at its end; the action in hindsight is the achieved
    goal."""
    kwargs = dict(high_kwargs=dict(gamma=0.98, n_sampled_goal=0), hindsight_kwargs=dict(action_prob=1.0))
    model = with_bounds(make_model(small, subgoal_steps=4, **kwargs))
    fill(model, subgoal=(subgoal, 0.0), n=4, tested=np.array([tested]))
    batch = high(model, task)
    assert batch.rewards.unique().tolist() == pytest.approx([-50.0 if is_punished else -1.0])
    assert batch.discounts.unique().tolist() == pytest.approx([0.0 if is_punished else 0.98])
    # The penalty is for the real action
    assert batch.actions[:, 0].unique().tolist() == pytest.approx([1.0 if is_punished else 0.4])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_actions_in_hindsight_are_what_was_achieved(small, task, share):
    model = with_bounds(make_model(small, subgoal_steps=4, hindsight_kwargs=dict(action_prob=share)))
    fill(model, subgoal=(9.0, 0.0))
    is_achieved = (high(model, task, 400).actions[:, 0] - 0.4).abs() < 1e-5
    assert is_achieved.float().mean().item() == pytest.approx(share, abs=0.1)


def test_trivial_segments_are_replaced():
    is_trivial = th.tensor([False, True, False, True])
    rows = without_trivial(is_trivial, 0.0)
    assert rows[[0, 2]].tolist() == [0, 2]
    assert set(rows[[1, 3]].tolist()) <= {0, 2}
    assert without_trivial(is_trivial, 1.0).tolist() == [0, 1, 2, 3]
    assert without_trivial(th.ones(3, dtype=th.bool), 0.0).tolist() == [0, 1, 2], "there is nothing else"


def test_segments_that_went_nowhere_are_not_learnt_of(small, task):
    hindsight = dict(action_prob=1.0, trivial_segment_prob=0.0)
    model = with_bounds(make_model(small, high_kwargs=dict(n_sampled_goal=0), hindsight_kwargs=hindsight))
    fill(model, segment=4, step=0.01)  # 0.04 per segment, with a threshold of 0.15
    fill(model, segment=4, step=0.1)
    assert (high(model, task).actions[:, 0] > 0.3).all(), "the move in hindsight, in units of the radius"


@pytest.mark.parametrize("ahead", [1, 3])
def test_hindsight_windows(small, task, ahead):
    """Targets in hindsight are achieved within the window, in steps of 0.1."""
    kwargs = dict(hindsight_window=ahead, n_sampled_goal=10**6)
    model = with_bounds(make_model(small, low_kwargs=kwargs, high_kwargs=kwargs), radius=8.0)
    fill(model, n=100, segment=10)
    # Divided by a standard deviation of 1, because there are no data
    moved = low(model, 256).inputs[:255, -2]
    assert 0.09 < moved.min() < 0.11
    assert 0.1 * ahead - 0.01 < moved.max() < 0.1 * ahead + 0.01
    moved = high(model, task, 256).inputs[:255, -2]
    assert 0.09 < moved.min() < 0.11
    assert 0.1 * ahead - 0.01 < moved.max() < 0.1 * ahead + 0.01


def test_random_targets_are_within_reach(small):
    kwargs = dict(n_sampled_goal=1, random_target_prob=0.25)
    model = with_bounds(make_model(small, low_kwargs=kwargs), radius=0.2)
    fill(model, subgoal=(7.0, 0.0))
    offsets = low(model).inputs[:, -2:]
    assert (offsets[32:48, 0] == 5.0).all(), "commanded, and clipped"
    assert (offsets[48:].abs() <= 0.2 + 1e-5).all()
    assert len(offsets[48:, 1].unique()) == 16


@pytest.mark.parametrize("keep_prob", [0.0, 1.0])
def test_trivial_targets_are_left_out(small, keep_prob):
    """Steps of 0.1, threshold 0.15: a target one step ahead is already reached, targets farther ahead are not."""
    kwargs = dict(n_sampled_goal=3, trivial_target_prob=keep_prob, hindsight_window=4)
    model = with_bounds(make_model(small, low_kwargs=kwargs), radius=0.2)
    fill(model, subgoal=(7.0, 0.0))
    batch = low(model)
    offsets = batch.inputs[:, -2]
    assert len(batch.inputs) == 64
    assert (offsets[:48] < 0.41).all()
    assert (offsets[48:] == 5.0).all(), "commanded ones stay, clipped here"
    assert (offsets[:48] > 0.15).all() == (keep_prob == 0.0)


def test_at_most_three_quarters_of_the_targets_are_trivial_by_default(small):
    """An episode of 60 steps in which nothing moves, and one of 12 steps."""
    model = with_bounds(make_model(small, low_kwargs=dict(n_sampled_goal=3)), threshold=0.05)
    fill(model, n=60, step=0.0)
    fill(model, n=12)
    shares = {}
    for keep_prob in (1.0, None):
        low_config = replace(model.policy.config.low, trivial_target_prob=keep_prob)
        model.policy.config = replace(model.policy.config, low=low_config)
        shares[keep_prob] = (low(model, 4096).inputs[:3072, -2] < 0.051).float().mean().item()
    assert shares[1.0] > 0.8
    assert shares[None] == pytest.approx(MOST_TRIVIAL, abs=0.03)


@pytest.mark.parametrize("share", [0.8, 0.9, 0.99])
def test_the_share_of_trivial_targets_to_keep(share):
    kept = share_to_keep(share)
    dropped = share * (1.0 - kept)
    # Each dropped entry becomes a random one of those that are left
    trivial = share * kept + dropped * share * kept / (1.0 - dropped)
    assert trivial == pytest.approx(MOST_TRIVIAL)
    assert share_to_keep(0.3) == 1.0


def test_relative_subgoals_stay_where_they_are(small):
    """HIRO's transition h(s, g, s') = s + g - s' means that the subgoal stays in place; inputs contain the distance left."""
    model = with_bounds(make_model(small))
    achieved, next_achieved, subgoal = th.zeros(1, 2), th.tensor([[0.1, -0.2]]), th.tensor([[0.5, 0.5]])
    before, after = (model.policy.low_inputs(th.zeros(1, 3), point, subgoal)[:, -2:] for point in (achieved, next_achieved))
    assert th.allclose(after, achieved + before - next_achieved)


# ----------------------------------------------------------- where batches come from


def test_batches_come_with_their_targets(small, task):
    """With values of -3 in all targets, the target values are -1 - 3 gamma, unless the target is reached."""
    kwargs = dict(gamma=0.5, n_sampled_goal=0)
    model = with_bounds(make_model(small, low_kwargs=kwargs, high_kwargs=kwargs))
    fill(model, subgoal=(0.5, 0.0))
    with th.no_grad():
        for level in (model.policy.low, model.policy.high):
            for parameter in level.critic_target.parameters():
                parameter.zero_()
            level.critic_target.q_networks[0][-1].bias.fill_(-1.5)
    source = BatchSource(model.policy, model.replay_buffer, task)
    low_targets, high_targets = source.low().target_q_values, source.high().target_q_values
    assert set(low_targets.ravel().tolist()) == {0.0, -1.75}
    assert set(high_targets.ravel().tolist()) == {-1.75}


def test_batches_that_are_prepared_ahead_follow_the_learner(small):
    """Targets depend on the target networks; random subgoals and dense rewards depend on the bounds, which grow."""
    model = make_model(small).learn(60)
    maker = LowBatchMaker(model.policy, model.replay_buffer, seed=0)
    weights = np.zeros(maker.n_weights, dtype=np.float32)
    maker.start(model.replay_buffer.shards.blocks(), weights)
    model.policy.set_bounds(SubgoalBounds(np.full(2, -3.0), np.full(2, 4.0), np.full(2, 2.5)))
    with th.no_grad():
        for parameter in model.policy.low.parameters():
            parameter.add_(1.0)
    write_tensors(batch_tensors(model.policy), weights)
    maker.refresh()
    for part, expected in zip(batch_tensors(maker._policy), batch_tensors(model.policy), strict=True):
        assert th.equal(part, expected)
    for part, expected in zip(maker._policy.bounds, model.policy.bounds, strict=True):
        assert th.equal(part, expected)
    batch = {name: np.zeros(shape, dtype) for name, (shape, dtype) in maker.layout().items()}
    maker.make(batch)
    assert all(np.isfinite(array).all() for array in batch.values())
    assert {name: array.shape for name, array in batch.items()} == {
        "inputs": (16, 9),
        "actions": (16, 2),
        "rewards": (16, 1),
        "target_q_values": (16, 1),
    }
