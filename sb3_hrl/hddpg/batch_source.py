"""Source of the learner's batches: they are made when needed, or in advance by another process."""

import copy
import operator

import numpy as np
import torch as th

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.shared_memory import Layout, SharedArrays
from sb3_hrl.common.type_aliases import TDBatch, Transitions
from sb3_hrl.hddpg.policies import HierarchicalPolicy
from sb3_hrl.hddpg.relabeling import high_batch, low_batch
from sb3_hrl.parallel.prefetch import Batch, PrefetchSampler


class BatchSource:
    """
    Batches for both levels, with their targets. They are sampled and relabelled on the CPU, and moved to the policy's device.

    :param policy: the learner's policy
    :param buffer: the learner's buffer
    :param task: the environment's goals
    """

    def __init__(self, policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, task: GoalTask):
        self._policy, self._buffer, self._task = policy, buffer, task

    def low(self) -> TDBatch:
        """:return: a batch for the low level, valid until the next call"""
        return self._policy.low.td_targets(_moved(low_batch(self._policy, self._buffer), self._policy.device))

    def high(self) -> TDBatch:
        """:return: a batch for the high level"""
        return self._policy.high.td_targets(_moved(high_batch(self._policy, self._buffer, self._task), self._policy.device))

    def close(self) -> None:
        """Does nothing."""


class PrefetchedBatchSource(BatchSource):
    """
    A process prepares the low level's batches in advance (after it has started, which takes seconds). It uses the policy's
    statistics and target networks from up to ``2 * depth`` updates before.

    :param policy: the learner's policy
    :param buffer: the learner's buffer
    :param task: the environment's goals
    :param depth: maximum number of batches that are prepared in advance
    """

    def __init__(self, policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, task: GoalTask, depth: int):
        super().__init__(policy, buffer, task)
        self._depth, self._n_low = depth, 0
        maker = LowBatchMaker(policy, buffer, seed=int(buffer.rng.integers(2**31)))
        self._prefetch: PrefetchSampler | None
        self._prefetch = PrefetchSampler(maker, buffer.shards.blocks(), self._write_weights, depth)

    def _write_weights(self, vector: np.ndarray) -> None:
        write_tensors(batch_tensors(self._policy, _needs_targets(self._policy)), vector)

    def low(self) -> TDBatch:
        """See :meth:`BatchSource.low`."""
        if self._prefetch is not None and self._prefetch.is_ready:
            self._n_low += 1
            if self._n_low % self._depth == 0:
                self._prefetch.publish(self._write_weights)
            batch = self._prefetch.get()
            if batch is not None:
                tensors = {name: th.from_numpy(array) for name, array in batch.items()}
                if "target_q_values" in tensors:
                    return TDBatch(**tensors)
                return self._policy.low.td_targets(_moved(Transitions(**tensors), self._policy.device))
            self.close()
        return super().low()

    def close(self) -> None:
        """End the process; may be called twice."""
        if self._prefetch is not None:
            prefetch, self._prefetch = self._prefetch, None
            prefetch.close()


def make_batch_source(policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, task: GoalTask, depth: int) -> BatchSource:
    """
    :param policy: the learner's policy
    :param buffer: the learner's buffer
    :param task: the environment's goals
    :param depth: number of batches that a process prepares in advance; 0: batches are made when needed
    :return: batches for both levels
    """
    return PrefetchedBatchSource(policy, buffer, task, depth) if depth > 0 else BatchSource(policy, buffer, task)


class LowBatchMaker:
    """
    Makes the low level's batches in another process, see :class:`~sb3_hrl.parallel.prefetch.BatchMaker`: sampling, hindsight,
    normalised inputs, and the targets, which take a fifth of the matrix products of an update (a learner on a GPU computes the
    targets itself). The high level's batches need rewards from the environment, so the learner makes them.

    :param policy: the learner's policy
    :param buffer: the learner's buffer
    :param seed: seed of the random numbers
    """

    def __init__(self, policy: HierarchicalPolicy, buffer: SharedMemoryReplayBuffer, seed: int):
        self._policy, self._buffer, self._seed = _lean_copy(policy), buffer.detached(seed), seed
        self._has_targets = _needs_targets(policy)
        self.n_weights = sum(tensor.numel() for tensor in batch_tensors(policy, self._has_targets))

    def layout(self) -> Layout:
        """See :meth:`BatchMaker.layout`."""
        policy, batch_size = self._policy, self._policy.config.low.batch_size
        input_dim, action_dim = policy.input_shift.shape[1], policy.action_space.shape[0]  # type: ignore[index]
        sizes = {"inputs": input_dim, "actions": action_dim, "rewards": 1}
        sizes |= {"target_q_values": 1} if self._has_targets else {"next_inputs": input_dim, "discounts": 1}
        return {name: ((batch_size, size), "float32") for name, size in sizes.items()}

    def start(self, blocks: tuple[SharedArrays, SharedArrays], weights: np.ndarray) -> None:
        """See :meth:`BatchMaker.start`."""
        th.manual_seed(self._seed)
        self._buffer.attach(blocks)
        self._weights = weights

    def refresh(self) -> None:
        """See :meth:`BatchMaker.refresh`."""
        read_tensors(batch_tensors(self._policy, self._has_targets), self._weights)

    def make(self, out: Batch) -> None:
        """See :meth:`BatchMaker.make`."""
        batch = low_batch(self._policy, self._buffer)
        made = self._policy.low.td_targets(batch) if self._has_targets else batch
        for name, array in out.items():
            array[:] = getattr(made, name).numpy()


def _moved(batch: Transitions, device: th.device) -> Transitions:
    """:return: the batch on the device, moved in one piece: each transfer to a GPU takes as long as some kernels"""
    if device.type == "cpu":
        return batch
    tensors = {name: tensor for name, tensor in batch._asdict().items() if tensor is not None}
    columns = th.cat(list(tensors.values()), dim=1).to(device)
    parts = columns.split([tensor.shape[1] for tensor in tensors.values()], dim=1)
    return Transitions(**dict(zip(tensors, parts, strict=True)))


def _lean_copy(policy: HierarchicalPolicy) -> HierarchicalPolicy:
    """:return: a copy on the CPU for making the low level's batches, without the high level and the optimizers"""
    left_out = [policy.high, *(operator.attrgetter(name)(policy.low) for name in policy.low.OPTIMIZERS)]
    # deepcopy does not copy objects in its memo, which here replaces them by None
    return copy.deepcopy(policy, {id(part): None for part in left_out}).cpu()


def _needs_targets(policy: HierarchicalPolicy) -> bool:
    """:return: whether prepared batches have targets: a GPU computes them faster than another process"""
    return policy.device.type == "cpu"


def batch_tensors(policy: HierarchicalPolicy, has_targets: bool = True) -> list[th.Tensor]:
    """
    :param policy: a policy
    :param has_targets: whether the batches have targets
    :return: the tensors that the low level's batches depend on, and that change
    """
    targets = policy.low.target_tensors if has_targets else []
    subgoals = [policy.subgoal_threshold, policy.goal_weights, policy.stays, *policy.bounds]
    return [*targets, policy.input_shift, policy.input_scale, *subgoals]


def write_tensors(tensors: list[th.Tensor], vector: np.ndarray) -> None:
    """
    :param tensors: some tensors
    :param vector: float32 array that they are written to, one after the other, shape (n,)
    """
    ends = np.cumsum([tensor.numel() for tensor in tensors]).tolist()
    for tensor, end in zip(tensors, ends, strict=True):
        vector[end - tensor.numel() : end] = tensor.detach().cpu().numpy().ravel()


@th.no_grad()
def read_tensors(tensors: list[th.Tensor], vector: np.ndarray) -> None:
    """
    :param tensors: the tensors to update
    :param vector: values written by :func:`write_tensors`, shape (n,)
    """
    parts = th.from_numpy(vector).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
