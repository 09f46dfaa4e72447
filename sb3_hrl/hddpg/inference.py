"""
A hierarchical policy in NumPy. For the few observations of an environment step, NumPy is three times as fast as torch. In the
learner's process it uses views of the policy's weights; a worker gets the weights as one flat vector.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch as th
from torch import nn

from sb3_hrl.common.networks import NetworkCopy, NumpyNetwork, live_network, weights_vector
from sb3_hrl.common.spaces import flatten
from sb3_hrl.common.subgoals import SubgoalBounds, action_to_subgoal, is_reached, subgoal_to_action
from sb3_hrl.hddpg.config import HierarchyConfig
from sb3_hrl.hddpg.horizon import LEAST_EDGE, steps_allowed
from sb3_hrl.hddpg.segments import Segments

# Normalised inputs are clipped to [-INPUT_CLIP, INPUT_CLIP], as in HER (appendix A, https://arxiv.org/abs/1707.01495)
INPUT_CLIP = 5.0

# Rows of the arrays that normalise the inputs of the two levels
HIGH, LOW = 0, 1

N_CANDIDATES = 64

_PLANNER = "planner."


class HasWeights(Protocol):
    """The part of a :class:`~sb3_hrl.hddpg.policies.HierarchicalPolicy` that is needed for acting."""

    config: HierarchyConfig
    rounds_goals: bool

    def acting_networks(self) -> dict[str, nn.Module]:
        """:return: ``low_actor``, ``high_actor``, ``high_critic``, and the ``low_critic_<i>`` if their values are needed"""

    def acting_tensors(self) -> dict[str, th.Tensor]:
        """:return: arrays for normalising inputs, limits of subgoals, and the planner's arrays (``planner.<name>``)"""


def value_to_steps(values: np.ndarray, gamma: float) -> np.ndarray:
    """
    Convert values to numbers of steps, for a reward of -1 per step until the target is reached: the inverse of
    ``Q(d) = -(1 - gamma^d) / (1 - gamma)``.

    :param values: values, any shape
    :param gamma: discount factor
    :return: numbers of steps, infinite if the value means never reaching the target; same shape as ``values``
    """
    remaining = np.minimum(1.0 + (1.0 - gamma) * values, 1.0)
    steps = np.full(np.shape(values), np.inf, dtype=np.float32)
    possible = remaining > 0.0
    steps[possible] = np.log(remaining[possible]) / np.log(gamma)
    return steps


@functools.cache
def candidate_actions(goal_dim: int) -> np.ndarray:
    """
    :param goal_dim: length of a goal
    :return: fixed actions of the high level to choose from, in [-1, 1], shape (N_CANDIDATES, goal_dim); they are always the
        same, so that a deterministic policy is deterministic
    """
    generator = th.Generator().manual_seed(0)  # separate from the global one
    actions = (2.0 * th.rand(N_CANDIDATES, goal_dim, generator=generator) - 1.0).numpy()
    actions.setflags(write=False)
    return actions


class NumpyPolicy:
    """
    Both levels of a :class:`~sb3_hrl.hddpg.policies.HierarchicalPolicy` as functions on float32 arrays. Subgoals are chosen in
    :mod:`sb3_hrl.hddpg.choosers`.

    :param networks: see :meth:`HasWeights.acting_networks`
    :param arrays: see :meth:`HasWeights.acting_tensors`; not copied
    :param config: the agent's options
    :param rounds_goals: whether goals are integers
    """

    def __init__(
        self,
        networks: Mapping[str, NumpyNetwork],
        arrays: Mapping[str, np.ndarray],
        config: HierarchyConfig,
        rounds_goals: bool,
    ):
        self.config = config
        self._networks, self._rounds_goals = networks, rounds_goals
        self._low_actor, self._high_actor = networks["low_actor"], networks["high_actor"]
        self._high_critic = networks["high_critic"]
        self._low_critics = [network for name, network in networks.items() if name.startswith("low_critic")]
        self._shift, self._scale = arrays["input_shift"], arrays["input_scale"]
        self.bounds = SubgoalBounds(arrays["subgoal_low"], arrays["subgoal_high"], arrays["subgoal_radius"])
        self._threshold, self._horizon = arrays["subgoal_threshold"], arrays["horizon"]
        self.goal_weights = arrays["goal_weights"]
        self.planner = None
        if config.planner is not None:
            self.planner = config.planner.bind(
                {name.removeprefix(_PLANNER): array for name, array in arrays.items() if name.startswith(_PLANNER)}
            )
        self.candidates = candidate_actions(len(self.bounds.radius))

    def refresh(self) -> None:
        """Load new weights from the vector that the policy is bound to."""
        for network in self._networks.values():
            network.refresh()

    # ------------------------------------------------------------------- levels

    def _inputs(self, level: int, observation: np.ndarray, achieved_goal: np.ndarray, target: np.ndarray) -> np.ndarray:
        """As ``HierarchicalPolicy.high_inputs`` and ``low_inputs``, which are used for learning."""
        inputs = np.concatenate((observation, achieved_goal, target, target - achieved_goal), axis=1)
        inputs -= self._shift[level]
        inputs *= self._scale[level]
        np.maximum(inputs, -INPUT_CLIP, out=inputs)
        return np.minimum(inputs, INPUT_CLIP, out=inputs)

    def act(self, observation: np.ndarray, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        """
        Compute the low level's actions.

        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param subgoal: shape (n, goal_dim)
        :return: actions scaled to [-1, 1], shape (n, action_dim)
        """
        if self.config.low.oracle is not None:
            return flatten(self.config.low.oracle(observation, achieved_goal, subgoal), len(observation)).clip(-1.0, 1.0)
        return self._low_actor(self._inputs(LOW, observation, achieved_goal, subgoal))

    def propose(self, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """
        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param goal: desired goals, shape (n, goal_dim)
        :return: the high level's actions, in [-1, 1], shape (n, goal_dim)
        """
        return self._high_actor(self._inputs(HIGH, observation, achieved_goal, goal))

    def high_values(
        self, observation: np.ndarray, achieved_goal: np.ndarray, goal: np.ndarray, actions: np.ndarray
    ) -> np.ndarray:
        """
        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param goal: desired goals, shape (n, goal_dim)
        :param actions: several high-level actions per environment, shape (n, m, goal_dim)
        :return: values of these actions, from the (first) critic, shape (n, m)
        """
        inputs, (n, m, goal_dim) = self._inputs(HIGH, observation, achieved_goal, goal), actions.shape
        pairs = np.empty((n, m, inputs.shape[1] + goal_dim), dtype=np.float32)
        pairs[:, :, :-goal_dim], pairs[:, :, -goal_dim:] = inputs[:, None], actions
        return self._high_critic(pairs.reshape(n * m, -1)).reshape(n, m)

    # ----------------------------------------------------------------- subgoals

    @property
    def threshold(self) -> float:
        """Maximum distance at which a subgoal counts as reached, in the units of the goal."""
        return self._threshold.item()

    def is_reached(self, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        """Whether subgoals are reached, see :func:`~sb3_hrl.common.subgoals.is_reached`."""
        return is_reached(achieved_goal, subgoal, self.threshold, self.goal_weights)

    def advance(self, segments: Segments, achieved_goals: np.ndarray, episode_ends: Sequence[bool]) -> np.ndarray:
        """Process one environment step, see :meth:`~sb3_hrl.hddpg.segments.Segments.advance`."""
        # They are at most 1. Lists are faster than arrays for so few numbers, and this is done in every step
        weights = self.goal_weights.tolist()
        return segments.advance(achieved_goals, episode_ends, self.threshold, None if min(weights) == 1.0 else weights)

    def subgoal_to_action(self, subgoal: np.ndarray, achieved_goal: np.ndarray) -> np.ndarray:
        """Convert subgoals to high-level actions, see :func:`~sb3_hrl.common.subgoals.subgoal_to_action`."""
        return subgoal_to_action(subgoal, achieved_goal, self.bounds)

    def action_to_subgoal(self, action: np.ndarray, achieved_goal: np.ndarray) -> np.ndarray:
        """Convert high-level actions to subgoals, see :func:`~sb3_hrl.common.subgoals.action_to_subgoal`."""
        subgoal = action_to_subgoal(action, achieved_goal, self.bounds)
        return subgoal.round() if self._rounds_goals else subgoal

    # -------------------------------------------------------------------- steps

    @property
    def horizon(self) -> float:
        """Number of environment steps up to which predictions are trusted; ``subgoal_steps`` if that is given."""
        steps = self.config.subgoals.steps
        return self._horizon.item() if steps is None else float(steps)

    @property
    def longest_edge(self) -> float:
        """Maximum number of environment steps between two consecutive waypoints of a planner."""
        return self.horizon if self.config.subgoals.steps is not None else max(self.horizon, LEAST_EDGE)

    @property
    def has_values(self) -> bool:
        """Whether the low level's value predicts the number of steps to a subgoal."""
        return self.config.asks_values

    @property
    def pursues_far_goals(self) -> bool:
        """Whether the goal itself is the subgoal if a planner finds no path; otherwise the high level's actor decides."""
        return self.planner is not None and self.has_values

    def segment_steps(self, predicted_steps: np.ndarray) -> np.ndarray:
        """
        :param predicted_steps: predicted environment steps to the subgoals, shape (n,)
        :return: maximum number of environment steps of the segments, shape (n,)
        """
        steps = self.config.subgoals.steps
        return steps_allowed(predicted_steps, self.horizon) if steps is None else np.full(len(predicted_steps), steps)

    @property
    def pace(self) -> float:
        """See :attr:`~sb3_hrl.hddpg.planners.base.Reach.pace`."""
        return float(np.linalg.norm(self.goal_weights * self.bounds.radius) / self.horizon)

    def steps_depend_on(self) -> list[np.ndarray]:
        """:return: all arrays that :meth:`steps` depends on in addition to its arguments, not copied"""
        networks = (self._low_actor, *self._low_critics)
        return [array for network in networks for array in network.weights()] + [self._shift[LOW], self._scale[LOW]]

    def steps(self, observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
        """
        Predict the number of environment steps to subgoals, from the low level's value (the minimum of its critics).

        :param observations: observations of several states near each start, shape (n, n_members, obs_dim)
        :param achieved: achieved goals of these states, shape (n, n_members, goal_dim)
        :param subgoals: shape (n, goal_dim)
        :return: number of steps for the mean value of the members, infinite if the low level does not expect to arrive, shape
            (n,)
        """
        n, n_members, goal_dim = achieved.shape
        inputs = self._inputs(
            LOW,
            observations.reshape(n * n_members, observations.shape[2]),
            achieved.reshape(n * n_members, goal_dim),
            np.repeat(subgoals, n_members, axis=0),
        )
        pairs = np.concatenate((inputs, self._low_actor(inputs)), axis=1)
        values = np.minimum.reduce([critic(pairs)[:, 0] for critic in self._low_critics])
        return value_to_steps(values.reshape(n, n_members).mean(axis=1), self.config.low.gamma)


def live_policy(policy: HasWeights) -> NumpyPolicy:
    """
    :param policy: a policy
    :return: the same policy in NumPy, which uses its current weights
    """
    networks = {name: live_network(network) for name, network in policy.acting_networks().items()}
    arrays = {name: tensor.numpy() for name, tensor in policy.acting_tensors().items()}
    return NumpyPolicy(networks, arrays, policy.config, policy.rounds_goals)


class PolicySnapshot:
    """
    A copy of a policy for acting elsewhere: it is pickled once for a worker, and its weights are then sent as a flat vector.

    :param policy: the learner's policy
    """

    def __init__(self, policy: HasWeights):
        self._networks = {name: NetworkCopy(network) for name, network in policy.acting_networks().items()}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in policy.acting_tensors().items()}
        self.config, self._rounds_goals = policy.config.without_schedules(), policy.rounds_goals
        self._sizes = {name: network.n_weights for name, network in self._networks.items()}
        self._sizes |= {name: int(np.prod(shape)) for name, shape in self._shapes.items()}
        self.n_weights = sum(self._sizes.values())

    def _split(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        ends = np.cumsum(list(self._sizes.values())).tolist()
        return {name: vector[end - size : end] for (name, size), end in zip(self._sizes.items(), ends, strict=True)}

    def write(self, policy: HasWeights, vector: np.ndarray) -> None:
        """
        :param policy: the learner's policy
        :param vector: float32 array that its weights are written to, shape (n_weights,)
        """
        networks = {name: weights_vector(network) for name, network in policy.acting_networks().items()}
        tensors = networks | policy.acting_tensors()
        for name, part in self._split(vector).items():
            part[:] = tensors[name].cpu().numpy().ravel()

    def bind(self, vector: np.ndarray) -> NumpyPolicy:
        """
        :param vector: weights, shape (n_weights,); not copied
        :return: the policy; call its ``refresh`` after the vector has changed
        """
        parts = self._split(vector)
        networks = {name: network.bind(parts[name]) for name, network in self._networks.items()}
        arrays = {name: parts[name].reshape(shape) for name, shape in self._shapes.items()}
        return NumpyPolicy(networks, arrays, self.config, self._rounds_goals)
