"""Running mean and standard deviation of network inputs, saved with the policy."""

import numpy as np
import torch as th
from torch import nn


class RunningMeanStd(nn.Module):
    """
    Running mean and variance of vectors, registered as buffers so that they are part of ``state_dict``.

    :param dim: length of the vectors
    :param min_std: minimum standard deviation, as in HER (appendix A, https://arxiv.org/abs/1707.01495)
    """

    count: th.Tensor
    mean: th.Tensor
    var: th.Tensor

    def __init__(self, dim: int, min_std: float = 0.01):
        super().__init__()
        self.min_std = min_std
        # In double precision, to avoid cancellation after a million steps with a large mean
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        self.register_buffer("mean", th.zeros(dim, dtype=th.float64))
        self.register_buffer("var", th.ones(dim, dtype=th.float64))

    @property
    def std(self) -> th.Tensor:
        """Standard deviation, at least ``min_std``, shape (dim,)."""
        return self.var.sqrt().clamp(min=self.min_std)

    def update(self, batch: np.ndarray) -> None:
        """
        Update from a batch (Chan et al. 1979, parallel variance).

        :param batch: shape (n, dim), n may be 0
        """
        if len(batch) == 0:
            return
        values = th.as_tensor(batch, dtype=th.float64, device=self.mean.device)
        count, total = float(len(batch)), float(self.count) + len(batch)
        mean, var = values.mean(0), values.var(0, unbiased=False)
        delta = mean - self.mean
        # The initial variance of 1 is not computed from data
        old = self.count * self.var if self.count > 0 else th.zeros_like(self.var)
        self.var.copy_((old + count * var + delta.square() * self.count * count / total) / total)
        self.mean.add_(delta * (count / total))
        self.count.fill_(total)
