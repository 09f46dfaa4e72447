"""A level: its networks, and all equations of its update, which are the same for both levels."""

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

from sb3_hrl.common.cuda_graphs import CudaGraphs
from sb3_hrl.common.networks import mlp_layers
from sb3_hrl.common.type_aliases import TDBatch, Transitions
from sb3_hrl.hddpg.config import LevelConfig

# An entry of an action counts as at its bound (-1 or 1) from this absolute value on
AT_BOUND = 0.98
# Limit of the pre-activations of an actor's actions: tanh(5) is 0.9999, and its gradient there is 2e-4
MAX_PREACTIVATION = 5.0


class UpdateInfo(NamedTuple):
    """Metrics of an update, as tensors without a gradient (reading their values would wait for the device)."""

    actor_loss: th.Tensor
    critic_loss: th.Tensor
    q_mean: th.Tensor
    reward: th.Tensor
    action_saturation: th.Tensor  # share of entries of the actor's actions at a bound; NaN if the actor was not updated


class Level(Protocol):
    """
    The learner of a level, a ``torch.nn.Module``: the interface for the policy, the batches and the algorithm.
    :class:`DDPGLevel` implements it. To use your own class, pass it as ``policy_kwargs=dict(level_class=...)``. Its
    constructor takes the arguments of :class:`DDPGLevel`, with ``net_arch``, ``activation_fn``, ``optimizer_class`` and
    ``optimizer_kwargs`` as keywords.
    """

    config: LevelConfig
    # Dotted names of its optimizers, which `save` stores in addition to the state dict
    OPTIMIZERS: ClassVar[tuple[str, ...]]

    @property
    def acting_networks(self) -> tuple[nn.Module, list[nn.Module]]:
        """The actor, from inputs to actions in [-1, 1], and the critics, from inputs and actions to values."""

    @property
    def target_tensors(self) -> list[th.Tensor]:
        """Changing tensors that :meth:`td_targets` depends on; a process that prepares batches gets copies of them."""

    def td_targets(self, batch: Transitions) -> TDBatch:
        """
        :param batch: transitions
        :return: the batch for an update
        """

    def update(self, batch: TDBatch, n_updates: int) -> UpdateInfo:
        """
        :param batch: transitions with their targets
        :param n_updates: number of updates of the level, including this one
        :return: losses and means
        """

    def set_learning_rate(self, learning_rate: float) -> None:
        """
        :param learning_rate: new learning rate of all optimizers
        """

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: whether networks switch to training mode (batch normalisation, dropout) or to evaluation mode
        """


class DDPGLevel(TD3Policy):
    """
    DDPG (https://arxiv.org/abs/1509.02971) based on SB3's ``TD3Policy``: actor, critics, their targets and optimizers. With
    other settings it becomes TD3 (https://arxiv.org/abs/1802.09477), see :class:`~sb3_hrl.hddpg.config.LevelConfig`. Inputs
    are flat and normalised: ``actor.mu`` and ``critic.q_networks`` are called without SB3's preprocessing.

    :param input_space: space of normalised inputs
    :param action_space: space of actions in [-1, 1]
    :param lr_schedule: learning rate of both optimizers
    :param config: settings of the level
    :param kwargs: arguments of ``TD3Policy``
    """

    OPTIMIZERS = ("actor.optimizer", "critic.optimizer")

    def __init__(
        self, input_space: spaces.Box, action_space: spaces.Box, lr_schedule: Schedule, config: LevelConfig, **kwargs: Any
    ):
        self.config = config
        self._graphs = CudaGraphs()
        super().__init__(input_space, action_space, lr_schedule, n_critics=config.n_critics, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                # In-place activations save memory, which makes an update 5 % faster
                module.inplace = True

    @property
    def acting_networks(self) -> tuple[nn.Module, list[nn.Module]]:
        """See :attr:`Level.acting_networks`."""
        return self.actor.mu, list(self.critic.q_networks)

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: whether to switch to training mode (batch normalisation, dropout) or to evaluation mode
        """
        # The mode changes at every rollout. MLPs do not depend on it, and SB3's method iterates over all modules
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
        DDPG's targets, with TD3's minimum over the critics and target smoothing if enabled in the settings, and HER's target
        clipping (appendix A, https://arxiv.org/abs/1707.01495).

        :param batch: transitions
        :return: the batch for an update
        """
        inputs = (batch.next_inputs, batch.rewards, batch.discounts)
        (targets,) = self._graphs.call("td_targets", self._target_q_values, inputs, self._replaceable)
        return TDBatch(batch.inputs, batch.actions, batch.rewards, targets, batch.imitated)

    def _target_q_values(self, next_inputs: th.Tensor, rewards: th.Tensor, discounts: th.Tensor) -> tuple[th.Tensor]:
        config = self.config
        # Select action according to policy and add clipped noise
        next_actions = self.actor_target.mu(next_inputs)
        if config.target_policy_noise > 0.0:
            noise = config.target_policy_noise * th.randn_like(next_actions)
            noise = noise.clamp_(-config.target_noise_clip, config.target_noise_clip)
            next_actions = (next_actions + noise).clamp_(-1.0, 1.0)
        # y = clip(r + discount min_i Q'_i(s', pi'(s')), -1 / (1 - gamma), 0), with a discount of 0 for terminal transitions
        next_pairs = th.cat([next_inputs, next_actions], dim=1)
        next_q_values = th.cat([critic(next_pairs) for critic in self.critic_target.q_networks], dim=1)
        target_q_values = rewards + discounts * next_q_values.amin(dim=1, keepdim=True)
        return (target_q_values.clamp_(config.min_value, 0.0),)

    def update(self, batch: TDBatch, n_updates: int = 0) -> UpdateInfo:
        """
        One gradient step.

        :param batch: transitions with their targets
        :param n_updates: number of updates of the level; the actor is updated at multiples of ``policy_delay``
        :return: losses and means
        """
        # Delayed policy updates
        if n_updates % self.config.policy_delay == 0:
            name, update = "update", self._update
        else:
            name, update = "critic_update", self._critic_update
        optimizers = (self.critic.optimizer, self.actor.optimizer)
        return UpdateInfo(*self._graphs.call(name, update, batch, self._replaceable, optimizers))

    def _replaceable(self) -> list[Any]:
        """:return: what an update depends on and that may be replaced: values, and addresses of tensors"""
        optimizers = (self.critic.optimizer, self.actor.optimizer)
        options = [{**group, "params": None, "lr": None} for optimizer in optimizers for group in optimizer.param_groups]
        states = [tensor for optimizer in optimizers for state in optimizer.state.values() for tensor in state.values()]
        return [self.config, self.training, options, [tensor.data_ptr() for tensor in (*self.parameters(), *states)]]

    def _critic_update(self, *tensors: Any) -> UpdateInfo:
        batch, config = TDBatch(*tensors), self.config
        # Compute critic loss: L_Q = sum_i mean (Q_i(s, a) - y)^2
        pairs = th.cat([batch.inputs, batch.actions], dim=1)
        all_q_values = [critic(pairs) for critic in self.critic.q_networks]
        critic_loss = sum(nn.functional.mse_loss(q_values, batch.target_q_values) for q_values in all_q_values)
        assert isinstance(critic_loss, th.Tensor)

        # Optimize the critics. The actor's gradient comes later, because it uses the updated critic
        self.critic.optimizer.zero_grad()
        critic_loss.backward()
        _clip_gradients(self.critic.optimizer, config.max_grad_value)
        self.critic.optimizer.step()
        q_mean = all_q_values[-1].detach().mean()
        return UpdateInfo(-q_mean, critic_loss.detach(), q_mean, batch.rewards.mean(), th.full_like(q_mean, th.nan))

    def _update(self, *tensors: Any) -> UpdateInfo:
        batch, config, actor = TDBatch(*tensors), self.config, self.actor.mu
        info = self._critic_update(*batch)

        # Compute actor loss: L_pi = -mean Q_1(s, pi(s)) + mean e(s)^2 + action_l2 mean pi(s)^2, with the excess e of
        # pre-activations over their limit
        actions, excess = _act(actor, batch.inputs)
        q_loss = actor_loss = -self.critic.q_networks[0](th.cat([batch.inputs, actions], dim=1)).mean()
        actor_loss = actor_loss + excess.square().mean()
        if config.action_l2 > 0.0:
            actor_loss = actor_loss + config.action_l2 * actions.square().mean()

        if batch.imitated is not None and config.imitation > 0.0:
            # Imitate the planner's waypoints; the value is divided by its mean (TD3+BC, https://arxiv.org/abs/2106.06860)
            errors = batch.imitated * (actions - batch.actions).square()
            actor_loss = actor_loss / q_loss.detach().abs().clamp(min=1e-3) + config.imitation * errors.mean()

        # Optimize the actor (without computing gradients of the critic's weights, which are not used)
        self.actor.optimizer.zero_grad()
        actor_loss.backward(inputs=list(actor.parameters()))
        _clip_gradients(self.actor.optimizer, config.max_grad_value)
        self.actor.optimizer.step()

        for network, target in ((self.critic, self.critic_target), (self.actor, self.actor_target)):
            _polyak_update(list(network.parameters()), list(target.parameters()), config.tau)
        saturation = (actions.detach().abs() >= AT_BOUND).float().mean()
        return info._replace(actor_loss=q_loss.detach(), action_saturation=saturation)

    def set_learning_rate(self, learning_rate: float) -> None:
        """See :meth:`Level.set_learning_rate`."""
        update_learning_rate(self.actor.optimizer, learning_rate)
        update_learning_rate(self.critic.optimizer, learning_rate)


def log_updates(logger: Logger, name: str, infos: Sequence[UpdateInfo]) -> None:
    """
    Record means over some updates.

    :param logger: the logger
    :param name: ``high`` or ``low``
    :param infos: metrics of the updates
    """
    if len(infos) == 0:
        return
    stacked = {key: th.stack(values) for key, values in zip(UpdateInfo._fields, zip(*infos, strict=True), strict=True)}
    tensors = {key: values.mean() for key, values in stacked.items()}
    # NaN is ignored for action_saturation, which is only known for updates of the actor (`policy_delay`), but not for losses
    tensors["action_saturation"] = stacked["action_saturation"].nanmean()
    # Wait for the device only once
    means = dict(zip(tensors, th.stack(list(tensors.values())).tolist(), strict=True))
    for key, value in means.items():
        if key != "action_saturation" or math.isfinite(value):
            logger.record(f"train/{name}_{key}", value)
    if name == "low":
        # SB3's names, for the level that acts in the environment
        logger.record("train/actor_loss", means["actor_loss"])
        logger.record("train/critic_loss", means["critic_loss"])


def _act(actor: nn.Module, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    The actor's loss limits pre-activations (HER has a penalty on all of them, appendix A). Otherwise tanh may saturate in all
    states after a few updates, and an actor without a gradient stays so.

    :param actor: an actor's network
    :param inputs: its inputs
    :return: actions, and by how much their pre-activations exceed the limit: 0 for a network that does not end with tanh
    """
    if not isinstance(actor, nn.Sequential) or not isinstance(actor[-1], nn.Tanh):
        return actor(inputs), th.zeros_like(inputs)
    preactivations = actor[:-1](inputs)
    return actor[-1](preactivations), (preactivations.abs() - MAX_PREACTIVATION).clamp(min=0.0)


@th.no_grad()
def _polyak_update(parameters: list[th.Tensor], targets: list[th.Tensor], tau: float) -> None:
    """Same result as SB3's ``polyak_update``, but with two calls for all tensors instead of two calls for each."""
    th._foreach_mul_(targets, 1.0 - tau)
    th._foreach_add_(targets, parameters, alpha=tau)


def _clip_gradients(optimizer: th.optim.Optimizer, max_grad_value: float | None) -> None:
    if max_grad_value is not None:
        # Not of a network: iterating over the parameters of modules is slow
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_value_(parameters, max_grad_value)
