"""Hyperparameter search: the sampler for rl_zoo3's ``-optimize``, and the conversion for ``--trial-id``."""

from typing import Any

import optuna

NET_ARCHS = {"small": [64, 64], "medium": [128, 128], "big": [256, 256]}


def sample_hddpg_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler for HDDPG hyperparameters.

    :param trial: Optuna's trial
    :param n_actions: dimension of the action space (unused: noise is scaled to [-1, 1])
    :param n_envs: number of environments; gradient steps are scaled to keep the ratio of updates to data
    :param additional_args: the zoo's information about its own replay buffers (unused)
    :return: arguments of the constructor
    """
    # The default of the class is in the middle of each range
    params: dict[str, Any] = {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.005, 0.08, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 7, 9),
        "tau": trial.suggest_float("tau", 0.005, 0.08, log=True),
        "train_freq": trial.suggest_categorical("train_freq", [1, 2, 4]),
        "gradient_steps": trial.suggest_categorical("gradient_steps", [n_envs]),
        "high_update_interval": trial.suggest_categorical("high_update_interval", [2, 5, 10, 20]),
        "hindsight_action_prob": trial.suggest_float("hindsight_action_prob", 0.0, 1.0),
        "n_sampled_goal": trial.suggest_int("n_sampled_goal", 2, 6),
        "noise_std": trial.suggest_float("noise_std", 0.0, 0.2),
        "random_action_prob": trial.suggest_float("random_action_prob", 0.0, 0.4),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
        "n_critics": trial.suggest_int("n_critics", 1, 3),
    }
    trial.set_user_attr("batch_size", 2 ** params["batch_size_pow"])
    return convert_hddpg_params(params)


def convert_hddpg_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Convert sampled parameters (``trial.params``) to arguments of the constructor.

    :param sampled_params: parameters as Optuna stores them
    :return: arguments of the constructor
    """
    params = sampled_params.copy()
    params["gamma"] = 1.0 - params.pop("one_minus_gamma")
    params["batch_size"] = 2 ** params.pop("batch_size_pow")
    params["policy_kwargs"] = {"net_arch": NET_ARCHS[params.pop("net_arch")], "n_critics": params.pop("n_critics")}
    exploration = ("noise_std", "random_action_prob")
    params["exploration_kwargs"] = {name: params.pop(name) for name in exploration}
    params["hindsight_kwargs"] = {
        "n_sampled_goal": params.pop("n_sampled_goal"),
        "action_prob": params.pop("hindsight_action_prob"),
    }
    return params
