"""What an agent does in its training environments: segments, exploration, subgoal tests."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from stable_baselines3.common.noise import ActionNoise

from sb3_hrl.hddpg.acting import ActingPolicy
from sb3_hrl.hddpg.copies import PolicyCopy
from sb3_hrl.hddpg.segments import SegmentTracker

# Noise is drawn for so many steps at once: drawing a few numbers costs as much as drawing hundreds
_NOISE_BLOCK = 64


@dataclass(frozen=True)
class ExplorationConfig:
    """
    How an agent explores.

    :param noise_std: Gaussian noise of (high, low), in units of actions scaled to [-1, 1]
    :param random_action_prob: probability of a uniformly random action of (high, low)
    :param subgoal_test_prob: share of segments that run without low-level noise
    :param noise_hold_steps: steps for which the low level's noise stays the same
    """

    noise_std: tuple[float, float]
    random_action_prob: tuple[float, float]
    subgoal_test_prob: float
    noise_hold_steps: int = 1


class Explorer:
    """
    Drives environments side by side with an exploring hierarchy.

    :param n_envs: number of environments
    :param goal_dim: length of a goal
    :param action_dim: length of an action
    :param config: how to explore
    :param rng: source of randomness
    :param noise_scale: factor of the noise of each environment, shape (n_envs,)
    """

    def __init__(
        self,
        n_envs: int,
        goal_dim: int,
        action_dim: int,
        config: ExplorationConfig,
        rng: np.random.Generator,
        noise_scale: np.ndarray | None = None,
    ):
        self.config, self.rng, self._action_dim = config, rng, action_dim
        self.tracker = SegmentTracker(n_envs, goal_dim)
        scale = np.ones((n_envs, 1), dtype=np.float32) if noise_scale is None else np.reshape(noise_scale, (n_envs, 1))
        self._noise_block: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._high_std, self._low_std = (np.float32(std) * scale.astype(np.float32) for std in config.noise_std)

    def act(
        self,
        policy: ActingPolicy,
        observation: np.ndarray,
        achieved_goal: np.ndarray,
        goal: np.ndarray,
        is_warm_up: bool,
        action_noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        Actions for one step of every environment; those whose segment is over get a new subgoal first.

        :param policy: the policy
        :param observation: float32, shape (n_envs, obs_dim)
        :param achieved_goal: float32, shape (n_envs, goal_dim)
        :param goal: desired goals, float32, shape (n_envs, goal_dim)
        :param is_warm_up: whether actions and subgoals are to be uniformly random
        :param action_noise: noise on the low level's actions in place of its own, shape (n_envs, action_dim)
        :return: actions scaled to [-1, 1], shape (n_envs, action_dim)
        """
        tracker, config = self.tracker, self.config
        if tracker.over:
            self._start_segments(policy, observation, achieved_goal, goal, is_warm_up)
        if is_warm_up:
            uniform = self.rng.random((len(observation), self._action_dim), dtype=np.float32)
            return 2.0 * uniform - np.float32(1.0)
        greedy = policy.act(observation, achieved_goal, tracker.subgoals)
        noise, random_envs, random_actions = self._next_noise()
        if action_noise is not None:
            noise = action_noise.astype(np.float32)
        noisy = np.minimum(np.maximum(greedy + noise, np.float32(-1.0)), np.float32(1.0))
        if len(random_envs) > 0:
            noisy[random_envs] = random_actions[random_envs]
        # A subgoal test is run without noise (HAC)
        return np.where(tracker.tested[:, None], greedy, noisy) if config.subgoal_test_prob > 0.0 else noisy

    def _next_noise(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:return: Gaussian noise, the environments that are to act at random instead, random actions of all of them"""
        if not self._noise_block:
            shape = (_NOISE_BLOCK, *self._low_std.shape[:1], self._action_dim)
            noise = self._low_std * self.rng.standard_normal(shape, dtype=np.float32)
            is_random = self.rng.random(shape[:2]) < self.config.random_action_prob[1]
            random_envs = [np.flatnonzero(envs) for envs in is_random]
            random_actions = 2.0 * self.rng.random(shape, dtype=np.float32) - np.float32(1.0)
            steps = list(zip(noise, random_envs, random_actions, strict=True))
            self._noise_block = [step for step in steps for _ in range(self.config.noise_hold_steps)]
        return self._noise_block.pop()

    def _start_segments(
        self, policy: ActingPolicy, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, is_warm_up: bool
    ) -> None:
        envs = self.tracker.over
        achieved = achieved_goal[envs]
        random_prob = 1.0 if is_warm_up else self.config.random_action_prob[0]
        missed = self.tracker.missed[envs]
        plan = policy.plan(observation[envs], achieved, goal[envs], missed, self._high_std[envs], random_prob, self.rng)
        tested = np.zeros(len(envs), dtype=bool)
        if self.config.subgoal_test_prob > 0.0 and not is_warm_up:
            tested = self.rng.random(len(envs)) < self.config.subgoal_test_prob
        self.tracker.start(plan, achieved, tested, policy.options.rules, policy.threshold)

    def step(self, next_achieved_goal: np.ndarray, dones: Sequence[bool]) -> np.ndarray:
        """
        Take in what the actions led to.

        :param next_achieved_goal: float32, shape (n_envs, goal_dim)
        :param dones: whether the episodes ended, shape (n_envs,)
        :return: whether the segments ended, shape (n_envs,)
        """
        return self.tracker.step(next_achieved_goal, dones)


class WorkerAgent:
    """
    An exploring policy for workers, see :class:`~sb3_hrl.parallel.worker.Agent`.

    :param policy: what it takes to act like the learner's policy
    :param config: how to explore
    :param goal_dim: length of a goal
    :param action_dim: length of an action
    :param action_noise: noise on the low level's actions in place of its own; each environment gets a copy
    """

    def __init__(
        self,
        policy: PolicyCopy,
        config: ExplorationConfig,
        goal_dim: int,
        action_dim: int,
        action_noise: ActionNoise | None = None,
    ):
        self._copy, self._config, self._goal_dim, self._action_dim = policy, config, goal_dim, action_dim
        self._action_noise = action_noise
        self.n_weights = policy.n_weights

    def start(self, n_envs: int, weights: np.ndarray, rng: np.random.Generator, noise_scale: np.ndarray) -> None:
        """See :meth:`Agent.start`."""
        self._policy = self._copy.act_with(weights)
        self._explorer = Explorer(n_envs, self._goal_dim, self._action_dim, self._config, rng, noise_scale)
        self._noises = [copy.deepcopy(self._action_noise) for _ in range(n_envs)] if self._action_noise is not None else []
        if self._noises:
            # SB3's noises draw from the global generator
            np.random.seed(int(rng.integers(2**32)))

    def refresh(self) -> None:
        """See :meth:`Agent.refresh`."""
        self._policy.refresh()

    def act(self, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, is_warm_up: bool) -> np.ndarray:
        """See :meth:`Agent.act`."""
        noise = np.stack([noise() for noise in self._noises]) if self._noises else None
        return self._explorer.act(self._policy, observation, achieved_goal, goal, is_warm_up, noise)

    def fields(self) -> dict[str, np.ndarray]:
        """See :meth:`Agent.fields`."""
        tracker = self._explorer.tracker
        return {"subgoal": tracker.subgoals, "tested": tracker.tested[:, None]}

    def step(self, next_achieved_goal: np.ndarray, dones: Sequence[bool]) -> np.ndarray:
        """See :meth:`Agent.step`."""
        for noise, done in zip(self._noises, dones, strict=False):
            if done:
                noise.reset()
        return self._explorer.step(next_achieved_goal, dones)

    def statistics(self) -> list[int]:
        """See :meth:`Agent.statistics`."""
        return self._explorer.tracker.take_statistics()
