"""Stored segments record how they ended, and the learners use that."""

import numpy as np
import pytest
import torch as th
from conftest import PointEnv, point_env_fn, point_vec_env

from sb3_hrl import HierarchicalDDPG, SerialCollector
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.subgoals import SegmentEnd
from sb3_hrl.hddpg.relabeling import high_batch


def store_segment(model, n_steps: int, end: SegmentEnd, done: bool, subgoal: float = 2.0, goal: float = 0.2, **info) -> None:
    """A segment of a subgoal test along the first axis, 0.1 per step, from 0."""
    for i in range(n_steps):
        obs, next_obs = (
            {
                "observation": np.zeros((1, 3)),
                "achieved_goal": np.array([[0.1 * j, 0.0]]),
                "desired_goal": np.array([[goal, 0.0]]),
            }
            for j in (i, i + 1)
        )
        is_last = i == n_steps - 1
        model.replay_buffer.add(
            obs,
            next_obs,
            np.zeros((1, 2)),
            np.zeros(1),
            np.array([done and is_last]),
            [info],
            subgoal=np.array([[subgoal, 0.0]]),
            segment_ends=np.array([end if is_last else SegmentEnd.NONE]),
            tested=np.array([True]),
        )


def learnt_from(small, ends_at_success: bool, n_steps: int, end: SegmentEnd, done: bool, goal: float, **info):
    """:return: rewards and discounts that the high level learns from, with gamma 0.99"""
    high = dict(n_sampled_goal=0, gamma=0.99, batch_size=8)
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **(small | dict(subgoal_steps=10, high_kwargs=high)))
    model.policy.subgoal_threshold.fill_(0.05)
    store_segment(model, n_steps, end, done, goal=goal, **info)
    env = PointEnv(ends_at_success=ends_at_success)
    env.threshold = 0.05
    task = GoalTask(env.compute_reward, np.zeros((1, 2), np.float32), ends_at_success=ends_at_success)
    batch = high_batch(model.policy, model.replay_buffer, task)
    return batch.rewards.unique().tolist(), batch.discounts.unique().tolist()


def test_a_tested_segment_that_ends_the_episode_at_its_goal_is_a_success(small):
    """The goal is reached after 2 of 10 steps; the subgoal is farther away."""
    rewards = learnt_from(small, True, 2, SegmentEnd.EPISODE_OVER, done=True, goal=0.2, is_success=True)
    assert rewards == ([0.0], [0.0])


def test_a_tested_segment_that_the_time_limit_cuts_is_not_punished(small):
    info = {"is_success": False, "TimeLimit.truncated": True}
    rewards, discounts = learnt_from(small, True, 2, SegmentEnd.EPISODE_OVER, done=True, goal=5.0, **info)
    assert rewards == [-1.0]
    assert discounts == [pytest.approx(0.99)]


def test_a_tested_segment_that_misses_its_subgoal_after_all_its_steps_is_punished(small):
    rewards, discounts = learnt_from(small, False, 10, SegmentEnd.OUT_OF_STEPS, done=False, goal=5.0)
    assert rewards == [pytest.approx(-100.0)]
    assert discounts == [0.0]


def test_a_missed_test_that_led_to_the_goal_is_a_success(small):
    """Also for goals in hindsight: a segment that reaches its goal is never penalised."""
    rewards = learnt_from(small, False, 10, SegmentEnd.OUT_OF_STEPS, done=False, goal=1.0)
    assert rewards == ([0.0], [0.0])


@pytest.mark.parametrize("is_serial_collector", [False, True])
def test_every_stored_segment_says_how_it_ended(small, is_serial_collector):
    """Both in SB3's loop and in a worker, the stored end matches the goals, lengths and episodes."""
    fns = [point_env_fn(max_steps=13)] * 2
    env = SerialCollector(fns) if is_serial_collector else point_vec_env(2, max_steps=13)
    kwargs = dict(async_collection=True) if is_serial_collector else {}
    model = HierarchicalDDPG("MultiInputPolicy", env, **(small | kwargs | dict(subgoal_kwargs=dict(radius=0.3)))).learn(400)
    buffer, seen = model.replay_buffer, set()
    for shard in range(2):
        shards, columns = buffer.shards, buffer.columns
        numbers = np.arange(shards.segment_tail[shard], shards.segment_head[shard])
        starts, ends = shards.gather_segments(shard, numbers)
        rows = shards.gather(shard, ends - 1)
        distances = np.linalg.norm(rows[:, columns["next_achieved_goal"]] - rows[:, columns["subgoal"]], axis=1)
        for length, distance, end in zip(ends - starts, distances, rows[:, columns["segment_end"]].ravel(), strict=True):
            if distance <= 0.0999:
                assert end == SegmentEnd.REACHED
            elif distance > 0.1001:
                assert end == (SegmentEnd.OUT_OF_STEPS if length == 5 else SegmentEnd.EPISODE_OVER)
            seen.add(int(end))
        inside = shards.gather(shard, np.concatenate([np.arange(*span) for span in zip(starts, ends - 1, strict=True)]))
        assert (inside[:, columns["segment_end"]] == SegmentEnd.NONE).all()
    assert seen == {SegmentEnd.REACHED, SegmentEnd.OUT_OF_STEPS, SegmentEnd.EPISODE_OVER}
    env.close()


def test_the_planner_counts_misses_as_the_segments_ended(small):
    """A segment that is out of steps, or ends by a fall, is a miss. If it is cut by the time limit or at the goal, it is
    unknown."""
    config = dict(n_landmarks=2, n_visited=20, n_members=1)
    kwargs = dict(planner="landmarks", planner_kwargs=config, subgoal_steps=10)
    cases = [
        (SegmentEnd.OUT_OF_STEPS, {}, {True}),
        (SegmentEnd.REACHED, {}, {False}),
        (SegmentEnd.EPISODE_OVER, {"is_success": False, "TimeLimit.truncated": True}, set()),
        (SegmentEnd.EPISODE_OVER, {"is_success": True}, set()),
        (SegmentEnd.EPISODE_OVER, {"is_success": False}, {True}),
    ]
    for end, info, misses in cases:
        model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **(small | kwargs))
        store_segment(model, 3, end, done=end == SegmentEnd.EPISODE_OVER, **info)
        policy = model.policy.numpy_policy()
        _, _, missed = policy.planner._some_segments(model.replay_buffer, policy)
        assert set(missed.tolist()) == misses, (end, info)


def test_random_subgoals_of_exploration_stay_random(small):
    """During warm-up, subgoals are uniformly random, including those that are already reached."""
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **(small | dict(learning_starts=10**6)))
    model.learn(50)
    radius = 2.2 * model.policy.subgoal_threshold.item()
    model.policy.set_bounds(model.policy.bounds._replace(radius=np.full(2, radius), low=np.full(2, -9), high=np.full(2, 9)))
    model.learn(4000, reset_num_timesteps=False)
    buffer = model.replay_buffer
    segments = buffer.sample_high(2000, n_sampled_goal=0, max_steps=1)
    offsets = (segments.subgoals - segments.achieved_goals) / radius
    share = (offsets.norm(dim=1) <= 1 / 2.2).float().mean().item()
    # A circle with the threshold as radius, in a square with sides of 2 x 2.2 thresholds
    assert share == pytest.approx(np.pi / (2 * 2.2) ** 2, abs=0.05)
    assert th.isfinite(offsets).all()
