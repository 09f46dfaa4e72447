"""
Torch networks as functions on NumPy arrays: on the few observations of a step that is three times as fast as torch for a
perceptron (:class:`NumpyMLP`); any other network is called through torch (:class:`NumpyModule`).
"""

import copy
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch as th
from torch import nn


class NumpyNetwork(Protocol):
    """A network as a function on arrays."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """
        :param x: float32, shape (n, input_dim)
        :return: float32, shape (n, output_dim)
        """

    def refresh(self) -> None:
        """Take new weights from the vector that the network is bound to, if there is one."""


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0, out=x)


def _tanh(x: np.ndarray) -> np.ndarray:
    return np.tanh(x, out=x)


# Activations in place
_ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray], np.ndarray]] = {nn.ReLU: _relu, nn.Tanh: _tanh}

Layers = list[nn.Linear | Callable[[np.ndarray], np.ndarray]]


def mlp_layers(network: nn.Module) -> Layers | None:
    """
    :param network: a network
    :return: its linear layers and activations, if it is a perceptron of layers that NumPy can run; else ``None``
    """
    if not isinstance(network, nn.Sequential):
        return None
    layers: Layers = []
    for layer in network:
        if type(layer) is nn.Linear and layer.bias is not None:
            layers.append(layer)
        elif type(layer) in _ACTIVATIONS:
            layers.append(_ACTIVATIONS[type(layer)])
        else:
            return None
    return layers


class NumpyMLP:
    """
    The forward pass of a perceptron in NumPy, on views of its weights: what is written into them is seen at once.

    :param layers: see :func:`mlp_layers`
    :param flat: a vector of weights to be used in place of the layers' own, see :func:`weights_vector`; looked at, not copied
    """

    def __init__(self, layers: Layers, flat: np.ndarray | None = None):
        self._layers, self._is_bound = layers, flat is not None
        self._linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self._views: list[tuple[np.ndarray, np.ndarray] | Callable[[np.ndarray], np.ndarray]] = []
        self._pointers: list[int] = []
        if flat is not None:
            self._bind(flat)

    def _bind(self, flat: np.ndarray) -> None:
        start = 0
        for layer in self._layers:
            if isinstance(layer, nn.Linear):
                end = start + layer.weight.numel()
                weight = flat[start:end].reshape(layer.weight.shape)
                start = end + layer.bias.numel()
                self._views.append((weight.T, flat[end:start]))
            else:
                self._views.append(layer)

    def _look(self) -> None:
        """Views of the layers' weights. Weights that were replaced, not written into, lie elsewhere: then new views."""
        # Not by `layer.weight`: a module looks for its attributes in several places, and this happens at every step
        pointers = [tensor.data_ptr() for layer in self._linear for tensor in layer._parameters.values() if tensor is not None]
        if pointers != self._pointers:
            self._pointers = pointers
            self._views = [
                (layer.weight.detach().numpy().T, layer.bias.detach().numpy()) if isinstance(layer, nn.Linear) else layer
                for layer in self._layers
            ]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See :meth:`NumpyNetwork.__call__`."""
        if not self._is_bound:
            self._look()
        for view in self._views:
            if isinstance(view, tuple):
                x = x @ view[0]
                x += view[1]
            else:
                x = view(x)
        return x

    def refresh(self) -> None:
        """Nothing to do: the weights are looked at where they are."""


class NumpyModule:
    """
    Any network behind the call of :class:`NumpyMLP`.

    :param network: the network; called as it is, on its device
    :param flat: a vector that its weights are taken from at :meth:`refresh`, if they come from elsewhere
    """

    def __init__(self, network: nn.Module, flat: np.ndarray | None = None):
        self._network, self._flat = network, flat
        if flat is not None:
            self.refresh()

    @th.no_grad()
    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See :meth:`NumpyNetwork.__call__`."""
        device = next((parameter.device for parameter in self._network.parameters()), th.device("cpu"))
        return self._network(th.from_numpy(x).to(device)).cpu().numpy()

    @th.no_grad()
    def refresh(self) -> None:
        """Take the weights from the vector."""
        if self._flat is not None:
            nn.utils.vector_to_parameters(th.from_numpy(self._flat), self._network.parameters())


def live_network(network: nn.Module) -> NumpyNetwork:
    """
    :param network: a network
    :return: the same as a function on arrays, with the network's weights as they are at each time
    """
    layers = mlp_layers(network)
    is_on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    return NumpyMLP(layers) if layers is not None and is_on_cpu else NumpyModule(network)


class NetworkCopy:
    """
    A network as it is sent to a worker: its weights come as a vector.

    :param network: the network
    """

    def __init__(self, network: nn.Module):
        self.n_weights = sum(parameter.numel() for parameter in network.parameters())
        self._network = copy.deepcopy(network).cpu()

    def bind(self, flat: np.ndarray) -> NumpyNetwork:
        """
        :param flat: weights, see :func:`weights_vector`; looked at, not copied
        :return: the network as a function on arrays; call its ``refresh`` when the vector has changed
        """
        layers = mlp_layers(self._network)
        # Workers in one process share this object: each gets a module of its own
        return NumpyMLP(layers, flat) if layers is not None else NumpyModule(copy.deepcopy(self._network), flat)


def weights_vector(network: nn.Module) -> th.Tensor:
    """
    :param network: a network
    :return: all its weights as one vector, without a gradient, shape (n_weights,)
    """
    parameters = [parameter.detach().reshape(-1) for parameter in network.parameters()]
    return th.cat(parameters) if parameters else th.zeros(0)
