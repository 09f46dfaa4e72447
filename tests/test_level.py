"""The update of a level is compared with SB3's equations; levels of users are supported."""

import copy
import itertools
from typing import ClassVar

import numpy as np
import pytest
import torch as th
from agents import make_model
from conftest import point_env_fn, point_vec_env
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBufferSamples
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.logger import Logger
from torch import nn
from torch.nn import functional as F

from sb3_hrl import HierarchicalDDPG, ParallelCollector, SerialCollector
from sb3_hrl.common.type_aliases import TDBatch, Transitions
from sb3_hrl.hddpg.config import LevelConfig
from sb3_hrl.hddpg.level import MAX_PREACTIVATION, DDPGLevel, UpdateInfo

INPUT_DIM = 6


def make_level(activation_fn: type[nn.Module] = nn.ReLU, **config) -> DDPGLevel:
    inputs, actions = spaces.Box(-np.inf, np.inf, (INPUT_DIM,)), spaces.Box(-1.0, 1.0, (2,))
    options = dict(tau=0.1, gamma=0.9, max_grad_value=None) | config
    return DDPGLevel(inputs, actions, lambda _: 1e-2, LevelConfig(**options), net_arch=[16, 16], activation_fn=activation_fn)


def make_batch(n: int = 64, input_dim: int = INPUT_DIM) -> Transitions:
    dones = (th.rand(n, 1) < 0.3).float()
    return Transitions(th.randn(n, input_dim), 2 * th.rand(n, 2) - 1, th.randn(n, input_dim), dones - 1, 0.9 * (1 - dones))


def step(level: DDPGLevel, batch: Transitions, n_updates: int = 0) -> UpdateInfo:
    return level.update(level.td_targets(batch), n_updates)


def weights(module: nn.Module) -> th.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


# ----------------------------------------------------------------- SB3's update


def sb3s_update(level: DDPGLevel, batch: Transitions, config: LevelConfig) -> None:
    """SB3's TD3 update (td3.py) with target clipping; ``update`` must give the same result."""
    with th.no_grad():
        next_q = th.cat(level.critic_target(batch.next_inputs, level.actor_target(batch.next_inputs)), dim=1)
        target = batch.rewards + batch.discounts * next_q.min(dim=1, keepdim=True).values
        target = target.clamp(-1 / (1 - config.gamma), 0)
    loss = sum(F.mse_loss(q, target) for q in level.critic(batch.inputs, batch.actions))
    level.critic.optimizer.zero_grad()
    loss.backward()
    if config.max_grad_value is not None:
        nn.utils.clip_grad_value_(level.critic.parameters(), config.max_grad_value)
    level.critic.optimizer.step()
    actions = level.actor(batch.inputs)
    loss = -level.critic.q1_forward(batch.inputs, actions).mean() + config.action_l2 * actions.square().mean()
    level.actor.optimizer.zero_grad()
    loss.backward()
    if config.max_grad_value is not None:
        nn.utils.clip_grad_value_(level.actor.parameters(), config.max_grad_value)
    level.actor.optimizer.step()
    for online, target_net in ((level.critic, level.critic_target), (level.actor, level.actor_target)):
        for parameter, target_parameter in zip(online.parameters(), target_net.parameters(), strict=True):
            target_parameter.data.lerp_(parameter.data, config.tau)


@pytest.mark.parametrize("activation_fn", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("n_critics", [1, 2])
@pytest.mark.parametrize(("max_grad_value", "action_l2"), [(None, 0.0), (1e-3, 0.0), (None, 1.0)])
def test_update_equals_sb3s(activation_fn, n_critics, max_grad_value, action_l2):
    level = make_level(activation_fn, n_critics=n_critics, max_grad_value=max_grad_value, action_l2=action_l2)
    oracle = copy.deepcopy(level)
    # After deepcopy, the optimizers still hold the old parameters
    for network in (oracle.actor, oracle.critic):
        network.optimizer = th.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):
        batch = make_batch()
        step(level, batch)
        sb3s_update(oracle, batch, level.config)
    for parameter, expected in zip(level.parameters(), oracle.parameters(), strict=True):
        assert th.allclose(parameter, expected, atol=1e-5)


@pytest.mark.parametrize("bound", [-1.0, 1.0])
def test_a_saturated_actor_recovers(bound):
    """In all states its actions are at a bound, where tanh has no gradient in float32."""
    level = make_level(nn.ReLU)
    with th.no_grad():
        level.actor.mu[-2].bias.fill_(20.0 * bound)
    inputs = make_batch().inputs
    assert (level.actor(inputs) == bound).all()
    for _ in range(500):
        step(level, make_batch())
    preactivations = level.actor.mu[:-1](inputs)
    assert preactivations.abs().mean() < MAX_PREACTIVATION


def test_an_actor_needs_no_tanh():
    class Clipped(nn.Module):
        def __init__(self, n_inputs: int, n_actions: int):
            super().__init__()
            self.layer = nn.Linear(n_inputs, n_actions)

        def forward(self, inputs: th.Tensor) -> th.Tensor:
            return self.layer(inputs).clamp(-1.0, 1.0)

    level, batch = make_level(nn.ReLU), make_batch()
    level.actor.mu = Clipped(batch.inputs.shape[1], batch.actions.shape[1])
    level.actor_target.mu = copy.deepcopy(level.actor.mu)
    level.actor.optimizer = th.optim.Adam(level.actor.parameters(), lr=1e-2)
    before = weights(level.actor.mu)
    step(level, batch)
    assert not th.equal(weights(level.actor.mu), before)


class TwoInputs(IdentityEnvBox):
    """An environment with the spaces of a PointEnv's level; it is never stepped."""

    def __init__(self, input_dim: int):
        super().__init__(low=-1.0, high=1.0)
        self.observation_space = spaces.Box(-np.inf, np.inf, (input_dim,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_a_level_is_td3_by_its_settings(small):
    """The same numbers as SB3's own TD3, including its train(), for two delays."""
    tricks = dict(n_critics=2, policy_delay=2, target_policy_noise=0.2)
    options = dict(tau=0.005, max_grad_value=None, policy_kwargs=dict(net_arch=[16, 16], optimizer_kwargs={}))
    level = make_model(small, low_kwargs=tricks, **options).policy.low
    sb3 = TD3("MlpPolicy", TwoInputs(9), learning_rate=1e-3, tau=0.005, policy_kwargs=dict(net_arch=[16, 16]), device="cpu")
    sb3.set_logger(Logger(folder=None, output_formats=[]))
    sb3.policy.load_state_dict(level.state_dict())
    batches = [make_batch(input_dim=9) for _ in range(4)]
    drawn = iter(batches)

    def sample(*_, **__) -> ReplayBufferSamples:
        batch = next(drawn)
        dones = (batch.discounts == 0.0).float()
        return ReplayBufferSamples(batch.inputs, batch.actions, batch.next_inputs, dones, batch.rewards, 0.9)

    sb3.replay_buffer.sample = sample
    th.manual_seed(0)
    sb3.train(gradient_steps=4)
    th.manual_seed(0)
    for n_updates, batch in enumerate(batches, start=1):
        step(level, batch, n_updates)
    for (name, value), expected in zip(level.state_dict().items(), sb3.policy.state_dict().values(), strict=True):
        assert th.allclose(value, expected, atol=1e-7), name


def test_critic_steps_before_the_actors_gradient():
    """The actor's gradient would differ if it used the critic before its step."""
    level, batch = make_level(), make_batch()
    swapped, old_critic = copy.deepcopy(level), copy.deepcopy(level.critic)
    step(level, batch)
    gradient = th.cat([parameter.grad.flatten() for parameter in level.actor.parameters()])
    expected = {}
    for name, critic in (("before", old_critic), ("after", level.critic)):
        loss = -critic.q1_forward(batch.inputs, swapped.actor(batch.inputs)).mean()
        expected[name] = th.cat([part.flatten() for part in th.autograd.grad(loss, list(swapped.actor.parameters()))])
    assert th.allclose(gradient, expected["after"], atol=1e-6)
    assert not th.allclose(gradient, expected["before"], atol=1e-6)


@pytest.mark.parametrize(("bias", "expected"), [(1000.0, 0.0), (-1000.0, -10.0)])
def test_targets_are_clipped(bias, expected):
    level = make_level()
    with th.no_grad():
        for critic in level.critic_target.q_networks:
            critic[-1].bias.fill_(bias)
    endless = make_batch()._replace(discounts=0.9 * th.ones(64, 1), rewards=-th.ones(64, 1))
    assert level.td_targets(endless).target_q_values.unique().tolist() == pytest.approx([expected])


def test_targets_are_the_minimum_of_the_critics():
    level = make_level(n_critics=2)
    with th.no_grad():
        for critic, value in zip(level.critic_target.q_networks, (-2.0, -3.0), strict=True):
            nn.utils.vector_to_parameters(th.zeros_like(weights(critic)), critic.parameters())
            critic[-1].bias.fill_(value)
    batch = make_batch()
    assert th.allclose(level.td_targets(batch).target_q_values, batch.rewards - 3.0 * batch.discounts)


def test_the_actor_waits_for_its_turn():
    level = make_level(policy_delay=3)
    histories = {"actor": [], "critic_target": [], "critic": []}
    saturations = []
    for n_updates in range(1, 7):
        saturations.append(step(level, make_batch(), n_updates).action_saturation.item())
        for name, history in histories.items():
            history.append(weights(getattr(level, name)))
    changes = {name: [not th.equal(*pair) for pair in itertools.pairwise(history)] for name, history in histories.items()}
    assert changes["actor"] == changes["critic_target"] == [False, True, False, False, True]
    assert all(changes["critic"])
    assert np.isnan(saturations).tolist() == [True, True, False] * 2


def test_smoothing_noise_changes_the_target():
    level, batch = make_level(target_policy_noise=0.5), make_batch()
    noisy = [level.td_targets(batch).target_q_values for _ in range(2)]
    assert not th.equal(*noisy)
    level.config = LevelConfig(gamma=0.9, target_policy_noise=0.5, target_noise_clip=0.0)
    clipped = [level.td_targets(batch).target_q_values for _ in range(2)]
    assert th.equal(*clipped)


def test_training_mode_reaches_networks_that_have_one():
    level = make_level(activation_fn=nn.RReLU)  # it is only random in training
    for mode in (True, False):
        level.set_training_mode(mode)
        assert level.actor.mu.training == mode
        assert level.critic.q_networks[0].training == mode
    assert not level.actor_target.training


# ------------------------------------------------------------ a level of one's own


class LinearLevel(nn.Module):
    """Goal-conditioned supervised learning: linear regression of the actions that led to a target, and of the values."""

    OPTIMIZERS: ClassVar[tuple[str, ...]] = ("optimizer",)

    def __init__(self, input_space, action_space, lr_schedule, config: LevelConfig, optimizer_class, **kwargs):
        super().__init__()
        self.config = config
        n_inputs, n_actions = input_space.shape[0], action_space.shape[0]
        self.actor = nn.Sequential(nn.Linear(n_inputs, n_actions), nn.Tanh())
        self.value = nn.Sequential(nn.Linear(n_inputs + n_actions, 1))
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1.0))

    @property
    def acting_networks(self) -> tuple[nn.Module, list[nn.Module]]:
        return self.actor, [self.value]

    @property
    def target_tensors(self) -> list[th.Tensor]:
        return list(self.parameters())

    @th.no_grad()
    def td_targets(self, batch: Transitions) -> TDBatch:
        next_values = self.value(th.cat([batch.next_inputs, self.actor(batch.next_inputs)], dim=1))
        targets = (batch.rewards + batch.discounts * next_values).clamp(self.config.min_value, 0.0)
        return TDBatch(batch.inputs, batch.actions, batch.rewards, targets)

    def update(self, batch: TDBatch, n_updates: int) -> UpdateInfo:
        values = self.value(th.cat([batch.inputs, batch.actions], dim=1))
        actor_loss = F.mse_loss(self.actor(batch.inputs), batch.actions)
        critic_loss = F.mse_loss(values, batch.target_q_values)
        self.optimizer.zero_grad()
        (actor_loss + critic_loss).backward()
        self.optimizer.step()
        means = (actor_loss, critic_loss, values.mean(), batch.rewards.mean(), th.zeros(()))
        return UpdateInfo(*(mean.detach() for mean in means))

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)


LINEAR = dict(policy_kwargs=dict(level_class=LinearLevel), high_update_interval=1)


def test_another_level_is_one_class(small, tmp_path):
    model = make_model(small, **LINEAR, learning_rate="lin_1e-2")
    before = {name: weights(getattr(model.policy, name)) for name in ("high", "low")}
    model.learn(100)
    for name, expected in before.items():
        assert not th.equal(weights(getattr(model.policy, name)), expected), name
    assert model.policy.low.optimizer.param_groups[0]["lr"] < 0.01
    assert model.logger.name_to_value["train/high_critic_loss"] > 0.0
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy.pt")
    loaded = HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env())
    obs = point_vec_env(4).reset()
    action, state = model.predict(obs, deterministic=True)
    for policy in (loaded.policy, type(model.policy).load(tmp_path / "policy.pt")):
        twin_action, twin_state = policy.predict(obs, deterministic=True)
        np.testing.assert_array_equal(twin_action, action)
        np.testing.assert_array_equal(twin_state.subgoals, state.subgoals)
    names = {"policy", "policy.high.optimizer", "policy.low.optimizer"}
    assert set(loaded.get_parameters()) == names
    assert loaded.get_parameters()["policy.low.optimizer"]["state"]
    loaded.learn(50, reset_num_timesteps=False)
    assert loaded.num_timesteps == 150


def test_workers_act_with_another_level(small):
    env = SerialCollector([point_env_fn()] * 2, flush_size=5, sync_interval=5)
    quiet = dict(noise_std=0.0, random_action_prob=0.0)
    model = make_model(small, env, async_collection=True, exploration_kwargs=quiet, **LINEAR).learn(100)
    model.gradient_steps = 0
    model.learn(40, reset_num_timesteps=False)
    fields = ("observation", "achieved_goal", "subgoal", "action")
    for steps in model.replay_buffer.recent(20, fields):
        *inputs, actions = (steps[field][-10:] for field in fields)
        np.testing.assert_allclose(model.policy.numpy_policy().act(*inputs), actions, atol=1e-5)


@pytest.mark.timeout(60)
def test_its_batches_can_be_prepared_ahead(small, leaves_nothing):
    env = ParallelCollector([point_env_fn()] * 2, start_method="fork", flush_size=5)
    try:
        make_model(small, env, async_collection=True, prefetch_depth=2, **LINEAR).learn(300)
    finally:
        env.close()
