"""
Log to TensorBoard, and with ``--wandb`` also to Weights & Biases.

See the curves with ``tensorboard --logdir tb``. wandb runs offline here and needs no account (``pip install wandb``). Upload
the run later with ``wandb sync wandb/offline-run-*``, or pass ``--wandb online``.
"""

import argparse

import gymnasium as gym
import gymnasium_robotics
from stable_baselines3.common.callbacks import CallbackList

from sb3_hrl import HierarchicalDDPG

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=3_000)
parser.add_argument("--wandb", nargs="?", const="offline", choices=["offline", "online"])
args = parser.parse_args()

callbacks = []
if args.wandb:
    import wandb
    from wandb.integration.sb3 import WandbCallback

    # wandb copies everything that is written to TensorBoard
    wandb.init(project="sb3-hrl", mode=args.wandb, sync_tensorboard=True, config=dict(timesteps=args.timesteps))
    callbacks.append(WandbCallback(model_save_path="wandb_model"))

gym.register_envs(gymnasium_robotics)
env = gym.make("FetchReach-v4")
model = HierarchicalDDPG("MultiInputPolicy", env, tensorboard_log="tb", seed=0)
model.learn(args.timesteps, CallbackList(callbacks), tb_log_name="FetchReach")
print("rollout/success_rate and the other metrics (docs/metrics.md) are in the folder tb")
if args.wandb:
    wandb.finish()
