"""Wrappers of environments."""

from typing import Any, SupportsFloat

import gymnasium as gym


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
