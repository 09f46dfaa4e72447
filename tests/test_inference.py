"""The policy always acts with its current weights, here and in a worker, in whatever way they have changed."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from agents import WITHOUT_STEPS, make_model, with_bounds
from conftest import PointEnv
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_hrl.common.subgoals import SubgoalBounds, action_to_subgoal
from sb3_hrl.hddpg.inference import PolicySnapshot, live_policy
from sb3_hrl.hddpg.policies import HierarchicalPolicy

NETWORKS = {"MLP": nn.ReLU, "torch's": nn.ELU}


@pytest.fixture(params=list(NETWORKS))
def policy(small, request) -> HierarchicalPolicy:
    """A policy that has already acted, whose actor chooses the subgoals; in NumPy, or through torch."""
    kwargs = WITHOUT_STEPS | dict(policy_kwargs=dict(net_arch=[16], activation_fn=NETWORKS[request.param]))
    policy = with_bounds(make_model(small, subgoal_kwargs=dict(avoid_reached=False), **kwargs), threshold=0.1).policy
    rng = np.random.default_rng(1)
    policy.update_moments(rng.normal(1.0, 2.0, (100, 3)), rng.normal(-1.0, 2.0, (100, 2)))
    policy.predict(observations(), deterministic=True)
    return policy


def observations(n: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    space = PointEnv().observation_space.spaces
    return {key: rng.normal(size=(n, *box.shape)).astype(np.float32) for key, box in space.items()}


@th.no_grad()
def torchs(policy: HierarchicalPolicy) -> tuple[np.ndarray, np.ndarray]:
    """:return: actions scaled to [-1, 1] and subgoals, computed with torch only"""
    obs, achieved, goal = (th.from_numpy(array) for array in policy.flatten_obs(observations()))
    (low_actor, _), (high_actor, _) = policy.low.acting_networks, policy.high.acting_networks
    subgoals = action_to_subgoal(high_actor(policy.high_inputs(obs, achieved, goal)), achieved, policy.bounds)
    return low_actor(policy.low_inputs(obs, achieved, subgoals)).numpy(), subgoals.numpy()


def assert_acts_as_it_is(policy: HierarchicalPolicy) -> tuple[np.ndarray, np.ndarray]:
    """:return: its actions and subgoals, after comparing them with those of its tensors"""
    actions, state = policy.predict(observations(), deterministic=True)
    actions = policy.scale_action(actions)
    expected_actions, expected_subgoals = torchs(policy)
    np.testing.assert_allclose(state.subgoals, expected_subgoals, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actions, expected_actions, rtol=1e-4, atol=1e-4)
    return actions, state.subgoals


def new_mlp(old: nn.Module) -> nn.Module:
    """:return: another network to replace it"""
    first, *_, last = (layer for layer in old if isinstance(layer, nn.Linear))
    return nn.Sequential(*create_mlp(first.in_features, last.out_features, [8], nn.ReLU, squash_output=True))


# ------------------------------------------------------------ ways to change it


@th.no_grad()
def write_in_place(policy: HierarchicalPolicy) -> None:
    for parameter in policy.parameters():
        parameter.mul_(-2.0)


def step_an_optimizer(policy: HierarchicalPolicy) -> None:
    for level in (policy.high, policy.low):
        level.set_learning_rate(0.1)
        level.actor.mu(th.ones(4, 9)).sum().backward()
        level.actor.optimizer.step()


def load_from_vector(policy: HierarchicalPolicy) -> None:
    policy.load_from_vector(-2.0 * policy.parameters_to_vector())


def load_state_dict(policy: HierarchicalPolicy) -> None:
    policy.load_state_dict({name: -2.0 * value for name, value in policy.state_dict().items() if "moments" not in name}, False)
    policy.input_scale.abs_(), policy.subgoal_radius.abs_()


def assign_state_dict(policy: HierarchicalPolicy) -> None:
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    for name, value in state.items():
        if "actor" in name:
            value.mul_(-2.0)
    policy.load_state_dict(state, assign=True)


def move_and_write(policy: HierarchicalPolicy) -> None:
    policy.to("cpu", th.float64)
    policy.to("cpu", th.float32)
    write_in_place(policy)


def replace_parameters(policy: HierarchicalPolicy) -> None:
    for level in (policy.high, policy.low):
        layer = level.acting_networks[0][0]
        layer.weight, layer.bias = nn.Parameter(-2.0 * layer.weight), nn.Parameter(-2.0 * layer.bias)


def replace_radius(policy: HierarchicalPolicy) -> None:
    policy.subgoal_radius = 3.0 * policy.subgoal_radius


def replace_bounds(policy: HierarchicalPolicy) -> None:
    policy.subgoal_low, policy.subgoal_high = th.full((2,), -0.1), th.full((2,), 0.1)


def replace_input_scale(policy: HierarchicalPolicy) -> None:
    policy.input_scale = 3.0 * policy.input_scale


def take_in_moments(policy: HierarchicalPolicy) -> None:
    policy.update_moments(np.full((500, 3), 3.0), np.full((500, 2), -3.0))


def replace_the_high_actor(policy: HierarchicalPolicy) -> None:
    policy.high.actor.mu = new_mlp(policy.high.actor.mu)


def replace_the_low_actor(policy: HierarchicalPolicy) -> None:
    policy.low.actor.mu = new_mlp(policy.low.actor.mu)


def replace_a_layer(policy: HierarchicalPolicy) -> None:
    old = policy.low.actor.mu[0]
    policy.low.actor.mu[0] = nn.Linear(old.in_features, old.out_features)


def replace_a_level(policy: HierarchicalPolicy) -> None:
    policy.low = copy.deepcopy(policy.low)
    write_in_place(policy)


@pytest.mark.parametrize(
    "change",
    [
        write_in_place,
        step_an_optimizer,
        load_from_vector,
        load_state_dict,
        assign_state_dict,
        move_and_write,
        replace_parameters,
        replace_radius,
        replace_bounds,
        replace_input_scale,
        take_in_moments,
        replace_the_high_actor,
        replace_the_low_actor,
        replace_a_layer,
        replace_a_level,
    ],
)
def test_changes_are_seen_at_once(policy, change: Callable[[HierarchicalPolicy], None]):
    before = assert_acts_as_it_is(policy)
    change(policy)
    after = assert_acts_as_it_is(policy)
    assert any(not np.allclose(a, b, atol=1e-3) for a, b in zip(before, after, strict=True)), "nothing has changed"


@pytest.mark.parametrize(
    "change",
    [
        write_in_place,
        step_an_optimizer,
        load_from_vector,
        load_state_dict,
        replace_parameters,
        replace_input_scale,
        take_in_moments,
        replace_the_low_actor,
        replace_a_layer,
        replace_a_level,
    ],
)
@pytest.mark.parametrize("activation_fn", NETWORKS.values())
def test_what_predicted_steps_depend_on_changes_with_them(small, activation_fn, change: Callable[[HierarchicalPolicy], None]):
    policy = make_model(small, policy_kwargs=dict(net_arch=[16], activation_fn=activation_fn)).policy

    def arrays() -> list[np.ndarray]:
        policy.check_modules()
        return [array.copy() for array in policy.numpy_policy().steps_depend_on()]

    before = arrays()
    n_networks = 1 + len(policy.low.acting_networks[1])
    assert len(before) >= 4 * n_networks
    assert all(map(np.array_equal, arrays(), before))
    change(policy)
    assert not all(map(np.array_equal, arrays(), before))


def replace_threshold(policy: HierarchicalPolicy) -> None:
    policy.subgoal_threshold = th.tensor(50.0)


def write_threshold(policy: HierarchicalPolicy) -> None:
    policy.subgoal_threshold.fill_(50.0)


@pytest.mark.parametrize("change", [replace_threshold, write_threshold])
def test_a_changed_threshold_ends_segments(policy, change):
    state = policy.predict(observations(), deterministic=True)[1]
    state = state._replace(subgoals=state.subgoals + 10.0)
    assert (policy.predict(observations(), state, deterministic=True)[1].steps == 1).all()
    change(policy)
    assert (policy.predict(observations(), state, deterministic=True)[1].steps == 0).all(), "all are reached"
    assert policy.is_reached(th.zeros(1, 2), th.ones(1, 2)).all()


def test_a_copy_is_apart(policy):
    before = assert_acts_as_it_is(policy)
    twin = copy.deepcopy(policy)
    for expected, actual in zip(before, assert_acts_as_it_is(twin), strict=True):
        np.testing.assert_array_equal(actual, expected)
    write_in_place(twin)
    assert_acts_as_it_is(twin)
    for expected, actual in zip(before, assert_acts_as_it_is(policy), strict=True):
        np.testing.assert_array_equal(actual, expected)
    twin.set_bounds(SubgoalBounds(np.full(2, -9.0), np.full(2, 9.0), np.full(2, 0.01)))
    assert_acts_as_it_is(twin)
    assert_acts_as_it_is(policy)


def test_changed_options_hold_at_once(policy):
    before = assert_acts_as_it_is(policy)[1]
    config = policy.config
    policy.config = replace(config, subgoals=replace(config.subgoals, source="goal"))
    subgoals = policy.predict(observations(), deterministic=True)[1].subgoals
    np.testing.assert_array_equal(subgoals, observations()["desired_goal"])
    policy.config = replace(config, low=replace(config.low, oracle=lambda *_: np.full((8, 2), 0.5)))
    actions = policy.predict(observations(), deterministic=True)[0]
    np.testing.assert_allclose(policy.scale_action(actions), 0.5)
    policy.config = config
    np.testing.assert_array_equal(assert_acts_as_it_is(policy)[1], before)


def test_options_that_are_arrays_can_be_replaced(policy):
    config = policy.config
    for radius in ([0.3, 0.4], [0.5, 0.6]):
        bounds = (np.full(2, -9.0), np.full(2, 9.0))
        policy.config = replace(config, subgoals=replace(config.subgoals, radius=np.array(radius), bounds=bounds))
        assert_acts_as_it_is(policy)


def test_views_are_made_once(policy):
    assert policy.numpy_policy() is policy.numpy_policy()


def test_a_worker_acts_like_the_learner(policy):
    snapshot = PolicySnapshot(policy)
    vector = np.zeros(snapshot.n_weights, dtype=np.float32)
    worker = snapshot.bind(vector)
    for change in (write_in_place, replace_bounds, take_in_moments, replace_parameters):
        change(policy)
        snapshot.write(policy, vector)
        worker.refresh()
        learner = live_policy(policy)
        arrays = policy.flatten_obs(observations())
        np.testing.assert_allclose(worker.propose(*arrays), learner.propose(*arrays), atol=1e-6)
        np.testing.assert_allclose(worker.act(*arrays), learner.act(*arrays), atol=1e-6)
        candidates = np.stack([worker.candidates] * 8)
        values = [one.high_values(arrays[0], arrays[1], arrays[2], candidates) for one in (worker, learner)]
        np.testing.assert_allclose(*values, rtol=1e-4)
        assert worker.threshold == learner.threshold
        assert worker.pace == pytest.approx(learner.pace)


@pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU here")
def test_it_acts_on_a_gpu_as_on_the_cpu(policy):
    expected = policy.predict(observations(), deterministic=True)
    policy.to("cuda")
    for array, twin in zip(policy.predict(observations(), deterministic=True), expected, strict=True):
        np.testing.assert_allclose(array[0], twin[0], rtol=1e-3, atol=1e-3)
    write_in_place(policy)
    on_gpu = policy.predict(observations(), deterministic=True)[0]
    policy.to("cpu")
    np.testing.assert_allclose(on_gpu, policy.predict(observations(), deterministic=True)[0], rtol=1e-3, atol=1e-3)
