"""The definition of success for dense rewards: from the environment's other methods, or from infos of a copy."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from agents import float32
from conftest import PointEnv, UnjudgedEnv, point_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_hrl import HierarchicalDDPG, ParallelCollector
from sb3_hrl.common.env_goals import EnvGoalTask, check_reward, goal_task_from_env
from sb3_hrl.common.subgoals import SegmentEnd, is_reached
from sb3_hrl.common.twin import Twin
from sb3_hrl.hddpg.export import DecisionModule
from sb3_hrl.hddpg.segments import Segments

GOALS = np.array([[0.5, -0.5], [0.0, 0.3]], dtype=np.float32)
NEAR, FAR = GOALS + np.float32([0.0, 0.099]), GOALS + np.float32([0.0, 0.101])
FROM_EXPERIENCE = "1,000 random steps in a copy"


class Judging(UnjudgedEnv):
    """Defines success for arrays of goals."""

    def _is_success(self, achieved, desired):
        return np.linalg.norm(achieved - desired, axis=-1) <= self.threshold


class JudgingOne(UnjudgedEnv):
    """Defines success for one pair of goals."""

    def is_success(self, achieved, desired):
        return bool(np.linalg.norm(achieved - desired) <= self.threshold)


class Tasked(UnjudgedEnv):
    """Uses a separate object for success, like panda-gym."""

    def __init__(self):
        super().__init__()
        self.task = JudgingOne()


class TwoKinds(UnjudgedEnv):
    """Has a sparse version, like the environments of gymnasium-robotics."""

    reward_type = "dense"

    def compute_reward(self, achieved, desired, info):
        self.dense = self.reward_type == "dense"
        return super().compute_reward(achieved, desired, info)


class Confused(Judging):
    """Has a method with this name, but another meaning."""

    def is_success(self, achieved, desired):
        return np.ones(len(achieved))

    _is_success = is_success


@pytest.mark.parametrize(
    "make", [Judging, JudgingOne, Tasked, TwoKinds, lambda: UnjudgedEnv(ends_at_success=True)], ids=lambda make: make.__name__
)
def test_a_method_of_the_environment_says_what_success_is(make):
    env = DummyVecEnv([make])
    check_reward(env)
    task = goal_task_from_env(env, GOALS)
    assert task.threshold == pytest.approx(PointEnv.threshold, rel=1e-3)
    assert task.success(NEAR, GOALS).all()
    assert not task.success(FAR, GOALS).any()
    assert task.rewards(FAR, GOALS) == pytest.approx([-0.101] * 2), "the reward stays the environment's own"


def test_a_sparse_version_is_asked_without_a_trace():
    env = DummyVecEnv([TwoKinds])
    goal_task_from_env(env, GOALS).success(NEAR, GOALS)
    assert env.envs[0].reward_type == "dense"


@pytest.mark.parametrize("make", [Confused, UnjudgedEnv])
def test_where_nothing_says_it_the_constructor_names_the_argument(make):
    with pytest.raises(ValueError, match=r"`subgoal_kwargs=dict\(threshold=0.05\)`"):
        HierarchicalDDPG("MultiInputPolicy", make())


def test_a_threshold_that_is_given_is_that_of_subgoals():
    env = DummyVecEnv([Judging])
    task = goal_task_from_env(env, GOALS, threshold=0.3)
    assert task.threshold == 0.3
    assert not task.success(FAR, GOALS).any(), "success stays the environment's own"


def test_info_of_steps_says_what_success_is(small):
    env = point_vec_env(2, dense=True)
    env.seed(3)
    env.reset()
    first, state, own = env.envs[0], np.random.get_state()[1].copy(), env.envs[0].np_random.bit_generator.state
    position = first.position.copy()
    with pytest.warns(UserWarning, match=FROM_EXPERIENCE):
        check_reward(env)
    # The environment itself has not changed
    assert np.array_equal(np.random.get_state()[1], state)
    assert first.np_random.bit_generator.state == own
    np.testing.assert_array_equal(first.position, position)
    # The warning is given once, and the result is kept
    model = HierarchicalDDPG("MultiInputPolicy", env, **small).learn(40)
    task = model._goal_task
    assert 0.9 * PointEnv.threshold < task.threshold <= PointEnv.threshold
    assert model.policy.subgoal_threshold.item() == pytest.approx(task.threshold)
    assert not task.success(FAR, GOALS).any()


@pytest.mark.parametrize("kind", [SubprocVecEnv, ParallelCollector])
def test_workers_environments_are_copied_too(kind):
    env = kind([lambda: gym.make("conftest:PointEnv-v0", dense=True)], start_method="fork")
    try:
        with pytest.warns(UserWarning, match=FROM_EXPERIENCE):
            task = goal_task_from_env(env, GOALS)
    finally:
        env.close()
    assert not task.success(FAR, GOALS).any()


def test_a_copy_of_a_registered_environment_has_its_attributes():
    env = DummyVecEnv([lambda: gym.make("conftest:PointEnv-v0", dense=True)])
    env.envs[0].unwrapped.threshold = 0.3
    with pytest.warns(UserWarning, match=FROM_EXPERIENCE):
        assert 0.27 < goal_task_from_env(env, GOALS).threshold <= 0.3
    copy = Twin(env).copy()
    assert copy.unwrapped.threshold == 0.3
    assert copy.unwrapped is not env.envs[0].unwrapped


class Aligned(PointEnv):
    """Success does not depend on the goals only, so the reward cannot define it."""

    def step(self, action):
        *step, info = super().step(action)
        return *step, {"is_success": info["is_success"] and self.steps % 2 == 0}


def test_success_that_the_reward_does_not_tell_is_refused():
    with pytest.raises(ValueError, match="`threshold` in `subgoal_kwargs`"):
        HierarchicalDDPG("MultiInputPolicy", Aligned(dense=True))


def test_what_cannot_be_copied_is_refused():
    env = PointEnv(dense=True)
    env.port = (number for number in range(3))
    with pytest.raises(ValueError, match="`threshold` in `subgoal_kwargs`"):
        HierarchicalDDPG("MultiInputPolicy", env)


class Weighted(UnjudgedEnv):
    """A weighted sum of differences, as in highway-env's parking; the last entry does not count."""

    weights = np.array([1.0, 0.5])

    def compute_reward(self, achieved, desired, info):
        return -np.sqrt(np.dot(np.abs(achieved - desired), self.weights))

    def _is_success(self, achieved, desired):
        return self.compute_reward(achieved, desired, {}) > -np.sqrt(0.1)


@pytest.mark.parametrize(
    ("weights", "radius"),
    [([1.0, 1.0], 0.1 / 2**0.5), ([1.0, 0.2], 0.1 / 2**0.5), ([1.0, 0.0], 0.1), ([0.1, 10.0], 0.01 / 2**0.5)],
)
def test_subgoals_are_reached_inside_of_success(weights, radius):
    """In an ellipse whose axes follow the tolerance of each entry of the goal."""
    env = Weighted()
    env.weights = np.array(weights)
    task = goal_task_from_env(DummyVecEnv([lambda: env]), GOALS)
    assert 0.97 * radius < task.threshold <= radius + 1e-6
    np.testing.assert_allclose(task.weights, np.array(weights) / max(weights), rtol=1e-2, atol=1e-6)
    angles = np.linspace(0.0, 2.0 * np.pi, 200)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) / np.maximum(task.weights, 1e-3)
    around, goals = GOALS[:1] + np.float32(0.999 * task.threshold) * around, GOALS[:1].repeat(200, axis=0)
    assert is_reached(around, goals, task.threshold, task.weights).all()
    assert task.success(around.astype(np.float32), goals).all()


class Boxed(UnjudgedEnv):
    """Each entry has its own tolerance."""

    def _is_success(self, achieved, desired):
        return bool((np.abs(achieved - desired) <= [0.05, 0.8]).all())


def test_each_entry_of_the_goal_has_its_tolerance(small, tmp_path):
    env = DummyVecEnv([Boxed])
    model = HierarchicalDDPG("MultiInputPolicy", env, **small).learn(40)
    np.testing.assert_allclose(model.policy.goal_weights, [1.0, 1.0 / 16.0], rtol=1e-2)
    start, near, far = np.zeros((1, 2), np.float32), float32((0.02, 0.5)), float32((0.06, 0.0))
    for policy, points in (
        (model.policy.numpy_policy(), (start, near, far)),
        (model.policy, tuple(map(th.from_numpy, (start, near, far)))),
    ):
        assert policy.is_reached(points[0], points[1]).all()
        assert not policy.is_reached(points[0], points[2]).any()
    for subgoal, end in ((near, SegmentEnd.REACHED), (far, SegmentEnd.NONE)):
        segments = Segments(1, 2)
        segments.start(subgoal, start, np.array([5]))
        assert model.policy.numpy_policy().advance(segments, start, [False]) == [end]
    # A share of the way that is left is measured in the same units: nothing of it counts here
    segments = Segments(1, 2)
    segments.start(float32((0.0, 1.0)), float32((0.4, 1.0)), np.array([1]))
    assert model.policy.numpy_policy().advance(segments, float32((0.06, -1.0)), [False]) == [SegmentEnd.OUT_OF_STEPS]
    assert np.isinf(segments.missed).all(), "closer, although the second entry differs more"
    model.save(tmp_path / "model")
    loaded = HierarchicalDDPG.load(tmp_path / "model")
    assert th.equal(loaded.policy.goal_weights, model.policy.goal_weights)
    assert th.equal(DecisionModule(loaded.policy)._is_reached(th.zeros(1, 2), th.tensor(near)), th.tensor([True]))


class Penalised(PointEnv):
    """Rewards goals, but also effort."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward - 0.1 * float(np.square(action).sum()), *rest


@pytest.mark.parametrize("dense", [True, False])
def test_penalties_beside_the_goal_are_named_once(dense, small):
    options = dict(subgoal_kwargs=dict(threshold=0.1)) if dense else {}
    model = HierarchicalDDPG("MultiInputPolicy", Penalised(dense=dense), **options, **small)
    with pytest.warns(UserWarning, match="another reward than `compute_reward`.*are not learnt from") as said:
        model.learn(60)
    assert len(said) == 1
    model.learn(1_100, reset_num_timesteps=False)
    assert model._goal_task.best_reward == 0.0


@pytest.mark.parametrize("dense", [True, False])
def test_rewards_of_goals_alone_are_no_penalties(dense, small):
    options = dict(subgoal_kwargs=dict(threshold=0.1)) if dense else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HierarchicalDDPG("MultiInputPolicy", PointEnv(dense=dense), **options, **small).learn(60)
        env = VecNormalize(point_vec_env(dense=dense), norm_obs=False)
        HierarchicalDDPG("MultiInputPolicy", env, **options, **small).learn(60)


def test_workers_tell_of_a_tolerance_that_changes():
    env = SubprocVecEnv([lambda: gym.make("test_success:Judging-v0")], start_method="fork")
    try:
        task = goal_task_from_env(env, GOALS)
        env.env_method("set_wrapper_attr", "threshold", 0.02)
        task.ask_again()
    finally:
        env.close()
    assert isinstance(task, EnvGoalTask)
    assert task.threshold == pytest.approx(0.02, rel=1e-3)
    assert not task.success(NEAR, GOALS).any()


gym.register("Judging-v0", entry_point=Judging)


@pytest.mark.parametrize(
    ("module", "env_id", "threshold"),
    [
        ("gymnasium_robotics", "FetchReachDense-v4", 0.05),
        ("gymnasium_robotics", "PointMaze_UMazeDense-v3", 0.45),
        ("panda_gym", "PandaReachDense-v3", 0.05),
        ("highway_env", "parking-v0", 0.0144 / 3**0.5),
    ],
)
def test_dense_environments_of_others(module, env_id, threshold):
    gym.register_envs(pytest.importorskip(module))
    env = DummyVecEnv([lambda: gym.make(env_id)])
    try:
        check_reward(env)
        obs = env.reset()
        goals, achieved = (obs[key].astype(np.float32) for key in ("desired_goal", "achieved_goal"))
        assert goal_task_from_env(env, goals, achieved=achieved).threshold == pytest.approx(threshold, rel=5e-2)
    finally:
        env.close()
