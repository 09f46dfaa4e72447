"""Older ids of the Fetch environments, which gymnasium-robotics no longer registers."""

import multiprocessing
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

TASKS = ("Reach", "Push", "Slide", "PickAndPlace")

_noted = False


def register_aliases() -> None:
    """
    Register ``Fetch{Reach,Push,Slide,PickAndPlace}{,Dense}-{v2,v3}`` as today's v4 classes, unless such an id exists. On the
    same MuJoCo, v2 and v4 gave the same numbers step by step; v3 placed the robot wrongly
    (Gymnasium-Robotics, pull request 256).
    Nothing of gymnasium-robotics is imported before an environment is made.
    """
    for task in TASKS:
        for dense in ("", "Dense"):
            for version in ("v2", "v3"):
                env_id = f"Fetch{task}{dense}-{version}"
                if env_id not in gym.registry:
                    gym.register(
                        env_id,
                        entry_point="sb3_hrl.zoo.envs:make_fetch",
                        kwargs={"alias": env_id, "env_id": f"Fetch{task}{dense}-v4"},
                        max_episode_steps=50,
                    )


def make_fetch(alias: str, env_id: str, **kwargs: Any) -> gym.Env:
    """
    Entry point of the aliases.

    :param alias: the older id
    :param env_id: the id that stands for it
    :param kwargs: arguments of the environment
    :return: the environment, without wrappers
    """
    import gymnasium_robotics

    global _noted
    if not _noted and multiprocessing.parent_process() is None:
        _noted = True
        print(f"sb3-hrl: {alias} is no longer in gymnasium-robotics, {env_id} (the same task) takes its place")
    gym.register_envs(gymnasium_robotics)
    spec = gym.spec(env_id)
    assert spec.entry_point is not None
    create = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    env = create(**(spec.kwargs | kwargs))
    assert isinstance(env, gym.Env)
    return env
