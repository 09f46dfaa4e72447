"""
Compares the speed of this checkout with another one, such as the previous commit, in environment steps per second. Rounds are
interleaved, each in a separate process. The result is the ratio of the medians. There is one environment, networks have
[256, 256] units, batches have 256 rows, and there is one thread.

    git worktree add ../before HEAD~1
    python benchmarks/compare.py --other ../before --what train     # one update per step
    python benchmarks/compare.py --other ../before --what collect   # only acting and storing
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = {"train": 1_500, "collect": 4_000}
WARM_UP = 400


def measure(env_id: str, what: str, n_steps: int) -> float:
    """:return: steps per second of the imported checkout"""
    import gymnasium as gym
    import gymnasium_robotics
    import torch as th
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_hrl import HierarchicalDDPG

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == WARM_UP:
                self.begin = time.perf_counter()
            self.seconds = time.perf_counter() - getattr(self, "begin", 0.0)
            return self.num_timesteps < WARM_UP + n_steps

    th.set_num_threads(1)
    gym.register_envs(gymnasium_robotics)
    # Use only arguments that all versions have. A rollout that never ends does not train
    kwargs = dict(seed=0, buffer_size=100_000, learning_starts=WARM_UP // 2, train_freq=1 if what == "train" else 10**6)
    model = HierarchicalDDPG("MultiInputPolicy", gym.make(env_id), policy_kwargs=dict(net_arch=[256, 256]), **kwargs)
    clock = Clock()
    model.learn(10**9, callback=clock, log_interval=None)
    return n_steps / clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="the other checkout")
    parser.add_argument("--what", choices=list(STEPS), default="train")
    parser.add_argument("--env", default="FetchReach-v4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="per round")
    args = parser.parse_args()
    n_steps = args.steps or STEPS[args.what]
    if args.other is None:
        print(measure(args.env, args.what, n_steps))
        return
    rates: dict[str, list[float]] = {"other": [], "this": []}
    checkouts = {"other": args.other.resolve(), "this": Path(__file__).resolve().parents[1]}
    command = [sys.executable, "-W", "ignore", __file__, "--what", args.what, "--env", args.env, "--steps", str(n_steps)]
    for _ in range(args.rounds):
        for name, checkout in checkouts.items():
            environ = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
            output = subprocess.run(command, check=True, env=environ, stdout=subprocess.PIPE, text=True).stdout
            rates[name].append(float(output.split()[-1]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:6s} {medians[name]:8.1f} steps/s   rounds: {' '.join(f'{value:.0f}' for value in values)}")
    print(f"this / other: {medians['this'] / medians['other']:.3f}")


if __name__ == "__main__":
    main()
