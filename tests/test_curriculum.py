"""Environments that change their definition of success: learner, workers and rewards follow."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from conftest import PointEnv, UnjudgedEnv, point_vec_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from sb3_hrl import HierarchicalDDPG, ParallelCollector, SerialCollector
from sb3_hrl.common.env_goals import goal_task_from_env
from sb3_hrl.common.twin import plain_attributes

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("leaves_nothing")]

GOALS = np.zeros((2, 2), dtype=np.float32)
NEAR = GOALS + np.float32(0.03)


class Tightening(PointEnv):
    """
    The tolerance can be set, and also decreases by itself.

    :param at: number of steps after which it is 0.05; ``None`` for never
    :param kwargs: of PointEnv
    """

    def __init__(self, at=None, **kwargs):
        super().__init__(**kwargs)
        self.at, self.n_steps, self.inner = at, 0, [object()]

    def tighten(self, threshold):
        self.threshold = threshold

    def step(self, action):
        self.n_steps += 1
        if self.at is not None and self.n_steps >= self.at:
            self.threshold = 0.05
        return super().step(action)


gym.register("Tightening-v0", entry_point=Tightening, max_episode_steps=20)


class At(BaseCallback):
    """Calls a function with the training environment at a certain step."""

    def __init__(self, step, what):
        super().__init__()
        self.step, self.what = step, what

    def _on_step(self):
        if self.n_calls == self.step:
            self.what(self.training_env)
        return True


def made(kind):
    if kind is SubprocVecEnv:
        return SubprocVecEnv([lambda: gym.make("test_curriculum:Tightening-v0").unwrapped] * 2, start_method="fork")
    if kind is ParallelCollector:
        return ParallelCollector([Tightening] * 2, start_method="fork", flush_size=10, sync_interval=20)
    return kind([Tightening] * 2)


KINDS = [DummyVecEnv, SubprocVecEnv, ParallelCollector, SerialCollector]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["set_attr", "env_method"])
def test_what_is_set_reaches_labels_and_tolerance(kind, change):
    env = made(kind)
    try:
        task = goal_task_from_env(VecMonitor(env), GOALS)
        assert task.threshold == pytest.approx(0.1, rel=1e-3)
        assert task.success(NEAR, GOALS).all()
        if change == "set_attr":
            env.set_attr("threshold", 0.02)
        else:
            env.env_method("tighten", 0.02)
        task.ask_again()
        assert task.threshold == pytest.approx(0.02, rel=1e-3)
        assert not task.success(NEAR, GOALS).any()
        env.set_attr("ends_at_success", True)
        task.ask_again()
        assert task.ends_at_success
    finally:
        env.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_set_before_learning_counts(kind, small):
    env = made(kind)
    try:
        env.set_attr("threshold", 0.05)
        model = HierarchicalDDPG("MultiInputPolicy", env, **small).learn(20)
        assert model.policy.subgoal_threshold.item() == pytest.approx(0.05, rel=1e-3)
        env.set_attr("threshold", 0.02)
        model.learn(20, reset_num_timesteps=False)
        assert model.policy.subgoal_threshold.item() == pytest.approx(0.02, rel=1e-3)
    finally:
        env.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_itself", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_curriculum_reaches_the_learner_while_it_learns(kind, by_itself, asynchronous, small):
    if asynchronous and not hasattr(kind, "start_collecting"):
        pytest.skip("does not collect by itself")
    env = made(kind)
    try:
        callback = None if by_itself else At(100, lambda env: env.set_attr("threshold", 0.05))
        if by_itself:
            env.set_attr("at", 150)
        arguments = small | dict(async_collection=asynchronous, train_freq=20, gradient_steps=1, buffer_size=4000)
        model = HierarchicalDDPG("MultiInputPolicy", env, **arguments)
        model.learn(2200, callback=callback)
        assert model.policy.subgoal_threshold.item() == pytest.approx(0.05, rel=1e-3)
        # Success is the same as in the environment
        far = GOALS + np.float32(0.06)
        assert not model._goal_task.success(far, GOALS).any()
    finally:
        env.close()


def test_a_threshold_that_was_given_stays_and_labels_follow(small):
    env = point_vec_env()
    model = HierarchicalDDPG("MultiInputPolicy", env, subgoal_kwargs=dict(threshold=0.2), **small).learn(20)
    env.set_attr("threshold", 0.02)
    model.learn(20)
    assert model.policy.subgoal_threshold.item() == pytest.approx(0.2)
    assert not model._goal_task.success(NEAR, GOALS).any()


class Deep(PointEnv):
    """The tolerance is an attribute of another object."""

    def __init__(self):
        super().__init__()
        self.holder = type("Holder", (), {"threshold": 0.1})()

    def tighten(self, threshold):
        self.holder.threshold = threshold

    def compute_reward(self, achieved, desired, info):
        return (np.linalg.norm(achieved - desired, axis=-1) <= self.holder.threshold) - 1.0


def test_what_a_twin_cannot_follow_is_said():
    env = ParallelCollector([Deep], start_method="fork")
    try:
        task = goal_task_from_env(env, GOALS)
        env.env_method("tighten", 0.02)
        with pytest.warns(RuntimeWarning, match="attributes of the environment itself"):
            task.ask_again()
    finally:
        env.close()


def test_through_wrappers_an_attribute_is_set_by_gymnasiums_own_method():
    """SB3's `set_attr` sets an attribute of the outermost wrapper, which the environment does not read; the twin ignores
    it."""
    env = ParallelCollector([lambda: Monitor(gym.make("test_curriculum:Tightening-v0"))], start_method="fork")
    try:
        task = goal_task_from_env(env, GOALS)
        env.env_method("set_wrapper_attr", "threshold", 0.05)
        task.ask_again()
        assert task.threshold == pytest.approx(0.05, rel=1e-3)
        env.set_attr("threshold", 0.02)
        task.ask_again()
        assert task.threshold == pytest.approx(0.05, rel=1e-3)
    finally:
        env.close()


def test_asking_again_leaves_no_trace():
    env = point_vec_env(2)
    env.seed(3)
    before = env.reset()
    task = goal_task_from_env(env, GOALS)
    threshold, state, own = task.threshold, np.random.get_state()[1].copy(), env.envs[0].np_random.bit_generator.state
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task.ask_again()
    assert task.threshold == threshold
    assert np.array_equal(np.random.get_state()[1], state)
    assert env.envs[0].np_random.bit_generator.state == own
    np.testing.assert_array_equal(before["observation"][0], env.envs[0]._obs()["observation"])


def test_plain_attributes_are_those_that_travel_by_pipe():
    env = Tightening()
    env.numbers, env.table, env.large, env.named = (1, [2.0]), np.eye(2), np.zeros(1000), {"a": 1, "b": object()}
    (attributes,) = plain_attributes(env).values()
    assert {"at", "n_steps", "max_steps", "numbers", "table"} <= set(attributes)
    assert not {"inner", "large", "named", "action_space"} & set(attributes)


def test_set_env_checks_the_reward_as_the_constructor_does(small, tmp_path):
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small)
    before, dense = model.env, DummyVecEnv([UnjudgedEnv])
    with pytest.raises(ValueError, match="`threshold` in `subgoal_kwargs`"):
        model.set_env(dense)
    assert model.env is before, "what is refused does not take its place"
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="`threshold` in `subgoal_kwargs`"):
        HierarchicalDDPG.load(tmp_path / "model", env=dense)
