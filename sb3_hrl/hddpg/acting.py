"""
How a hierarchy acts, in NumPy: on the few observations of a step that is three times as fast as in torch. The learner's own
process looks at the weights where they are, workers have a copy of them in a flat vector.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch as th

from sb3_hrl.common.networks import NetworkCopy, NumpyNetwork, TracedNetwork, live_network
from sb3_hrl.common.subgoals import SubgoalBox, decode_subgoal, encode_subgoal, is_reached

if TYPE_CHECKING:
    from sb3_hrl.hddpg.policies import HierarchicalPolicy

# Normalised inputs are clipped to [-INPUT_CLIP, INPUT_CLIP], as in HER (appendix A, https://arxiv.org/abs/1707.01495)
INPUT_CLIP = 5.0


class Plan(NamedTuple):
    """A decision of the high level, one row per environment."""

    subgoals: np.ndarray  # (n, goal_dim)
    replaced: np.ndarray  # (n,) whether the actor's own proposal was already reached, so that another was taken


class ActingOptions(NamedTuple):
    """What does not change while an agent learns."""

    subgoal_steps: int
    relative_subgoals: bool
    avoid_reached_subgoals: bool
    binary_goals: bool
    candidates: np.ndarray  # (n_candidates, goal_dim), high-level actions


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
        noise_std: float | np.ndarray = 0.0,
        random_prob: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> Plan:
        """
        Let the high level choose subgoals.

        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param goal: desired goals, shape (n, goal_dim)
        :param noise_std: Gaussian exploration noise, in units of the high level's action; a number or shape (n, 1)
        :param random_prob: probability of a uniformly random action instead
        :param rng: source of randomness; ``None`` for no exploration
        :return: the subgoals
        """
        inputs = self._inputs(0, observation, achieved_goal, goal)
        action = self._high_actor(inputs)
        if rng is not None:
            action = explore(action, noise_std, random_prob, rng)
        subgoal = self._decode(action, achieved_goal)
        replaced = np.zeros(len(subgoal), dtype=bool)
        if self.options.avoid_reached_subgoals:
            replaced = self.is_reached(achieved_goal, subgoal)
            if replaced.any():
                # At the goal itself a subgoal at hand is right: it means to stay
                replaced &= ~self.is_reached(achieved_goal, goal)
            if replaced.any():
                subgoal[replaced] = self._best_candidates(inputs[replaced], achieved_goal[replaced], subgoal[replaced])
        return Plan(subgoal, replaced)

    def act(self, observation: np.ndarray, achieved_goal: np.ndarray, subgoal: np.ndarray) -> np.ndarray:
        """
        Let the low level act.

        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param subgoal: shape (n, goal_dim)
        :return: actions scaled to [-1, 1], shape (n, action_dim)
        """
        return self._low_actor(self._inputs(1, observation, achieved_goal, subgoal))

    def _inputs(self, level: int, observation: np.ndarray, achieved_goal: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The same as the inputs that the levels learn with, ``HierarchicalPolicy.high_inputs`` and ``low_inputs``."""
        inputs = np.concatenate((observation, achieved_goal, target, target - achieved_goal), axis=1)
        inputs -= self._shift[level]
        inputs *= self._scale[level]
        np.maximum(inputs, -INPUT_CLIP, out=inputs)
        return np.minimum(inputs, INPUT_CLIP, out=inputs)

    def _decode(self, action: np.ndarray, achieved_goal: np.ndarray) -> np.ndarray:
        subgoal = decode_subgoal(action, achieved_goal, self._box, self.options.relative_subgoals)
        return subgoal.round() if self.options.binary_goals else subgoal

    def _best_candidates(self, inputs: np.ndarray, achieved_goal: np.ndarray, proposed: np.ndarray) -> np.ndarray:
        """Of the candidates that are not reached yet those of the highest value; what was proposed where there is none."""
        n, (n_candidates, goal_dim) = len(inputs), self.options.candidates.shape
        achieved = achieved_goal[:, None]
        subgoals = self._decode(np.broadcast_to(self.options.candidates, (n, n_candidates, goal_dim)), achieved)
        # The subgoal as it is commanded: bounds may have moved it
        actions = encode_subgoal(subgoals, achieved, self._box, self.options.relative_subgoals)
        pairs = np.empty((n, n_candidates, inputs.shape[1] + goal_dim), dtype=np.float32)
        pairs[:, :, :-goal_dim], pairs[:, :, -goal_dim:] = inputs[:, None], actions
        values = self._high_critic(pairs.reshape(n * n_candidates, -1)).reshape(n, n_candidates)
        values[self.is_reached(achieved, subgoals)] = -np.inf
        rows, best = np.arange(n), values.argmax(axis=1)
        return np.where(np.isinf(values[rows, best])[:, None], proposed, subgoals[rows, best])


def explore(action: np.ndarray, noise_std: float | np.ndarray, random_prob: float, rng: np.random.Generator) -> np.ndarray:
    """
    Add Gaussian noise, or replace actions by uniformly random ones (HAC's and HER's exploration).

    :param action: actions in [-1, 1], shape (n, dim)
    :param noise_std: standard deviation of the noise, a number or shape (n, 1)
    :param random_prob: probability of a random action, for each row
    :param rng: source of randomness
    :return: actions in [-1, 1], shape (n, dim)
    """
    noisy = action + noise_std * rng.standard_normal(action.shape, dtype=np.float32)
    noisy = np.minimum(np.maximum(noisy, -1.0), 1.0).astype(np.float32, copy=False)
    if random_prob > 0.0:
        random = rng.random(len(action)) < random_prob
        if random.any():
            noisy[random] = 2.0 * rng.random((int(random.sum()), action.shape[1])) - 1.0
    return noisy


def acting_networks(policy: "HierarchicalPolicy") -> dict[str, TracedNetwork]:
    """
    :param policy: a policy
    :return: the networks that it acts with, by the names of :class:`ActingPolicy`
    """
    low_actor, _ = policy.low.networks
    high_actor, high_critics = policy.high.networks
    return {"low_actor": low_actor, "high_actor": high_actor, "high_critic": high_critics[0]}


def acting_tensors(policy: "HierarchicalPolicy") -> dict[str, th.Tensor]:
    """
    :param policy: a policy
    :return: all else that it acts with and that changes, by the names of :class:`ActingPolicy`
    """
    return {
        "input_shift": policy.input_shift,
        "input_scale": policy.input_scale,
        "low": policy.subgoal_low,
        "high": policy.subgoal_high,
        "radius": policy.subgoal_radius,
        "threshold": policy.subgoal_threshold,
    }


def acting_options(policy: "HierarchicalPolicy") -> ActingOptions:
    """
    :param policy: a policy
    :return: its options
    """
    return ActingOptions(
        subgoal_steps=policy.subgoal_steps,
        relative_subgoals=policy.relative_subgoals,
        avoid_reached_subgoals=policy.avoid_reached_subgoals,
        binary_goals=policy.binary_goals,
        candidates=policy.candidates.cpu().numpy(),
    )


def live_acting_policy(policy: "HierarchicalPolicy") -> ActingPolicy:
    """
    :param policy: a policy
    :return: the same in NumPy, with its weights as they are at each time (on a GPU: its settings as they are now)
    """
    networks = {name: live_network(network) for name, network in acting_networks(policy).items()}
    arrays = {name: tensor.cpu().numpy() for name, tensor in acting_tensors(policy).items()}
    return ActingPolicy(networks, arrays, acting_options(policy))


class PolicyCopy:
    """
    What it takes to act elsewhere like a policy: it travels to a worker by pickle, its weights travel as a flat vector.

    :param policy: the learner's policy
    """

    def __init__(self, policy: "HierarchicalPolicy"):
        self._networks = {name: NetworkCopy(network) for name, network in acting_networks(policy).items()}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in acting_tensors(policy).items()}
        self._options = acting_options(policy)
        self._sizes = {name: network.n_weights for name, network in self._networks.items()}
        self._sizes |= {name: int(np.prod(shape)) for name, shape in self._shapes.items()}
        self.n_weights = sum(self._sizes.values())

    def _split(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        ends = np.cumsum(list(self._sizes.values())).tolist()
        return {name: vector[end - size : end] for (name, size), end in zip(self._sizes.items(), ends, strict=True)}

    def write(self, policy: "HierarchicalPolicy", vector: np.ndarray) -> None:
        """
        :param policy: the learner's policy
        :param vector: where its weights are written to, float32, shape (n_weights,)
        """
        tensors = {name: network.weights() for name, network in acting_networks(policy).items()} | acting_tensors(policy)
        for name, part in self._split(vector).items():
            part[:] = tensors[name].cpu().numpy().ravel()

    def act_with(self, vector: np.ndarray) -> ActingPolicy:
        """
        :param vector: weights, shape (n_weights,); looked at, not copied
        :return: the policy; it wants a ``refresh`` when the vector has changed
        """
        parts = self._split(vector)
        networks = {name: network.with_weights(parts[name]) for name, network in self._networks.items()}
        arrays = {name: parts[name].reshape(shape) for name, shape in self._shapes.items()}
        return ActingPolicy(networks, arrays, self._options)
