"""
From the learner's policy to what acts: its own process looks at the weights where they are, workers have a copy of them in a
flat vector.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch as th

from sb3_hrl.common.networks import NetworkCopy, TracedNetwork, live_network
from sb3_hrl.hddpg.acting import LANDMARK_ARRAYS, ActingOptions, ActingPolicy

if TYPE_CHECKING:
    from sb3_hrl.hddpg.policies import HierarchicalPolicy


def acting_networks(policy: "HierarchicalPolicy") -> dict[str, TracedNetwork]:
    """
    :param policy: a policy
    :return: the networks that it acts with, by the names of :class:`ActingPolicy`
    """
    low_actor, low_critics = policy.low.networks
    high_actor, high_critics = policy.high.networks
    networks = {"low_actor": low_actor, "high_actor": high_actor, "high_critic": high_critics[0]}
    if policy.landmarks is not None or policy.direct_goal_steps > 0.0:
        networks |= {f"low_critic_{i}": critic for i, critic in enumerate(low_critics)}
    return networks


def acting_tensors(policy: "HierarchicalPolicy") -> dict[str, th.Tensor]:
    """
    :param policy: a policy
    :return: all else that it acts with and that changes, by the names of :class:`ActingPolicy`
    """
    tensors = {
        "input_shift": policy.input_shift,
        "input_scale": policy.input_scale,
        "low": policy.subgoal_low,
        "high": policy.subgoal_high,
        "radius": policy.subgoal_radius,
        "threshold": policy.subgoal_threshold,
    }
    if policy.landmarks is not None:
        tensors |= {name: getattr(policy, name) for name in LANDMARK_ARRAYS}
    return tensors


def acting_options(policy: "HierarchicalPolicy") -> ActingOptions:
    """
    :param policy: a policy
    :return: its options
    """
    return ActingOptions(
        rules=policy.rules,
        relative_subgoals=policy.relative_subgoals,
        avoid_reached_subgoals=policy.avoid_reached_subgoals,
        avoid_missed_subgoals=policy.avoid_missed_subgoals,
        binary_goals=policy.binary_goals,
        candidates=policy.candidates.cpu().numpy(),
        subgoal_source=policy.subgoal_source,
        select_by_value=policy.select_by_value,
        direct_goal_steps=policy.direct_goal_steps,
        low_level=policy.low_level,
        low_gamma=policy.low_gamma,
        landmarks=policy.landmarks,
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
