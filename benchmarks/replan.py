"""
Measures the effect of the planner's settings on a trained agent. The agent first plays for a while with exploration. Then, for
each `miss_cost`, the planner chooses new landmarks from the same experience, and the agent is evaluated without noise.

    python benchmarks/replan.py --env AntMaze_UMaze-v4 --miss-cost 0 150 500 1500
    python benchmarks/replan.py --env AntMaze_UMaze-v4 --play-in AntMaze_Medium-v4 --steps 60000 --miss-cost 0 500
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import torch as th
from rl_zoo3.utils import get_saved_hyperparams, get_wrapper_class
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_hrl import HierarchicalDDPG


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="AntMaze_UMaze-v4", help="environment in which the agent was trained")
    parser.add_argument("--play-in", help="other environment with the same spaces, to test the low level with new landmarks")
    parser.add_argument("-f", "--folder", type=Path, default=Path(__file__).parents[1] / "trained_agents")
    parser.add_argument("--steps", type=int, default=40_000, help="environment steps of experience")
    parser.add_argument("--episodes", type=int, default=240, help="evaluation episodes")
    parser.add_argument("--miss-cost", nargs="+", type=float, default=[0.0, 150.0, 500.0, 1500.0])
    args = parser.parse_args()

    th.set_num_threads(1)
    gym.register_envs(gymnasium_robotics)
    run = args.folder / "hddpg" / f"{args.env}_1"
    hyperparams, _ = get_saved_hyperparams(str(run / args.env))
    wrapper = get_wrapper_class(hyperparams)

    def make_env(n_envs: int, seed: int) -> VecEnv:
        return make_vec_env(
            args.play_in or args.env, n_envs, seed, env_kwargs=hyperparams.get("env_kwargs"), wrapper_class=wrapper
        )

    model = HierarchicalDDPG.load(run / f"{args.env}.zip", make_env(1, 0), gradient_steps=0, learning_starts=0)
    model.learn(args.steps)
    for miss_cost in args.miss_cost:
        config = model.policy.config
        model.policy.config = replace(config, planner=replace(config.planner, miss_cost=miss_cost))
        model.replay_buffer.rng = np.random.default_rng(0)
        model.policy.update_planner(model.replay_buffer)
        ends: Counter[str] = Counter()

        def count(locals_: dict, _, ends: Counter[str] = ends) -> None:
            if locals_["done"]:
                info = locals_["info"]
                ends["success" if info["is_success"] else "time" if info["TimeLimit.truncated"] else "failure"] += 1

        env = make_env(min(20, args.episodes), 991)
        evaluate_policy(model, env, n_eval_episodes=args.episodes, callback=count)
        env.close()
        rate = ends["success"] / args.episodes
        print(f"miss_cost {miss_cost:g}: success {rate:.2f}, {dict(sorted(ends.items()))}", flush=True)


if __name__ == "__main__":
    main()
