"""
Search for hyperparameters with Optuna, with the search space and pruning of the zoo.

The command line does the same: ``python -m rl_zoo3.train --algo hddpg --env FetchReach-v4 -optimize`` (zoo_commands.sh).
"""

import argparse

import gymnasium as gym
import gymnasium_robotics
import optuna
from rl_zoo3.callbacks import TrialEvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.zoo.hyperparams_opt import convert_hddpg_params, sample_hddpg_params

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=2_000)
parser.add_argument("--trials", type=int, default=10)
args = parser.parse_args()

gym.register_envs(gymnasium_robotics)


def objective(trial: optuna.Trial) -> float:
    """:return: mean reward of the last evaluation; a trial that is worse than earlier trials is pruned"""
    env, eval_env = (make_vec_env("FetchReach-v4", seed=seed) for seed in (0, 1))
    params = sample_hddpg_params(trial, n_actions=env.action_space.shape[0], n_envs=1, additional_args={})
    model = HierarchicalDDPG("MultiInputPolicy", env, learning_starts=args.timesteps // 4, seed=0, **params)
    callback = TrialEvalCallback(eval_env, trial, n_eval_episodes=10, eval_freq=args.timesteps // 2)
    model.learn(args.timesteps, callback)
    if callback.is_pruned:
        raise optuna.TrialPruned
    return callback.last_mean_reward


study = optuna.create_study(
    sampler=optuna.samplers.TPESampler(n_startup_trials=5, seed=0),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    direction="maximize",
)
study.optimize(objective, n_trials=args.trials)
print(f"best mean reward {study.best_value:.1f} with HierarchicalDDPG(..., **{convert_hddpg_params(study.best_params)})")
