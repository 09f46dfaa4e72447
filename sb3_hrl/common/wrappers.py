"""Wrappers of environments."""

from typing import Any, SupportsFloat

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor


class SuccessInfoWrapper(gym.Wrapper):
    """
    Give ``info["is_success"]``, which SB3 and rl_zoo3 log, to environments that say ``info["success"]``, as the mazes of
    gymnasium-robotics do.

    :param env: the environment
    """

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: action of the environment
        :return: what the environment returned, with ``is_success`` in its info
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        info.setdefault("is_success", bool(info.get("success", False)))
        return obs, reward, terminated, truncated, info


def add_success_info(env: gym.Env) -> gym.Env:
    """
    Wrap in :class:`SuccessInfoWrapper`, beneath a ``Monitor`` if there is one: rl_zoo3 applies an ``env_wrapper`` on top of
    it, and what Monitor is to record has to reach it.

    :param env: the environment
    :return: the environment with ``info["is_success"]``
    """
    if isinstance(env, Monitor):
        env.env = SuccessInfoWrapper(env.env)
        return env
    return SuccessInfoWrapper(env)
