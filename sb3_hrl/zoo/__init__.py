"""rl_zoo3 knows ``hddpg``: registration, environments, hyperparameter search, command line."""

from sb3_hrl.zoo.registration import register

__all__ = ["register"]
