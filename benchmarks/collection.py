"""
Measures environment steps per second without training, with two workers and a [256, 256] policy, in interleaved rounds of

- ``sb3``: SB3's DDPG on ``SubprocVecEnv``, without gradient steps
- ``sync``: HierarchicalDDPG on the same environments as ``async``, with synchronous steps
- ``async``: HierarchicalDDPG with ``async_collection=True`` on a ``ParallelCollector``
- ``bare``: the limit. Two processes only step their environment, run the low level's network in NumPy on the
  observation, and write blocks of 50 steps to shared memory

With `--trained`, the hierarchical agents are those of `trained_agents`.

    OMP_NUM_THREADS=1 python benchmarks/collection.py --env FetchReach-v4
    OMP_NUM_THREADS=1 python benchmarks/collection.py --trained --env PointMaze_UMaze-v3 --envs-per-worker 4
"""

import argparse
import multiprocessing as mp
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hrl import HierarchicalDDPG, ParallelCollector
from sb3_hrl.common.networks import live_network

NETWORKS = dict(net_arch=[256, 256])
TRAINED_AGENTS = Path(__file__).parents[1] / "trained_agents/hddpg"


def make_env(env_id: str) -> Callable[..., gym.Env]:
    """:return: a function that creates the environment in any process; mazes end at success, as in hddpg.yml"""

    def make(**kwargs) -> gym.Env:
        gym.register_envs(gymnasium_robotics)
        kwargs |= {"continuing_task": False} if "Maze" in env_id else {}
        return gym.make(env_id, **kwargs)

    return make


def bare_worker(env_id: str, seconds: mp.Queue, rates: mp.Queue) -> None:
    """Step an environment for the requested time and report the speed, in a loop."""
    th.set_num_threads(1)
    env = make_env(env_id)()
    obs, _ = env.reset(seed=0)
    sizes = [sum(np.size(part) for part in obs.values()) + np.size(obs["achieved_goal"]), 256, 256, env.action_space.shape[0]]
    policy = live_network(th.nn.Sequential(*create_mlp(sizes[0], sizes[-1], sizes[1:-1], squash_output=True)))
    n_obs, n_goal = np.size(obs["observation"]), np.size(obs["achieved_goal"])
    staging = np.zeros((50, 2 * n_obs + 4 * n_goal + sizes[-1] + 3), np.float32)
    ring, head = (
        np.ndarray((100_000, staging.shape[1]), np.float32, mp.sharedctypes.RawArray("f", 100_000 * staging.shape[1])),
        0,
    )
    inputs = np.zeros((1, sizes[0]), np.float32)
    while (duration := seconds.get()) > 0:
        n, start = 0, time.perf_counter()
        while time.perf_counter() - start < duration:
            for row in staging:
                x = inputs[0]
                x[:n_obs], x[n_obs : n_obs + n_goal] = obs["observation"], obs["achieved_goal"]
                x[n_obs + n_goal : n_obs + 2 * n_goal] = obs["desired_goal"]
                action = policy(inputs)[0]
                row[: n_obs + 2 * n_goal] = x[: n_obs + 2 * n_goal]
                obs, reward, terminated, truncated, _ = env.step(action)
                row[-n_obs - n_goal - 1 : -n_goal - 1], row[-n_goal - 1 : -1] = obs["observation"], obs["achieved_goal"]
                row[-1] = reward
                if terminated or truncated:
                    obs, _ = env.reset()
            ring[head : head + 50] = staging
            head = (head + 50) % 100_000
            n += 50
        rates.put(n / (time.perf_counter() - start))


class Bare:
    """Two bare workers that run at the same time."""

    def __init__(self, env_id: str, n: int):
        context = mp.get_context("forkserver")
        self.seconds, self.rates = [context.Queue() for _ in range(n)], context.Queue()
        for queue in self.seconds:
            context.Process(target=bare_worker, args=(env_id, queue, self.rates), daemon=True).start()
        self.measure(0.2)

    def measure(self, duration: float) -> float:
        """:return: steps per second over all workers"""
        for queue in self.seconds:
            queue.put(duration)
        return sum(self.rates.get() for _ in self.seconds)


def make_agent(env: Any, env_id: str, is_trained: bool, **kwargs: Any) -> HierarchicalDDPG:
    """:return: an agent that does not learn"""
    if not is_trained:
        return HierarchicalDDPG("MultiInputPolicy", env, policy_kwargs=dict(NETWORKS), **kwargs)
    path = TRAINED_AGENTS / f"{env_id}_1/{env_id}.zip"
    return HierarchicalDDPG.load(path, env=env, train_freq=TrainFreq(1, TrainFrequencyUnit.STEP), **kwargs)


def learner_rate(model, duration: float, guess: float) -> float:
    """:return: steps per second of one call of ``learn`` that takes about this time"""
    steps, start = int(guess * duration), time.perf_counter()
    model.learn(steps, reset_num_timesteps=False, log_interval=None)
    return steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["FetchReach-v4", "PointMaze_UMaze-v3", "AntMaze_UMaze-v4"])
    parser.add_argument("--trained", action="store_true", help="agents of trained_agents")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--envs-per-worker", type=int, default=1, help="of async")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per round and agent")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    th.set_num_threads(1)

    for env_id in args.env:
        envs = {
            "sb3": make_vec_env(make_env(env_id), args.workers, seed=0, vec_env_cls=SubprocVecEnv),
            "sync": make_vec_env(make_env(env_id), args.workers, seed=0, vec_env_cls=ParallelCollector),
            "async": make_vec_env(
                make_env(env_id),
                args.workers * args.envs_per_worker,
                seed=0,
                vec_env_cls=ParallelCollector,
                vec_env_kwargs=dict(envs_per_worker=args.envs_per_worker),
            ),
        }
        shared: dict[str, Any] = dict(gradient_steps=0, learning_starts=0, buffer_size=100_000, seed=0, device="cpu")
        action_dim = envs["sb3"].action_space.shape[0]
        noise = NormalActionNoise(np.zeros(action_dim), 0.1 * np.ones(action_dim))
        models = {
            "sb3": DDPG("MultiInputPolicy", envs["sb3"], action_noise=noise, policy_kwargs=dict(NETWORKS), **shared),
            "sync": make_agent(envs["sync"], env_id, args.trained, async_collection=False, **shared),
            "async": make_agent(envs["async"], env_id, args.trained, async_collection=True, **shared),
        }
        bare = Bare(env_id, args.workers)
        guesses = {name: 0.0 for name in models}
        for name, model in models.items():
            model.learn(500, log_interval=None)
            guesses[name] = learner_rate(model, args.seconds, 1000.0)
        rates: dict[str, list[float]] = {name: [] for name in (*models, "bare")}
        for _ in range(args.rounds):
            for name, model in models.items():
                rates[name].append(learner_rate(model, args.seconds, guesses[name]))
                guesses[name] = rates[name][-1]
            rates["bare"].append(bare.measure(args.seconds))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(env_id)
        for name, values in rates.items():
            print(f"  {name:6s} {medians[name]:9.0f} steps/s   rounds: {' '.join(f'{value:.0f}' for value in values)}")
        print(
            f"  async / sb3: {medians['async'] / medians['sb3']:.2f}"
            f"   async / sync: {medians['async'] / medians['sync']:.2f}"
            f"   async / bare: {medians['async'] / medians['bare']:.2f}",
            flush=True,
        )
        for env in envs.values():
            env.close()
        for queue in bare.seconds:
            queue.put(0.0)


if __name__ == "__main__":
    main()
