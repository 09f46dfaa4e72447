"""Running normalisation of network inputs, saved with the policy."""

import numpy as np
import torch as th
from torch import nn


class RunningNormalizer(nn.Module):
    """
    Running mean and standard deviation of vectors, kept as buffers so that ``state_dict`` carries them.
    Normalised inputs are clipped, and small deviations floored, as in HER (appendix A, https://arxiv.org/abs/1707.01495).

    :param dim: length of the vectors
    :param clip: normalised values are clipped to [-clip, clip]
    :param min_std: floor of the standard deviation
    """

    count: th.Tensor
    mean: th.Tensor
    var: th.Tensor
    scale: th.Tensor
    shift: th.Tensor

    def __init__(self, dim: int, clip: float = 5.0, min_std: float = 0.01):
        super().__init__()
        self.clip = clip
        self.min_std = min_std
        # Moments in double precision: a million steps at an offset would otherwise cancel
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        self.register_buffer("mean", th.zeros(dim, dtype=th.float64))
        self.register_buffer("var", th.ones(dim, dtype=th.float64))
        self.register_buffer("shift", th.zeros(dim))
        self.register_buffer("scale", th.ones(dim))

    def update(self, batch: np.ndarray) -> None:
        """
        Take a batch into the running moments (Chan et al. 1979, parallel variance).

        :param batch: shape (n, dim), n may be 0
        """
        if len(batch) == 0:
            return
        values = th.as_tensor(batch, dtype=th.float64, device=self.mean.device)
        count, total = float(len(batch)), float(self.count) + len(batch)
        mean, var = values.mean(0), values.var(0, unbiased=False)
        delta = mean - self.mean
        old = self.count * self.var if self.count > 0 else th.zeros_like(self.var)
        self.var.copy_((old + count * var + delta.square() * self.count * count / total) / total)
        self.mean.add_(delta * (count / total))
        self.count.fill_(total)
        self.shift.copy_(self.mean)
        self.scale.copy_(1.0 / self.var.sqrt().clamp(min=self.min_std))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: shape (..., dim)
        :return: normalised and clipped, shape (..., dim)
        """
        return ((x - self.shift) * self.scale).clamp_(-self.clip, self.clip)

    def difference(self, a: th.Tensor, b: th.Tensor) -> th.Tensor:
        """
        Difference of two vectors in units of the standard deviation, clipped.

        :param a: shape (..., dim)
        :param b: shape (..., dim)
        :return: shape (..., dim)
        """
        return ((a - b) * self.scale).clamp_(-self.clip, self.clip)
