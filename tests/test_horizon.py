"""How far the low level's values are trusted, and the consequences: by default, none of this has to be set by hand."""

import numpy as np
import pytest
import torch as th
from agents import WITHOUT_STEPS, choose, fill, float32, made_by, make_model, missed_ways, predict_steps, with_bounds
from conftest import PointEnv, point_env_fn, point_vec_env

from sb3_hrl import HierarchicalDDPG, SerialCollector
from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.subgoals import SegmentEnd
from sb3_hrl.common.type_aliases import SegmentOutcomes, TDBatch
from sb3_hrl.hddpg.choosers import (
    HighNoise,
    Situation,
    actor_proposal,
    choose_subgoals,
    far_goal,
    near_goal,
    planned_waypoint,
    random_place,
)
from sb3_hrl.hddpg.horizon import HORIZONS, LEAST_HORIZON, MOST_STEPS, N_SEGMENTS, calibrated_horizon, steps_allowed
from sb3_hrl.hddpg.inference import PolicySnapshot
from sb3_hrl.hddpg.planners.landmarks import LandmarkPlanner
from sb3_hrl.hddpg.relabeling import high_batch

REACHED, OUT_OF_STEPS, EPISODE_OVER = (
    SegmentEnd.REACHED,
    SegmentEnd.OUT_OF_STEPS,
    SegmentEnd.EPISODE_OVER,
)
INF, NAN = float("inf"), float("nan")


# ------------------------------------------------------------------ calibration


def outcomes(*parts: tuple[int, float, float, SegmentEnd]) -> SegmentOutcomes:
    """:return: segments, from tuples of (number, predicted steps, steps, end), with the most recent ones last"""
    columns = zip(*(row for n, *row in parts for _ in range(n)), strict=True)
    predicted, steps, ends = (np.array(column) for column in columns)
    return SegmentOutcomes(predicted.astype(np.float32), steps.astype(np.int64), ends.astype(np.float32))


def test_the_horizon_grows_to_where_predictions_come_true_and_a_little_more():
    # All subgoals within 10 steps were reached, so the horizon becomes 15
    came_true = outcomes((60, 4.0, 4, REACHED), (60, 9.0, 12, REACHED))
    assert calibrated_horizon(came_true, 10.0) == 15.0
    assert calibrated_horizon(came_true, 15.0) == 15.0, "of more nothing is known"
    assert calibrated_horizon(outcomes((100, 19.0, 20, REACHED)), 10.0) == 25.0, "at once"
    assert calibrated_horizon(outcomes((100, 29.0, 30, REACHED)), 30.0) == 30.0, "the last one"


def test_the_horizon_shrinks_by_one_where_they_do_not():
    misses = outcomes((60, 9.0, 9, REACHED), (60, 19.0, 35, OUT_OF_STEPS))
    assert calibrated_horizon(misses, 20.0) == 15.0
    assert calibrated_horizon(misses, 30.0) == 25.0
    assert calibrated_horizon(misses, 15.0) == 15.0
    # Correct predictions beyond the first wrong ones are luck
    lucky = outcomes((60, 9.0, 9, REACHED), (60, 14.0, 30, OUT_OF_STEPS), (60, 24.0, 25, REACHED))
    assert calibrated_horizon(lucky, 30.0) == 25.0
    assert calibrated_horizon(lucky, 15.0) == 15.0


@pytest.mark.parametrize("horizon", [10.0, 15.0])
def test_the_horizon_never_falls_below_the_least(horizon):
    nothing = outcomes((100, 3.0, 20, OUT_OF_STEPS), (100, 9.0, 20, OUT_OF_STEPS))
    assert calibrated_horizon(nothing, horizon) == LEAST_HORIZON == 10


@pytest.mark.parametrize(("n_missed", "expected"), [(15, 20.0), (16, 10.0)])
def test_a_quarter_may_miss(n_missed, expected):
    share = outcomes((60 - n_missed, 13.0, 13, REACHED), (n_missed, 13.0, 25, OUT_OF_STEPS))
    assert calibrated_horizon(share, 15.0) == expected


def test_few_segments_say_nothing_of_their_steps():
    few = outcomes((60, 9.0, 9, REACHED), (4, 14.0, 30, OUT_OF_STEPS), (60, 19.0, 19, REACHED))
    assert calibrated_horizon(few, 20.0) == 25.0
    enough = outcomes((60, 9.0, 9, REACHED), (5, 14.0, 30, OUT_OF_STEPS), (60, 19.0, 19, REACHED))
    assert calibrated_horizon(enough, 20.0) == 15.0


def test_segments_without_a_prediction_or_cut_before_it_are_ignored():
    known = [(60, 9.0, 9, REACHED)]
    unknown = [
        (100, NAN, 20, OUT_OF_STEPS),
        (100, INF, 20, OUT_OF_STEPS),
        (100, 14.0, 13, EPISODE_OVER),
    ]
    assert calibrated_horizon(outcomes(*known, *unknown), 15.0) == 15.0
    for horizon in (15.0, 30.0):
        assert calibrated_horizon(outcomes(*unknown), horizon) == horizon
    # Outcomes are known if the segments had their predicted number of steps
    assert calibrated_horizon(outcomes(*known, (100, 14.0, 14, EPISODE_OVER)), 20.0) == 15.0


def test_too_few_segments_leave_the_horizon_as_it_is():
    n = N_SEGMENTS // 4
    for horizon in (10.0, 50.0):
        assert calibrated_horizon(outcomes((n - 1, 9.0, 9, REACHED)), horizon) == horizon
        assert calibrated_horizon(outcomes((n, 9.0, 9, REACHED)), horizon) != horizon


def test_only_the_newest_segments_count():
    old = (1000, 9.0, 30, OUT_OF_STEPS)
    assert calibrated_horizon(outcomes(old, (N_SEGMENTS, 9.0, 9, REACHED)), 10.0) == 15.0
    assert calibrated_horizon(outcomes((N_SEGMENTS, 9.0, 9, REACHED), (N_SEGMENTS, *old[1:])), 15.0) == 10.0


@pytest.mark.parametrize(("given", "expected"), [(1.0, 10.0), (12.0, 10.0), (27.0, 25.0), (1000.0, 30.0)])
def test_a_horizon_that_was_given_before_is_gone_on_from(given, expected):
    """``subgoal_steps`` may be any number, and may be set to None later."""
    assert calibrated_horizon(outcomes((100, 4.0, 20, OUT_OF_STEPS)), given) == expected, "down by one"
    assert calibrated_horizon(outcomes((100, 29.0, 30, REACHED)), given) == 30.0


def test_steps_that_a_segment_may_last():
    predicted = np.array([0.0, 3.0, 10.0, 10.1, 100.0, 10_000.0, INF, NAN])
    allowed = steps_allowed(predicted, horizon=15.0)
    # 1.5 times the predicted steps plus 5, rounded up, between 10 and the maximum; twice the horizon without a prediction
    assert allowed.tolist() == [10, 10, 20, 21, 155, MOST_STEPS, 30, 30]
    assert allowed.dtype == np.int64


# --------------------------------------------------------------- stored segments


def add_segment(buffer: SharedMemoryReplayBuffer, n_steps: int, ends, predicted) -> None:
    """One segment of each environment."""
    n = buffer.n_envs
    obs = {"observation": np.zeros((n, 3)), "achieved_goal": np.zeros((n, 2)), "desired_goal": np.ones((n, 2))}
    for i in range(n_steps):
        segment_ends = np.array(ends if i == n_steps - 1 else [SegmentEnd.NONE] * n, dtype=np.int8)
        buffer.add(
            obs,
            obs,
            np.zeros((n, 2)),
            np.zeros(n),
            segment_ends == EPISODE_OVER,
            [{}] * n,
            subgoal=np.ones((n, 2)),
            segment_ends=segment_ends,
            predicted_steps=predicted,
        )


def make_buffer(n_envs: int, buffer_size: int = 1000) -> SharedMemoryReplayBuffer:
    env = PointEnv()
    return SharedMemoryReplayBuffer(buffer_size, env.observation_space, env.action_space, device="cpu", n_envs=n_envs)


def test_what_came_of_the_newest_segments_of_all_shards():
    buffer = make_buffer(2)
    assert len(make_filled(buffer).steps) == 6
    segments = buffer.recent_segments(100)
    # One shard after the other, the most recent segments last
    assert segments.steps.tolist() == [3, 1, 2] * 2
    np.testing.assert_array_equal(segments.predicted_steps, np.array([3.0, NAN, 7.5, INF, 2.0, NAN]))
    assert segments.ends.tolist() == [REACHED, OUT_OF_STEPS, EPISODE_OVER, OUT_OF_STEPS, REACHED, EPISODE_OVER]
    newest = buffer.recent_segments(2)
    assert newest.steps.tolist() == [2, 2]
    np.testing.assert_array_equal(newest.predicted_steps, np.array([7.5, NAN]))
    assert len(buffer.recent_segments(3).steps) == 4, "as many of each shard, rounded up"


def make_filled(buffer: SharedMemoryReplayBuffer) -> SegmentOutcomes:
    """Three segments in each of two shards."""
    add_segment(buffer, 3, [REACHED, OUT_OF_STEPS], np.array([3.0, INF]))
    add_segment(buffer, 1, [OUT_OF_STEPS, REACHED], np.array([NAN, 2.0]))
    add_segment(buffer, 2, [EPISODE_OVER, EPISODE_OVER], np.array([7.5, NAN]))
    return buffer.recent_segments(100)


def test_shards_with_few_or_no_segments():
    buffer = make_buffer(2)
    add_segment(buffer, 2, [SegmentEnd.NONE, SegmentEnd.NONE], None)
    assert [len(column) for column in buffer.recent_segments(10)] == [0, 0, 0]
    add_segment(buffer, 1, [REACHED, SegmentEnd.NONE], None)
    segments = buffer.recent_segments(10)
    assert segments.steps.tolist() == [3], "the other one runs"
    assert np.isnan(segments.predicted_steps).all(), "without a prediction"


def test_segments_that_were_overwritten_are_gone():
    buffer = make_buffer(1, 50)
    for i in range(60):
        add_segment(buffer, 5, [EPISODE_OVER], np.array([float(i)]))
    segments = buffer.recent_segments(1000)
    assert segments.predicted_steps.tolist() == list(range(60 - len(segments.steps), 60))
    assert 0 < len(segments.steps) <= 10


# ------------------------------------------------------- which subgoals are issued

ORIGIN, ZEROS = np.zeros((1, 2), np.float32), np.zeros((3, 2), np.float32)
QUIET = HighNoise(ZEROS, np.zeros(3, dtype=bool), ZEROS, np.zeros(3))  # exploration without noise
PLANS = dict(planner="landmarks", subgoal_steps=None)


def know_ways(monkeypatch: pytest.MonkeyPatch, *is_known: bool) -> None:
    """Choose for which goals a path with a waypoint at (0.3, 0.3) is known."""

    def waypoints(self, reach, observation, achieved_goal, goal, missed) -> np.ndarray:
        known = np.array(is_known[: len(goal)])[:, None]
        return np.where(known, np.float32(0.3), np.float32(np.nan)) * np.ones_like(goal)

    monkeypatch.setattr(LandmarkPlanner, "waypoints", waypoints)


FAR = float32([2.0, 0.0], [0.0, 2.0], [-2.0, 0.0])  # 20 steps, at 10 steps per unit


def test_a_goal_is_near_within_the_horizon(small, monkeypatch):
    model = with_bounds(make_model(small, subgoal_steps=None))
    predict_steps(monkeypatch, 10.0)
    assert model.policy.numpy_policy().horizon == LEAST_HORIZON
    goals = float32([0.99, 0.0], [0.0, 1.01])
    assert choose(model, ZEROS[:2], goals).made_by(near_goal).tolist() == [True, False]
    model.policy.horizon.fill_(15.0)
    decision = choose(model, ZEROS[:2], goals)
    assert decision.made_by(near_goal).all()
    np.testing.assert_array_equal(decision.subgoals, goals)
    np.testing.assert_allclose(decision.predicted_steps, [9.9, 10.1], rtol=1e-5)
    assert decision.max_steps.tolist() == [20, 21]
    assert choose(make_model(small), ORIGIN, goals[:1]).max_steps.tolist() == [5], "a fixed number is fixed"


@pytest.mark.parametrize("noise", [None, QUIET])
def test_where_a_way_is_known_its_waypoint_is_the_subgoal_but_for_near_goals(small, monkeypatch, noise):
    model = with_bounds(make_model(small, **PLANS))
    predict_steps(monkeypatch, 10.0)
    know_ways(monkeypatch, True, True)
    goals = float32([2.0, 0.0], [0.9, 0.0], [0.8, 0.0])
    decision = choose(model, ZEROS, goals, [missed_ways(), missed_ways(), missed_ways((ORIGIN[0], goals[2]))], noise)
    assert decision.made_by(near_goal).tolist() == [False, True, False], "not one that was missed"
    assert decision.made_by(planned_waypoint).tolist() == [True, False, True]
    np.testing.assert_allclose(decision.subgoals[[0, 2]], 0.3)
    # Steps to the issued waypoint, not to the goal
    np.testing.assert_allclose(
        decision.predicted_steps, [10.0 * np.hypot(0.3, 0.3), 9.0, 10.0 * np.hypot(0.3, 0.3)], rtol=1e-5
    )


@pytest.mark.parametrize("noise", [None, QUIET])
def test_where_the_planner_knows_no_way_the_goal_is_the_subgoal(small, monkeypatch, noise):
    model = with_bounds(make_model(small, **PLANS))
    predict_steps(monkeypatch, 10.0)
    know_ways(monkeypatch, False, True, False)
    decision = choose(model, ZEROS, FAR, noise=noise)
    assert decision.made_by(far_goal).tolist() == [True, False, True]
    np.testing.assert_array_equal(decision.subgoals[[0, 2]], FAR[[0, 2]])
    # Without a planner, the actor decides
    classic = with_bounds(make_model(small, subgoal_kwargs=dict(avoid_reached=False)))
    assert made_by(choose(classic, ZEROS, FAR, noise=noise), actor_proposal) == 3


def test_a_lost_agent_visits_a_random_place_in_training(small, monkeypatch):
    """No path is known, and the goal was recently missed: a path may start from another landmark."""
    model = with_bounds(make_model(small, **PLANS))
    predict_steps(monkeypatch, 10.0)
    know_ways(monkeypatch, False, False, False)
    places = float32([7.0, 0.0], [7.0, 1.0], [7.0, 2.0])
    missed = [missed_ways((ORIGIN[0], FAR[0])), missed_ways((ORIGIN[0], FAR[1])), missed_ways()]
    noise = QUIET._replace(places=np.array([0.0, 0.999, 0.5]))
    assert made_by(choose(model, ZEROS, FAR, missed, noise), far_goal) == 3, "it has seen none yet"
    monkeypatch.setattr(LandmarkPlanner, "is_ready", True)
    monkeypatch.setattr(LandmarkPlanner, "places", places)
    decision = choose(model, ZEROS, FAR, missed, noise)
    assert decision.made_by(random_place).tolist() == [True, True, False]
    np.testing.assert_array_equal(decision.subgoals, [places[0], places[2], FAR[2]])
    assert made_by(choose(model, ZEROS, FAR, missed), far_goal) == 3, "not in evaluation"


def test_a_planner_that_has_not_seen_anything_knows_no_way(small, monkeypatch):
    model = with_bounds(make_model(small, **PLANS))
    predict_steps(monkeypatch, 10.0)
    assert made_by(choose(model, ZEROS, FAR), far_goal) == 3


# ---------------------------------------------------------------------- imitation


@pytest.fixture
def task() -> GoalTask:
    return GoalTask(PointEnv().compute_reward, np.zeros((1, 2), np.float32))


@pytest.mark.parametrize("planned", [False, True])
def test_planned_segments_keep_their_commanded_action(small, task, planned):
    kwargs = dict(high_kwargs=dict(n_sampled_goal=0), hindsight_kwargs=dict(action_prob=1.0))
    model = with_bounds(make_model(small, planner="landmarks", **kwargs))
    # Segments that move by 0.4 towards a subgoal at 9, which is out of reach, so its action is 1
    fill(model, subgoal=(9.0, 0.0), planned=np.array([planned]))
    batch = high_batch(model.policy, model.replay_buffer, task)
    assert batch.imitated.unique().tolist() == [float(planned)]
    assert batch.imitated.shape == (16, 1)
    np.testing.assert_allclose(batch.actions[:, 0], 1.0 if planned else 0.4, rtol=1e-5)


def test_goals_in_hindsight_are_not_imitated(small, task):
    kwargs = dict(high_kwargs=dict(n_sampled_goal=3), hindsight_kwargs=dict(action_prob=1.0))
    model = with_bounds(make_model(small, planner="landmarks", **kwargs))
    fill(model, subgoal=(9.0, 0.0), planned=np.array([True]))
    batch = high_batch(model.policy, model.replay_buffer, task)
    assert batch.imitated[:, 0].tolist() == [0.0] * 12 + [1.0] * 4
    assert batch.actions[:, 0].tolist() == pytest.approx([0.4] * 12 + [1.0] * 4, abs=1e-5)


def test_trivial_segments_are_replaced_with_what_is_imitated_of_others(small, task):
    hindsight = dict(action_prob=0.0, trivial_segment_prob=0.0)
    kwargs = dict(high_kwargs=dict(n_sampled_goal=0), hindsight_kwargs=hindsight)
    model = with_bounds(make_model(small, planner="landmarks", **kwargs))
    fill(model, subgoal=(9.0, 0.0), step=0.001, planned=np.array([True]))
    fill(model, subgoal=(0.0, 9.0), planned=np.array([False]))
    batch = high_batch(model.policy, model.replay_buffer, task)
    assert not batch.imitated.any()
    assert (batch.actions[:, 1] == 1.0).all()


@pytest.mark.parametrize("imitation", [0.0, 10.0])
def test_the_actor_moves_to_the_waypoint(small, imitation):
    model = make_model(small, learning_rate=0.01, high_kwargs=dict(imitation=imitation))
    level, waypoint = model.policy.high, th.tensor([0.5, -0.7])
    th.manual_seed(0)
    inputs, is_imitated = th.randn(64, 9), (th.arange(64) % 2 == 0).float()[:, None]
    batch = TDBatch(inputs, waypoint.expand(64, 2), -th.ones(64, 1), -th.ones(64, 1), is_imitated)
    for _ in range(500):
        level.update(batch, 0)
    errors = (level.actor.mu(inputs) - waypoint).abs().mean(dim=1)
    assert (errors[::2].mean().item() < 0.1) == (imitation > 0.0)
    assert errors[1::2].mean() > 0.5, "the others go where the value is highest"


@pytest.mark.parametrize("hindsight", [{}, dict(trivial_segment_prob=0.0)])
def test_without_a_planner_nothing_is_imitated(small, task, hindsight):
    """Then the actor's loss is that of DDPG, independent of the buffer."""
    model = with_bounds(make_model(small, hindsight_kwargs=hindsight))
    fill(model, planned=np.array([True]))
    batch = high_batch(model.policy, model.replay_buffer, task)
    assert batch.imitated is None
    assert model.policy.high.td_targets(batch).imitated is None


# ----------------------------------------------------------- agents of the default

LANDMARKS = dict(planner_kwargs=dict(n_landmarks=20, n_visited=100, n_members=2, update_interval=50))


def default_agent(small, env=None, n_steps: int = 300, **kwargs) -> HierarchicalDDPG:
    """:return: an agent that plans and calibrates its horizon, as by default, after some steps"""
    return make_model(small, env, **(PLANS | LANDMARKS | kwargs)).learn(n_steps)


def test_a_worker_acts_as_the_learner_does(small):
    model = default_agent(small)
    snapshot = PolicySnapshot(model.policy)
    vector = np.zeros(snapshot.n_weights, dtype=np.float32)
    worker, learner = snapshot.bind(vector), model.policy.numpy_policy()
    rng = np.random.default_rng(0)
    observation, achieved, goal = (rng.random((16, n), dtype=np.float32) for n in (3, 2, 2))
    situation = Situation(observation, achieved, goal, np.stack([missed_ways()] * 16))
    for is_hopeless in (False, True):
        if is_hopeless:
            # A value below that of never reaching a target: segments have twice the horizon
            for critic in model.policy.low.acting_networks[1]:
                th.nn.init.constant_(critic[-1].bias, -1e4)
        for horizon in (10.0, 80.0):
            model.policy.horizon.fill_(horizon)
            snapshot.write(model.policy, vector)
            worker.refresh()
            assert worker.horizon == learner.horizon == horizon
            ours, theirs = (choose_subgoals(policy, situation) for policy in (learner, worker))
            for array, expected in zip(theirs, ours, strict=True):
                np.testing.assert_allclose(array, expected, rtol=1e-4)
            assert (ours.max_steps == 2 * horizon).all() == is_hopeless


def test_the_horizon_is_saved_and_loaded(small, tmp_path):
    model = default_agent(small)
    model.policy.horizon.fill_(65.0)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy.pt")
    loaded = HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env())
    obs = point_vec_env(8).reset()
    action, state = model.predict(obs, deterministic=True)
    for policy in (loaded.policy, type(model.policy).load(tmp_path / "policy.pt")):
        assert policy.numpy_policy().horizon == 65.0
        twin_action, twin = policy.predict(obs, deterministic=True)
        np.testing.assert_array_equal(twin_action, action)
        for array, expected in zip(twin, state, strict=True):
            np.testing.assert_array_equal(array, expected)
    assert loaded.subgoal_steps is None
    assert loaded.planner == "landmarks"
    loaded.learn(100, reset_num_timesteps=False)
    # A loaded agent may get another number of steps, or calibrate its horizon again
    fixed = HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env(), subgoal_steps=7)
    assert fixed.policy.numpy_policy().horizon == 7.0
    assert (fixed.predict(obs, deterministic=True)[1].max_steps == 7).all()
    fixed.learn(600)
    fixed.subgoal_steps = None
    fixed.learn(600, reset_num_timesteps=False)
    assert fixed.policy.horizon.item() in HORIZONS


def test_a_fixed_number_of_steps_is_the_horizon(small):
    model = make_model(small, subgoal_steps=12).learn(600)
    assert model.policy.numpy_policy().horizon == 12.0
    assert model.logger.name_to_value.get("rollout/horizon", 12.0) == 12.0
    model.subgoal_steps = 8
    model.learn(30, reset_num_timesteps=False)
    assert model.policy.numpy_policy().horizon == 8.0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_horizon_is_calibrated_by_stored_segments(small, monkeypatch, asynchronous):
    """Both SB3's loop and workers store predictions, whether there was a waypoint, and the number of steps of segments."""
    monkeypatch.setattr("sb3_hrl.hddpg.statistics.HORIZON_INTERVAL", 100)
    seen = []

    def calibrated(segments: SegmentOutcomes, horizon: float) -> float:
        seen.append((segments, horizon))
        return 25.0

    monkeypatch.setattr("sb3_hrl.hddpg.statistics.calibrated_horizon", calibrated)
    env = SerialCollector([point_env_fn()] * 2, flush_size=10) if asynchronous else point_vec_env(2)
    model = default_agent(small, env, 600, async_collection=asynchronous)
    env.close()
    assert [horizon for _, horizon in seen] == [10.0] + [25.0] * (len(seen) - 1)
    assert 4 <= len(seen) <= 6
    assert model.policy.numpy_policy().horizon == 25.0
    segments = seen[-1][0]
    assert np.isfinite(segments.predicted_steps).any()
    assert (segments.predicted_steps[np.isfinite(segments.predicted_steps)] >= 0.0).all()
    allowed = np.maximum(*(steps_allowed(segments.predicted_steps, horizon) for horizon in (10.0, 25.0)))
    is_out = (segments.ends == OUT_OF_STEPS) & ~np.isnan(segments.predicted_steps)
    assert (segments.steps[is_out] <= allowed[is_out]).all()
    planned = np.concatenate([steps["planned"] for steps in model.replay_buffer.recent(600, ("planned",))])
    assert set(np.unique(planned)) <= {0.0, 1.0}


def test_nothing_is_calibrated_where_subgoals_do_not_depend_on_values(small, monkeypatch):
    monkeypatch.setattr("sb3_hrl.hddpg.statistics.calibrated_horizon", None)  # it is not called
    for kwargs in (WITHOUT_STEPS, dict(subgoal_kwargs=dict(source="goal")), dict(subgoal_kwargs=dict(source="random"))):
        model = make_model(small, subgoal_steps=None, **kwargs).learn(600)
        assert model.policy.numpy_policy().horizon == LEAST_HORIZON
        assert np.isnan(model.replay_buffer.recent_segments(100).predicted_steps).all()


def test_edges_are_as_long_as_segments_where_these_are_fixed(small):
    assert make_model(small, subgoal_steps=5, planner="landmarks").policy.numpy_policy().longest_edge == 5.0
    policy = make_model(small, subgoal_steps=None, planner="landmarks").policy
    assert policy.numpy_policy().longest_edge == 20.0
    policy.horizon.fill_(30.0)
    assert policy.numpy_policy().longest_edge == 30.0
