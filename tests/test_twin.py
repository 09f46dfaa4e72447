"""The learner's twin of the workers' environments: how it is created, and who closes it."""

import gc

import numpy as np
import pytest
from conftest import PointEnv
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor

from sb3_hrl import ParallelCollector
from sb3_hrl.common.env_goals import goal_task_from_env

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("leaves_nothing")]

GOALS = np.array([[0.5, -0.5], [10.0, 3.0]])


def test_an_environment_that_cannot_be_made_from_its_spec_is_refused_by_a_sentence():
    """SB3's BitFlippingEnv has a spec without an entry point."""
    env = SubprocVecEnv([BitFlippingEnv], start_method="fork")
    try:
        with pytest.raises(ValueError, match="no twin") as info:
            goal_task_from_env(env, GOALS)
    finally:
        env.close()
    assert info.value.__cause__ is not None


class Closing(PointEnv):
    """It is not registered, and counts its open instances."""

    n_open = 0

    def __init__(self, success=True, **kwargs):
        super().__init__(**kwargs)
        self.success = success
        type(self).n_open += 1

    def step(self, action):
        *step, info = super().step(action)
        return *step, info if self.success else {}

    def close(self):
        type(self).n_open -= 1


def test_collectors_make_the_twin_of_an_environment_without_a_spec():
    env = ParallelCollector([lambda: Closing(ends_at_success=True)], start_method="fork")
    bits = ParallelCollector([BitFlippingEnv], start_method="fork")
    try:
        task = goal_task_from_env(VecMonitor(env), GOALS)
        assert goal_task_from_env(bits, bits.reset()["desired_goal"].astype(np.float32)).threshold == 0.5
    finally:
        env.close()
        bits.close()
    assert task.ends_at_success
    assert task.success(GOALS, GOALS).all()
    # The twin is closed with its task
    assert Closing.n_open == 1
    del task
    gc.collect()
    assert Closing.n_open == 0


def test_a_twin_is_closed_if_its_goals_are_refused():
    env = ParallelCollector([lambda: Closing(dense=True, success=False)], start_method="fork")
    try:
        with pytest.raises(ValueError, match="`threshold` in `subgoal_kwargs`"):
            goal_task_from_env(env, GOALS)
    finally:
        env.close()
    assert Closing.n_open == 0


def test_a_twin_leaves_the_file_of_the_workers_monitor_alone(tmp_path):
    env = ParallelCollector([lambda: Monitor(Closing(max_steps=2), str(tmp_path / "0"))], start_method="fork")
    try:
        env.reset()
        for _ in range(4):
            env.step(np.zeros((1, 2)))
        goal_task_from_env(env, GOALS)
        for _ in range(2):
            env.step(np.zeros((1, 2)))
    finally:
        env.close()
    assert len(load_results(str(tmp_path))) == 3
