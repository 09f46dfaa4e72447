"""How actors get the learner's weights: as a flat vector with a version number, never half-written."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from sb3_hrl.common.shared_memory import SharedArrays, memory_fence

# Indices in the array of versions: those of the writer and those of the readers are on separate cache lines
_BEGUN, _DONE, _REQUIRED = 0, 8, 9


class WeightSource(Protocol):
    """Source of an actor's weights."""

    @property
    def version(self) -> int:
        """The newest version, 0 if there is none yet."""

    @property
    def required(self) -> int:
        """The oldest version with which actors may still act."""

    def fetch(self, out: np.ndarray) -> int:
        """
        :param out: the newest weights are copied here, shape (n_weights,)
        :return: their version
        """


class WeightPublisher:
    """
    The learner's end: publishes weights in shared memory. It alternates between two slots, so that writing a new version does
    not disturb readers of the current one. A reader that is overtaken by two versions reads again.

    :param n_weights: length of the vector
    """

    def __init__(self, n_weights: int):
        self.block = SharedArrays({"versions": ((16,), "int64"), "slots": ((2, n_weights), "float32")})
        self._versions, self._slots = self.block["versions"], self.block["slots"]

    @property
    def version(self) -> int:
        """The newest version, 0 if there is none yet."""
        return int(self._versions[_DONE])

    def publish(self, write: Callable[[np.ndarray], None], is_required: bool = False) -> int:
        """
        :param write: function that writes the weights into an array of shape (n_weights,)
        :param is_required: whether actors must fetch these weights before their next action
        :return: their version
        """
        version = self.version + 1
        self._versions[_BEGUN] = version
        memory_fence()
        write(self._slots[version % 2])
        memory_fence()
        self._versions[_DONE] = version
        if is_required:
            # Last, so that who is told to fetch finds this version
            memory_fence()
            self._versions[_REQUIRED] = version
        return version


class WeightSubscriber:
    """
    A worker's end, see :class:`WeightSource`.

    :param block: the publisher's shared memory
    """

    def __init__(self, block: SharedArrays):
        self._versions, self._slots = block["versions"], block["slots"]

    @property
    def version(self) -> int:
        """The newest version, 0 if there is none yet."""
        return int(self._versions[_DONE])

    @property
    def required(self) -> int:
        """The oldest version with which actors may still act."""
        return int(self._versions[_REQUIRED])

    def fetch(self, out: np.ndarray) -> int:
        """See :meth:`WeightSource.fetch`."""
        while True:
            version = self.version
            memory_fence()
            np.copyto(out, self._slots[version % 2])
            memory_fence()
            # The slot is overwritten by the version after the next one
            if self._versions[_BEGUN] < version + 2:
                return version


class LocalWeights:
    """
    Publisher and source in a single process; also used by actors that get their weights as messages.

    :param n_weights: length of the vector
    """

    def __init__(self, n_weights: int):
        self.version = self.required = 0
        self.vector = np.zeros(n_weights, dtype=np.float32)

    def publish(self, write: Callable[[np.ndarray], None], is_required: bool = False) -> int:
        """See :meth:`WeightPublisher.publish`."""
        write(self.vector)
        self.version += 1
        if is_required:
            self.required = self.version
        return self.version

    def put(self, version: int, vector: np.ndarray) -> None:
        """
        :param version: version of the received weights
        :param vector: the received weights, shape (n_weights,)
        """
        self.version, self.vector = version, vector

    def fetch(self, out: np.ndarray) -> int:
        """See :meth:`WeightSource.fetch`."""
        np.copyto(out, self.vector)
        return self.version
