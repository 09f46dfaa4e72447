"""When and how a segment ends: the same rule for training, prediction and evaluation."""

import numpy as np
import pytest
from agents import float32, make_model
from conftest import PointEnv
from stable_baselines3.common.logger import Logger

from sb3_hrl.common.subgoals import N_MISSED, SegmentEnd
from sb3_hrl.hddpg.exploration import Explorer
from sb3_hrl.hddpg.segments import Segments, SegmentStatistics

GOES_ON, REACHED, OUT_OF_STEPS, EPISODE_OVER = SegmentEnd


def started(*subgoals: float, max_steps: int = 3) -> Segments:
    """:return: environments on a line, at 0, with these subgoals and maximum numbers of steps"""
    segments = Segments(len(subgoals), 1)
    n = len(subgoals)
    segments.start(np.reshape(float32(*subgoals), (n, 1)), np.zeros((n, 1), np.float32), np.full(n, max_steps))
    return segments


def advance(segments: Segments, positions: list[float], done: bool = False) -> list[int]:
    achieved = np.reshape(float32(*positions), (-1, 1))
    return segments.advance(achieved, [done] * len(positions), threshold=0.1).tolist()


def test_how_segments_end():
    segments = started(1.0, 2.0, 3.0)
    assert advance(segments, [0.5, 0.5, 0.5]) == [GOES_ON] * 3
    assert advance(segments, [0.95, 0.5, 0.5]) == [REACHED, GOES_ON, GOES_ON]
    assert segments.needs_subgoal == [0]
    segments.start(float32([9.0]), float32([0.95]), np.array([3]))
    assert advance(segments, [1.0, 2.05, 1.0]) == [GOES_ON, REACHED, OUT_OF_STEPS], "at its last step it is reached, too"
    assert segments.needs_subgoal == [1, 2]
    segments.start(float32([9.0], [9.0]), float32([2.05], [1.0]), np.array([3, 3]))
    assert segments.steps == [1, 0, 0]
    assert advance(segments, [1.0, 2.0, 9.0], done=True) == [EPISODE_OVER, EPISODE_OVER, REACHED]
    assert segments.needs_subgoal == [0, 1, 2]


def test_a_segment_without_a_step_left_is_out_of_steps_even_where_the_episode_ends():
    segments = started(1.0, max_steps=1)
    assert advance(segments, [0.5], done=True) == [OUT_OF_STEPS]


def test_each_segment_has_its_own_number_of_steps():
    segments = Segments(2, 1)
    segments.start(float32([9.0], [9.0]), np.zeros((2, 1), np.float32), np.array([1, 3]))
    assert advance(segments, [0.1, 0.1]) == [OUT_OF_STEPS, GOES_ON]
    segments.start(float32([9.0]), float32([0.1]), np.array([5]))
    assert segments.max_steps == [5, 3]
    twin = Segments.from_state(segments.state)
    for one in (segments, twin):
        assert advance(one, [0.2, 0.2]) == [GOES_ON, GOES_ON]
        assert advance(one, [0.3, 0.3]) == [GOES_ON, OUT_OF_STEPS]


def test_missed_subgoals_are_remembered_for_some_segments():
    segments = Segments(1, 1)

    def segment(subgoal: float, end: float, done: bool = False) -> list[float]:
        segments.start(float32([subgoal]), float32([0.0]), np.array([1]))
        advance(segments, [end], done)
        starts = segments.missed[0, :, 0, 0]
        assert np.isin(starts, [0.0, np.inf]).all(), "all of them began at 0"
        return segments.missed[0, :, 1, 0].tolist()

    assert segment(1.0, 0.4) == [np.inf] * (N_MISSED - 1) + [1.0], "more than half of the way is left"
    assert segment(2.0, 1.5)[-2:] == [1.0, np.inf], "not missed: most of the way is done"
    assert segment(3.0, 3.0)[-3:] == [1.0, np.inf, np.inf], "not missed: reached"
    for _ in range(N_MISSED - 3):
        assert 1.0 in segment(3.0, 3.0)
    assert 1.0 not in segment(3.0, 3.0)
    segment(1.0, 0.0)
    assert np.isinf(segment(1.0, 0.0, done=True)).all(), "another episode"


def test_the_state_is_all_that_there_is():
    segments = started(1.0, 2.0)
    advance(segments, [0.1, 0.3])
    twin = Segments.from_state(segments.state)
    assert twin.steps == [1, 1]
    for positions in ([0.2, 0.4], [0.3, 1.95]):
        assert advance(twin, positions) == advance(segments, positions)
    for array, expected in zip(twin.state, segments.state, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert np.isfinite(twin.missed[0, -1]).all(), "the first one was missed"
    twin.missed[:] = 7.0
    assert not (segments.missed == 7.0).any(), "arrays are copied"


@pytest.mark.parametrize("avoid_missed", [False, True])
@pytest.mark.parametrize("subgoal_steps", [1, 5])
def test_prediction_and_training_agree_on_segments(small, avoid_missed, subgoal_steps):
    """The state of ``predict`` has the same subgoals at the same steps as training environments."""
    subgoals = dict(radius=0.3, avoid_missed=avoid_missed)
    quiet = dict(random_action_prob=0.0, noise_std=0.0)
    model = make_model(small, subgoal_kwargs=subgoals, exploration_kwargs=quiet, subgoal_steps=subgoal_steps).learn(60)
    env, explorer, n_issued = PointEnv(max_steps=60), Explorer(1, 2, 2, np.random.default_rng(0)), 0
    obs, _ = env.reset(seed=3)
    state = None
    for _ in range(60):
        arrays = model.policy.flatten_obs({key: value[None] for key, value in obs.items()})
        expected = explorer.act(model.policy.numpy_policy(), *arrays, is_warm_up=False)
        action, state = model.predict(obs, state, deterministic=True)
        np.testing.assert_allclose(model.policy.scale_action(action[None]), expected, atol=1e-5)
        for array, twin in zip(state, explorer.segments.state, strict=True):
            np.testing.assert_array_equal(array, twin)
        n_issued += int(state.steps[0] == 0)
        obs, *_ = env.step(action)
        explorer.step(model.policy.numpy_policy(), obs["achieved_goal"][None].astype(np.float32), [False])
    assert n_issued >= 60 // subgoal_steps


def test_statistics_are_means_over_segments():
    statistics, logger = SegmentStatistics(), Logger(folder=None, output_formats=[])
    statistics.log(logger)
    assert logger.name_to_value == {}, "there is nothing yet"
    flags = np.eye(4, dtype=bool)
    is_at_goal = np.array([False] * 4 + [True])  # the agent stays at the goal: the segment is not counted

    def kinds(**numbers: int) -> dict[str, np.ndarray]:
        return {name: np.append(flags[:n].any(axis=0), True) for name, n in numbers.items()}

    statistics.count_started(is_at_goal, **kinds(reached_at_issue=1, replaced=2, waypoints=3, goals=4))
    away, unknown = np.zeros(2, dtype=bool), np.full(2, np.nan)
    statistics.count_ended(away, np.array([GOES_ON, REACHED]), [3, 2], np.array([9.0, 4.0]))
    learner = SegmentStatistics()
    learner.count_ended(away, np.array([OUT_OF_STEPS, EPISODE_OVER]), [5, 3], np.array([4.0, np.inf]))
    learner.count_ended(away, np.array([REACHED, REACHED]), [6, 4], unknown)
    learner.count_ended(np.array([False, True]), np.array([REACHED, REACHED]), [10, 1], np.array([2.0, 1.0]))
    learner.add(statistics.take())
    assert not any(statistics.take())
    learner.log(logger)
    assert logger.name_to_value == {
        "rollout/subgoal_success_rate": pytest.approx(4 / 6),
        "rollout/segment_length": pytest.approx(30 / 6),
        "rollout/subgoal_reached_at_issue": 0.25,
        "rollout/subgoal_replaced": 0.5,
        "rollout/subgoal_planned": 0.75,
        "rollout/subgoal_is_goal": 1.0,
        # Of segments that reached their subgoal and had a prediction
        "rollout/subgoal_predicted_steps": 3.0,
        "rollout/subgoal_needed_steps": 6.0,
    }


def test_staying_at_the_goal_does_not_count_as_success_of_the_low_level(small):
    """An agent that never moves: in the first environment it is at its goal, in the second one it misses its subgoal."""
    still = dict(oracle=lambda observation, achieved_goal, subgoal: np.zeros((len(observation), 2)))
    quiet, flat = dict(random_action_prob=0.0, noise_std=0.0), dict(source="goal", threshold=0.1)
    model = make_model(small, subgoal_kwargs=flat, exploration_kwargs=quiet, low_kwargs=still, subgoal_steps=2).learn(60)
    policy, logger = model.policy.numpy_policy(), Logger(folder=None, output_formats=[])
    explorer = Explorer(2, goal_dim=2, action_dim=2, rng=np.random.default_rng(0))
    position, goal = float32([0.0, 0.0], [0.0, 0.0]), float32([0.0, 0.0], [1.0, 1.0])
    for _ in range(4):
        explorer.act(policy, position, position, goal, is_warm_up=False)
        explorer.step(policy, position, [False, False])
    explorer.statistics.log(logger)
    assert logger.name_to_value["rollout/subgoal_success_rate"] == 0.0
    assert logger.name_to_value["rollout/segment_length"] == 2.0
