"""Supported spaces, and error messages with a cure for the others."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import PointEnv, point_vec_env
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hrl import HierarchicalDDPG

VECTOR = spaces.Box(-1.0, 1.0, (2,))


class SpacesEnv(gym.Env):
    """Any spaces; everything except the action is sampled."""

    def __init__(self, action_space: spaces.Space = VECTOR, **observation_spaces: spaces.Space):
        self.action_space = action_space
        self.observation_space = spaces.Dict(observation_spaces)
        self.observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 0.0, False, self.steps >= 10, {}

    def compute_reward(self, achieved, desired, info):
        return -(np.linalg.norm(np.asarray(achieved, float) - desired, axis=-1) > 0.1).astype(float)


@pytest.mark.parametrize(
    "observation", [VECTOR, spaces.Box(-1, 1, (2, 3)), spaces.MultiBinary(3), spaces.Box(0, 9, (2,), np.int64)]
)
@pytest.mark.parametrize("goal", [VECTOR, spaces.Box(-np.inf, np.inf, (3,), np.float64), spaces.MultiBinary(2)])
def test_accepted(small, observation, goal):
    env = SpacesEnv(observation=observation, achieved_goal=goal, desired_goal=goal)
    HierarchicalDDPG("MultiInputPolicy", env, **small).learn(50)


@pytest.mark.parametrize(
    ("observation_spaces", "match"),
    [
        (dict(observation=VECTOR, desired_goal=VECTOR), "achieved_goal"),
        (dict(observation=VECTOR, achieved_goal=VECTOR, desired_goal=VECTOR, camera=VECTOR), "exactly the keys"),
        (dict(observation=VECTOR, achieved_goal=VECTOR, desired_goal=spaces.Box(-1, 1, (3,))), "same kind and shape"),
        (dict(observation=VECTOR, achieved_goal=VECTOR, desired_goal=spaces.MultiBinary(2)), "same kind and shape"),
        (dict(observation=VECTOR, achieved_goal=spaces.Discrete(3), desired_goal=spaces.Discrete(3)), "Box or MultiBinary"),
        (dict(observation=spaces.Discrete(3), achieved_goal=VECTOR, desired_goal=VECTOR), "flatten"),
        (dict(observation=spaces.Box(0, 255, (36, 36, 3), np.uint8), achieved_goal=VECTOR, desired_goal=VECTOR), "images"),
    ],
)
def test_observation_spaces_refused(observation_spaces, match):
    with pytest.raises(ValueError, match=match):
        HierarchicalDDPG("MultiInputPolicy", SpacesEnv(**observation_spaces))


def test_goal_less_environments_are_refused():
    with pytest.raises(ValueError, match="goal-conditioned"):
        HierarchicalDDPG("MultiInputPolicy", gym.make("Pendulum-v1"))


def test_discrete_actions_are_refused():
    env = SpacesEnv(spaces.Discrete(3), observation=VECTOR, achieved_goal=VECTOR, desired_goal=VECTOR)
    with pytest.raises(ValueError, match="continuous actions"):
        HierarchicalDDPG("MultiInputPolicy", env)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(replay_buffer_class=HerReplayBuffer), "hindsight is built in"),
        (dict(replay_buffer_class=DictReplayBuffer), "SharedMemoryReplayBuffer"),
    ],
)
def test_other_replay_buffers_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        HierarchicalDDPG("MultiInputPolicy", PointEnv(), **options)


def test_normalised_observations_are_refused(small):
    env = VecNormalize(point_vec_env())
    with pytest.raises(ValueError, match="norm_obs=False"):
        HierarchicalDDPG("MultiInputPolicy", env)
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small)
    with pytest.raises(ValueError, match="norm_obs=False"):
        model.set_env(env)


def test_observations_that_are_not_finite_are_refused(small):
    env = PointEnv()
    model = HierarchicalDDPG("MultiInputPolicy", env, **small)
    env.compute_terminated = lambda *args: bool(env.position.fill(np.nan))
    with pytest.raises(ValueError, match="not finite"):
        model.learn(10)


def test_actions_that_are_not_finite_are_refused(small):
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **small)
    model.learn(30)
    for parameter in model.policy.low.actor.mu.parameters():
        parameter.data.fill_(np.nan)
    with pytest.raises(ValueError, match="not finite"):
        model.learn(60, reset_num_timesteps=False)
