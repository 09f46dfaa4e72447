"""Wrappers that limit actions, shrink the workspace, and end episodes at a fall."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import PointEnv
from stable_baselines3.common.monitor import Monitor

from sb3_hrl.common.wrappers import ActionLimitWrapper, FallTerminationWrapper, ReducedWorkspaceWrapper, terminate_falls


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


class TurningEnv(PointEnv):
    """A PointEnv whose observation is an orientation: upright at first, upside down from the third step on except the
    fifth."""

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
    """Regression test: evaluation only counts the episodes that Monitor has seen, and missed those that ended by a fall."""
    with pytest.raises(ValueError, match="terminate_falls"):
        FallTerminationWrapper(Monitor(TurningEnv()))
    env = terminate_falls(ActionLimitWrapper(Monitor(TurningEnv())), orientation=0, patience=3)
    assert isinstance(env, ActionLimitWrapper)
    env.reset(seed=0)
    for _ in range(8):
        _, _, terminated, _, info = env.step(np.zeros(2))
    assert terminated
    assert info["episode"]["l"] == 8
