"""SB3's action noise in a worker."""

import copy
from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.noise import ActionNoise

from sb3_hrl.common.spaces import flatten


class EnvNoise:
    """
    The action noise of a few environments, each with a copy of its own.

    :param action_noise: the noise, or ``None`` for no noise
    :param n_envs: number of environments
    :param rng: random number generator that seeds it
    """

    def __init__(self, action_noise: ActionNoise | None, n_envs: int, rng: np.random.Generator):
        self._noises = [copy.deepcopy(action_noise) for _ in range(n_envs)] if action_noise is not None else []
        # SB3's noise classes use NumPy's global generator, which other code in the learner's process also uses
        self._state = np.random.RandomState(int(rng.integers(2**32))).get_state()

    def draw(self) -> np.ndarray | None:
        """:return: noise on the actions, float32, shape (n_envs, action_dim); ``None`` if there is none"""
        if not self._noises:
            return None
        others = np.random.get_state()
        np.random.set_state(self._state)
        try:
            return flatten([noise() for noise in self._noises], len(self._noises))
        finally:
            self._state = np.random.get_state()
            np.random.set_state(others)

    def reset(self, dones: Sequence[bool]) -> None:
        """
        :param dones: whether the episodes of the environments ended, shape (n_envs,)
        """
        for noise, done in zip(self._noises, dones, strict=False):
            if done:
                noise.reset()
