"""One level: its networks, and every equation of its update, the same for both levels."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_hrl.common.networks import mlp_layers
from sb3_hrl.common.type_aliases import TDBatch, Transitions
from sb3_hrl.hddpg.config import LevelConfig

# An entry of an action is at its bound, -1 or 1, from here on
AT_BOUND = 0.98


class UpdateInfo(NamedTuple):
    """What one update says about a level, as tensors without a gradient (reading them out would wait for the device)."""

    actor_loss: th.Tensor
    critic_loss: th.Tensor
    q_mean: th.Tensor
    reward: th.Tensor
    action_saturation: th.Tensor  # share of the entries of the actor's actions at a bound; NaN if it was not its turn


class Level(Protocol):
    """
    A learner of one level, a ``torch.nn.Module``: what the policy, the batches and the algorithm ask of it.
    :class:`DDPGLevel` is one; another is a class with these members, given as ``policy_kwargs=dict(level_class=...)``, whose
    constructor takes the arguments of :class:`DDPGLevel`, with ``net_arch``, ``activation_fn``, ``optimizer_class`` and
    ``optimizer_kwargs`` as keywords.
    """

    config: LevelConfig
    # Attributes that hold its optimizers, dotted: what `save` keeps beside the state dict
    OPTIMIZERS: ClassVar[tuple[str, ...]]

    @property
    def acting_networks(self) -> tuple[nn.Module, list[nn.Module]]:
        """The actor, from inputs to actions in [-1, 1], and critics, from inputs beside actions to values."""

    @property
    def target_tensors(self) -> list[th.Tensor]:
        """What :meth:`td_targets` depends on and that changes: a process that prepares batches gets copies of these."""

    def td_targets(self, batch: Transitions) -> TDBatch:
        """
        :param batch: transitions
        :return: what an update needs
        """

    def update(self, batch: TDBatch, n_updates: int) -> UpdateInfo:
        """
        :param batch: transitions with their targets
        :param n_updates: updates that the level has had, this one included
        :return: losses and means
        """

    def set_learning_rate(self, learning_rate: float) -> None:
        """
        :param learning_rate: of all optimizers from now on
        """

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: whether networks switch to training mode (batch normalisation, dropout) or to evaluation mode
        """


class DDPGLevel(TD3Policy):
    """
    DDPG (https://arxiv.org/abs/1509.02971) on SB3's ``TD3Policy``: actor, critics, their targets and optimizers. Its settings
    turn it into TD3 (https://arxiv.org/abs/1802.09477), see :class:`~sb3_hrl.hddpg.config.LevelConfig`. Inputs are flat and
    normalised: ``actor.mu`` and ``critic.q_networks`` are called without SB3's preprocessing.

    :param input_space: of normalised inputs
    :param action_space: of actions in [-1, 1]
    :param lr_schedule: learning rate of both optimizers
    :param config: settings of the level
    :param kwargs: arguments of ``TD3Policy``
    """

    OPTIMIZERS = ("actor.optimizer", "critic.optimizer")

    def __init__(
        self, input_space: spaces.Box, action_space: spaces.Box, lr_schedule: Schedule, config: LevelConfig, **kwargs: Any
    ):
        self.config = config
        super().__init__(input_space, action_space, lr_schedule, n_critics=config.n_critics, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                # The same in less memory: an update is faster by a twentieth
                module.inplace = True

    @property
    def acting_networks(self) -> tuple[nn.Module, list[nn.Module]]:
        """See :attr:`Level.acting_networks`."""
        return self.actor.mu, list(self.critic.q_networks)

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: whether to switch to training mode (batch normalisation, dropout) or to evaluation mode
        """
        # The modes alternate at every rollout. Perceptrons are the same in both, and SB3 walks through all modules
        actor, critics = self.acting_networks
        if any(mlp_layers(network) is None for network in (actor, *critics)):
            super().set_training_mode(mode)

    @property
    def target_tensors(self) -> list[th.Tensor]:
        """See :attr:`Level.target_tensors`."""
        return [*self.actor_target.parameters(), *self.critic_target.parameters()]

    @th.no_grad()
    def td_targets(self, batch: Transitions) -> TDBatch:
        """
        DDPG's targets, with the minimum of the critics and the target smoothing of TD3 if the settings ask for them, and HER's
        target clipping (appendix A, https://arxiv.org/abs/1707.01495).

        :param batch: transitions
        :return: what an update needs
        """
        config = self.config
        # Select action according to policy and add clipped noise
        next_actions = self.actor_target.mu(batch.next_inputs)
        if config.target_policy_noise > 0.0:
            noise = config.target_policy_noise * th.randn_like(next_actions)
            noise = noise.clamp_(-config.target_noise_clip, config.target_noise_clip)
            next_actions = (next_actions + noise).clamp_(-1.0, 1.0)
        # y = clip(r + discount min_i Q'_i(s', pi'(s')), -1 / (1 - gamma), 0), with a discount of 0 where nothing follows
        next_pairs = th.cat([batch.next_inputs, next_actions], dim=1)
        next_q_values = th.cat([critic(next_pairs) for critic in self.critic_target.q_networks], dim=1)
        target_q_values = batch.rewards + batch.discounts * next_q_values.amin(dim=1, keepdim=True)
        target_q_values.clamp_(config.min_value, 0.0)
        return TDBatch(batch.inputs, batch.actions, batch.rewards, target_q_values, batch.imitated)

    def update(self, batch: TDBatch, n_updates: int = 0) -> UpdateInfo:
        """
        One gradient step.

        :param batch: transitions with their targets
        :param n_updates: updates that the level has had; the actor's turn comes at multiples of ``policy_delay``
        :return: losses and means
        """
        config, actor, critics = self.config, self.actor.mu, self.critic.q_networks
        # Compute critic loss: L_Q = sum_i mean (Q_i(s, a) - y)^2
        pairs = th.cat([batch.inputs, batch.actions], dim=1)
        all_q_values = [critic(pairs) for critic in critics]
        critic_loss = sum(nn.functional.mse_loss(q_values, batch.target_q_values) for q_values in all_q_values)
        assert isinstance(critic_loss, th.Tensor)

        # Optimize the critics: their whole step comes before the actor's gradient, which is that of the critic as it is now
        self.critic.optimizer.zero_grad()
        critic_loss.backward()
        _clip_gradients(self.critic, config.max_grad_value)
        self.critic.optimizer.step()
        critic_loss, q_mean, reward = critic_loss.detach(), all_q_values[-1].detach().mean(), batch.rewards.mean()

        # Delayed policy updates
        if n_updates % config.policy_delay != 0:
            return UpdateInfo(-q_mean, critic_loss, q_mean, reward, th.full_like(q_mean, th.nan))

        # Compute actor loss: L_pi = -mean Q_1(s, pi(s)) + action_l2 mean pi(s)^2
        actions = actor(batch.inputs)
        q_loss = actor_loss = -critics[0](th.cat([batch.inputs, actions], dim=1)).mean()
        if config.action_l2 > 0.0:
            actor_loss = actor_loss + config.action_l2 * actions.square().mean()

        if batch.imitated is not None and config.imitation > 0.0:
            # The planner's waypoints, beside the value in units of its mean (TD3+BC, https://arxiv.org/abs/2106.06860)
            errors = batch.imitated * (actions - batch.actions).square()
            actor_loss = actor_loss / q_loss.detach().abs().clamp(min=1e-3) + config.imitation * errors.mean()

        # Optimize the actor (without gradients of the critic's weights, which nobody reads)
        self.actor.optimizer.zero_grad()
        actor_loss.backward(inputs=list(actor.parameters()))
        _clip_gradients(self.actor, config.max_grad_value)
        self.actor.optimizer.step()

        for network, target in ((self.critic, self.critic_target), (self.actor, self.actor_target)):
            _polyak_update(list(network.parameters()), list(target.parameters()), config.tau)
        saturation = (actions.detach().abs() >= AT_BOUND).float().mean()
        return UpdateInfo(q_loss.detach(), critic_loss, q_mean, reward, saturation)

    def set_learning_rate(self, learning_rate: float) -> None:
        """See :meth:`Level.set_learning_rate`."""
        update_learning_rate(self.actor.optimizer, learning_rate)
        update_learning_rate(self.critic.optimizer, learning_rate)


def log_updates(logger: Logger, name: str, infos: Sequence[UpdateInfo]) -> None:
    """
    Record means over some updates.

    :param logger: where to
    :param name: ``high`` or ``low``
    :param infos: what the updates said
    """
    if len(infos) == 0:
        return
    stacked = {key: th.stack(values) for key, values in zip(UpdateInfo._fields, zip(*infos, strict=True), strict=True)}
    means = {key: values.mean().item() for key, values in stacked.items()}
    # Only where the actor had its turn (`policy_delay`): a loss that is not a number has to show, this does not
    means["action_saturation"] = stacked["action_saturation"].nanmean().item()
    for key, value in means.items():
        if key != "action_saturation" or math.isfinite(value):
            logger.record(f"train/{name}_{key}", value)
    if name == "low":
        # SB3's names are those of the level that acts in the environment
        logger.record("train/actor_loss", means["actor_loss"])
        logger.record("train/critic_loss", means["critic_loss"])


@th.no_grad()
def _polyak_update(parameters: list[th.Tensor], targets: list[th.Tensor], tau: float) -> None:
    """SB3's ``polyak_update``, digit for digit, in two calls for all tensors: theirs is two for each."""
    th._foreach_mul_(targets, 1.0 - tau)
    th._foreach_add_(targets, parameters, alpha=tau)


def _clip_gradients(network: nn.Module, max_grad_value: float | None) -> None:
    if max_grad_value is not None:
        nn.utils.clip_grad_value_(network.parameters(), max_grad_value)
