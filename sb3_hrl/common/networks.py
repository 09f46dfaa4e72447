"""
Torch networks as functions on NumPy arrays. For the few observations of an environment step, an MLP in NumPy is three times as
fast as in torch (:class:`NumpyMLP`); any other network is called through torch (:class:`NumpyModule`).
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
        """Load new weights from the vector that the network is bound to, if there is one."""

    def weights(self) -> list[np.ndarray]:
        """:return: all arrays that its output depends on, not copied"""


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0, out=x)


def _tanh(x: np.ndarray) -> np.ndarray:
    return np.tanh(x, out=x)


# In-place activations
_ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray], np.ndarray]] = {nn.ReLU: _relu, nn.Tanh: _tanh}

Layers = list[nn.Linear | Callable[[np.ndarray], np.ndarray]]


def mlp_layers(network: nn.Module) -> Layers | None:
    """
    :param network: a network
    :return: its linear layers and activations if it is an MLP that NumPy can run, otherwise ``None``
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
    The forward pass of an MLP in NumPy. It uses views of the weights, so changes of the weights take effect immediately. Of
    weights on a GPU, it uses a new copy in each call, which takes less time there than the forward pass.

    :param layers: see :func:`mlp_layers`
    :param flat: vector of weights that replaces those of the layers, see :func:`weights_vector`; not copied
    """

    def __init__(self, layers: Layers, flat: np.ndarray | None = None):
        self._layers, self._is_bound = layers, flat is not None
        self._linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self._views: list[tuple[np.ndarray, np.ndarray] | Callable[[np.ndarray], np.ndarray]] = []
        self._pointers: list[int] | None = None
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
        """Create views of the layers' weights, again if the weights were replaced by new tensors."""
        # Not by `layer.weight`: the attribute lookup of a module is slow, and this runs at every step
        weights = [tensor for layer in self._linear for tensor in layer._parameters.values() if tensor is not None]
        if len(weights) > 0 and weights[0].device.type != "cpu":
            self._views.clear()
            self._bind(th.cat([tensor.detach().reshape(-1) for tensor in weights]).cpu().numpy())
            self._pointers = None
            return
        pointers = [tensor.data_ptr() for tensor in weights]
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
        """Does nothing: the weights are views."""

    def weights(self) -> list[np.ndarray]:
        """See :meth:`NumpyNetwork.weights`."""
        if not self._is_bound:
            self._look()
        return [array for view in self._views if isinstance(view, tuple) for array in view]


class NumpyModule:
    """
    Wraps any other network in the interface of :class:`NumpyMLP`.

    :param network: the network, which is called on its own device
    :param flat: vector from which :meth:`refresh` loads the weights, if they come from elsewhere
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
        """Load the weights from the vector."""
        if self._flat is None:
            return
        tensors = _weights(self._network)
        parts = th.from_numpy(self._flat).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def weights(self) -> list[np.ndarray]:
        """See :meth:`NumpyNetwork.weights`."""
        return [tensor.detach().cpu().numpy() for tensor in _weights(self._network)]


def live_network(network: nn.Module) -> NumpyNetwork:
    """
    :param network: a network
    :return: a function on arrays that always uses the network's current weights
    """
    layers = mlp_layers(network)
    return NumpyMLP(layers) if layers is not None else NumpyModule(network)


class NetworkCopy:
    """
    A copy of a network for workers, which get its weights as a vector.

    :param network: the network
    """

    def __init__(self, network: nn.Module):
        self.n_weights = sum(tensor.numel() for tensor in _weights(network))
        # Workers only act (this affects batch norm / dropout)
        self._network = copy.deepcopy(network).cpu().eval()

    def bind(self, flat: np.ndarray) -> NumpyNetwork:
        """
        :param flat: weights, see :func:`weights_vector`; not copied
        :return: the network as a function on arrays; call its ``refresh`` after the vector has changed
        """
        layers = mlp_layers(self._network)
        # Workers in one process share this object: each one gets its own module
        return NumpyMLP(layers, flat) if layers is not None else NumpyModule(copy.deepcopy(self._network), flat)


def weights_vector(network: nn.Module) -> th.Tensor:
    """
    :param network: a network
    :return: all its weights as one vector, without a gradient, shape (n_weights,)
    """
    parts = [tensor.detach().reshape(-1) for tensor in _weights(network)]
    return th.cat(parts) if parts else th.zeros(0)


def _weights(network: nn.Module) -> list[th.Tensor]:
    """:return: its parameters and its running statistics (batch norm), which also change while it learns"""
    return [*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())]
