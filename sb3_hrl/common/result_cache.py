"""Keeps results that depend on arrays which others write in place."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class ResultCache(Generic[T]):
    """
    Keeps results until the arrays that they depend on change. There is no version to trust: the arrays are compared with
    copies, which takes much less time than what is worth keeping.

    :param size: maximum number of results
    """

    def __init__(self, size: int = 1):
        self._size = size
        self._arrays: list[np.ndarray] = []
        self._results: dict[Hashable, T] = {}

    def get(self, depends_on: Sequence[np.ndarray], make: Callable[[], T], key: Hashable = None) -> T:
        """
        :param depends_on: all arrays that the results depend on
        :param make: computes the result
        :param key: tells the results apart
        :return: the result, which must not be changed
        """
        is_known = len(depends_on) == len(self._arrays) and all(map(np.array_equal, depends_on, self._arrays))
        if not is_known:
            self._arrays = [array.copy() for array in depends_on]
        if not is_known or (key not in self._results and len(self._results) >= self._size):
            self._results = {}
        if key not in self._results:
            self._results[key] = make()
        return self._results[key]
