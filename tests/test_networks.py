"""Networks as functions on arrays, and the statistics of their inputs."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_hrl.common.networks import NetworkCopy, NumpyMLP, NumpyModule, live_network, mlp_layers, weights_vector
from sb3_hrl.common.running_mean_std import RunningMeanStd


def make_mlp(squash: bool = True, net_arch: tuple[int, ...] = (16, 8), activation_fn=nn.ReLU) -> nn.Sequential:
    return nn.Sequential(*create_mlp(5, 3, list(net_arch), activation_fn, squash_output=squash))


def layer_norm_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 3))


@th.no_grad()
def torchs(network: nn.Module, x: np.ndarray) -> np.ndarray:
    """:return: the network's output, by torch"""
    return network(th.from_numpy(x)).numpy()


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("net_arch", [(), (16,), (16, 8), (8, 8, 8)])
@pytest.mark.parametrize("activation_fn", [nn.ReLU, nn.Tanh])
def test_perceptrons_run_in_numpy(x, squash, net_arch, activation_fn):
    network = make_mlp(squash, net_arch, activation_fn)
    live = live_network(network)
    assert isinstance(live, NumpyMLP)
    before = x.copy()
    np.testing.assert_allclose(live(x), torchs(network, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(x, before, "the input stays as it is")


@pytest.mark.parametrize(
    "network",
    [
        layer_norm_mlp(),
        make_mlp(activation_fn=nn.ELU),
        nn.Sequential(nn.Linear(5, 3, bias=False)),
        nn.Sequential(nn.Sequential(nn.Linear(5, 3)), nn.Tanh()),
        nn.Linear(5, 3),
    ],
)
def test_other_networks_run_in_torch(x, network):
    assert mlp_layers(network) is None
    live = live_network(network)
    assert isinstance(live, NumpyModule)
    np.testing.assert_array_equal(live(x), torchs(network, x))


def halve(network: nn.Module) -> None:
    with th.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)


def load(network: nn.Module) -> None:
    network.load_state_dict(copy.deepcopy(network.state_dict()) | {"0.bias": th.ones(len(network[0].bias))})


def replace_weight(network: nn.Module) -> None:
    network[0].weight = nn.Parameter(th.randn_like(network[0].weight))


def replace_data(network: nn.Module) -> None:
    nn.utils.vector_to_parameters(th.randn(weights_vector(network).numel()), network.parameters())


@pytest.mark.parametrize("make", [make_mlp, layer_norm_mlp])
@pytest.mark.parametrize("change", [halve, load, replace_weight, replace_data])
def test_a_live_network_has_the_weights_as_they_are(x, make, change):
    network = make()
    live, before = live_network(network), torchs(network, x)
    np.testing.assert_allclose(live(x), before, rtol=1e-4, atol=1e-5)
    change(network)
    np.testing.assert_allclose(live(x), torchs(network, x), rtol=1e-4, atol=1e-5)
    assert not np.allclose(live(x), before)


@pytest.mark.parametrize("make", [make_mlp, layer_norm_mlp])
def test_a_copy_acts_with_the_vector_that_it_is_bound_to(x, make):
    network = make()
    expected = torchs(network, x)
    sent, vector = NetworkCopy(network), weights_vector(network).numpy()
    assert sent.n_weights == len(vector)
    halve(network)
    bound = sent.bind(vector)
    np.testing.assert_allclose(bound(x), expected, rtol=1e-4, atol=1e-5)
    vector[:] = weights_vector(network).numpy()
    bound.refresh()
    np.testing.assert_allclose(bound(x), torchs(network, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [make_mlp, layer_norm_mlp])
def test_copies_of_workers_in_one_process_are_apart(x, make):
    """Regression test: if NumPy could not run the network, new weights of one worker changed those of all workers."""
    network = make()
    sent = NetworkCopy(network)
    first, second = (sent.bind(weights_vector(network).numpy().copy()) for _ in range(2))
    zeros = np.zeros(sent.n_weights, np.float32)
    third = sent.bind(zeros)
    for bound in (first, second, third):
        bound.refresh()
    np.testing.assert_allclose(first(x), torchs(network, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(first(x), second(x))
    assert not third(x).any()


def test_statistics_in_batches_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(5.0, 3.0, (1000, 2))
    statistics = RunningMeanStd(2)
    for part in np.split(values, [1, 10, 10, 500]):
        statistics.update(part)
    np.testing.assert_allclose(statistics.mean, values.mean(0))
    np.testing.assert_allclose(statistics.var, values.var(0))
    statistics.update(np.zeros((0, 2)))
    assert statistics.count == 1000


def test_standard_deviation_has_a_floor():
    statistics = RunningMeanStd(1, min_std=0.01)
    statistics.update(np.full((10, 1), 7.0))
    assert statistics.std.item() == 0.01


def test_a_network_without_weights(x):
    live = live_network(nn.Sequential(nn.Tanh()))
    np.testing.assert_allclose(live(x.copy()), np.tanh(x), rtol=1e-6)
    assert live.weights() == []
