"""Large observations of environments that step in step: in shared memory, instead of copies through the pipe."""

from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_hrl.common.shared_memory import Layout, SharedArrays

# Smaller observations are as fast through the pipe, in bytes
LEAST_BYTES = 4096

# Name of the only array for observations that are not a dict
_BOX = ""


class ObservationSlots:
    """
    Two slots for each environment of a worker, which are used in turn: if a worker fails while it writes an observation, the
    one before is still complete.

    :param block: a block of :func:`slots_layout`; only its arrays are kept
    """

    def __init__(self, block: SharedArrays):
        self._arrays = {name: block[name] for name in block.layout}
        self._is_dict = _BOX not in self._arrays
        self._slots = [0] * len(next(iter(self._arrays.values())))
        block.close()

    @classmethod
    def send(cls, layout: Layout, connection: Connection) -> "ObservationSlots":
        """
        :param layout: see :func:`slots_layout`
        :param connection: duplex pipe to a worker, which calls :meth:`receive`
        :return: new slots, to read what the worker writes
        """
        block = SharedArrays(layout)
        block.send(connection)
        return cls(block)

    @classmethod
    def receive(cls, connection: Connection) -> "ObservationSlots":
        """
        :param connection: duplex pipe to the learner, which calls :meth:`send`
        :return: the slots to write to
        """
        return cls(SharedArrays.receive(connection))

    def write(self, env: int, observation: Any) -> Any:
        """
        :param env: number of the environment among those of the worker
        :param observation: an observation
        :return: the number of its slot; the observation itself if it does not have the types and shapes of its space
        """
        parts, slot = observation if self._is_dict else {_BOX: observation}, 1 - self._slots[env]
        if not isinstance(parts, dict) or parts.keys() != self._arrays.keys():
            return observation
        pairs = [(array[env, slot], parts[name]) for name, array in self._arrays.items()]
        for place, part in pairs:
            # SubprocVecEnv keeps the types of the observations, even if they are not those of the space
            if not isinstance(part, np.ndarray) or part.dtype != place.dtype or part.shape != place.shape:
                return observation
        for place, part in pairs:
            place[...] = part
        self._slots[env] = slot
        return slot

    def read(self, env: int, content: Any) -> Any:
        """
        :param env: number of the environment among those of the worker
        :param content: result of :meth:`write`
        :return: the observation: a view of the slot, valid until the step after the next one
        """
        # An integer cannot be an observation of so many bytes
        if type(content) is not int:
            return content
        views = {name: array[env, content] for name, array in self._arrays.items()}
        return views if self._is_dict else views[_BOX]


def slots_layout(space: spaces.Space, n_envs: int) -> Layout | None:
    """
    :param space: observation space
    :param n_envs: number of environments of a worker
    :return: layout of the shared memory; ``None`` if observations are small, or not a Box or a Dict of Boxes
    """
    boxes = dict(space.spaces) if isinstance(space, spaces.Dict) else {_BOX: space}
    if not all(isinstance(box, spaces.Box) for box in boxes.values()):
        return None
    layout = {name: ((n_envs, 2, *box.shape), str(box.dtype)) for name, box in boxes.items()}  # type: ignore[misc]
    n_bytes = sum(int(np.prod(shape[2:])) * np.dtype(dtype).itemsize for shape, dtype in layout.values())
    return layout if n_bytes >= LEAST_BYTES else None
