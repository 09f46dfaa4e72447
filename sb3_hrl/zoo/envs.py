"""The environments of gymnasium-robotics: older ids of Fetch, and environments that do not work with the installed MuJoCo."""

import importlib.metadata
import importlib.util
import multiprocessing
import re
import sys
from typing import Any, NoReturn

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from sb3_hrl.common.notices import without_notice

# Older ids of the Fetch environments, and the current ids that replace them
ALIASES = {
    f"Fetch{task}{dense}-{version}": f"Fetch{task}{dense}-v4"
    for task in ("Reach", "Push", "Slide", "PickAndPlace")
    for dense in ("", "Dense")
    for version in ("v2", "v3")
}
# Since MuJoCo 3.12, `mjtJoint.mjJNT_HINGE == np.int32(3)` is False. These environments use this comparison; mazes and Adroit
# do not. Tested with MuJoCo 3.3 to 4.0; fixed in gymnasium-robotics after 1.4.2 (its pull request 330)
BROKEN_FAMILIES = tuple(f"gymnasium_robotics.envs.{name}" for name in ("fetch", "shadow_dexterous_hand", "franka_kitchen"))

_noted = False


def is_robotics_installed() -> bool:
    """:return: whether gymnasium-robotics is installed"""
    return sys.modules.get("gymnasium_robotics") is not None or importlib.util.find_spec("gymnasium_robotics") is not None


def register_robotics() -> None:
    """
    Register the environments of gymnasium-robotics and the aliases of older Fetch environments, without the notice about
    AdroitHand that gymnasium-robotics prints when it is imported. Environments that do not work with the installed MuJoCo
    raise a clear error when they are created, instead of an ``AssertionError`` of ``mujoco_utils``.

    :raises ImportError: if gymnasium-robotics is not installed; the message says what to install
    """
    try:
        with without_notice():
            import gymnasium_robotics
    except ModuleNotFoundError as error:
        raise ImportError(
            f'This environment needs gymnasium-robotics ({error}): `pip install gymnasium-robotics "mujoco<3.12"`.'
        ) from error

    gym.register_envs(gymnasium_robotics)
    register_aliases()
    if _release("mujoco") < (3, 12) or _release("gymnasium-robotics") > (1, 4, 2):
        return
    for spec in gym.registry.values():
        entry_point = str(spec.entry_point)
        # Older ones need mujoco-py, and report that themselves
        if entry_point.startswith(BROKEN_FAMILIES) and ":MujocoPy" not in entry_point:
            spec.entry_point = "sb3_hrl.zoo.envs:refuse"


def refuse(**kwargs: Any) -> NoReturn:
    """
    Entry point of the environments that do not work with the installed MuJoCo.

    :param kwargs: arguments of the environment
    :raises RuntimeError: names the installed version, and what to install
    """
    mujoco, robotics = (importlib.metadata.version(name) for name in ("mujoco", "gymnasium-robotics"))
    raise RuntimeError(
        f"The Fetch, hand and kitchen environments of gymnasium-robotics {robotics} do not work with the installed mujoco "
        f'{mujoco} (other packages, such as ogbench, install it): run `pip install "mujoco<3.12"`.'
    )


def _release(package: str) -> tuple[int, ...]:
    """:return: the version numbers of the installed package"""
    return tuple(int(number) for number in re.findall(r"\d+", importlib.metadata.version(package))[:3])


def register_aliases() -> None:
    """
    Register the older ids in `ALIASES` as the current v4 classes, unless they already exist. With the same MuJoCo, v2 and v4
    give identical numbers at every step; v3 placed the robot wrongly (Gymnasium-Robotics, pull request 256).
    """
    for alias, env_id in ALIASES.items():
        if alias not in gym.registry:
            gym.register(
                alias,
                entry_point="sb3_hrl.zoo.envs:make_fetch",
                kwargs={"alias": alias, "env_id": env_id},
                max_episode_steps=gym.spec(env_id).max_episode_steps,
            )


def make_fetch(alias: str, env_id: str, **kwargs: Any) -> gym.Env:
    """
    Entry point of the aliases.

    :param alias: the requested id
    :param env_id: the current id that replaces it
    :param kwargs: arguments of the environment
    :return: the environment, without wrappers
    """
    global _noted
    if not _noted and multiprocessing.parent_process() is None:
        _noted = True
        print(f"sb3-hrl: {alias} is no longer in gymnasium-robotics, using {env_id} (the same task) instead")
    register_robotics()
    spec = gym.spec(env_id)
    assert spec.entry_point is not None
    create = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    env = create(**(spec.kwargs | kwargs))
    assert isinstance(env, gym.Env)
    return env
