"""Written-out gradients against autograd's, and the DDPG update against SB3's equations."""

import copy
import itertools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn
from torch.nn import functional as F

from sb3_hrl.common.moments import RunningMoments
from sb3_hrl.common.networks import AutogradNetwork, FlatMLP, traced
from sb3_hrl.common.type_aliases import LevelSamples
from sb3_hrl.hddpg.levels import LevelConfig, LevelPolicy, ddpg_update, with_targets


def make_mlp(squash: bool, net_arch: tuple[int, ...] = (16, 8)) -> nn.Sequential:
    return nn.Sequential(*create_mlp(5, 3, list(net_arch), nn.ReLU, squash_output=squash))


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("net_arch", [(), (16,), (16, 8), (8, 8, 8)])
def test_flat_gradients_are_those_of_autograd(squash, net_arch):
    mlp = make_mlp(squash, net_arch)
    flat, auto = FlatMLP(mlp), AutogradNetwork(copy.deepcopy(mlp))
    x, grad = th.randn(32, 5), th.randn(32, 3)
    y, tape = flat.trace(x)
    expected, auto_tape = auto.trace(x)
    assert th.allclose(y, expected, atol=1e-6)
    assert th.allclose(y, flat(x), atol=1e-6)
    expected_gradient = th.autograd.grad(auto_tape[1], auto_tape[0], grad, True)[0]
    assert th.allclose(flat.input_gradient(tape, grad, n_last=5), expected_gradient, atol=1e-5)
    assert th.allclose(flat.input_gradient(tape, grad, n_last=2), expected_gradient[:, 3:], atol=1e-5)
    flat.backward(tape, grad)
    auto.backward(auto_tape, grad)
    expected_grad = th.cat([parameter.grad.flatten() for parameter in auto.parameters()])
    assert th.allclose(flat.flat.grad, expected_grad, atol=1e-5)
    # A second backward overwrites, it does not add
    flat.backward(tape, grad)
    assert th.allclose(flat.flat.grad, expected_grad, atol=1e-5)


def test_flat_network_can_be_differentiated_by_autograd_too():
    flat = FlatMLP(make_mlp(True))
    x = th.randn(32, 5)
    y, tape = flat.trace(x)
    flat.backward(tape, th.ones_like(y))
    assert th.allclose(th.autograd.grad(flat(x).sum(), flat.flat)[0], flat.flat.grad, atol=1e-5)


def test_copies_and_loaded_weights_are_seen():
    flat = FlatMLP(make_mlp(False))
    x = th.randn(4, 5)
    before = flat.trace(x)[0]
    twin = copy.deepcopy(flat)
    with th.no_grad():
        twin.flat.mul_(0.5)
    assert th.equal(flat.trace(x)[0], before)
    assert not th.allclose(twin.trace(x)[0], before)
    flat.load_state_dict(twin.state_dict())
    assert th.equal(flat.trace(x)[0], twin.trace(x)[0])


def test_other_networks_are_left_to_autograd():
    assert isinstance(traced(make_mlp(True)), FlatMLP)
    assert isinstance(traced(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))), AutogradNetwork)
    assert isinstance(traced(nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))), AutogradNetwork)


def make_level(**kwargs) -> LevelPolicy:
    inputs, actions = spaces.Box(-np.inf, np.inf, (6,)), spaces.Box(-1.0, 1.0, (2,))
    return LevelPolicy(inputs, actions, lambda _: 1e-2, net_arch=[16, 16], **kwargs)


def make_config(**kwargs) -> LevelConfig:
    values = dict(
        learning_rate=1e-2,
        batch_size=None,
        tau=0.1,
        gamma=0.9,
        n_sampled_goal=4,
        max_grad_value=None,
        noise_std=0.1,
        random_action_prob=0.2,
        n_critics=1,
        target_policy_noise=0.0,
        target_noise_clip=0.5,
    )
    return LevelConfig(**(values | kwargs))


def make_batch(n: int = 64) -> LevelSamples:
    dones = (th.rand(n, 1) < 0.3).float()
    return LevelSamples(th.randn(n, 6), 2 * th.rand(n, 2) - 1, th.randn(n, 6), dones - 1, 0.9 * (1 - dones))


def autograd_update(level: LevelPolicy, batch: LevelSamples, config: LevelConfig) -> None:
    """SB3's TD3 update (td3.py) with target clipping: what ``ddpg_update`` has to equal."""
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
    level = make_level(n_critics=n_critics, activation_fn=activation_fn)
    oracle = copy.deepcopy(level)
    # deepcopy leaves the optimizers with the old parameters
    for network in (oracle.actor, oracle.critic):
        network.optimizer = th.optim.Adam(network.parameters(), lr=1e-2)
    config = make_config(max_grad_value=max_grad_value, action_l2=action_l2)
    for _ in range(3):
        batch = make_batch()
        ddpg_update(level, with_targets(level, batch, config), config)
        autograd_update(oracle, batch, config)
    for parameter, expected in zip(level.parameters(), oracle.parameters(), strict=True):
        assert th.allclose(parameter, expected, atol=1e-5)


def test_critic_steps_before_the_actors_gradient():
    """The seeds' bug: an actor gradient taken through the critic before its step is another one."""
    level = make_level()
    batch, config = make_batch(), make_config()
    swapped = copy.deepcopy(level)
    old_critic = copy.deepcopy(level.critic)
    ddpg_update(level, with_targets(level, batch, config), config)
    gradient = level.actor.mu.flat.grad
    expected = {}
    for name, critic in (("before", old_critic), ("after", level.critic)):
        actions = swapped.actor(batch.inputs)
        loss = -critic.q1_forward(batch.inputs, actions).mean()
        expected[name] = th.autograd.grad(loss, swapped.actor.mu.flat)[0]
    assert th.allclose(gradient, expected["after"], atol=1e-6)
    assert not th.allclose(gradient, expected["before"], atol=1e-6)


def test_targets_are_clipped():
    level = make_level()
    with th.no_grad():
        level.critic_target.q_networks[0].flat[-1] = 1000.0
    batch = make_batch()
    endless = batch._replace(discounts=0.9 * th.ones(64, 1), rewards=-th.ones(64, 1))
    info = ddpg_update(level, with_targets(level, endless, make_config()), make_config())
    # Q is about 0 and so is the clipped target
    assert info.critic_loss < 5.0


def test_the_actor_waits_for_its_turn():
    level, config = make_level(), make_config(policy_delay=3)
    actors, targets, critics = [], [], []
    for n_updates in range(1, 7):
        ddpg_update(level, with_targets(level, make_batch(), config), config, n_updates)
        for history, network in zip(
            (actors, targets, critics),
            (level.actor.mu, level.critic_target.q_networks[0], level.critic.q_networks[0]),
            strict=True,
        ):
            history.append(network.flat.clone())
    turns = [not th.equal(before, after) for before, after in itertools.pairwise(actors)]
    assert turns == [False, True, False, False, True]
    assert [not th.equal(before, after) for before, after in itertools.pairwise(targets)] == turns
    assert all(not th.equal(before, after) for before, after in itertools.pairwise(critics))


def test_smoothing_noise_changes_the_target():
    level = make_level()
    twin = copy.deepcopy(level)
    batch = make_batch()
    with_noise = with_targets(level, batch, make_config(target_policy_noise=0.5))
    without = with_targets(twin, batch, make_config())
    assert not th.equal(with_noise.target_q_values, without.target_q_values)


def test_moments_in_batches_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(5.0, 3.0, (1000, 2))
    moments = RunningMoments(2)
    for part in np.split(values, [1, 10, 10, 500]):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, values.mean(0))
    np.testing.assert_allclose(moments.var, values.var(0))
    moments.update(np.zeros((0, 2)))
    assert moments.count == 1000


def test_standard_deviation_has_a_floor():
    moments = RunningMoments(1, min_std=0.01)
    moments.update(np.full((10, 1), 7.0))
    assert moments.std.item() == 0.01


def test_training_mode_reaches_networks_that_have_one():
    level = make_level(activation_fn=nn.Tanh)
    for mode in (True, False):
        level.set_training_mode(mode)
        assert level.actor.mu.training == mode
        assert level.critic.q_networks[0].training == mode
    assert not level.actor_target.training
