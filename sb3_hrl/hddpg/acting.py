"""How a hierarchy acts, in NumPy: on the few observations of a step that is three times as fast as in torch."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from sb3_hrl.common.networks import NumpyNetwork
from sb3_hrl.common.subgoals import SubgoalBox, decode_subgoal, encode_subgoal, is_reached
from sb3_hrl.hddpg.landmarks import LandmarkConfig, costs_to_go, value_to_steps

# Normalised inputs are clipped to [-INPUT_CLIP, INPUT_CLIP], as in HER (appendix A, https://arxiv.org/abs/1707.01495)
INPUT_CLIP = 5.0

LANDMARK_ARRAYS = (
    "landmark_count",
    "landmark_observations",
    "landmark_achieved",
    "landmark_goals",
    "landmark_steps",
)

# For so many segments a missed subgoal is remembered by the planner, and by the actor
N_MISSED = 20
N_MISSED_ACTOR = 4


class SegmentRules(NamedTuple):
    """When a segment ends."""

    max_steps: int  # environment steps at most
    min_steps: int = 1  # before that it does not end because its subgoal is reached
    hold_steps: int = 1  # a subgoal is reached when it has been at hand for so many steps in a row


# A low level that is not learnt: observations, achieved goals and subgoals, each of shape (n, dim), to actions in [-1, 1]
LowLevel = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Landmarks(NamedTuple):
    """Visited states far from each other, and the ways between them; the first ``n_used`` entries are in use."""

    n_used: np.ndarray  # ()
    observations: np.ndarray  # (n_landmarks, n_members, obs_dim), of visited states around each one
    achieved: np.ndarray  # (n_landmarks, n_members, goal_dim), goals achieved in these
    goals: np.ndarray  # (n_landmarks, goal_dim), achieved at the landmarks themselves
    steps: np.ndarray  # (n_landmarks, n_landmarks), from each to each other one, infinite if there is no edge


class Plan(NamedTuple):
    """A decision of the high level, one row per environment."""

    subgoals: np.ndarray  # (n, goal_dim)
    distances: np.ndarray  # (n,) to them, in the units of the goal
    replaced: np.ndarray  # (n,) whether the actor's proposal was reached already or missed of late, and another was taken
    planned: np.ndarray  # (n,) whether it is a waypoint over landmarks


class ActingOptions(NamedTuple):
    """What does not change while an agent learns."""

    rules: SegmentRules
    relative_subgoals: bool
    avoid_reached_subgoals: bool
    avoid_missed_subgoals: bool
    binary_goals: bool
    candidates: np.ndarray  # (n_candidates, goal_dim), high-level actions
    subgoal_source: str | np.ndarray  # "policy", "goal", "random", or one subgoal, (goal_dim,)
    select_by_value: bool
    direct_goal_steps: float  # environment steps; 0: never
    low_level: LowLevel | None
    low_gamma: float
    landmarks: LandmarkConfig | None  # None without a planner


class ActingPolicy:
    """
    Both levels of a :class:`~sb3_hrl.hddpg.policies.HierarchicalPolicy`, as functions on float32 arrays.

    :param networks: ``low_actor``, ``high_actor`` and ``high_critic``
    :param arrays: ``input_shift``, ``input_scale``, ``low``, ``high``, ``radius`` and ``threshold``
    :param options: what does not change
    """

    def __init__(self, networks: Mapping[str, NumpyNetwork], arrays: Mapping[str, np.ndarray], options: ActingOptions):
        self._networks = networks
        self._low_actor, self._high_actor = networks["low_actor"], networks["high_actor"]
        self._high_critic = networks["high_critic"]
        self._low_critics = [network for name, network in networks.items() if name.startswith("low_critic")]
        self._landmarks = Landmarks(*(arrays[name] for name in LANDMARK_ARRAYS)) if LANDMARK_ARRAYS[0] in arrays else None
        self._shift, self._scale = arrays["input_shift"], arrays["input_scale"]
        self._box = SubgoalBox(arrays["low"], arrays["high"], arrays["radius"])
        self._threshold = arrays["threshold"]
        self.options = options

    def refresh(self) -> None:
        """The weights in the vector have changed."""
        for network in self._networks.values():
            network.refresh()

    def is_reached(self, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        """Whether subgoals are reached, see :func:`~sb3_hrl.common.subgoals.is_reached`."""
        return is_reached(achieved_goal, subgoal, self.threshold)

    @property
    def threshold(self) -> float:
        """Distance at which a subgoal counts as reached, in the units of the goal."""
        return self._threshold.item()

    def plan(
        self,
        observation: np.ndarray,
        achieved_goal: np.ndarray,
        goal: np.ndarray,
        missed: np.ndarray | None = None,
        noise_std: float | np.ndarray = 0.0,
        random_prob: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> Plan:
        """
        Choose subgoals.

        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param goal: desired goals, shape (n, goal_dim)
        :param missed: starts and subgoals of segments that missed of late, shape (n, n_missed, 2, goal_dim)
        :param noise_std: Gaussian exploration noise, in units of the high level's action; a number or shape (n, 1)
        :param random_prob: probability of a uniformly random action instead
        :param rng: source of randomness; ``None`` for no exploration
        :return: the subgoals
        """
        source, no = self.options.subgoal_source, np.zeros(len(goal), dtype=bool)
        if isinstance(source, np.ndarray):
            return self._as_plan(np.broadcast_to(source, goal.shape).copy(), achieved_goal, no, no)
        if source == "goal" or (source == "random" and rng is None):
            return self._as_plan(goal.copy(), achieved_goal, no, no)
        if not self.options.avoid_missed_subgoals:
            missed = None
        inputs = self._inputs(0, observation, achieved_goal, goal)
        action, is_random, planned = self._high_actor(inputs), no, no.copy()
        if rng is not None:
            action, is_random = explore(action, noise_std, 1.0 if source == "random" else random_prob, rng)
        subgoal = self._decode(action, achieved_goal)
        if self.options.select_by_value:
            best = self._best_candidates(inputs, achieved_goal, subgoal, missed)
            subgoal = np.where(is_random[:, None], subgoal, best)
        if self.options.direct_goal_steps > 0.0:
            is_near = self.steps_between(observation, achieved_goal, goal) <= self.options.direct_goal_steps
            subgoal = np.where((is_near & ~is_random)[:, None], goal, subgoal)
        if self._landmarks is not None and self._landmarks.n_used.item() > 0:
            for env in np.flatnonzero(~is_random):
                avoid = None if missed is None else missed[env]
                waypoint = self._waypoint(observation[env], achieved_goal[env], goal[env], avoid)
                if waypoint is not None:
                    subgoal[env], planned[env] = waypoint, True
        replaced = self._is_futile(achieved_goal, goal, subgoal, missed) & ~planned
        if replaced.any():
            avoid = None if missed is None else missed[replaced]
            subgoal[replaced] = self._best_candidates(inputs[replaced], achieved_goal[replaced], subgoal[replaced], avoid)
        return self._as_plan(subgoal, achieved_goal, replaced, planned)

    def _as_plan(self, subgoal: np.ndarray, achieved_goal: np.ndarray, replaced: np.ndarray, planned: np.ndarray) -> Plan:
        return Plan(subgoal, np.sqrt(np.square(subgoal - achieved_goal).sum(axis=1)), replaced, planned)

    def _is_futile(
        self, achieved_goal: np.ndarray, goal: np.ndarray, subgoal: np.ndarray, missed: np.ndarray | None
    ) -> np.ndarray:
        """Which subgoals are not to be issued: those reached already, and those missed of late."""
        futile = np.zeros(len(subgoal), dtype=bool)
        if self.options.avoid_reached_subgoals:
            futile = self.is_reached(achieved_goal, subgoal)
            if futile.any():
                # At the goal itself a subgoal at hand is right: it means to stay
                futile &= ~self.is_reached(achieved_goal, goal)
        return futile if missed is None else futile | self._is_missed(subgoal, missed)

    def _is_missed(self, subgoal: np.ndarray, missed: np.ndarray) -> np.ndarray:
        """
        :param subgoal: shape (..., goal_dim)
        :param missed: starts and subgoals of segments that missed of late, shape (..., n_missed, 2, goal_dim)
        :return: whether a subgoal is near one of these, shape (...,)
        """
        return np.asarray(self.is_reached(subgoal[..., None, :], missed[..., -N_MISSED_ACTOR:, 1, :]).any(axis=-1))

    def act(self, observation: np.ndarray, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        """
        Let the low level act.

        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param subgoal: shape (n, goal_dim)
        :return: actions scaled to [-1, 1], shape (n, action_dim)
        """
        if self.options.low_level is not None:
            actions = np.asarray(self.options.low_level(observation, achieved_goal, subgoal), dtype=np.float32)
            return actions.reshape(len(observation), -1).clip(-1.0, 1.0)
        return self._low_actor(self._inputs(1, observation, achieved_goal, subgoal))

    def steps_between(self, observation: np.ndarray, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        """
        Environment steps that the low level takes to subgoals: by its own value (the most pessimistic critic's), or by the
        straight way at the pace that covers the radius in a segment.

        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param subgoal: shape (n, goal_dim)
        :return: steps, infinite where it does not believe that it gets there, shape (n,)
        """
        return self._steps_from_members(observation[:, None], achieved_goal[:, None], subgoal)

    def _steps_from_members(self, observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
        """
        :param observations: of the members of each start, shape (n, n_members, obs_dim)
        :param achieved: goals achieved in these, shape (n, n_members, goal_dim); the first is that of the start itself
        :param subgoals: shape (n, goal_dim)
        :return: steps, shape (n,)
        """
        landmarks = self.options.landmarks
        if landmarks is not None and landmarks.distance == "euclidean":
            pace = np.linalg.norm(self._box.radius) / self.options.rules.max_steps
            return np.asarray(np.linalg.norm(subgoals - achieved[:, 0], axis=-1) / pace)
        n, n_members, goal_dim = achieved.shape
        values = self._low_values(
            observations.reshape(n * n_members, observations.shape[2]),
            achieved.reshape(n * n_members, goal_dim),
            np.repeat(subgoals, n_members, axis=0),
        )
        return value_to_steps(values.reshape(n, n_members).mean(axis=1), self.options.low_gamma)

    def _low_values(self, observation: np.ndarray, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        inputs = self._inputs(1, observation, achieved_goal, subgoal)
        pairs = np.concatenate((inputs, self._low_actor(inputs)), axis=1)
        return np.minimum.reduce([critic(pairs)[:, 0] for critic in self._low_critics])

    def steps_from_landmarks(self, observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
        """
        Environment steps from landmarks to subgoals, by the mean of the low level's values over the landmarks' members.

        :param observations: of the members, shape (n_landmarks, n_members, obs_dim)
        :param achieved: goals achieved in these, shape (n_landmarks, n_members, goal_dim); the first is the landmark itself
        :param subgoals: shape (n_subgoals, goal_dim)
        :return: steps, infinite where there are more than the cutoff, or out of reach, shape (n_landmarks, n_subgoals)
        """
        steps = np.full((len(achieved), len(subgoals)), np.inf, dtype=np.float32)
        for i, subgoal in enumerate(subgoals):
            near = np.flatnonzero(self.is_within_reach(achieved[:, 0], subgoal))
            targets = np.broadcast_to(subgoal, (len(near), len(subgoal)))
            steps[near, i] = self._steps_from_members(observations[near], achieved[near], targets)
        return self._cut(steps)

    def _cut(self, steps: np.ndarray) -> np.ndarray:
        """:return: steps, infinite where the low level's estimate is not believed"""
        assert self.options.landmarks is not None
        cutoff = self.options.landmarks.cutoff or self.options.rules.max_steps
        return np.where(steps <= cutoff, steps, np.float32(np.inf))

    def is_within_reach(self, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        """
        :param achieved_goal: shape (..., goal_dim)
        :param subgoal: shape (..., goal_dim)
        :return: whether the high level could issue the subgoal, so that the low level knows of it, shape (...,)
        """
        if not self.options.relative_subgoals:
            return np.ones(np.broadcast_shapes(achieved_goal.shape, subgoal.shape)[:-1], dtype=bool)
        return np.asarray((np.abs(subgoal - achieved_goal) <= self._box.radius).all(axis=-1))

    def _waypoint(
        self, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, missed: np.ndarray | None
    ) -> np.ndarray | None:
        """:return: where to go first on the shortest way to the goal, shape (goal_dim,); ``None`` if no way is known"""
        landmarks = self._landmarks
        assert landmarks is not None
        n = int(landmarks.n_used.item())
        goals = landmarks.goals[:n]
        # From here to the landmarks and to the goal itself
        targets = np.concatenate([goals, goal[None]])
        near = self.is_within_reach(achieved_goal, targets)
        near[:n] &= ~self.is_reached(achieved_goal, goals)
        observations, achieved = (np.broadcast_to(array, (near.sum(), len(array))) for array in (observation, achieved_goal))
        steps = np.full(n + 1, np.inf, dtype=np.float32)
        steps[near] = self._cut(self.steps_between(observations, achieved, targets[near]))
        edges = landmarks.steps[:n, :n]
        to_goal = self.steps_from_landmarks(landmarks.observations[:n], landmarks.achieved[:n], goal[None])[:, 0]
        if missed is not None and np.isfinite(missed).any():
            # A way that was missed costs a whole segment more each time, so that one that does not exist is given up for a
            # longer one in the end (as in learning real-time A*, Korf 1990)
            cost = self.options.rules.max_steps
            from_here = self.is_reached(achieved_goal, missed[:, 0])
            from_landmarks = self.is_reached(goals[:, None], missed[:, 0]).astype(np.float32)
            to_targets = self.is_reached(targets[:, None], missed[:, 1]).astype(np.float32)
            penalties = cost * from_landmarks @ to_targets.T
            edges, to_goal = edges + penalties[:, :n], to_goal + penalties[:, n]
            steps += cost * to_targets @ from_here
            # Not at once again, even if there is no other way: then the actor decides
            steps[to_targets[:, -N_MISSED_ACTOR:] @ from_here[-N_MISSED_ACTOR:] > 0.0] = np.inf
        total = np.append(steps[:n] + costs_to_go(edges, to_goal), steps[n])
        # The goal itself where it is within reach, unless it was missed from here
        best = n if np.isfinite(self._cut(steps[n])) else int(total.argmin())
        return targets[best] if np.isfinite(total[best]) else None

    def _inputs(self, level: int, observation: np.ndarray, achieved_goal: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The same as the inputs that the levels learn with, ``HierarchicalPolicy.high_inputs`` and ``low_inputs``."""
        inputs = np.concatenate((observation, achieved_goal, target, target - achieved_goal), axis=1)
        inputs -= self._shift[level]
        inputs *= self._scale[level]
        np.maximum(inputs, -INPUT_CLIP, out=inputs)
        return np.minimum(inputs, INPUT_CLIP, out=inputs)

    def encode(self, subgoal: np.ndarray, achieved_goal: np.ndarray) -> np.ndarray:
        """High-level action that commands a subgoal, see :func:`~sb3_hrl.common.subgoals.encode_subgoal`."""
        return encode_subgoal(subgoal, achieved_goal, self._box, self.options.relative_subgoals)

    def _decode(self, action: np.ndarray, achieved_goal: np.ndarray) -> np.ndarray:
        subgoal = decode_subgoal(action, achieved_goal, self._box, self.options.relative_subgoals)
        return subgoal.round() if self.options.binary_goals else subgoal

    def _best_candidates(
        self, inputs: np.ndarray, achieved_goal: np.ndarray, proposed: np.ndarray, missed: np.ndarray | None
    ) -> np.ndarray:
        """Of the candidates that are not futile those of the highest value; what was proposed where there is none."""
        n, (n_candidates, goal_dim) = len(inputs), self.options.candidates.shape
        achieved = achieved_goal[:, None]
        subgoals = self._decode(np.broadcast_to(self.options.candidates, (n, n_candidates, goal_dim)), achieved)
        # The subgoal as it is commanded: bounds may have moved it
        actions = self.encode(subgoals, achieved)
        pairs = np.empty((n, n_candidates, inputs.shape[1] + goal_dim), dtype=np.float32)
        pairs[:, :, :-goal_dim], pairs[:, :, -goal_dim:] = inputs[:, None], actions
        values = self._high_critic(pairs.reshape(n * n_candidates, -1)).reshape(n, n_candidates)
        values[self.is_reached(achieved, subgoals)] = -np.inf
        if missed is not None:
            values[self._is_missed(subgoals, missed[:, None])] = -np.inf
        rows, best = np.arange(n), values.argmax(axis=1)
        return np.where(np.isinf(values[rows, best])[:, None], proposed, subgoals[rows, best])


def explore(
    action: np.ndarray, noise_std: float | np.ndarray, random_prob: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """
    Add Gaussian noise, or replace actions by uniformly random ones (HAC's and HER's exploration).

    :param action: actions in [-1, 1], shape (n, dim)
    :param noise_std: standard deviation of the noise, a number or shape (n, 1)
    :param random_prob: probability of a random action, for each row
    :param rng: source of randomness
    :return: actions in [-1, 1], shape (n, dim), and which rows are random, shape (n,)
    """
    noisy = action + noise_std * rng.standard_normal(action.shape, dtype=np.float32)
    noisy = np.minimum(np.maximum(noisy, -1.0), 1.0).astype(np.float32, copy=False)
    is_random = np.zeros(len(action), dtype=bool)
    if random_prob > 0.0:
        is_random = rng.random(len(action)) < random_prob
        if is_random.any():
            noisy[is_random] = 2.0 * rng.random((int(is_random.sum()), action.shape[1])) - 1.0
    return noisy, is_random
