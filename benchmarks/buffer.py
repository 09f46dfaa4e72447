"""
Measures the time to sample a batch of 256 with hindsight, from full buffers of several sizes: SharedMemoryReplayBuffer against
SB3's HerReplayBuffer, interleaved in one process. Rows have the shapes of FetchReach-v4.

    OMP_NUM_THREADS=1 python benchmarks/buffer.py
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl import SharedMemoryReplayBuffer

EPISODE = 50


def fill(buffer: HerReplayBuffer | SharedMemoryReplayBuffer, n_steps: int) -> None:
    """Fill the buffer with episodes of random steps, by repeating the rows of one episode."""
    rng = np.random.default_rng(0)
    shapes = {key: (1, *shape) for key, shape in buffer.obs_shape.items()}
    obs = [{key: rng.normal(size=shape) for key, shape in shapes.items()} for _ in range(EPISODE + 1)]
    action, reward = rng.uniform(-1, 1, (1, 4)), np.array([-1.0])
    infos = [[{"TimeLimit.truncated": step == EPISODE - 1}] for step in range(EPISODE)]
    for t in range(n_steps):
        step = t % EPISODE
        done = np.array([step == EPISODE - 1])
        if isinstance(buffer, SharedMemoryReplayBuffer):
            goal = obs[step]["achieved_goal"]
            buffer.add(obs[step], obs[step + 1], action, reward, done, infos[step], goal, np.array([step % 10 == 9]))
        else:
            buffer.add(obs[step], obs[step + 1], action, reward, done, infos[step])


def microseconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args()

    gym.register_envs(gymnasium_robotics)
    th.set_num_threads(1)
    env = DummyVecEnv([lambda: gym.make("FetchReach-v4")])
    spaces = (env.observation_space, env.action_space)
    calls: dict[str, Callable[[], object]] = {}
    for size in args.sizes:
        her = HerReplayBuffer(size, *spaces, env=env, device="cpu")
        ours = SharedMemoryReplayBuffer(size, *spaces, device="cpu", compute_reward=env.envs[0].unwrapped.compute_reward)
        fill(her, size)
        fill(ours, size)
        calls[f"HerReplayBuffer.sample {size}"] = partial(her.sample, 256)
        calls[f"SharedMemoryReplayBuffer.sample {size}"] = partial(ours.sample, 256)
        calls[f"SharedMemoryReplayBuffer.sample_low {size}"] = partial(ours.sample_low, 256, 4, 10)
        calls[f"SharedMemoryReplayBuffer.sample_high {size}"] = partial(ours.sample_high, 256, 4, 1)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            times[name].append(microseconds(call, args.repeats))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:45s} {median:8.1f} us")
    small, large = min(args.sizes), max(args.sizes)
    her, ours = (medians[f"{name}.sample {large}"] for name in ("HerReplayBuffer", "SharedMemoryReplayBuffer"))
    print(f"HerReplayBuffer / ours at {large}: {her / ours:.1f}")
    for method in ("sample", "sample_low", "sample_high"):
        name = f"SharedMemoryReplayBuffer.{method}"
        print(f"{method} at {large} / at {small}: {medians[f'{name} {large}'] / medians[f'{name} {small}']:.2f}")


if __name__ == "__main__":
    main()
