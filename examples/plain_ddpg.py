"""SB3's own DDPG, with hindsight from SharedMemoryReplayBuffer instead of HerReplayBuffer."""

import argparse

import gymnasium as gym
import gymnasium_robotics
import numpy as np
from stable_baselines3 import DDPG
from stable_baselines3.common.noise import NormalActionNoise

from sb3_hrl import SharedMemoryReplayBuffer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=15_000)
args = parser.parse_args()

gym.register_envs(gymnasium_robotics)
env = gym.make("FetchReach-v4")
model = DDPG(
    "MultiInputPolicy",
    env,
    replay_buffer_class=SharedMemoryReplayBuffer,
    replay_buffer_kwargs=dict(compute_reward=env.unwrapped.compute_reward, n_sampled_goal=4),
    action_noise=NormalActionNoise(np.zeros(4), 0.2 * np.ones(4)),
    learning_starts=500,
    gamma=0.95,
    tau=0.05,
    policy_kwargs=dict(net_arch=[64, 64]),
    verbose=1,
)
model.learn(args.timesteps, log_interval=20)
