"""
Record episodes of a trained agent as a Minari dataset, for offline learning. Needs ``pip install "minari[create,hdf5]"``.

Minari writes to ``~/.minari/datasets``, or to the folder in the environment variable ``MINARI_DATASETS_PATH``.
"""

import argparse

import gymnasium as gym
import gymnasium_robotics
import minari

from sb3_hrl import HierarchicalDDPG

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=3_000)
parser.add_argument("--episodes", type=int, default=20)
parser.add_argument("--dataset", default="FetchReach/hddpg-v0")
args = parser.parse_args()

gym.register_envs(gymnasium_robotics)
model = HierarchicalDDPG("MultiInputPolicy", gym.make("FetchReach-v4"), verbose=1)
model.learn(args.timesteps, log_interval=20)

env = minari.DataCollector(gym.make("FetchReach-v4"))
for episode in range(args.episodes):
    obs, _ = env.reset(seed=episode)
    state, done = None, False
    while not done:
        # Without a state, the agent chooses a new subgoal: so it does at the start of an episode
        action, state = model.predict(obs, state=state, episode_start=[state is None], deterministic=True)
        obs, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
dataset = env.create_dataset(args.dataset, algorithm_name="sb3-hrl HierarchicalDDPG")
env.close()
print(
    f"{dataset.total_episodes} episodes with {dataset.total_steps} steps, load them with minari.load_dataset({args.dataset!r})"
)
