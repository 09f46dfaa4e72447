"""
Measures environment steps per second during training, interleaved in one process, of

- ``sb3``: SB3's DDPG + HerReplayBuffer
- ``flat``: HierarchicalDDPG without subgoals (``source="goal"``)
- ``hddpg``: HierarchicalDDPG, which also trains the high level and plans

All agents train on one environment, with networks of [256, 256] units, batches of 256, and one low-level update per 4 steps.
With several devices, they train on each of them. SB3's DDPG has one critic; `--critics 2` gives it two, as ours have.

    OMP_NUM_THREADS=1 python benchmarks/speed.py
    OMP_NUM_THREADS=1 python benchmarks/speed.py --train-freq 1 --device cpu cuda
"""

import argparse
import statistics
import time
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import torch as th
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_hrl import HierarchicalDDPG


def make_models(
    env_id: str, train_freq: int, warm_up: int, device: str, n_critics: int, n_steps: int
) -> dict[str, OffPolicyAlgorithm]:
    """:return: the agents by name, after their warm-up and a number of steps"""
    shared: dict[str, Any] = dict(batch_size=256, train_freq=train_freq, gradient_steps=1, buffer_size=100_000, device=device)
    shared["learning_starts"] = warm_up
    networks = dict(net_arch=[256, 256])
    ours: dict[str, Any] = shared | dict(policy_kwargs=networks, seed=0)

    def make() -> gym.Env:
        return gym.make(env_id, **({"continuing_task": False} if "Maze" in env_id else {}))

    sb3_env = make()
    action_dim = sb3_env.action_space.shape[0]
    noise = NormalActionNoise(np.zeros(action_dim), 0.1 * np.ones(action_dim))
    models: dict[str, OffPolicyAlgorithm] = {
        "sb3": DDPG(
            "MultiInputPolicy",
            sb3_env,
            replay_buffer_class=HerReplayBuffer,
            action_noise=noise,
            policy_kwargs=networks | dict(n_critics=n_critics),
            seed=0,
            **shared,
        ),
        "flat": HierarchicalDDPG("MultiInputPolicy", make(), subgoal_kwargs=dict(source="goal"), **ours),
        "hddpg": HierarchicalDDPG("MultiInputPolicy", make(), **ours),
    }
    for model in models.values():
        model.learn(warm_up + n_steps)
    return {f"{name} {device}": model for name, model in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="FetchReach-v4")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=600, help="environment steps per round and agent")
    parser.add_argument("--train-freq", type=int, default=4)
    parser.add_argument("--critics", type=int, default=1, help="number of critics of SB3's DDPG")
    parser.add_argument("--before", type=int, default=200, help="steps of learning before the measurement")
    parser.add_argument("--device", nargs="+", default=["cpu"])
    args = parser.parse_args()

    gym.register_envs(gymnasium_robotics)
    th.set_num_threads(1)
    models: dict[str, OffPolicyAlgorithm] = {}
    for device in args.device:
        models |= make_models(args.env, args.train_freq, 300, device, args.critics, args.before)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model.learn(args.steps, reset_num_timesteps=False)
            rates[name].append(args.steps / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:10s} {medians[name]:7.1f} steps/s   rounds: {' '.join(f'{value:.0f}' for value in values)}")
    for device in args.device:
        sb3, flat, hddpg = (medians[f"{name} {device}"] for name in ("sb3", "flat", "hddpg"))
        print(f"{device}: hddpg / sb3: {hddpg / sb3:.2f}   flat / sb3: {flat / sb3:.2f}   flat / hddpg: {flat / hddpg:.2f}")


if __name__ == "__main__":
    main()
