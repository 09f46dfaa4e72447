"""
Which subgoal is issued. Each chooser is a rule that decides for some environments and leaves the others to those after it;
:data:`CHOOSERS` is their order.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sb3_hrl.common.subgoals import N_MISSED_RECENTLY
from sb3_hrl.hddpg.config import SubgoalConfig
from sb3_hrl.hddpg.inference import NumpyPolicy


class HighNoise(NamedTuple):
    """Exploration of the high level, one row per environment, in units of its action."""

    noise: np.ndarray  # (n, goal_dim), added to proposals of the actor
    is_random: np.ndarray  # (n,) whether a random action is taken instead
    actions: np.ndarray  # (n, goal_dim), these random actions, in [-1, 1]


class Situation(NamedTuple):
    """Environments that need a subgoal, one row each; arrays are float32."""

    observation: np.ndarray  # (n, obs_dim)
    achieved_goal: np.ndarray  # (n, goal_dim)
    goal: np.ndarray  # (n, goal_dim), desired
    # (n, n_missed, 2, goal_dim), starts and subgoals of recent segments that missed, infinite for others; None: no matter
    missed: np.ndarray | None
    noise: HighNoise | None = None  # without exploration there is none

    def of(self, rows: np.ndarray) -> "Situation":
        """
        :param rows: indices or booleans
        :return: some of the environments
        """
        noise = None if self.noise is None else HighNoise(*(array[rows] for array in self.noise))
        missed = None if self.missed is None else self.missed[rows]
        return Situation(self.observation[rows], self.achieved_goal[rows], self.goal[rows], missed, noise)


class SubgoalDecision(NamedTuple):
    """Subgoals, one row per environment."""

    subgoals: np.ndarray  # (n, goal_dim)
    choosers: np.ndarray  # (n,), which of CHOOSERS has chosen it

    def count(self, chooser: "Chooser") -> int:
        """
        :param chooser: one of CHOOSERS
        :return: how many subgoals it has chosen
        """
        return int((self.choosers == CHOOSERS.index(chooser)).sum())


# Decides for some environments: subgoals, shape (n, goal_dim), with rows of NaN for the others; `None` if for none of them
Chooser = Callable[[NumpyPolicy, Situation], np.ndarray | None]


def draw_high_noise(
    subgoals: SubgoalConfig, noise_std: np.ndarray, random_prob: float, goal_dim: int, rng: np.random.Generator
) -> HighNoise | None:
    """
    :param subgoals: where subgoals come from
    :param noise_std: standard deviation of Gaussian noise in each environment, shape (n, 1)
    :param random_prob: probability of a random subgoal, for each environment (HAC's and HER's exploration)
    :param goal_dim: length of a goal
    :param rng: source of randomness
    :return: exploration of the high level; ``None`` where it does not choose subgoals
    """
    if not isinstance(subgoals.source, str) or subgoals.source == "goal":
        return None
    random_prob = 1.0 if subgoals.source == "random" else random_prob
    n = len(noise_std)
    noise = noise_std * rng.standard_normal((n, goal_dim), dtype=np.float32)
    is_random, actions = np.zeros(n, dtype=bool), np.zeros((n, goal_dim), dtype=np.float32)
    if random_prob > 0.0:
        is_random = rng.random(n) < random_prob
        if is_random.any():
            actions[is_random] = 2.0 * rng.random((int(is_random.sum()), goal_dim)) - 1.0
    return HighNoise(noise, is_random, actions)


# -------------------------------------------------------------------------------------------------------- choosers


def given_subgoal(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """``source``: one point, or the goal itself (in evaluation also with ``random``)."""
    source = policy.config.subgoals.source
    if not isinstance(source, str):
        return np.broadcast_to(np.asarray(source, dtype=np.float32), situation.goal.shape)
    if source == "goal" or (source == "random" and situation.noise is None):
        return situation.goal
    return None


def random_subgoal(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """Exploration: uniformly random within the radius, and left as it is."""
    noise = situation.noise
    if noise is None or not noise.is_random.any():
        return None
    return _where(noise.is_random, policy.action_to_subgoal(noise.actions, situation.achieved_goal))


def planned_waypoint(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """``planner``: the first waypoint of a known way to the goal, or the goal itself."""
    if policy.planner is None:
        return None
    return policy.planner.waypoints(policy, situation.observation, situation.achieved_goal, situation.goal, situation.missed)


def near_goal(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """``direct_goal``: the goal itself, where the low level's value says that it is near, unless it was missed recently."""
    subgoals = policy.config.subgoals
    if subgoals.direct_goal == 0.0:
        return None
    steps = policy.steps(situation.observation[:, None], situation.achieved_goal[:, None], situation.goal)
    is_near = steps <= subgoals.direct_goal * subgoals.steps
    return _where(is_near & ~_is_futile(policy, situation, situation.goal), situation.goal)


def actor_proposal(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """The high level's actor, unless what it proposes is reached already or was missed recently."""
    proposals = any_proposal(policy, situation)
    return _where(~_is_futile(policy, situation, proposals), proposals)


def best_candidate(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """In place of a futile proposal: of fixed candidates that are not futile the one of the highest value."""
    n, (n_candidates, goal_dim) = len(situation.goal), policy.candidates.shape
    achieved = situation.achieved_goal[:, None]
    subgoals = policy.action_to_subgoal(np.broadcast_to(policy.candidates, (n, n_candidates, goal_dim)), achieved)
    # The subgoal as it is commanded: bounds may have moved it
    actions = policy.subgoal_to_action(subgoals, achieved)
    values = policy.high_values(situation.observation, situation.achieved_goal, situation.goal, actions)
    values[policy.is_reached(achieved, subgoals)] = -np.inf
    if situation.missed is not None:
        values[_is_missed(policy, subgoals, situation.missed[:, None])] = -np.inf
    rows, best = np.arange(n), values.argmax(axis=1)
    return _where(~np.isinf(values[rows, best]), subgoals[rows, best])


def any_proposal(policy: NumpyPolicy, situation: Situation) -> np.ndarray:
    """The high level's actor, whatever it proposes."""
    action = policy.propose(situation.observation, situation.achieved_goal, situation.goal)
    if situation.noise is not None:
        action = np.minimum(np.maximum(action + situation.noise.noise, -1.0), 1.0).astype(np.float32, copy=False)
    return policy.action_to_subgoal(action, situation.achieved_goal)


CHOOSERS: tuple[Chooser, ...] = (
    given_subgoal,
    random_subgoal,
    planned_waypoint,
    near_goal,
    actor_proposal,
    best_candidate,
    any_proposal,
)


def choose_subgoals(policy: NumpyPolicy, situation: Situation) -> SubgoalDecision:
    """
    :param policy: the policy
    :param situation: environments that need a subgoal
    :return: their subgoals
    """
    if not policy.config.subgoals.avoid_missed:
        situation = situation._replace(missed=None)
    n = len(situation.goal)
    subgoals, choosers, undecided = np.empty_like(situation.goal), np.empty(n, dtype=np.int64), np.arange(n)
    for number, chooser in enumerate(CHOOSERS):
        proposals = chooser(policy, situation)
        if proposals is None:
            continue
        is_decided = ~np.isnan(proposals[:, 0])
        decided = undecided[is_decided]
        subgoals[decided], choosers[decided] = proposals[is_decided], number
        if len(decided) == len(undecided):
            break
        undecided, situation = undecided[~is_decided], situation.of(~is_decided)
    return SubgoalDecision(subgoals, choosers)


def _where(is_decided: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
    """:return: subgoals, NaN where it is not decided"""
    return np.where(is_decided[:, None], subgoals, np.float32(np.nan))


def _is_futile(policy: NumpyPolicy, situation: Situation, subgoals: np.ndarray) -> np.ndarray:
    """Which subgoals are not to be issued: those reached already, and those missed recently."""
    futile = np.zeros(len(subgoals), dtype=bool)
    if policy.config.subgoals.avoid_reached:
        futile = policy.is_reached(situation.achieved_goal, subgoals)
        if futile.any():
            # At the goal itself a reached subgoal is right: it means to stay
            futile &= ~policy.is_reached(situation.achieved_goal, situation.goal)
    return futile if situation.missed is None else futile | _is_missed(policy, subgoals, situation.missed)


def _is_missed(policy: NumpyPolicy, subgoals: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """
    :param subgoals: shape (..., goal_dim)
    :param missed: starts and subgoals of recent segments that missed, shape (..., n_missed, 2, goal_dim)
    :return: whether a subgoal is near one of these, shape (...,)
    """
    recently = missed[..., -N_MISSED_RECENTLY:, 1, :]
    return np.asarray(policy.is_reached(subgoals[..., None, :], recently).any(axis=-1))
