"""What reaching a goal means is asked of the environment, in this process."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import PointEnv, point_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from sb3_hrl.common.goals import GoalTask, goal_task_from_env

GOALS = np.array([[0.5, -0.5], [10.0, 3.0]])


def test_tolerance_is_found_by_probing():
    task = GoalTask(PointEnv().compute_reward, GOALS)
    assert task.is_sparse
    assert task.threshold == pytest.approx(PointEnv.threshold, rel=1e-3)
    assert task.best_reward == 0.0


def test_success_is_the_environments_own():
    task = GoalTask(PointEnv().compute_reward, GOALS)
    achieved = np.array([[0.0, 0.09], [0.0, 0.11], [0.08, 0.08]])
    assert task.success(achieved, np.zeros((3, 2))).tolist() == [True, False, False]


def test_reward_of_zero_and_one_is_sparse_too():
    reward = PointEnv().compute_reward
    task = GoalTask(lambda achieved, desired, info: 1.0 + reward(achieved, desired, info), GOALS)
    assert task.best_reward == 1.0
    assert task.success(GOALS, GOALS + 0.01).all()
    assert not task.success(GOALS, GOALS + 1.0).any()


def test_dense_reward_needs_a_threshold():
    env = PointEnv(dense=True)
    with pytest.raises(ValueError, match="subgoal_threshold"):
        GoalTask(env.compute_reward, GOALS)
    task = GoalTask(env.compute_reward, GOALS, threshold=0.2)
    assert task.success(GOALS, GOALS + [0.0, 0.19]).all()
    assert not task.success(GOALS, GOALS + [0.0, 0.21]).any()


def test_reward_that_is_not_vectorised_is_refused():
    with pytest.raises(ValueError, match="vectorised"):
        GoalTask(lambda achieved, desired, info: -float(np.linalg.norm(achieved - desired) > 0.1), GOALS)


def test_goals_that_are_always_reached_are_refused():
    with pytest.raises(ValueError, match="always reached"):
        GoalTask(lambda achieved, desired, info: np.zeros(len(achieved)), GOALS)


def test_bits_are_compared_exactly():
    env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=4, continuous=True)])
    goals = env.reset()["desired_goal"].astype(np.float32)
    task = goal_task_from_env(env, goals)
    assert task.threshold == 0.5
    assert task.success(goals, goals).all()
    assert not task.success(goals, 1 - goals).any()


@pytest.mark.parametrize("ends_at_success", [True, False])
def test_whether_success_ends_the_episode(ends_at_success):
    env = VecMonitor(point_vec_env(2, ends_at_success=ends_at_success))
    assert goal_task_from_env(env, GOALS).ends_at_success == ends_at_success


def test_environments_in_other_processes_get_a_local_twin():
    env = SubprocVecEnv([lambda: Monitor(gym.make("conftest:PointEnv-v0", ends_at_success=True))], start_method="fork")
    try:
        task = goal_task_from_env(env, GOALS)
    finally:
        env.close()
    assert task.ends_at_success
    assert task.threshold == pytest.approx(PointEnv.threshold, rel=1e-3)
    assert task.success(GOALS, GOALS).all(), "it works after the workers are gone"


def test_environments_without_a_spec_are_refused():
    env = SubprocVecEnv([PointEnv], start_method="fork")
    try:
        with pytest.raises(ValueError, match="register your environment"):
            goal_task_from_env(env, GOALS)
    finally:
        env.close()


def test_environments_without_a_reward_function_are_refused():
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1")])
    with pytest.raises(ValueError, match="compute_reward"):
        goal_task_from_env(env, GOALS)
