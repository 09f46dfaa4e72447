"""Train a two-level agent to reach, evaluate it, save it, load it."""

import argparse

import gymnasium as gym
import gymnasium_robotics
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hrl import HierarchicalDDPG

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=3_000)
args = parser.parse_args()

gym.register_envs(gymnasium_robotics)
env = gym.make("FetchReach-v4")

model = HierarchicalDDPG("MultiInputPolicy", env, verbose=1)
model.learn(args.timesteps, progress_bar=True)
mean_reward, std_reward = evaluate_policy(model, model.get_env(), n_eval_episodes=20)
print(f"mean reward {mean_reward:.1f} +/- {std_reward:.1f} (0 is the best, -50 the worst)")

model.save("hddpg_fetch_reach")
model = HierarchicalDDPG.load("hddpg_fetch_reach", env=env)

# The state holds the current subgoal
obs, _ = env.reset(seed=0)
state, episode_start = None, [True]
for _ in range(50):
    action, state = model.predict(obs, state=state, episode_start=episode_start, deterministic=True)
    obs, reward, terminated, truncated, info = env.step(action)
    episode_start = [terminated or truncated]
print("success" if info["is_success"] else "no success", "- last subgoal:", state.subgoals[0])
