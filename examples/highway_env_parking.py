"""highway-env: a car parks, with a dense reward. Needs ``pip install highway-env``."""

import argparse

import gymnasium as gym
import highway_env
from stable_baselines3.common.env_util import make_vec_env

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.hddpg.callbacks import HierarchicalEvalCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=50_000)
args = parser.parse_args()

# The goals are six numbers: position, velocity and heading of the car. The reward is dense: the agent takes the definition of
# success from the environment (docs/custom_env.md#dense-rewards-and-penalties)
gym.register_envs(highway_env)
env, eval_env = make_vec_env("parking-v0", seed=0), make_vec_env("parking-v0", seed=1)
model = HierarchicalDDPG("MultiInputPolicy", env, verbose=1, seed=0)
# Prints the success rate of each evaluation
callback = HierarchicalEvalCallback(eval_env, n_eval_episodes=5, eval_freq=max(args.timesteps // 5, 500))
model.learn(args.timesteps, callback, log_interval=20)
