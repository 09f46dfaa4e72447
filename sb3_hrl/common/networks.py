"""
Networks with a hand on their gradients: ``trace`` runs them forward, ``backward`` sets the gradients of their parameters,
``input_gradient`` gives those of their input.

:class:`FlatMLP` is what both levels use: SB3's ReLU perceptron as one flat parameter with its gradients written out. That
saves time in a DDPG update (``benchmarks/update.py``): no graph, no gradients that nobody asked for, and one tensor for
optimizer, clipping and target update. :class:`AutogradNetwork` does the same for any other network; tests compare the two.

To act on a few observations NumPy is three times as fast as torch: :class:`NumpyMLP` runs the weights of a FlatMLP,
:class:`NumpyModule` puts any other network behind the same call.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from torch import nn


class FlatMLP(nn.Module):
    """
    Multilayer perceptron: ReLU between linear layers, identity or tanh at the end, all weights in one flat parameter.

    :param mlp: network with the layers, see :meth:`supports`; its weights are copied
    """

    def __init__(self, mlp: nn.Sequential):
        super().__init__()
        linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
        self.sizes = [linear[0].in_features, *(layer.out_features for layer in linear)]
        self.squash = isinstance(mlp[-1], nn.Tanh)
        parts = [part.detach().flatten() for layer in linear for part in (layer.weight, layer.bias)]
        self.flat = nn.Parameter(th.cat(parts))
        self._views: list[tuple[th.Tensor, th.Tensor]] = []
        self._views_of = -1

    @staticmethod
    def supports(mlp: nn.Sequential) -> bool:
        """
        :param mlp: a network
        :return: whether its layers are those of a FlatMLP
        """
        layers = list(mlp)[:-1] if isinstance(mlp[-1], nn.Tanh) else list(mlp)
        is_linear = [type(layer) is nn.Linear and layer.bias is not None for layer in layers[0::2]]
        is_relu = [type(layer) is nn.ReLU for layer in layers[1::2]]
        return len(layers) % 2 == 1 and all(is_linear) and all(is_relu)

    def layers(self, flat: th.Tensor) -> list[tuple[th.Tensor, th.Tensor]]:
        """
        :param flat: a vector like ``self.flat``, the weights or their gradients
        :return: for each layer views of it as weight (out, in) and bias (out,)
        """
        shapes = list(zip(self.sizes[1:], self.sizes[:-1], strict=True))
        parts = flat.split([n for n_out, n_in in shapes for n in (n_out * n_in, n_out)])
        return [(weight.view(shape), bias) for weight, bias, shape in zip(parts[0::2], parts[1::2], shapes, strict=True)]

    def _weights(self) -> list[tuple[th.Tensor, th.Tensor]]:
        """Layers of the parameter without a gradient; made once, and again after a move to another device or a copy."""
        if self._views_of != self.flat.data_ptr():
            self._views_of = self.flat.data_ptr()
            self._views = self.layers(self.flat.detach())
        return self._views

    def _activations(self, layers: list[tuple[th.Tensor, th.Tensor]], x: th.Tensor) -> list[th.Tensor]:
        """Input, outputs of the hidden layers, output."""
        *hidden, (weight, bias) = layers
        activations = [x]
        for hidden_weight, hidden_bias in hidden:
            activations.append(th.addmm(hidden_bias, activations[-1], hidden_weight.t()).relu_())
        y = th.addmm(bias, activations[-1], weight.t())
        return [*activations, y.tanh_() if self.squash else y]

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: shape (batch, input_dim)
        :return: shape (batch, output_dim)
        """
        return self._activations(self.layers(self.flat) if th.is_grad_enabled() else self._weights(), x)[-1]

    @th.no_grad()
    def trace(self, x: th.Tensor) -> tuple[th.Tensor, list[th.Tensor]]:
        """
        :param x: shape (batch, input_dim)
        :return: output of shape (batch, output_dim), and the activations that ``backward`` needs
        """
        activations = self._activations(self._weights(), x)
        return activations[-1], activations

    @th.no_grad()
    def backward(self, tape: list[th.Tensor], grad: th.Tensor) -> None:
        """
        Set the gradient of the parameters (earlier ones are overwritten, not added to).

        :param tape: activations from ``trace``
        :param grad: gradient of the loss with respect to the output, shape (batch, output_dim)
        """
        if self.flat.grad is None:
            self.flat.grad = th.empty_like(self.flat)
        weights, grads = self._weights(), self.layers(self.flat.grad)
        grad = self._unsquash(tape[-1], grad)
        for i in reversed(range(len(weights))):
            weight_grad, bias_grad = grads[i]
            th.mm(grad.t(), tape[i], out=weight_grad)
            th.sum(grad, 0, out=bias_grad)
            if i > 0:
                grad = _relu_backward(grad @ weights[i][0], tape[i])

    @th.no_grad()
    def input_gradient(self, tape: list[th.Tensor], grad: th.Tensor, n_last: int) -> th.Tensor:
        """
        :param tape: activations from ``trace``
        :param grad: gradient of the loss with respect to the output, shape (batch, output_dim)
        :param n_last: how many of the input's last entries to differentiate by
        :return: gradient with respect to these, shape (batch, n_last)
        """
        weights = self._weights()
        grad = self._unsquash(tape[-1], grad)
        for i in reversed(range(1, len(weights))):
            grad = _relu_backward(grad @ weights[i][0], tape[i])
        return grad @ weights[0][0][:, -n_last:]

    def _unsquash(self, y: th.Tensor, grad: th.Tensor) -> th.Tensor:
        return grad * (1.0 - y * y) if self.squash else grad

    def weights(self) -> th.Tensor:
        """:return: all weights as one vector, without a gradient"""
        return self.flat.detach()

    def extra_repr(self) -> str:
        """:return: widths of the layers"""
        return f"{self.sizes}, squash={self.squash}"


def _relu_backward(grad: th.Tensor, activation: th.Tensor) -> th.Tensor:
    """Zero the gradient, in place, where the ReLU was off."""
    return th.ops.aten.threshold_backward.grad_input(grad, activation, 0, grad_input=grad)


class AutogradNetwork(nn.Module):
    """
    Any network behind the methods of :class:`FlatMLP`, its gradients left to autograd.

    :param network: maps (batch, input_dim) to (batch, output_dim)
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: shape (batch, input_dim)
        :return: shape (batch, output_dim)
        """
        return self.network(x)

    @th.enable_grad()
    def trace(self, x: th.Tensor) -> tuple[th.Tensor, Any]:
        """See :meth:`FlatMLP.trace`."""
        x = x.detach().requires_grad_()
        y = self.network(x)
        return y.detach(), (x, y)

    def backward(self, tape: Any, grad: th.Tensor) -> None:
        """See :meth:`FlatMLP.backward`."""
        parameters = list(self.network.parameters())
        for parameter, gradient in zip(parameters, th.autograd.grad(tape[1], parameters, grad), strict=True):
            parameter.grad = gradient

    def input_gradient(self, tape: Any, grad: th.Tensor, n_last: int) -> th.Tensor:
        """See :meth:`FlatMLP.input_gradient`."""
        return th.autograd.grad(tape[1], tape[0], grad)[0][:, -n_last:]

    def weights(self) -> th.Tensor:
        """:return: all weights as one vector, without a gradient"""
        return nn.utils.parameters_to_vector(self.network.parameters()).detach()


TracedNetwork = FlatMLP | AutogradNetwork


class NumpyMLP:
    """
    The forward pass of a :class:`FlatMLP` in NumPy.

    :param sizes: widths of the layers, from input to output
    :param squash: whether there is a tanh at the end
    :param flat: the weights as in ``FlatMLP.flat``; looked at, not copied
    """

    def __init__(self, sizes: Sequence[int], squash: bool, flat: np.ndarray):
        self._squash = squash
        self._layers: list[tuple[np.ndarray, np.ndarray]] = []
        start = 0
        for n_in, n_out in itertools.pairwise(sizes):
            end = start + n_out * n_in
            self._layers.append((flat[start:end].reshape(n_out, n_in).T, flat[end : end + n_out]))
            start = end + n_out

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """
        :param x: float32, shape (n, input_dim)
        :return: float32, shape (n, output_dim)
        """
        *hidden, (weight, bias) = self._layers
        for hidden_weight, hidden_bias in hidden:
            x = x @ hidden_weight
            x += hidden_bias
            np.maximum(x, 0.0, out=x)
        y = x @ weight
        y += bias
        return np.tanh(y, out=y) if self._squash else y

    def refresh(self) -> None:
        """Nothing to do: the weights are looked at where they are."""


class NumpyModule:
    """
    Any network behind the call of :class:`NumpyMLP`.

    :param network: the network; called as it is, on its device
    :param flat: a vector that its weights are taken from at :meth:`refresh`, if they are to come from elsewhere
    """

    def __init__(self, network: TracedNetwork, flat: np.ndarray | None = None):
        self._network, self._flat = network, flat

    @th.no_grad()
    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See :meth:`NumpyMLP.__call__`."""
        device = next(self._network.parameters()).device
        return self._network(th.from_numpy(x).to(device)).cpu().numpy()

    @th.no_grad()
    def refresh(self) -> None:
        """Take the weights from the vector."""
        assert self._flat is not None
        nn.utils.vector_to_parameters(th.from_numpy(self._flat), self._network.parameters())


NumpyNetwork = NumpyMLP | NumpyModule


def live_network(network: TracedNetwork) -> NumpyNetwork:
    """
    :param network: a network
    :return: the same as a function on arrays, with the network's weights as they are at each time
    """
    if isinstance(network, FlatMLP) and network.flat.device.type == "cpu":
        return NumpyMLP(network.sizes, network.squash, network.weights().numpy())
    return NumpyModule(network)


class NetworkCopy:
    """
    A network as it is sent to a worker: without its weights, which come as a vector.

    :param network: the network
    """

    def __init__(self, network: TracedNetwork):
        self.n_weights = len(network.weights())
        self._mlp = (network.sizes, network.squash) if isinstance(network, FlatMLP) else None
        self._other = None if isinstance(network, FlatMLP) else copy.deepcopy(network).cpu()

    def with_weights(self, flat: np.ndarray) -> NumpyNetwork:
        """
        :param flat: weights, as ``network.weights()``; looked at, not copied
        :return: the network as a function on arrays; after the vector changed it wants a ``refresh``
        """
        if self._mlp is not None:
            return NumpyMLP(*self._mlp, flat)
        assert self._other is not None
        return NumpyModule(self._other, flat)


def traced(network: nn.Module) -> TracedNetwork:
    """
    :param network: a network of SB3's
    :return: the same with a hand on its gradients
    """
    if isinstance(network, nn.Sequential) and FlatMLP.supports(network):
        return FlatMLP(network)
    return AutogradNetwork(network)
