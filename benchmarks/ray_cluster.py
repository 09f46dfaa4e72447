"""
Measures Ray on a local cluster of two nodes: the speed of collection with two actors against two local workers (interleaved,
without gradient steps), and training on FetchReach, with a node that is lost during the run.

    OMP_NUM_THREADS=1 python benchmarks/ray_cluster.py
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from typing import Any

import ray
import torch as th
from collection import learner_rate, make_env
from ray.cluster_utils import Cluster
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hrl import HierarchicalDDPG, ParallelCollector
from sb3_hrl.parallel.ray_collector import RayCollector


class LoseNode(BaseCallback):
    """Removes a node of the cluster after a number of steps."""

    def __init__(self, cluster: Cluster, node: Any, at: int):
        super().__init__()
        self.cluster, self.node, self.at = cluster, node, at

    def _on_step(self) -> bool:
        if self.node is not None and self.num_timesteps >= self.at:
            self.cluster.remove_node(self.node)
            self.node = None
        return True


def compare(env_id: str, flush_size: int, rounds: int, seconds: float) -> None:
    """Print the speeds of collection."""
    models = {}
    for name, env_class in (("local", ParallelCollector), ("ray", RayCollector)):
        env = make_vec_env(make_env(env_id), 2, seed=0, vec_env_cls=env_class, vec_env_kwargs=dict(flush_size=flush_size))
        arguments = dict(gradient_steps=0, learning_starts=0, buffer_size=100_000, policy_kwargs=dict(net_arch=[256, 256]))
        models[name] = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, seed=0, **arguments)
        models[name].learn(2_000, log_interval=None)
    rates: dict[str, list[float]] = {name: [] for name in models}
    guesses = {name: learner_rate(model, 2.0, 1000.0) for name, model in models.items()}
    for _ in range(rounds):
        for name, model in models.items():
            rates[name].append(learner_rate(model, seconds, guesses[name]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{env_id} {name:6s} {medians[name]:8.0f} steps/s   rounds: {' '.join(f'{value:.0f}' for value in values)}")
    print(f"{env_id} ray / local: {medians['ray'] / medians['local']:.2f}", flush=True)
    for model in models.values():
        model.env.close()


def train(cluster: Cluster, seed: int, n_steps: int, lose_node: bool) -> None:
    """Train on FetchReach with the settings of hddpg.yml and actors on two nodes; one node can be lost halfway."""
    node = cluster.add_node(num_cpus=1) if lose_node else None
    env = make_vec_env(
        make_env("FetchReach-v4"),
        2,
        seed=seed,
        vec_env_cls=RayCollector,
        vec_env_kwargs=dict(flush_size=10, sync_interval=20, actor_options={"scheduling_strategy": "SPREAD"}),
    )
    model = HierarchicalDDPG(
        "MultiInputPolicy",
        env,
        learning_starts=500,
        gamma=0.95,
        tau=0.05,
        train_freq=1,
        gradient_steps=2,
        high_update_interval=1,
        subgoal_steps=10,
        subgoal_kwargs=dict(radius=0.1),
        policy_kwargs=dict(net_arch=[128, 128]),
        async_collection=True,
        seed=seed,
    )
    start = time.perf_counter()
    model.learn(n_steps, callback=LoseNode(cluster, node, at=n_steps // 2), log_interval=None)
    seconds = time.perf_counter() - start
    assert model.num_timesteps == model.replay_buffer.n_added == n_steps
    evaluation = make_vec_env(make_env("FetchReach-v4"), 1, seed=1000 + seed)
    successes: list[bool] = []
    evaluate_policy(
        model,
        evaluation,
        n_eval_episodes=100,
        callback=lambda locals_, _: successes.append(locals_["info"]["is_success"]) if locals_["done"] else None,
    )
    print(
        f"FetchReach-v4 on Ray, seed {seed}, node lost: {lose_node}: success {sum(successes) / len(successes):.2f} "
        f"after {n_steps} steps in {seconds:.0f} s, {env.n_restarts} actors replaced",
        flush=True,
    )
    env.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=3_000, help="steps of training on FetchReach")
    parser.add_argument("--env", nargs="+", default=["FetchReach-v4", "PointMaze_UMaze-v3"], help="environments to collect in")
    parser.add_argument("--flush-size", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Worker")
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2))
    cluster.add_node(num_cpus=1)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": environment})
    for env_id in args.env:
        compare(env_id, args.flush_size, args.rounds, args.seconds)
    for seed in args.seeds:
        train(cluster, seed, args.steps, lose_node=False)
    train(cluster, args.seeds[0], args.steps, lose_node=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
