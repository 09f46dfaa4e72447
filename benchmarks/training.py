"""
Measures environment steps per second during training, with two workers, networks of [256, 256] units and batches of 256, in
interleaved rounds of

- ``sb3``: SB3's DDPG + HerReplayBuffer on ``SubprocVecEnv``
- ``sync``: HierarchicalDDPG with synchronous steps
- ``async``: HierarchicalDDPG with ``async_collection=True`` on a ``ParallelCollector``

All have the same ratio of low-level updates to environment steps. HierarchicalDDPG also trains its high level.

    OMP_NUM_THREADS=1 python benchmarks/training.py --ratio 0.25 1
"""

import argparse
import os
import statistics
import time

import numpy as np
import torch as th
from collection import make_env
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hrl import HierarchicalDDPG, ParallelCollector


class Clock(BaseCallback):
    """
    Measures steps per second in the middle of a call of ``learn``, when all processes have started. (The process that
    prepares batches needs two seconds of one core for this, once per call.)

    :param seconds: duration of the measurement
    :param warm_up: seconds before the measurement
    """

    def __init__(self, seconds: float, warm_up: float):
        super().__init__()
        self.seconds = seconds
        self.begin: tuple[float, int, int] | None = None
        self.begin_at = time.perf_counter() + warm_up

    def _on_step(self) -> bool:
        now = time.perf_counter()
        if self.begin is None:
            if now > self.begin_at:
                self.begin = now, self.num_timesteps, self.model._n_updates
            return True
        if now - self.begin[0] < self.seconds:
            return True
        self.rate = (self.num_timesteps - self.begin[1]) / (now - self.begin[0])
        self.ratio = (self.model._n_updates - self.begin[2]) / (self.num_timesteps - self.begin[1])
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="FetchReach-v4")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.25, 1.0], help="updates per environment step")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds per round and agent")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before the measurement")
    parser.add_argument("--params", default="dict()", help="other arguments of HierarchicalDDPG, as Python")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    th.set_num_threads(1)

    for ratio in args.ratio:
        train_freq = max(round(1 / (ratio * args.workers)), 1)
        gradient_steps = round(ratio * train_freq * args.workers)
        print(f"{args.env}, {ratio} updates per step: train_freq={train_freq}, gradient_steps={gradient_steps}")
        envs = {
            "sb3": make_vec_env(make_env(args.env), args.workers, seed=0, vec_env_cls=SubprocVecEnv),
            "sync": make_vec_env(make_env(args.env), args.workers, seed=0, vec_env_cls=ParallelCollector),
            "async": make_vec_env(make_env(args.env), args.workers, seed=0, vec_env_cls=ParallelCollector),
        }
        shared = dict(train_freq=train_freq, gradient_steps=gradient_steps, learning_starts=500, buffer_size=100_000, seed=0)
        shared |= dict(batch_size=256, policy_kwargs=dict(net_arch=[256, 256]))
        ours = shared | eval(args.params)
        action_dim = envs["sb3"].action_space.shape[0]
        noise = NormalActionNoise(np.zeros(action_dim), 0.1 * np.ones(action_dim))
        models = {
            "sb3": DDPG("MultiInputPolicy", envs["sb3"], replay_buffer_class=HerReplayBuffer, action_noise=noise, **shared),
            "sync": HierarchicalDDPG("MultiInputPolicy", envs["sync"], **ours),
            "async": HierarchicalDDPG("MultiInputPolicy", envs["async"], async_collection=True, **ours),
        }
        rates: dict[str, list[float]] = {name: [] for name in models}
        for model in models.values():
            model.learn(800, log_interval=None)
        for _ in range(args.rounds):
            for name, model in models.items():
                clock = Clock(args.seconds, args.warm_up)
                model.learn(10**9, callback=clock, log_interval=None, reset_num_timesteps=False)
                rates[name].append(clock.rate)
                assert abs(clock.ratio / ratio - 1) < 0.05, f"{name} made {clock.ratio:.3f} updates per step"
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, values in rates.items():
            print(f"  {name:6s} {medians[name]:8.1f} steps/s   rounds: {' '.join(f'{value:.0f}' for value in values)}")
        print(
            f"  async / sb3: {medians['async'] / medians['sb3']:.2f}   async / sync: {medians['async'] / medians['sync']:.2f}"
        )
        for env in envs.values():
            env.close()


if __name__ == "__main__":
    main()
