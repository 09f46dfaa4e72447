"""
Measures environment steps per second during training, with two workers, networks of [256, 256] units and batches of 256, in
interleaved rounds of

- ``sb3``: SB3's DDPG + HerReplayBuffer on ``SubprocVecEnv``
- ``sync``: HierarchicalDDPG with synchronous steps
- ``async``: HierarchicalDDPG with ``async_collection=True`` on a ``ParallelCollector``

All have the same ratio of low-level updates to environment steps. HierarchicalDDPG also trains its high level. With
`--algorithm SAC`, or another one of SB3, they are

- ``sb3``: SB3's algorithm on ``SubprocVecEnv``
- ``async``: ``asynchronous`` of this algorithm on a ``ParallelCollector``
- ``updates``: the limit. The algorithm only updates, on one core

    OMP_NUM_THREADS=1 python benchmarks/training.py --ratio 0.25 1
    OMP_NUM_THREADS=1 python benchmarks/training.py --algorithm SAC TD3 --env HalfCheetah-v5 --ratio 0.25
"""

import argparse
import os
import statistics
import time
from typing import Any

import numpy as np
import torch as th
from collection import make_env
from stable_baselines3 import DDPG, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hrl import HierarchicalDDPG, ParallelCollector, asynchronous

ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {"DDPG": DDPG, "SAC": SAC, "TD3": TD3}


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


def make_models(algorithm: str, env_id: str, n_workers: int, shared: dict[str, Any]) -> dict[str, OffPolicyAlgorithm]:
    """
    :param algorithm: ``hddpg``, or one of `ALGORITHMS`
    :param env_id: the environment
    :param n_workers: number of environments
    :param shared: arguments of all agents
    :return: agents by name
    """

    def env(vec_env_cls: Any) -> Any:
        return make_vec_env(make_env(env_id), n_workers, seed=0, vec_env_cls=vec_env_cls)

    if algorithm != "hddpg":
        cls, sb3_env = ALGORITHMS[algorithm], env(SubprocVecEnv)
        policy = "MlpPolicy" if len(sb3_env.observation_space.shape or ()) == 1 else "MultiInputPolicy"
        theirs: Any = shared | (dict(replay_buffer_class=HerReplayBuffer) if policy == "MultiInputPolicy" else {})
        return {"sb3": cls(policy, sb3_env, **theirs), "async": asynchronous(cls)(policy, env(ParallelCollector), **shared)}

    sb3_env = env(SubprocVecEnv)
    n_actions = sb3_env.action_space.shape[0]
    noise = NormalActionNoise(np.zeros(n_actions), 0.1 * np.ones(n_actions))
    return {
        "sb3": DDPG("MultiInputPolicy", sb3_env, replay_buffer_class=HerReplayBuffer, action_noise=noise, **shared),
        "sync": HierarchicalDDPG("MultiInputPolicy", env(ParallelCollector), **shared),
        "async": HierarchicalDDPG("MultiInputPolicy", env(ParallelCollector), async_collection=True, **shared),
    }


def updates_per_second(model: OffPolicyAlgorithm, seconds: float) -> float:
    """:return: rate at which an agent with a filled buffer updates, and does nothing else"""
    n_updates, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        model.train(20, model.batch_size)
        n_updates += 20
    return n_updates / (time.perf_counter() - start)


def compare(algorithm: str, ratio: float, args: argparse.Namespace) -> None:
    """
    Print steps per second of all agents.

    :param algorithm: ``hddpg``, or one of `ALGORITHMS`
    :param ratio: updates per environment step
    :param args: arguments of the command line
    """
    train_freq = max(round(1 / (ratio * args.workers)), 1)
    gradient_steps = round(ratio * train_freq * args.workers)
    print(f"{algorithm}, {args.env}, {ratio} updates per step: train_freq={train_freq}, gradient_steps={gradient_steps}")
    shared: dict[str, Any] = dict(train_freq=train_freq, gradient_steps=gradient_steps, learning_starts=args.learning_starts)
    shared |= dict(buffer_size=100_000, batch_size=256, policy_kwargs=dict(net_arch=[256, 256]), seed=0) | eval(args.params)
    models = make_models(algorithm, args.env, args.workers, shared)
    for model in models.values():
        model.learn(shared["learning_starts"] + 300, log_interval=None)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            clock = Clock(args.seconds, args.warm_up)
            model.learn(10**9, callback=clock, log_interval=None, reset_num_timesteps=False)
            rates[name].append(clock.rate)
            assert abs(clock.ratio / ratio - 1) < 0.05, f"{name} made {clock.ratio:.3f} updates per step"
        if algorithm != "hddpg":
            rates.setdefault("updates", []).append(updates_per_second(models["sb3"], args.seconds) / ratio)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"  {name:7s} {medians[name]:8.1f} steps/s   rounds: {' '.join(f'{value:.0f}' for value in values)}")
    ratios = [("async", "sb3"), *(("async", name) for name in ("sync", "updates") if name in medians)]
    print("  " + "   ".join(f"{one} / {other}: {medians[one] / medians[other]:.2f}" for one, other in ratios))
    for model in models.values():
        model.get_env().close()  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", nargs="+", default=["hddpg"], choices=["hddpg", *ALGORITHMS])
    parser.add_argument("--env", default="FetchReach-v4")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.25, 1.0], help="updates per environment step")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds per round and agent")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before the measurement")
    parser.add_argument("--learning-starts", type=int, default=500, help="HerReplayBuffer needs a whole episode")
    parser.add_argument("--params", default="dict()", help="other arguments of the agents, as Python")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    th.set_num_threads(1)

    for algorithm in args.algorithm:
        for ratio in args.ratio:
            compare(algorithm, ratio, args)


if __name__ == "__main__":
    main()
