"""Named arrays of a policy that change while it acts."""

from collections.abc import Mapping

import numpy as np
import torch as th
from torch import nn


class Arrays(nn.Module):
    """
    Named arrays that are part of the state dict.

    :param layout: shape of each array
    """

    def __init__(self, layout: Mapping[str, tuple[int, ...]]):
        super().__init__()
        for name, shape in layout.items():
            self.register_buffer(name, th.zeros(shape))

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """
        :param arrays: new values; if an array is shorter in a dimension, the rest of the stored array is not changed
        """
        for name, array in arrays.items():
            buffer = self.get_buffer(name)
            buffer[tuple(slice(n) for n in array.shape)] = th.as_tensor(array, dtype=buffer.dtype)
