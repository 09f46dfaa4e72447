"""The environments of gymnasium-robotics: ids of Fetch, old and new, and which of them the installed MuJoCo breaks."""

import importlib.metadata
import importlib.util
import multiprocessing
import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, NoReturn

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from sb3_hrl.common.notices import without_notice

TASKS = ("Reach", "Push", "Slide", "PickAndPlace")
# From MuJoCo 3.12 on `mjtJoint.mjJNT_HINGE == np.int32(3)` is False, which these compare; mazes and Adroit do not. Tried with
# MuJoCo 3.3 to 4.0; gymnasium-robotics mends it after 1.4.2 (its pull request 330)
BROKEN_FAMILIES = tuple(f"gymnasium_robotics.envs.{name}" for name in ("fetch", "shadow_dexterous_hand", "franka_kitchen"))

# Entry point of the older ids, and of today's until gymnasium-robotics is imported
MAKE_FETCH = "sb3_hrl.zoo.envs:make_fetch"

_noted = False


def is_robotics_installed() -> bool:
    """:return: whether gymnasium-robotics is installed"""
    return sys.modules.get("gymnasium_robotics") is not None or importlib.util.find_spec("gymnasium_robotics") is not None


def register_robotics() -> None:
    """
    Register the environments of gymnasium-robotics. Those that the installed MuJoCo breaks say so when they are made, in place
    of an ``AssertionError`` of ``mujoco_utils``; the others are what they are. The notice about AdroitHand, which the package
    prints when it is imported, is left out.

    :raises ImportError: if it is not installed, with what to install
    """
    try:
        with without_notice():
            import gymnasium_robotics
    except ModuleNotFoundError as error:
        raise ImportError(
            f'This environment needs gymnasium-robotics ({error}): `pip install gymnasium-robotics "mujoco<3.12"`.'
        ) from error

    gym.register_envs(gymnasium_robotics)
    if _release("mujoco") < (3, 12) or _release("gymnasium-robotics") > (1, 4, 2):
        return
    for spec in gym.registry.values():
        entry_point = str(spec.entry_point)
        # Older ones need mujoco-py, and say so themselves
        if entry_point.startswith(BROKEN_FAMILIES) and ":MujocoPy" not in entry_point:
            spec.entry_point = "sb3_hrl.zoo.envs:refuse"


def refuse(**kwargs: Any) -> NoReturn:
    """
    Entry point of the environments that the installed MuJoCo breaks.

    :param kwargs: arguments of the environment
    :raises RuntimeError: with the version that is installed, and what to install
    """
    mujoco, robotics = (importlib.metadata.version(name) for name in ("mujoco", "gymnasium-robotics"))
    raise RuntimeError(
        f"The Fetch, hand and kitchen environments of gymnasium-robotics {robotics} do not work with mujoco {mujoco}, which "
        'is installed (other packages, such as ogbench, bring it): `pip install "mujoco<3.12"`.'
    )


def _release(package: str) -> tuple[int, ...]:
    """:return: the numbers of the installed version"""
    return tuple(int(number) for number in re.findall(r"\d+", importlib.metadata.version(package))[:3])


def register_aliases() -> None:
    """
    Register ``Fetch{Reach,Push,Slide,PickAndPlace}{,Dense}-{v2,v3}`` as today's v4 classes, unless such an id exists. On the
    same MuJoCo, v2 and v4 gave the same numbers step by step; v3 placed the robot wrongly
    (Gymnasium-Robotics, pull request 256).
    Nothing of gymnasium-robotics is imported before an environment is made. Until it is, v4 is registered as well: gymnasium
    would say that there are v2 and v3 only.
    """
    versions = ["v2", "v3"]
    if "gymnasium_robotics" not in sys.modules:
        versions.append("v4")
        if not any(isinstance(finder, _MakeWay) for finder in sys.meta_path):
            sys.meta_path.insert(0, _MakeWay())
    for task in TASKS:
        for dense in ("", "Dense"):
            for version in versions:
                env_id = f"Fetch{task}{dense}-{version}"
                if env_id not in gym.registry:
                    gym.register(
                        env_id,
                        entry_point=MAKE_FETCH,
                        kwargs={"alias": env_id, "env_id": f"Fetch{task}{dense}-v4"},
                        max_episode_steps=50,
                    )


class _MakeWay(MetaPathFinder):
    """
    Takes our v4 out of the registry when gymnasium-robotics is about to be imported, which registers its own: gymnasium warns
    of ids that are registered twice.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "gymnasium_robotics":
            for env_id, spec in list(gym.registry.items()):
                if spec.entry_point == MAKE_FETCH and env_id == spec.kwargs["env_id"]:
                    del gym.registry[env_id]
        return None


def make_fetch(alias: str, env_id: str, **kwargs: Any) -> gym.Env:
    """
    Entry point of the aliases.

    :param alias: the id that was asked for
    :param env_id: the id that stands for it
    :param kwargs: arguments of the environment
    :return: the environment, without wrappers
    """
    global _noted
    if alias != env_id and not _noted and multiprocessing.parent_process() is None:
        _noted = True
        print(f"sb3-hrl: {alias} is no longer in gymnasium-robotics, {env_id} (the same task) takes its place")
    register_robotics()
    spec = gym.spec(env_id)
    assert spec.entry_point is not None
    create = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    env = create(**(spec.kwargs | kwargs))
    assert isinstance(env, gym.Env)
    return env
