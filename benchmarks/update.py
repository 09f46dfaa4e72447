"""
Measures the time of one update on a given batch (networks of [256, 256] units, 256 rows, shapes of FetchReach): DDPGLevel
against SB3's DDPG, and the same level as TD3 against SB3's TD3, interleaved in one process. Each agent has its default
optimizer.

    OMP_NUM_THREADS=1 python benchmarks/update.py
    OMP_NUM_THREADS=1 python benchmarks/update.py --device cuda
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_hrl.common.type_aliases import Transitions
from sb3_hrl.hddpg.config import LevelConfig
from sb3_hrl.hddpg.level import DDPGLevel

INPUTS, ACTIONS = spaces.Box(-np.inf, np.inf, (19,)), spaces.Box(-1.0, 1.0, (4,))
TD3_SETTINGS = dict(n_critics=2, policy_delay=2, target_policy_noise=0.2)


class Spaces(gym.Env):
    """An environment that only has the spaces of FetchReach."""

    observation_space, action_space = INPUTS, ACTIONS


class OneBatch:
    """
    A replay buffer that always returns the same batch.

    :param batch: the batch to return
    """

    def __init__(self, batch: ReplayBufferSamples):
        self._batch = batch

    def sample(self, *args: Any, **kwargs: Any) -> ReplayBufferSamples:
        """:return: the batch"""
        return self._batch


def level_updates(batch: Transitions, **settings: Any) -> Callable[[int], None]:
    """:return: a function that makes a number of updates of a level"""
    config = LevelConfig(**settings)
    level = DDPGLevel(INPUTS, ACTIONS, config.lr_schedule, config, net_arch=[256, 256], optimizer_kwargs={"fused": True})
    level.to(batch.inputs.device)

    def update(n_updates: int) -> None:
        for n in range(1, n_updates + 1):
            level.update(level.td_targets(batch), n)

    return update


def sb3_updates(algorithm: type[TD3], batch: Transitions) -> Callable[[int], None]:
    """:return: a function that makes a number of updates of an SB3 agent"""
    kwargs: dict[str, Any] = dict(device=batch.inputs.device, policy_kwargs=dict(net_arch=[256, 256]))
    model = algorithm("MlpPolicy", Spaces(), learning_rate=1e-3, buffer_size=1, **kwargs)
    model.set_logger(configure(None, []))
    # A transition ends the episode where its discount is 0
    model.replay_buffer = OneBatch(
        ReplayBufferSamples(batch.inputs, batch.actions, batch.next_inputs, 1.0 - batch.discounts, batch.rewards)
    )
    return lambda n_updates: model.train(n_updates, batch_size=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    th.set_num_threads(1)
    th.manual_seed(0)
    discounts = (th.rand(256, 1) < 0.3).float()
    tensors = (th.randn(256, 19), 2 * th.rand(256, 4) - 1, th.randn(256, 19), discounts - 1, discounts)
    batch = Transitions(*(tensor.to(args.device) for tensor in tensors))
    updates = {
        "DDPGLevel": level_updates(batch, n_critics=1),
        "SB3's DDPG": sb3_updates(DDPG, batch),
        "DDPGLevel as TD3": level_updates(batch, **TD3_SETTINGS),
        "SB3's TD3": sb3_updates(TD3, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(args.rounds):
        for name, update in updates.items():
            start = time.perf_counter()
            update(args.updates)
            if args.device != "cpu":
                th.cuda.synchronize(args.device)
            times[name].append((time.perf_counter() - start) / args.updates * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:17s} {median:6.2f} ms per update")
    for theirs, ours in (("SB3's DDPG", "DDPGLevel"), ("SB3's TD3", "DDPGLevel as TD3")):
        print(f"{theirs} / {ours}: {medians[theirs] / medians[ours]:.2f}")


if __name__ == "__main__":
    main()
