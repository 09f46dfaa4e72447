"""Functions on a GPU as CUDA graphs: for small networks, starting a kernel takes longer than the kernel itself."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch as th

# Number of calls before a function is recorded, in which torch and its libraries set themselves up
_N_WARM_UP = 3

Inputs = Sequence[th.Tensor | None]
Function = Callable[..., Sequence[th.Tensor]]


class _Recording(NamedTuple):
    """A recorded function."""

    graph: "th.cuda.CUDAGraph"
    inputs: list[th.Tensor]  # the memory that it reads
    outputs: Sequence[th.Tensor]  # the memory that it writes
    learning_rates: list[tuple[dict[str, Any], th.Tensor]]  # parameter groups of the optimizers, and what the graph reads


class CudaGraphs:
    """
    Calls functions on a GPU as CUDA graphs, which start all kernels of a function with one call. The first calls run as usual,
    the next one records the function, and later calls replay it. On a CPU, functions are simply called.

    A recording contains addresses and Python values. It is discarded if ``depends_on`` or the shapes of the inputs change.
    Recordings are neither pickled nor copied.
    """

    def __init__(self) -> None:
        self._recordings: dict[str, tuple[Any, _Recording | int]] = {}  # what each depends on; an integer counts calls
        self._is_possible = True

    def __reduce__(self) -> tuple[type["CudaGraphs"], tuple[()]]:
        return CudaGraphs, ()

    def call(
        self,
        name: str,
        function: Function,
        inputs: Inputs,
        depends_on: Callable[[], Any],
        optimizers: Sequence[th.optim.Optimizer] = (),
    ) -> Sequence[th.Tensor]:
        """
        :param name: name of the function
        :param function: a function whose outputs have the same shape; it must not wait for the GPU (as reading a value does)
        :param inputs: its inputs; an input may be ``None``
        :param depends_on: returns all else that the function depends on and that may be replaced, compared by ``==``: Python
            values, and addresses of tensors
        :param optimizers: optimizers that the function steps; their learning rates may change
        :return: outputs of the function
        """
        device = next(tensor.device for tensor in inputs if tensor is not None)
        if device.type != "cuda" or not self._is_possible or not all(map(_is_capturable, optimizers)):
            return function(*inputs)
        key = (depends_on(), [None if tensor is None else tensor.shape for tensor in inputs])
        known, recording = self._recordings.get(name, (None, 0))
        if known != key:
            recording = 0
        if isinstance(recording, int):
            self._recordings[name] = key, recording + 1
            if recording < _N_WARM_UP:
                return function(*inputs)
            try:
                recording = _record(function, inputs, optimizers, device)
            except RuntimeError as error:
                self._is_possible = False
                warnings.warn(
                    f"Updates cannot be recorded as CUDA graphs and run without them, which is slower ({error}). Does a "
                    "network of `policy_kwargs` read values on the GPU?",
                    RuntimeWarning,
                    stacklevel=4,
                )
                return function(*inputs)
            self._recordings[name] = key, recording
        return _replay(recording, inputs)


def _is_capturable(optimizer: th.optim.Optimizer) -> bool:
    """:return: whether the state of the optimizer is on the GPU as a whole, also its number of steps"""
    return all(group.get("fused") and "capturable" in group for group in optimizer.param_groups)


def _record(function: Function, inputs: Inputs, optimizers: Sequence[th.optim.Optimizer], device: th.device) -> _Recording:
    copies = [None if tensor is None else tensor.detach().clone() for tensor in inputs]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    learning_rates = [(group, th.tensor(float(group["lr"]), device=device)) for group in groups]
    graph = th.cuda.CUDAGraph()
    # Other threads may use the GPU while this one records
    recording = th.cuda.graph(graph, stream=th.cuda.Stream(device), capture_error_mode="thread_local")
    with th.cuda.device(device), _recordable(learning_rates), recording:
        outputs = function(*copies)
    return _Recording(graph, [copy for copy in copies if copy is not None], outputs, learning_rates)


@contextlib.contextmanager
def _recordable(learning_rates: list[tuple[dict[str, Any], th.Tensor]]) -> Iterator[None]:
    """Learning rates are tensors for a while, so that the graph reads them instead of containing their values."""
    before = [(group["lr"], group["capturable"]) for group, _ in learning_rates]
    for group, learning_rate in learning_rates:
        group["lr"], group["capturable"] = learning_rate, True
    try:
        yield
    finally:
        for (group, _), (learning_rate, is_capturable) in zip(learning_rates, before, strict=True):
            group["lr"], group["capturable"] = learning_rate, is_capturable


def _replay(recording: _Recording, inputs: Inputs) -> Sequence[th.Tensor]:
    th._foreach_copy_(recording.inputs, [tensor for tensor in inputs if tensor is not None])
    for group, learning_rate in recording.learning_rates:
        learning_rate.fill_(group["lr"])
    recording.graph.replay()
    # A copy: the next replay writes to the same memory
    return th.stack(list(recording.outputs)).unbind()
