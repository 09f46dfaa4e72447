"""
Trains on FetchReach for a long time and kills a worker at regular intervals. The run must end with every step counted and
constant memory.

    OMP_NUM_THREADS=1 python benchmarks/soak.py --minutes 20 --every 30
"""

import argparse
import os
import random
import signal
import time
import warnings

import psutil
import torch as th
from collection import make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_hrl import HierarchicalDDPG, ParallelCollector


class Killer(BaseCallback):
    """Kills a worker at regular intervals, and stops when the time is over."""

    def __init__(self, seconds: float, every: float):
        super().__init__()
        self.end, self.every = time.monotonic() + seconds, every
        self.next_kill, self.next_log = time.monotonic() + every, time.monotonic()
        self.n_killed = 0
        self.memory: list[float] = []

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now > self.next_kill:
            self.next_kill += self.every
            os.kill(random.choice(self.training_env.processes).pid, signal.SIGKILL)
            self.n_killed += 1
        if now > self.next_log:
            self.next_log += 60.0
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            self.memory.append(sum(process.memory_info().rss - process.memory_info().shared for process in family) / 2**20)
            print(
                f"{self.num_timesteps} steps, {self.n_killed} killed, {self.training_env.n_restarts} replaced, "
                f"{len(family)} processes with {self.memory[-1]:.0f} MiB of their own, "
                f"{len(os.listdir('/proc/self/fd'))} descriptors, {len(os.listdir('/dev/shm'))} files in /dev/shm",
                flush=True,
            )
        return now < self.end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="FetchReach-v4")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between kills")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Worker")
    env = make_vec_env(make_env(args.env), args.workers, seed=0, vec_env_cls=ParallelCollector)
    # The buffer is full after a few minutes, so memory must stay constant afterwards
    model = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, train_freq=4, buffer_size=100_000, seed=0)
    callback = Killer(60 * args.minutes, args.every)
    model.learn(10**9, callback=callback, log_interval=None)
    counted, stored = model.num_timesteps, model.replay_buffer.n_added - model._untaken.n_steps
    print(f"ended: {counted} steps counted, {stored} stored, {env.n_restarts} of {callback.n_killed} killed workers replaced")
    assert counted == stored
    env.close()


if __name__ == "__main__":
    main()
