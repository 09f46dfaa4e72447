"""Save an agent with its replay buffer, and continue training later."""

import argparse

import gymnasium as gym
import gymnasium_robotics

from sb3_hrl import HierarchicalDDPG

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=3_000)
args = parser.parse_args()

gym.register_envs(gymnasium_robotics)
env = gym.make("FetchReach-v4")
model = HierarchicalDDPG("MultiInputPolicy", env, verbose=1)
model.learn(args.timesteps // 2)

# The model file has the networks, the optimizers and the input statistics. The replay buffer is a separate file
model.save("hddpg_resume")
model.save_replay_buffer("hddpg_resume_buffer")
print(f"saved after {model.num_timesteps} steps, with {model.replay_buffer.size()} of them in the buffer")
del model

model = HierarchicalDDPG.load("hddpg_resume", env=env)
model.load_replay_buffer("hddpg_resume_buffer")
print(f"loaded at {model.num_timesteps} steps, with {model.replay_buffer.size()} of them in the buffer")

# Without reset_num_timesteps=False, the step counter restarts at 0 and the first `learning_starts` actions are random
model.learn(args.timesteps - model.num_timesteps, reset_num_timesteps=False)
print(f"{model.num_timesteps} steps in total")
