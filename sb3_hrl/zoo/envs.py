"""The environments of gymnasium-robotics: older ids of Fetch, and environments that do not work with the installed MuJoCo."""

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
# Since MuJoCo 3.12, `mjtJoint.mjJNT_HINGE == np.int32(3)` is False. These environments use this comparison; mazes and Adroit
# do not. Tested with MuJoCo 3.3 to 4.0; fixed in gymnasium-robotics after 1.4.2 (its pull request 330)
BROKEN_FAMILIES = tuple(f"gymnasium_robotics.envs.{name}" for name in ("fetch", "shadow_dexterous_hand", "franka_kitchen"))

# Entry point of the older ids, and of today's until gymnasium-robotics is imported
MAKE_FETCH = "sb3_hrl.zoo.envs:make_fetch"

_noted = False


def is_robotics_installed() -> bool:
    """:return: whether gymnasium-robotics is installed"""
    return sys.modules.get("gymnasium_robotics") is not None or importlib.util.find_spec("gymnasium_robotics") is not None


def register_robotics() -> None:
    """
    Register the environments of gymnasium-robotics, without the notice about AdroitHand that the package prints when it is
    imported. Environments that do not work with the installed MuJoCo raise a clear error when they are created, instead of an
    ``AssertionError`` of ``mujoco_utils``.

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
    Register ``Fetch{Reach,Push,Slide,PickAndPlace}{,Dense}-{v2,v3}`` as the current v4 classes, unless the id already exists.
    With the same MuJoCo, v2 and v4 give identical numbers at every step; v3 placed the robot wrongly
    (Gymnasium-Robotics, pull request 256). gymnasium-robotics is only imported when an environment is created. Until then, v4
    is registered as well, because otherwise gymnasium says that only v2 and v3 exist.
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

    :param alias: the requested id
    :param env_id: the current id that replaces it
    :param kwargs: arguments of the environment
    :return: the environment, without wrappers
    """
    global _noted
    if alias != env_id and not _noted and multiprocessing.parent_process() is None:
        _noted = True
        print(f"sb3-hrl: {alias} is no longer in gymnasium-robotics, using {env_id} (the same task) instead")
    register_robotics()
    spec = gym.spec(env_id)
    assert spec.entry_point is not None
    create = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    env = create(**(spec.kwargs | kwargs))
    assert isinstance(env, gym.Env)
    return env
