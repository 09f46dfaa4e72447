"""One level: its settings, its networks, and the DDPG update that both levels share."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, polyak_update
from stable_baselines3.td3.policies import Actor, TD3Policy

from sb3_hrl.common.networks import FlatMLP, TracedNetwork, traced
from sb3_hrl.common.type_aliases import LevelSamples, TargetedSamples

REWARDS = {"high": ("sparse", "dense"), "low": ("sparse", "dense", "progress")}

# An entry of an action is at its bound, -1 or 1, from here on
AT_BOUND = 0.98


@dataclass(frozen=True)
class LevelConfig:
    """
    Settings of one level. ``HierarchicalDDPG``'s arguments set both levels, ``high_kwargs`` and ``low_kwargs`` override them.

    :param learning_rate: learning rate of actor and critic, a float, a schedule, or ``"lin_<float>"``
    :param batch_size: entries per gradient step; ``None`` for the algorithm's
    :param tau: share of the online networks that the targets take over per gradient step
    :param gamma: discount: per environment step on the low level, per segment on the high level
    :param n_sampled_goal: entries in hindsight per real one
    :param max_grad_value: gradients are clipped to [-max_grad_value, max_grad_value]; ``None`` for no clipping
    :param noise_std: Gaussian exploration noise, in units of the action scaled to [-1, 1]
    :param random_action_prob: probability of a uniformly random action in exploration
    :param n_critics: number of critics, the target takes their minimum
    :param target_policy_noise: noise on the target's actions (TD3)
    :param target_noise_clip: limit of that noise
    :param net_arch: hidden layers, ``None`` for those of ``policy_kwargs``
    :param policy_delay: critic updates per update of the actor and of the targets (TD3)
    :param action_l2: weight of the mean square of the actor's actions in its loss (HER's appendix A has 1 on Fetch)
    :param reward: ``sparse``, -1 until the target is reached; or ``dense``, minus the distance to it, at most 1 (HIRO's low
        level), in units of the subgoals' reach on the low level and of their box on the high level; or, on the low level,
        ``progress``: -1 + progress, at most 0, where 1 is the pace that covers the subgoals' reach within a segment
    :param hindsight_window: how many environment steps ahead a target in hindsight may lie; ``None``: ``subgoal_steps`` on the
        low level, the rest of the episode on the high level
    :param random_target_prob: share of the low level's batch whose subgoals are uniformly random ones, out of the share that
        is not in hindsight: of what lies behind a wall there is no hindsight
    :param trivial_target_prob: probability of learning from a step whose target in hindsight was at hand before it; below 1
        others take its place in the low level's batch. For objects that hardly ever move, of which hindsight says little else
    """

    learning_rate: float | str | Schedule
    batch_size: int | None
    tau: float
    gamma: float
    n_sampled_goal: int
    max_grad_value: float | None
    noise_std: float
    random_action_prob: float
    n_critics: int
    target_policy_noise: float
    target_noise_clip: float
    net_arch: list[int] | dict[str, list[int]] | None = None
    policy_delay: int = 1
    action_l2: float = 0.0
    reward: str = "sparse"
    hindsight_window: int | None = None
    random_target_prob: float = 0.0
    trivial_target_prob: float = 1.0

    def override(self, name: str, kwargs: Mapping[str, Any] | None) -> "LevelConfig":
        """
        :param name: ``high`` or ``low``, for error messages
        :param kwargs: settings that differ on this level
        :return: settings with these, checked
        """
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise ValueError(
                f"`{name}_kwargs` must be a mapping such as {{gamma: 0.98}} (in the zoo without quotes), not {kwargs!r}."
            )
        kwargs = dict(kwargs or {})
        known = [field.name for field in fields(self)]
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ValueError(f"Unknown keys in `{name}_kwargs`: {', '.join(unknown)}. Known keys: {', '.join(known)}.")
        config = replace(self, **kwargs)
        config._check(name)
        return config

    def _check(self, name: str) -> None:
        bounds = {
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "at least 1"),
            "tau": (0.0 < self.tau <= 1.0, "in (0, 1]"),
            "gamma": (0.0 <= self.gamma < 1.0, "in [0, 1), since targets are clipped to [-1 / (1 - gamma), 0]"),
            "n_sampled_goal": (self.n_sampled_goal >= 0, "at least 0"),
            "max_grad_value": (self.max_grad_value is None or self.max_grad_value > 0.0, "positive, or None for no clipping"),
            "noise_std": (self.noise_std >= 0.0, "at least 0"),
            "random_action_prob": (0.0 <= self.random_action_prob <= 1.0, "in [0, 1]"),
            "n_critics": (self.n_critics >= 1, "at least 1"),
            "target_policy_noise": (self.target_policy_noise >= 0.0, "at least 0"),
            "target_noise_clip": (self.target_noise_clip >= 0.0, "at least 0"),
            "policy_delay": (self.policy_delay >= 1, "at least 1"),
            "action_l2": (self.action_l2 >= 0.0, "at least 0"),
            "reward": (self.reward in REWARDS[name], f"one of {REWARDS[name]}"),
            "random_target_prob": (
                0.0 <= self.random_target_prob <= 1.0 / (max(self.n_sampled_goal, 0) + 1),
                "at least 0, and at most the share 1 / (n_sampled_goal + 1) that is not in hindsight",
            ),
            "trivial_target_prob": (0.0 <= self.trivial_target_prob <= 1.0, "in [0, 1]"),
            "hindsight_window": (self.hindsight_window is None or self.hindsight_window >= 1, "at least 1, or None"),
        }
        for key, (valid, rule) in bounds.items():
            if not valid:
                raise ValueError(f"`{key}` of the {name} level must be {rule}, not {getattr(self, key)!r}.")

    @property
    def lr_schedule(self) -> Schedule:
        """The learning rate as a function of the remaining progress; rl_zoo3's ``"lin_1e-3"`` falls linearly to 0."""
        if not isinstance(self.learning_rate, str):
            return FloatSchedule(self.learning_rate)
        kind, _, value = self.learning_rate.partition("_")
        try:
            if kind == "lin":
                return FloatSchedule(LinearSchedule(float(value), 0.0, 1.0))
            return FloatSchedule(float(self.learning_rate))
        except ValueError as error:
            raise ValueError(
                f"`learning_rate` must be a float, a schedule or a string such as 'lin_1e-3', not {self.learning_rate!r}."
            ) from error

    @property
    def min_value(self) -> float:
        """The value of never reaching the goal: -1 at every step, for ever."""
        return -1.0 / (1.0 - self.gamma)


def _networks(actor: Actor, critic: ContinuousCritic) -> tuple[TracedNetwork, list[TracedNetwork]]:
    """SB3 knows these as modules of any kind."""
    return cast(TracedNetwork, actor.mu), cast(list[TracedNetwork], critic.q_networks)


class LevelPolicy(TD3Policy):
    """
    SB3's ``TD3Policy`` for one level (actor, critics, their targets and optimizers), with networks that have a hand on their
    gradients. Inputs are flat and normalised: ``actor.mu`` and ``critic.q_networks`` are called without SB3's preprocessing.
    """

    @property
    def networks(self) -> tuple[TracedNetwork, list[TracedNetwork]]:
        """The actor's network, from inputs to actions, and the critics', from inputs beside actions to values."""
        return _networks(self.actor, self.critic)

    @property
    def target_networks(self) -> tuple[TracedNetwork, list[TracedNetwork]]:
        """The networks of the targets, as ``networks``."""
        return _networks(self.actor_target, self.critic_target)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """:return: SB3's actor, its network traced"""
        actor = super().make_actor(features_extractor)
        actor.mu = traced(actor.mu)  # type: ignore[assignment]
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """:return: SB3's critics, their networks traced"""
        critic = super().make_critic(features_extractor)
        for i, q_network in enumerate(critic.q_networks):
            critic.q_networks[i] = traced(q_network)
            # SB3 keeps critics in a plain list and registers each one by name
            setattr(critic, f"qf{i}", critic.q_networks[i])
        return critic

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: whether to switch to training mode (batch normalisation, dropout) or to evaluation mode
        """
        # The modes alternate at every rollout; perceptrons are the same in both, and walking through all modules is slow
        actor, critics = self.networks
        if not all(isinstance(network, FlatMLP) for network in (actor, *critics)):
            super().set_training_mode(mode)


class UpdateInfo(NamedTuple):
    """What one update says about a level, as tensors without a gradient (reading them out would wait for the device)."""

    actor_loss: th.Tensor
    critic_loss: th.Tensor
    q_mean: th.Tensor
    reward: th.Tensor
    action_saturation: th.Tensor  # share of the entries of the actor's actions at a bound; NaN if it was not its turn


@th.no_grad()
def with_targets(level: LevelPolicy, batch: LevelSamples, config: LevelConfig) -> TargetedSamples:
    """
    DDPG's targets (https://arxiv.org/abs/1509.02971), with the minimum of the critics and target smoothing of TD3
    (https://arxiv.org/abs/1802.09477) if the settings ask for them, and HER's target clipping.

    :param level: has the target networks
    :param batch: transitions
    :param config: settings of the level
    :return: what an update needs
    """
    actor_target, critic_targets = level.target_networks
    # y = clip(r + discount min_i Q'_i(s', pi'(s')), -1 / (1 - gamma), 0), with a discount of 0 where nothing follows
    next_actions = actor_target(batch.next_inputs)
    if config.target_policy_noise > 0.0:
        noise = config.target_policy_noise * th.randn_like(next_actions)
        noise = noise.clamp_(-config.target_noise_clip, config.target_noise_clip)
        next_actions = (next_actions + noise).clamp_(-1.0, 1.0)
    next_pairs = th.cat([batch.next_inputs, next_actions], dim=1)
    next_q_values = th.cat([critic(next_pairs) for critic in critic_targets], dim=1).amin(dim=1, keepdim=True)
    target_q_values = batch.rewards + batch.discounts * next_q_values
    target_q_values.clamp_(config.min_value, 0.0)
    return TargetedSamples(batch.inputs, batch.actions, batch.rewards, target_q_values)


@th.no_grad()
def ddpg_update(level: LevelPolicy, batch: TargetedSamples, config: LevelConfig, n_updates: int = 0) -> UpdateInfo:
    """
    One gradient step of DDPG (https://arxiv.org/abs/1509.02971). Gradients are written out, see
    :mod:`sb3_hrl.common.networks`.

    :param level: networks and optimizers
    :param batch: transitions with their targets
    :param config: settings of the level
    :param n_updates: updates that the level has had; the actor's turn comes at multiples of ``policy_delay``
    :return: losses and means
    """
    actor, critics = level.networks
    actor_target, critic_targets = level.target_networks
    batch_size = len(batch.inputs)

    # L_Q = sum_i mean (Q_i(s, a) - y)^2, so that dL_Q / dQ_i = 2 (Q_i - y) / n
    pairs = th.cat([batch.inputs, batch.actions], dim=1)
    critic_loss = th.zeros((), device=pairs.device)
    for critic in critics:
        q_values, tape = critic.trace(pairs)
        error = q_values - batch.target_q_values
        critic_loss += error.square().mean()
        critic.backward(tape, error.mul_(2.0 / batch_size))
        _clip_gradients(critic, config.max_grad_value)
    q_mean = q_values.mean()
    # The critics' whole step comes before the actor's gradient, which is to be that of the critic as it is now
    level.critic.optimizer.step()

    if n_updates % config.policy_delay != 0:
        return UpdateInfo(-q_mean, critic_loss, q_mean, batch.rewards.mean(), th.full_like(q_mean, th.nan))

    # L_pi = -mean Q_1(s, pi(s)) + action_l2 mean pi(s)^2: the deterministic policy gradient, -dQ_1/da dpi/dtheta
    actions, actor_tape = actor.trace(batch.inputs)
    q_values, tape = critics[0].trace(th.cat([batch.inputs, actions], dim=1))
    action_gradient = critics[0].input_gradient(tape, th.full_like(q_values, -1.0 / batch_size), n_last=actions.shape[1])
    if config.action_l2 > 0.0:
        action_gradient = action_gradient + (2.0 * config.action_l2 / actions.numel()) * actions
    actor.backward(actor_tape, action_gradient)
    _clip_gradients(actor, config.max_grad_value)
    level.actor.optimizer.step()

    for network, target in zip((actor, *critics), (actor_target, *critic_targets), strict=True):
        polyak_update(network.parameters(), target.parameters(), config.tau)
    saturation = (actions.abs() >= AT_BOUND).float().mean()
    return UpdateInfo(-q_values.mean(), critic_loss, q_mean, batch.rewards.mean(), saturation)


def _clip_gradients(network: th.nn.Module, max_grad_value: float | None) -> None:
    if max_grad_value is not None:
        th.nn.utils.clip_grad_value_(network.parameters(), max_grad_value)
