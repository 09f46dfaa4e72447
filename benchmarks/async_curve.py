"""
Compares learning curves: SB3's algorithm on `DummyVecEnv`, and `asynchronous` of it on a `ParallelCollector`. Both have two
environments, SB3's default settings, and one update per step. Each evaluation has 100 deterministic episodes. The mean rewards
go to benchmarks/results/async/<name>-<algorithm>-<env>.csv.

    python benchmarks/async_curve.py --algorithm SAC --env Pendulum-v1 --steps 6000
"""

import argparse
import csv
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv
from training import ALGORITHMS

from sb3_hrl import ParallelCollector, asynchronous

N_ENVS, N_EVALUATIONS, N_EPISODES = 2, 6, 100


def curve(name: str, algorithm: str, env_id: str, seed: int, n_steps: int) -> list[tuple[int, int, float]]:
    """
    :param name: ``sb3`` or ``async``
    :param algorithm: one of `ALGORITHMS`
    :param env_id: the environment
    :param seed: seed of the agent and its environments; the seed of the evaluation is 10,000 more
    :param n_steps: environment steps to train
    :return: seed, environment steps and mean reward of each evaluation
    """
    cls: Any = ALGORITHMS[algorithm] if name == "sb3" else asynchronous(ALGORITHMS[algorithm])
    env = make_vec_env(env_id, N_ENVS, seed=seed, vec_env_cls=DummyVecEnv if name == "sb3" else ParallelCollector)
    shape = env.action_space.shape
    assert shape is not None
    # SAC explores by itself
    noise = None if algorithm == "SAC" else NormalActionNoise(np.zeros(shape), np.full(shape, 0.1))
    model = cls("MlpPolicy", env, gradient_steps=N_ENVS, action_noise=noise, seed=seed, device="cpu")
    eval_env = make_vec_env(env_id, 20, seed=seed + 10_000)
    with tempfile.TemporaryDirectory() as folder:
        every = n_steps // N_EVALUATIONS // N_ENVS
        callback = EvalCallback(eval_env, n_eval_episodes=N_EPISODES, eval_freq=every, log_path=folder, verbose=0)
        model.learn(n_steps, callback=callback, log_interval=None)
        evaluations = np.load(Path(folder) / "evaluations.npz")
    env.close()
    eval_env.close()
    means = evaluations["results"].mean(axis=1).round(1).tolist()
    print(f"{name} {algorithm} {env_id} seed {seed}: {means}", flush=True)
    return [(seed, *row) for row in zip(evaluations["timesteps"].tolist(), means, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", default="SAC", choices=ALGORITHMS)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results/async")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    th.set_num_threads(1)

    args.results.mkdir(parents=True, exist_ok=True)
    for name in ("sb3", "async"):
        rows = [row for seed in args.seeds for row in curve(name, args.algorithm, args.env, seed, args.steps)]
        with open(args.results / f"{name}-{args.algorithm}-{args.env}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("seed", "timesteps", "mean_reward"), *rows])


if __name__ == "__main__":
    main()
