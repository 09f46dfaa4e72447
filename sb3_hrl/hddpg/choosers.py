"""
Choice of subgoals. Each chooser is a rule that decides for some environments, and leaves the others to the rules after it;
:data:`CHOOSERS` defines their order.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sb3_hrl.common.subgoals import N_MISSED_RECENTLY
from sb3_hrl.hddpg.config import HierarchyConfig
from sb3_hrl.hddpg.inference import NumpyPolicy


class HighNoise(NamedTuple):
    """Exploration noise of the high level, one row per environment, in units of its action."""

    noise: np.ndarray  # (n, goal_dim), added to the actor's proposals
    is_random: np.ndarray  # (n,), whether a random action replaces the proposal
    actions: np.ndarray  # (n, goal_dim), the random actions, in [-1, 1]
    places: np.ndarray  # (n,) in [0, 1), selects one of the planner's places for an agent that has lost its way


class Situation(NamedTuple):
    """Environments that need a subgoal, one row each; arrays are float32."""

    observation: np.ndarray  # (n, obs_dim)
    achieved_goal: np.ndarray  # (n, goal_dim)
    goal: np.ndarray  # (n, goal_dim), desired goal
    # (n, n_missed, 2, goal_dim), starts and subgoals of recently missed segments, infinite for unused entries; None to ignore
    # them
    missed: np.ndarray | None
    noise: HighNoise | None = None  # None without exploration
    goal_steps: np.ndarray | None = None  # (n,), environment steps to the goal, predicted by the low level's value

    def of(self, rows: np.ndarray) -> "Situation":
        """
        :param rows: indices or booleans
        :return: the situation of these environments
        """
        noise = None if self.noise is None else HighNoise(*(array[rows] for array in self.noise))
        missed = None if self.missed is None else self.missed[rows]
        goal_steps = None if self.goal_steps is None else self.goal_steps[rows]
        return Situation(self.observation[rows], self.achieved_goal[rows], self.goal[rows], missed, noise, goal_steps)


class SubgoalDecision(NamedTuple):
    """Subgoals, one row per environment."""

    subgoals: np.ndarray  # (n, goal_dim)
    choosers: np.ndarray  # (n,), index in CHOOSERS of the rule that has chosen the subgoal
    predicted_steps: np.ndarray  # (n,), steps to it, predicted by the low level's value; infinite: never, NaN: unknown
    max_steps: np.ndarray  # (n,), maximum number of environment steps of the segment

    def made_by(self, chooser: "Chooser") -> np.ndarray:
        """
        :param chooser: one of CHOOSERS
        :return: whether this rule has chosen the subgoals, shape (n,)
        """
        return np.asarray(self.choosers == CHOOSERS.index(chooser))


# Decides for some environments: subgoals, shape (n, goal_dim), with rows of NaN for the others; `None` if for none of them
Chooser = Callable[[NumpyPolicy, Situation], np.ndarray | None]


def draw_high_noise(
    config: HierarchyConfig,
    noise_std: np.ndarray,
    goal_dim: int,
    rng: np.random.Generator,
    random_prob: float,
) -> HighNoise | None:
    """
    :param config: the agent's options
    :param noise_std: standard deviation of Gaussian noise in each environment, shape (n, 1)
    :param goal_dim: length of a goal
    :param rng: random number generator
    :param random_prob: probability of a random subgoal in each environment (exploration as in HAC and HER)
    :return: exploration noise of the high level; ``None`` if it does not choose subgoals
    """
    source = config.subgoals.source
    if not isinstance(source, str) or source == "goal":
        return None
    random_prob = 1.0 if source == "random" else random_prob
    n = len(noise_std)
    noise = noise_std * rng.standard_normal((n, goal_dim), dtype=np.float32)
    is_random, actions = np.zeros(n, dtype=bool), np.zeros((n, goal_dim), dtype=np.float32)
    if random_prob > 0.0:
        is_random = rng.random(n) < random_prob
        if is_random.any():
            actions[is_random] = 2.0 * rng.random((int(is_random.sum()), goal_dim)) - 1.0
    return HighNoise(noise, is_random, actions, rng.random(n))


# -------------------------------------------------------------------------------------------------------- choosers


def given_subgoal(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """``source``: a fixed point, or the goal itself (with ``random`` also in evaluation)."""
    source = policy.config.subgoals.source
    if not isinstance(source, str):
        return np.broadcast_to(np.asarray(source, dtype=np.float32), situation.goal.shape)
    if source == "goal" or (source == "random" and situation.noise is None):
        return situation.goal
    return None


def random_subgoal(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """Exploration: uniformly random within the radius, even if the subgoal is already reached or was missed."""
    noise = situation.noise
    if noise is None or not noise.is_random.any():
        return None
    return _where(noise.is_random, policy.action_to_subgoal(noise.actions, situation.achieved_goal))


def near_goal(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """The goal itself, if the low level's value predicts that it is within the horizon, unless it was recently missed."""
    if not policy.has_values:
        return None
    assert situation.goal_steps is not None
    is_near = situation.goal_steps <= policy.horizon
    return _where(is_near & ~_is_futile(policy, situation, situation.goal), situation.goal)


def planned_waypoint(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """``planner``: the first waypoint of a known path to the goal."""
    if policy.planner is None:
        return None
    return policy.planner.waypoints(policy, situation.observation, situation.achieved_goal, situation.goal, situation.missed)


def random_place(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """Exploration with a ``planner``: a random landmark, if no path is known and the goal was recently missed."""
    noise = situation.noise
    if noise is None or not policy.pursues_far_goals:
        return None
    assert policy.planner is not None
    if not policy.planner.is_ready:
        return None
    places = policy.planner.places[(noise.places * len(policy.planner.places)).astype(np.int64)]
    return _where(_is_futile(policy, situation, situation.goal), places)


def far_goal(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """``planner``: the goal itself, if no path is known."""
    return situation.goal if policy.pursues_far_goals else None


def actor_proposal(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """The high level's actor, unless its proposal is already reached or was recently missed."""
    proposals = any_proposal(policy, situation)
    return _where(~_is_futile(policy, situation, proposals), proposals)


def best_candidate(policy: NumpyPolicy, situation: Situation) -> np.ndarray | None:
    """Replacement of a futile proposal: among fixed candidates that are not futile, the one with the highest value."""
    n, (n_candidates, goal_dim) = len(situation.goal), policy.candidates.shape
    achieved = situation.achieved_goal[:, None]
    subgoals = policy.action_to_subgoal(np.broadcast_to(policy.candidates, (n, n_candidates, goal_dim)), achieved)
    # The action of the clipped subgoal, which may differ from the candidate
    actions = policy.subgoal_to_action(subgoals, achieved)
    values = policy.high_values(situation.observation, situation.achieved_goal, situation.goal, actions)
    values[policy.is_reached(achieved, subgoals)] = -np.inf
    if situation.missed is not None:
        values[_is_missed(policy, subgoals, situation.missed[:, None])] = -np.inf
    rows, best = np.arange(n), values.argmax(axis=1)
    return _where(~np.isinf(values[rows, best]), subgoals[rows, best])


def any_proposal(policy: NumpyPolicy, situation: Situation) -> np.ndarray:
    """The high level's actor, even if its proposal is futile."""
    action = policy.propose(situation.observation, situation.achieved_goal, situation.goal)
    if situation.noise is not None:
        action = np.minimum(np.maximum(action + situation.noise.noise, -1.0), 1.0).astype(np.float32, copy=False)
    return policy.action_to_subgoal(action, situation.achieved_goal)


CHOOSERS: tuple[Chooser, ...] = (
    given_subgoal,
    random_subgoal,
    near_goal,
    planned_waypoint,
    random_place,
    far_goal,
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
    goal_steps = np.full(n, np.nan, dtype=np.float32)
    if policy.has_values:
        goal_steps = policy.steps(situation.observation[:, None], situation.achieved_goal[:, None], situation.goal)
        situation = situation._replace(goal_steps=goal_steps)
    whole = situation
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
    predicted_steps = goal_steps.copy()
    is_other = (subgoals != whole.goal).any(axis=1)
    if policy.has_values and is_other.any():
        observation, achieved_goal = whole.observation[is_other, None], whole.achieved_goal[is_other, None]
        predicted_steps[is_other] = policy.steps(observation, achieved_goal, subgoals[is_other])
    return SubgoalDecision(subgoals, choosers, predicted_steps, policy.segment_steps(predicted_steps))


def _where(is_decided: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
    """:return: the subgoals where a decision is made, NaN elsewhere"""
    return np.where(is_decided[:, None], subgoals, np.float32(np.nan))


def _is_futile(policy: NumpyPolicy, situation: Situation, subgoals: np.ndarray) -> np.ndarray:
    """Whether subgoals should not be issued, because they are already reached or were recently missed."""
    futile = np.zeros(len(subgoals), dtype=bool)
    if policy.config.subgoals.avoid_reached:
        futile = policy.is_reached(situation.achieved_goal, subgoals)
        if futile.any():
            # If the goal itself is reached, a reached subgoal is correct: it means to stay
            futile &= ~policy.is_reached(situation.achieved_goal, situation.goal)
    return futile if situation.missed is None else futile | _is_missed(policy, subgoals, situation.missed)


def _is_missed(policy: NumpyPolicy, subgoals: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """
    :param subgoals: shape (..., goal_dim)
    :param missed: starts and subgoals of recently missed segments, shape (..., n_missed, 2, goal_dim)
    :return: whether a subgoal is close to one that was missed, shape (...,)
    """
    recently = missed[..., -N_MISSED_RECENTLY:, 1, :]
    return np.asarray(policy.is_reached(subgoals[..., None, :], recently).any(axis=-1))
