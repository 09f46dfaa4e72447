"""panda-gym: a simulated Panda arm (PyBullet) reaches a point. Needs ``pip install panda-gym``."""

import argparse

import gymnasium as gym
import panda_gym
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hrl import HierarchicalDDPG

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=3_000)
args = parser.parse_args()

# panda-gym has goals, a sparse reward and `is_success`: no wrapper is needed. PandaReachDense-v3 works as well, because the
# agent finds the definition of success in the environment
gym.register_envs(panda_gym)
env = gym.make("PandaReach-v3")
model = HierarchicalDDPG("MultiInputPolicy", env, verbose=1)
model.learn(args.timesteps, log_interval=20)
mean_reward, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=20)
print(f"mean reward {mean_reward:.1f}: minus the number of steps to the goal, at best 0 and at worst -50")

# With the zoo: python -m rl_zoo3.train --algo hddpg --env PandaReach-v3 --gym-packages panda_gym -n 3000
