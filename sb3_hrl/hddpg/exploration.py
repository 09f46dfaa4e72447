"""An agent in its training environments: segments, exploration, subgoal tests."""

from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.noise import ActionNoise

from sb3_hrl.common.step_storage import storable_steps
from sb3_hrl.hddpg.choosers import (
    Situation,
    best_candidate,
    choose_subgoals,
    draw_high_noise,
    planned_waypoint,
)
from sb3_hrl.hddpg.inference import NumpyPolicy, PolicySnapshot
from sb3_hrl.hddpg.segments import Segments, SegmentStatistics
from sb3_hrl.parallel.noise import EnvNoise

# Number of steps for which noise is sampled at once: a few numbers take as long as hundreds
_NOISE_BLOCK = 64


class Explorer:
    """
    Steps the hierarchy in several environments, with exploration according to its options.

    :param n_envs: number of environments
    :param goal_dim: length of a goal
    :param action_dim: length of an action
    :param rng: random number generator
    :param noise_scale: factor of the noise in each environment, shape (n_envs,)
    """

    def __init__(
        self,
        n_envs: int,
        goal_dim: int,
        action_dim: int,
        rng: np.random.Generator,
        noise_scale: np.ndarray | None = None,
    ):
        self.rng, self._goal_dim, self._action_dim = rng, goal_dim, action_dim
        self.segments, self.statistics = Segments(n_envs, goal_dim), SegmentStatistics()
        # Whether the environments are in a subgoal test
        self.tested = np.zeros(n_envs, dtype=bool)
        # Whether their subgoals are waypoints of the planner
        self.planned = np.zeros(n_envs, dtype=bool)
        # Predicted number of environment steps to their subgoals
        self.predicted_steps = np.full(n_envs, np.nan, dtype=np.float32)
        # Whether their segments started at the goal
        self._started_at_goal = np.zeros(n_envs, dtype=bool)
        scale = np.ones(n_envs) if noise_scale is None else noise_scale
        self._noise_scale = np.reshape(scale, (n_envs, 1)).astype(np.float32)
        self._noise_block: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def act(
        self,
        policy: NumpyPolicy,
        observation: np.ndarray,
        achieved_goal: np.ndarray,
        goal: np.ndarray,
        is_warm_up: bool,
        action_noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        Choose actions for one step of every environment; environments whose segment is over get a new subgoal first.

        :param policy: the policy
        :param observation: float32, shape (n_envs, obs_dim)
        :param achieved_goal: float32, shape (n_envs, goal_dim)
        :param goal: desired goals, float32, shape (n_envs, goal_dim)
        :param is_warm_up: whether to take uniformly random actions (and, without a planner, random subgoals)
        :param action_noise: noise that replaces the low level's own, float32, shape (n_envs, action_dim)
        :return: actions scaled to [-1, 1], shape (n_envs, action_dim)
        """
        if self.segments.needs_subgoal:
            self._start_segments(policy, observation, achieved_goal, goal, is_warm_up)
        if is_warm_up:
            uniform = self.rng.random((len(observation), self._action_dim), dtype=np.float32)
            return 2.0 * uniform - np.float32(1.0)
        greedy = policy.act(observation, achieved_goal, self.segments.subgoals)
        noise, random_envs, random_actions = self._next_noise(policy)
        if action_noise is not None:
            noise = action_noise
        noisy = np.minimum(np.maximum(greedy + noise, np.float32(-1.0)), np.float32(1.0))
        if len(random_envs) > 0:
            noisy[random_envs] = random_actions[random_envs]
        # Subgoal tests run without noise (HAC)
        return np.where(self.tested[:, None], greedy, noisy) if self.tested.any() else noisy

    def _next_noise(self, policy: NumpyPolicy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:return: Gaussian noise, the environments that take random actions instead, and random actions for all
        environments"""
        if not self._noise_block:
            low, shape = policy.config.low, (_NOISE_BLOCK, len(self._noise_scale), self._action_dim)
            std = np.float32(low.noise_std) * self._noise_scale
            noise = std * self.rng.standard_normal(shape, dtype=np.float32)
            is_random = self.rng.random(shape[:2]) < low.random_action_prob
            random_envs = [np.flatnonzero(envs) for envs in is_random]
            random_actions = 2.0 * self.rng.random(shape, dtype=np.float32) - np.float32(1.0)
            steps = list(zip(noise, random_envs, random_actions, strict=True))
            self._noise_block = [step for step in steps for _ in range(policy.config.exploration.noise_hold_steps)]
        return self._noise_block.pop()

    def _start_segments(
        self, policy: NumpyPolicy, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, is_warm_up: bool
    ) -> None:
        config, envs = policy.config, self.segments.needs_subgoal
        std = np.float32(config.high.noise_std) * self._noise_scale[envs]
        # If the actor alone decides, the first subgoals are random; otherwise the goal is the subgoal
        random_prob = 1.0 if is_warm_up and not policy.pursues_far_goals else config.high.random_action_prob
        noise = draw_high_noise(config, std, self._goal_dim, self.rng, random_prob)
        achieved = achieved_goal[envs]
        situation = Situation(observation[envs], achieved, goal[envs], self.segments.missed[envs], noise)
        decision = choose_subgoals(policy, situation)
        self.tested[envs] = False
        self.planned[envs] = decision.made_by(planned_waypoint)
        test_prob = config.exploration.subgoal_test_prob
        if test_prob > 0.0 and not is_warm_up:
            self.tested[envs] = self.rng.random(len(envs)) < test_prob
        is_reached = policy.is_reached(achieved, decision.subgoals)
        # A subgoal that is already reached tells nothing about predictions
        self.predicted_steps[envs] = np.where(is_reached, np.float32(np.nan), decision.predicted_steps)
        self._started_at_goal[envs] = policy.is_reached(achieved, goal[envs])
        self.statistics.count_started(
            self._started_at_goal[envs],
            reached_at_issue=is_reached,
            goals=(decision.subgoals == goal[envs]).all(axis=1),
            waypoints=self.planned[envs],
            replaced=decision.made_by(best_candidate),
        )
        self.segments.start(decision.subgoals, achieved, decision.max_steps)

    def step(self, policy: NumpyPolicy, next_achieved_goal: np.ndarray, dones: Sequence[bool]) -> np.ndarray:
        """
        Process the results of the actions.

        :param policy: the policy
        :param next_achieved_goal: float32, shape (n_envs, goal_dim)
        :param dones: whether the episodes ended, shape (n_envs,)
        :return: how the segments ended, each a :class:`~sb3_hrl.common.subgoals.SegmentEnd`, shape (n_envs,)
        """
        ends = policy.advance(self.segments, next_achieved_goal, dones)
        self.statistics.count_ended(self._started_at_goal, ends, self.segments.steps, self.predicted_steps)
        return ends


class WorkerAgent:
    """
    An exploring policy for workers, see :class:`~sb3_hrl.parallel.worker.Agent`.

    :param snapshot: a copy of the learner's policy for acting
    :param goal_dim: length of a goal
    :param action_dim: length of an action
    :param action_noise: noise that replaces the low level's own; each environment gets a copy
    """

    def __init__(self, snapshot: PolicySnapshot, goal_dim: int, action_dim: int, action_noise: ActionNoise | None = None):
        self._snapshot, self._goal_dim, self._action_dim = snapshot, goal_dim, action_dim
        self._action_noise = action_noise
        self.n_weights = snapshot.n_weights

    def start(self, n_envs: int, weights: np.ndarray, rng: np.random.Generator, noise_scale: np.ndarray) -> None:
        """See :meth:`Agent.start`."""
        self._policy = self._snapshot.bind(weights)
        self._explorer = Explorer(n_envs, self._goal_dim, self._action_dim, rng, noise_scale)
        self._noise = EnvNoise(self._action_noise, n_envs, rng)

    def refresh(self) -> None:
        """See :meth:`Agent.refresh`."""
        self._policy.refresh()

    def act(self, inputs: Sequence[np.ndarray], is_warm_up: bool) -> np.ndarray:
        """See :meth:`Agent.act`."""
        observation, achieved_goal, goal = inputs
        return self._explorer.act(self._policy, observation, achieved_goal, goal, is_warm_up, self._noise.draw())

    def fields(self) -> dict[str, np.ndarray]:
        """See :meth:`Agent.fields`."""
        explorer, n = self._explorer, len(self._explorer.tested)
        flags = {"tested": explorer.tested, "planned": explorer.planned}
        fields = {"subgoal": explorer.segments.subgoals, "predicted_steps": storable_steps(explorer.predicted_steps, n)}
        return fields | {name: flag[:, None] for name, flag in flags.items()}

    def step(self, next_inputs: Sequence[np.ndarray], dones: Sequence[bool]) -> np.ndarray:
        """See :meth:`Agent.step`."""
        self._noise.reset(dones)
        _, next_achieved_goal = next_inputs
        return self._explorer.step(self._policy, next_achieved_goal, dones)

    def statistics(self) -> list[float]:
        """See :meth:`Agent.statistics`."""
        return self._explorer.statistics.take()
