"""Evaluate an agent and its subgoals: with a callback during training, and with evaluate_policy afterwards."""

import argparse
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.hddpg.callbacks import HierarchicalEvalCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=3_000)
parser.add_argument("--video", action="store_true", help="record an episode; without a display, set MUJOCO_GL=egl")
args = parser.parse_args()

gym.register_envs(gymnasium_robotics)
model = HierarchicalDDPG("MultiInputPolicy", "FetchReach-v4", verbose=1)

# This callback extends SB3's EvalCallback. It also logs metrics of the subgoals, such as eval/subgoal_success_rate
# (docs/metrics.md). It can evaluate several environments at once, because the state of predict holds their subgoals
eval_env = make_vec_env("FetchReach-v4", n_envs=4, seed=1)
eval_freq = args.timesteps // 2
callback = HierarchicalEvalCallback(eval_env, n_eval_episodes=10, eval_freq=eval_freq, best_model_save_path="hddpg_best")
model.learn(args.timesteps, callback, log_interval=100)

successes = []


def note_success(locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
    """Called by evaluate_policy after each step."""
    if locals_["done"]:
        successes.append(locals_["info"]["is_success"])


model = HierarchicalDDPG.load("hddpg_best/best_model")
mean_reward, std_reward = evaluate_policy(model, eval_env, n_eval_episodes=50, callback=note_success)
print(f"mean reward {mean_reward:.1f} +/- {std_reward:.1f}, success rate {np.mean(successes):.2f}")

if args.video:
    env = RecordVideo(Monitor(gym.make("FetchReach-v4", render_mode="rgb_array")), "videos")
    evaluate_policy(model, env, n_eval_episodes=1)
    env.close()
