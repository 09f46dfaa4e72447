"""The actors of SB3's off-policy algorithms in workers: a copy of the network, and its exploration."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn

from sb3_hrl.common.networks import NetworkCopy, NumpyNetwork, mlp_layers, weights_vector
from sb3_hrl.parallel.noise import EnvNoise


class _FlatActor(nn.Module):
    """Any actor of SB3 as a function of flat observations; a Gaussian returns its mean and log std in one row."""

    def __init__(self, actor: BasePolicy):
        super().__init__()
        # A shallow copy without what workers do not need. The distribution of the last update cannot be copied
        actor = copy.copy(actor)
        actor.action_dist = actor.optimizer = None  # type: ignore[assignment]
        self.actor = actor
        space = actor.observation_space
        self._keys = tuple(space.spaces) if isinstance(space, spaces.Dict) else None
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else (space,)
        self._shapes = [tuple(part.shape or ()) for part in parts]

    def forward(self, x: th.Tensor) -> th.Tensor:
        sizes = [int(np.prod(shape)) for shape in self._shapes]
        parts = [part.reshape(-1, *shape) for part, shape in zip(x.split(sizes, dim=1), self._shapes, strict=True)]
        obs: Any = parts[0] if self._keys is None else dict(zip(self._keys, parts, strict=True))
        if not _is_gaussian(self.actor):
            return self.actor(obs)
        mean, log_std, _ = self.actor.get_action_dist_params(obs)  # type: ignore[operator]
        return th.cat((mean, log_std), dim=1)


def _is_gaussian(actor: BasePolicy) -> bool:
    """:return: whether actions are sampled from a squashed Gaussian (SAC, TQC, CrossQ)"""
    return hasattr(actor, "get_action_dist_params")


def _sees_flat_vectors(actor: BasePolicy) -> bool:
    """:return: whether its first layer gets the observation's values as they are, one after the other"""
    space, extractor = actor.observation_space, actor.features_extractor
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.values())
        is_flat = type(extractor) is CombinedExtractor and all(
            isinstance(part, nn.Flatten) for part in extractor.extractors.values()
        )
    else:
        parts, is_flat = [space], type(extractor) is FlattenExtractor
    return is_flat and all(isinstance(part, spaces.Box) and not is_image_space(part) for part in parts)


def _networks(actor: BasePolicy) -> dict[str, nn.Module]:
    """:return: networks of the actor by name, which have the same weights: perceptrons if possible, else the actor itself"""
    networks: dict[str, nn.Module] = {}
    if _sees_flat_vectors(actor) and not _is_gaussian(actor):
        networks = {"mean": actor.mu}  # type: ignore[dict-item]
    elif _sees_flat_vectors(actor):
        # Sequential, as in a perceptron
        heads = {name: nn.Sequential(getattr(actor, layer)) for name, layer in (("mean", "mu"), ("log_std", "log_std"))}
        networks = {"latent": actor.latent_pi, **heads}  # type: ignore[dict-item]
    is_known = len(networks) > 0 and all(mlp_layers(network) is not None for network in networks.values())
    return networks if is_known else {"actor": _FlatActor(actor)}


class ActorSnapshot:
    """
    A copy of an actor for workers: it is pickled once for a worker, and its weights are then sent as a flat vector. A
    perceptron runs in NumPy, any other network in torch.

    :param actor: the learner's actor (of DDPG, TD3, SAC, TQC or CrossQ)
    :param keys: keys of the observation in the order of the workers' inputs; ``None``: it is an array
    """

    def __init__(self, actor: BasePolicy, keys: Sequence[str] | None):
        networks = _networks(actor)
        self._copies = {name: NetworkCopy(network) for name, network in networks.items()}
        self._is_gaussian = _is_gaussian(actor)
        # Networks get the parts of a Dict in the order of the space
        names = list(actor.observation_space.spaces) if isinstance(actor.observation_space, spaces.Dict) else None
        self._order = [list(keys).index(name) for name in names] if names is not None and keys is not None else [0]
        self.n_weights = sum(network.n_weights for network in self._copies.values())

    @staticmethod
    def write(actor: BasePolicy, vector: np.ndarray) -> None:
        """
        :param actor: the learner's actor
        :param vector: float32 array that its weights are written to, shape (n_weights,)
        """
        start = 0
        for network in _networks(actor).values():
            weights = weights_vector(network)
            vector[start : start + len(weights)] = weights.cpu().numpy()
            start += len(weights)

    def bind(self, vector: np.ndarray) -> "NumpyActor":
        """
        :param vector: weights, shape (n_weights,); not copied
        :return: the actor; call its ``refresh`` after the vector has changed
        """
        networks, start = {}, 0
        for name, network in self._copies.items():
            networks[name] = network.bind(vector[start : start + network.n_weights])
            start += network.n_weights
        return NumpyActor(networks, self._is_gaussian, self._order)


class NumpyActor:
    """
    An actor as a function of arrays.

    :param networks: ``mean``; for a Gaussian ``latent``, ``mean`` and ``log_std``; or ``actor``, all in one
    :param is_gaussian: whether actions are sampled
    :param order: positions of the inputs in the network's input
    """

    def __init__(self, networks: dict[str, NumpyNetwork], is_gaussian: bool, order: Sequence[int]):
        self._networks, self._is_gaussian, self._order = networks, is_gaussian, order

    def refresh(self) -> None:
        """Load new weights from the vector that the actor is bound to."""
        for network in self._networks.values():
            network.refresh()

    def act(self, inputs: Sequence[np.ndarray], rng: np.random.Generator, noise_scale: np.ndarray) -> np.ndarray:
        """
        :param inputs: see :meth:`Agent.act`
        :param rng: random number generator
        :param noise_scale: factor of a Gaussian's standard deviation, float32, shape (n, 1)
        :return: actions scaled to [-1, 1], shape (n, action_dim)
        """
        # Images come as uint8; the network scales them
        parts = [inputs[i] for i in self._order]
        x = np.asarray(parts[0], dtype=np.float32) if len(parts) == 1 else np.concatenate(parts, axis=1)
        if not self._is_gaussian:
            return (self._networks.get("mean") or self._networks["actor"])(x)
        if "actor" in self._networks:
            mean, log_std = np.split(self._networks["actor"](x), 2, axis=1)
        else:
            latent = self._networks["latent"](x)
            mean, log_std = self._networks["mean"](latent), self._networks["log_std"](latent)
        std = np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)) * noise_scale
        return np.tanh(mean + std * rng.standard_normal(mean.shape, dtype=np.float32))


class ActorAgent:
    """
    An actor with exploration for workers, see :class:`~sb3_hrl.parallel.worker.Agent`.

    :param snapshot: a copy of the learner's actor
    :param action_dim: length of an action
    :param action_noise: noise on the actions; each environment gets a copy
    """

    def __init__(self, snapshot: ActorSnapshot, action_dim: int, action_noise: ActionNoise | None = None):
        self._snapshot, self._action_dim, self._action_noise = snapshot, action_dim, action_noise
        self.n_weights = snapshot.n_weights

    def start(self, n_envs: int, weights: np.ndarray, rng: np.random.Generator, noise_scale: np.ndarray) -> None:
        """See :meth:`Agent.start`."""
        self._actor, self._rng = self._snapshot.bind(weights), rng
        self._noise_scale = noise_scale.reshape(n_envs, 1).astype(np.float32)
        self._noise = EnvNoise(self._action_noise, n_envs, rng)

    def refresh(self) -> None:
        """See :meth:`Agent.refresh`."""
        self._actor.refresh()

    def act(self, inputs: Sequence[np.ndarray], is_warm_up: bool) -> np.ndarray:
        """See :meth:`Agent.act`."""
        if is_warm_up:
            uniform = self._rng.random((len(inputs[0]), self._action_dim), dtype=np.float32)
            actions = 2.0 * uniform - np.float32(1.0)
        else:
            actions = self._actor.act(inputs, self._rng, self._noise_scale)
        # As in SB3, also on random actions
        noise = self._noise.draw()
        return actions if noise is None else np.clip(actions + self._noise_scale * noise, np.float32(-1.0), np.float32(1.0))

    def fields(self) -> dict[str, np.ndarray]:
        """See :meth:`Agent.fields`."""
        return {}

    def step(self, next_inputs: Sequence[np.ndarray], dones: Sequence[bool]) -> None:
        """See :meth:`Agent.step`."""
        self._noise.reset(dones)

    def statistics(self) -> list[float]:
        """See :meth:`Agent.statistics`."""
        return []
