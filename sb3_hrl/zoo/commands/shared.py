"""Shared parts of the commands: naming, finding and creating environments, and checks of output files."""

import argparse
import difflib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_model_path, get_wrapper_class
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl.zoo.envs import is_robotics_installed, register_robotics
from sb3_hrl.zoo.registration import ALGO, hyperparams_path

# Formats of figures
FORMATS = (".png", ".pdf", ".svg")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default values of options, except trivial ones such as None and False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if "default" in text.lower() or action.default in (None, False, []):
            return text
        if isinstance(action.default, list):
            return f"{text} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """
    :param command: name of the command
    :param description: description of the command, one or two sentences
    :return: a parser whose help shows default values
    """
    return argparse.ArgumentParser(f"python -m sb3_hrl {command}", description=description, formatter_class=HelpFormatter)


def add_env_arguments(parser: argparse.ArgumentParser, is_positional: bool = False) -> None:
    """
    :param parser: parser of a command, to which ``--env`` and ``--gym-packages`` are added
    :param is_positional: whether the environment can also be given without ``--env``
    """
    if is_positional:
        group = parser.add_mutually_exclusive_group(required=True)
        group.add_argument("env", nargs="?", default=argparse.SUPPRESS, metavar="ENV", help="environment ID")
        group.add_argument("--env", metavar="ENV", help="environment ID")
    else:
        parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("--gym-packages", nargs="+", default=[], metavar="PACKAGE", help="packages that register environments")


def add_agent_arguments(parser: argparse.ArgumentParser, algos: Sequence[str]) -> None:
    """
    :param parser: parser of a command, to which options for finding an agent are added, with the names of the zoo's ``enjoy``
    :param algos: algorithms that the command supports
    """
    parser.add_argument("--algo", default=ALGO, choices=algos, help="RL Algorithm")
    add_env_arguments(parser)
    parser.add_argument("-f", "--folder", default="logs", help="Log folder")
    parser.add_argument("--exp-id", default=0, type=int, help="Experiment ID (default: 0: latest, -1: no exp folder)")
    parser.add_argument("--load-best", action="store_true", help="Load best model instead of last model")
    parser.add_argument("--load-checkpoint", type=int, help="Load the checkpoint of this number of timesteps")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="Load last checkpoint instead of last model")


def find_agent(args: argparse.Namespace) -> tuple[Path, Path]:
    """
    :param args: command line arguments, see :func:`add_agent_arguments`
    :return: the agent's file, and the folder of its run
    :raises FileNotFoundError: if there is no such agent
    """
    choice = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
    try:
        _, model, folder = get_model_path(args.exp_id, args.folder, args.algo, EnvironmentName(args.env), *choice)
    except (AssertionError, ValueError) as error:
        raise FileNotFoundError(str(error)) from error
    print(f"Loading {model}")
    return Path(model), Path(folder)


def register_envs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """
    Register the environments of the zoo's commands, of ``--gym-packages`` and, if it is installed, of gymnasium-robotics. An
    id that is not registered is refused.

    :param parser: parser of the command
    :param args: command line arguments
    """
    # Imports panda_gym, minigrid and others if they are installed
    import rl_zoo3.import_envs  # noqa: F401

    if is_robotics_installed():
        register_robotics()
    for package in args.gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            parser.error(f"--gym-packages: {package} cannot be imported ({error}): install it, or correct its name")
    if args.env not in gym.registry:
        nearest = difflib.get_close_matches(args.env, gym.registry, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        missing = "" if is_robotics_installed() else ", or pip install gymnasium-robotics"
        parser.error(f"{args.env} is not registered{hint}: name the package that registers it (--gym-packages){missing}")


def default_hyperparameters(algo: str, env_id: str) -> dict[str, Any]:
    """
    :param algo: name of the algorithm
    :param env_id: id of the environment
    :return: hyperparameters of the environment in hddpg.yml; empty for other algorithms
    """
    if algo != ALGO:
        return {}
    known = yaml.safe_load(hyperparams_path().read_text())
    return dict(known.get(env_id, known["default"]))


def make_env(env_id: str, config: Mapping[str, Any], **kwargs: Any) -> gym.Env:
    """
    :param env_id: id of the environment
    :param config: hyperparameters
    :param kwargs: arguments of the environment, which override those of the hyperparameters
    :return: the environment as training sees it, with ``env_kwargs``, Monitor and ``env_wrapper``
    """
    spec = gym.spec(env_id)
    venv = make_vec_env(
        lambda **kwargs: spec.make(**kwargs),
        n_envs=1,
        env_kwargs={**(config.get("env_kwargs") or {}), **kwargs},
        wrapper_class=get_wrapper_class(dict(config)),
    )
    assert isinstance(venv, DummyVecEnv)
    return venv.envs[0]


def check_output(parser: argparse.ArgumentParser, option: str, path: Path, suffixes: Sequence[str]) -> None:
    """
    Refuse a file that cannot be written, before there is anything to write. Its folder is created.

    :param parser: parser of the command
    :param option: option that names the file
    :param path: the file
    :param suffixes: allowed suffixes, such as ``.png``
    """
    if path.suffix.lower() not in suffixes:
        parser.error(f"{option} must end in one of {', '.join(suffixes)}, not {path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{option}: the folder of {path} cannot be created ({error}): choose another one")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        parser.error(f"{option}: {path} cannot be written: choose a file in a folder that you can write to")
