"""
Time of one DDPG update ([256, 256], batch 256, shapes of FetchReach): written-out gradients on flat networks (FlatMLP)
against the same networks left to autograd (AutogradNetwork), interleaved in one process.

    OMP_NUM_THREADS=1 python benchmarks/update.py
"""

import argparse
import statistics
import time
from unittest.mock import patch

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_hrl.common.networks import AutogradNetwork, FlatMLP
from sb3_hrl.common.type_aliases import LevelSamples
from sb3_hrl.hddpg.levels import LevelConfig, LevelPolicy, ddpg_update, with_targets


def make_level(network_class: type[FlatMLP] | type[AutogradNetwork]) -> LevelPolicy:
    """:return: a level whose networks are of this class, with the same weights each time"""
    th.manual_seed(0)
    inputs, actions = spaces.Box(-np.inf, np.inf, (19,)), spaces.Box(-1.0, 1.0, (4,))
    with patch("sb3_hrl.hddpg.levels.traced", network_class):
        return LevelPolicy(inputs, actions, lambda _: 1e-3, net_arch=[256, 256], n_critics=1, optimizer_kwargs={"fused": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=50)
    args = parser.parse_args()

    th.set_num_threads(1)
    config = LevelConfig(1e-3, None, 0.005, 0.99, 4, 1.0, 0.1, 0.2, 1, 0.0, 0.5)
    dones = (th.rand(256, 1) < 0.3).float()
    batch = LevelSamples(th.randn(256, 19), 2 * th.rand(256, 4) - 1, th.randn(256, 19), dones - 1, dones)
    levels = {"autograd": make_level(AutogradNetwork), "flat": make_level(FlatMLP)}
    times: dict[str, list[float]] = {name: [] for name in levels}
    for _ in range(args.rounds):
        for name, level in levels.items():
            start = time.perf_counter()
            for _ in range(args.updates):
                ddpg_update(level, with_targets(level, batch, config), config)
            times[name].append((time.perf_counter() - start) / args.updates * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:10s} {median:6.2f} ms per update")
    print(f"ratio of medians: {medians['autograd'] / medians['flat']:.2f}")


if __name__ == "__main__":
    main()
