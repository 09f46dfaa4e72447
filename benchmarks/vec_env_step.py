"""
Measures environment steps per second of vectorised environments that step in step, with one worker per environment and random
actions, in interleaved rounds of

- ``sb3``: SB3's ``SubprocVecEnv``
- ``heal``: ``ParallelCollector``, whose workers are replaced when they fail
- ``off``: ``ParallelCollector(max_restarts=0)``

It also prints the processor time per step, of the learner and the workers, which depends less on other work on the machine.
``--policy`` also computes the actions with PPO's policy, as PPO does between its updates. The environments ``Pixels`` and
``Vector`` do nothing but return large observations: images of 84 x 84 x 3 bytes, or 10,000 numbers in float32.

    OMP_NUM_THREADS=1 python benchmarks/vec_env_step.py --env CartPole-v1 Pendulum-v1 Pixels Vector
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_hrl import ParallelCollector


class LargeObservations(gym.Env):
    """
    Episodes of 1,000 steps with large observations.

    :param space: observation space
    """

    action_space = gym.spaces.Discrete(2)

    def __init__(self, space: gym.spaces.Box):
        self.observation_space, self._step = space, 0
        space.seed(0)
        self._observations = [space.sample() for _ in range(4)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._observations[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._observations[self._step % 4], 1.0, False, self._step == 1_000, {}


LARGE = {
    "Pixels": lambda: LargeObservations(gym.spaces.Box(0, 255, (84, 84, 3), np.uint8)),
    "Vector": lambda: LargeObservations(gym.spaces.Box(-1.0, 1.0, (10_000,), np.float32)),
}

KINDS: dict[str, Callable[..., VecEnv]] = {
    "sb3": SubprocVecEnv,
    "heal": ParallelCollector,
    "off": functools.partial(ParallelCollector, max_restarts=0),
}


def rate(env: VecEnv, n_steps: int, act: Callable[[np.ndarray], np.ndarray]) -> float:
    """:return: environment steps per second, over all environments"""
    obs = env.reset()
    assert isinstance(obs, np.ndarray)
    start = time.perf_counter()
    for _ in range(n_steps):
        obs = env.step(act(obs))[0]
    return n_steps * env.num_envs / (time.perf_counter() - start)


def cpu_time(env: VecEnv) -> float:
    """:return: processor time in seconds that this process and the workers have used so far"""
    processes = [psutil.Process(), *(psutil.Process(process.pid) for process in env.processes)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def make_act(env: VecEnv, with_policy: bool) -> Callable[[np.ndarray], np.ndarray]:
    """:return: a function from observations to actions"""
    if not with_policy:
        actions = np.stack([env.action_space.sample() for _ in range(env.num_envs)])
        return lambda obs: actions
    policy = PPO("MlpPolicy", env, seed=0).policy

    def act(obs: np.ndarray) -> np.ndarray:
        with th.no_grad():
            return policy(obs_as_tensor(obs, policy.device))[0].numpy()

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["CartPole-v1", "Pendulum-v1"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2_000, help="steps of each environment per round")
    parser.add_argument("--start-method", help="of the processes, by default that of the classes")
    parser.add_argument("--policy", action="store_true", help="compute the actions with PPO's policy")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    th.set_num_threads(1)

    for env_id in args.env:
        options: dict[str, Any] = dict(seed=0, vec_env_kwargs=dict(start_method=args.start_method))
        env_fn: Any = LARGE.get(env_id, env_id)
        envs = {name: make_vec_env(env_fn, args.workers, vec_env_cls=kind, **options) for name, kind in KINDS.items()}
        acts = {name: make_act(env, args.policy) for name, env in envs.items()}
        rates: dict[str, list[float]] = {name: [] for name in envs}
        cpu = dict.fromkeys(envs, 0.0)
        for name, env in envs.items():
            rate(env, 200, acts[name])
        for _ in range(args.rounds):
            for name, env in envs.items():
                before = cpu_time(env)
                rates[name].append(rate(env, args.steps, acts[name]))
                cpu[name] += cpu_time(env) - before
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(f"{env_id}, {args.workers} workers{', with the policy' if args.policy else ''}")
        for name, values in rates.items():
            us = 1e6 * cpu[name] / (args.rounds * args.steps * args.workers)
            rounds = " ".join(f"{value:.0f}" for value in values)
            print(f"  {name:5s}{medians[name]:8.0f} steps/s {us:6.0f} us   rounds: {rounds}")
        for name in ("heal", "off"):
            speed, load = medians[name] / medians["sb3"], cpu[name] / cpu["sb3"]
            print(f"  {name} / sb3: speed {speed:.2f}, processor time {load:.2f}", flush=True)
        for env in envs.values():
            env.close()


if __name__ == "__main__":
    main()
