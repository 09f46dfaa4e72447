"""
Measures the time of each part of a run per environment step, by environment and network size, and computes the number of
workers at which the learner becomes the bottleneck. The agent is the default, after as many steps as it needs for its planner
to have landmarks. The times are medians, in one process with one thread.

    OMP_NUM_THREADS=1 python benchmarks/scale.py
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch as th
from collection import make_env
from sharing import median_us
from stable_baselines3.common.env_util import make_vec_env

from sb3_hrl import HierarchicalDDPG, SerialCollector
from sb3_hrl.common.env_goals import goal_task_from_env
from sb3_hrl.common.weight_sync import WeightPublisher, WeightSubscriber
from sb3_hrl.hddpg.batch_source import BatchSource
from sb3_hrl.parallel.async_rollouts import collect_task
from sb3_hrl.parallel.worker import Worker


def measure(env_id: str, net_arch: list[int]) -> tuple[dict[str, float], int]:
    """:return: microseconds by part, and the number of updates of the low level per update of the high level"""
    env = make_vec_env(make_env(env_id), 1, seed=0, vec_env_cls=SerialCollector)
    model = HierarchicalDDPG(
        "MultiInputPolicy",
        env,
        async_collection=True,
        learning_starts=300,
        train_freq=4,
        buffer_size=100_000,
        policy_kwargs=dict(net_arch=net_arch),
        seed=0,
    )
    model.learn(2_500, log_interval=None)
    # A worker, as in its own process
    policy, buffer, acting = model.policy, model.replay_buffer, model._acting()
    n_weights, write_weights = acting.agent.n_weights, acting.write_weights
    task = collect_task(acting.agent, buffer, n_warm_up=0)
    publisher = WeightPublisher(n_weights)
    publisher.publish(write_weights)
    single = make_env(env_id)()
    writer = buffer.shards.writers()[0]
    worker = Worker([single], [None], 0, 1, task, env.config, [writer], WeightSubscriber(publisher.block))
    env_time = [0.0]
    step = single.step

    def timed_step(action: np.ndarray) -> Any:
        start = time.perf_counter()
        result = step(action)
        env_time[0] += time.perf_counter() - start
        return result

    single.step = timed_step

    def block() -> None:
        for _ in range(50):
            worker.round()

    for _ in range(3):
        block()
        worker.flush()
    rounds, envs, flushes = [], [], []
    for _ in range(30):
        env_time[0] = 0.0
        start = time.perf_counter()
        block()
        rounds.append((time.perf_counter() - start) / 50 * 1e6)
        envs.append(env_time[0] / 50 * 1e6)
        start = time.perf_counter()
        worker.flush()
        flushes.append((time.perf_counter() - start) / 50 * 1e6)

    # The parts of the learner
    batches = BatchSource(policy, buffer, goal_task_from_env(env, env.reset()["desired_goal"]))
    low, high = batches.low(), batches.high()
    vector = np.empty(n_weights, np.float32)
    subscriber = WeightSubscriber(publisher.block)
    result = {
        "environment": statistics.median(envs),
        "policy and rest": statistics.median(rounds) - statistics.median(envs),
        "write": statistics.median(flushes),
        "low batch": median_us(batches.low, 40),
        "low update": median_us(lambda: policy.low.update(low), 40),
        "high batch": median_us(batches.high, 40),
        "high update": median_us(lambda: policy.high.update(high), 40),
        "publish": median_us(lambda: publisher.publish(write_weights), 100),
        "fetch": median_us(lambda: subscriber.fetch(vector), 100),
    }
    env.close()
    return result, model.high_update_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["FetchReach-v4", "PointMaze_UMaze-v3", "AntMaze_UMaze-v4"])
    parser.add_argument("--net-arch", nargs="+", default=["64,64", "128,128", "256,256", "256,256,256"])
    parser.add_argument("--ratio", type=float, nargs="+", default=[1.0, 0.25, 0.0625], help="updates per environment step")
    args = parser.parse_args()
    th.set_num_threads(1)
    for env_id in args.env:
        for net_arch in [[int(units) for units in layers.split(",")] for layers in args.net_arch]:
            cost, interval = measure(env_id, net_arch)
            print(f"{env_id} {net_arch}: " + ", ".join(f"{name} {value:.1f}" for name, value in cost.items()))
            worker = cost["environment"] + cost["policy and rest"] + cost["write"]
            # A separate process prepares the low level's batches
            learner = cost["low update"] + (cost["high batch"] + cost["high update"]) / interval
            for ratio in args.ratio:
                rate = 1e6 / (ratio * learner)
                print(
                    f"    {ratio} updates per step: {rate:6.0f} steps/s at most, with {rate * worker / 1e6:5.1f} workers",
                    flush=True,
                )


if __name__ == "__main__":
    main()
