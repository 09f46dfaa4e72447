"""
Load a trained agent from the layout of the Hugging Face Hub, here from a local folder and without a network.

For an agent on the Hub, download the file first: ``path = huggingface_sb3.load_from_hub("user/hddpg-FetchReach-v4",
"hddpg-FetchReach-v4.zip")``, with ``TRUST_REMOTE_CODE=True`` in the environment. Load only agents that you trust: they are
pickles, which can run any code.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
from huggingface_sb3 import EnvironmentName, ModelName, ModelRepoId
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hrl import HierarchicalDDPG

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=3_000)
args = parser.parse_args()

gym.register_envs(gymnasium_robotics)
env = gym.make("FetchReach-v4")

# A repository of the Hub is called user/ALGO-ENV and has the file ALGO-ENV.zip. `python -m rl_zoo3.push_to_hub` writes this
# layout from a run of the zoo, with config.yml, args.yml and a video
model_name = ModelName("hddpg", EnvironmentName("FetchReach-v4"))
folder = Path("hub") / ModelRepoId("user", model_name)
model = HierarchicalDDPG("MultiInputPolicy", env)
model.learn(args.timesteps)
model.save(folder / model_name.filename)
print(f"saved as {folder / model_name.filename}")

# With the environment it can also continue to learn
model = HierarchicalDDPG.load(folder / model_name.filename, env=env)
mean_reward, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=10)
print(f"mean reward {mean_reward:.1f} of the agent that was loaded, after {model.num_timesteps} steps of training")
