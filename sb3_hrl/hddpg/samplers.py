"""Where the learner gets its batches from: made when they are asked for, or ahead of that in another process."""

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch as th

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.shards import Shards
from sb3_hrl.common.shared_memory import Layout, SharedArrays
from sb3_hrl.common.type_aliases import TargetedSamples
from sb3_hrl.hddpg.batches import HighBatchOptions, high_batch, low_batch
from sb3_hrl.hddpg.levels import LevelConfig, with_targets
from sb3_hrl.hddpg.policies import HierarchicalPolicy
from sb3_hrl.parallel.prefetch import Batch, PrefetchSampler

if TYPE_CHECKING:
    from sb3_hrl.hddpg.hddpg import HierarchicalDDPG


class LowBatchMaker:
    """
    Makes the low level's batches in another process, see :class:`~sb3_hrl.parallel.prefetch.BatchMaker`: sampling, hindsight,
    normalised inputs, and the targets, which are a fifth of an update's matrix products. (The high level's batches ask the
    environment for rewards, and stay with the learner.)

    :param policy: the learner's policy
    :param buffer: the learner's buffer
    :param config: settings of the low level
    :param batch_size: entries per batch
    :param seed: of what is drawn
    """

    def __init__(
        self,
        policy: HierarchicalPolicy,
        buffer: SharedMemoryReplayBuffer,
        config: LevelConfig,
        batch_size: int,
        seed: int,
    ):
        self._policy, self._buffer = copy.deepcopy(policy).cpu(), buffer.reader(seed)
        self._config, self._batch_size, self._seed = config, batch_size, seed
        self.n_weights = sum(tensor.numel() for tensor in _batch_tensors(policy))

    def layout(self) -> Layout:
        """See :meth:`BatchMaker.layout`."""
        policy = self._policy
        input_dim, action_dim = policy.input_shift.shape[1], policy.low.action_space.shape[0]  # type: ignore[index]
        sizes = {"inputs": input_dim, "actions": action_dim, "rewards": 1, "target_q_values": 1}
        return {name: ((self._batch_size, size), "float32") for name, size in sizes.items()}

    def start(self, blocks: tuple[SharedArrays, SharedArrays], weights: np.ndarray) -> None:
        """See :meth:`BatchMaker.start`."""
        th.manual_seed(self._seed)
        self._buffer.shards = Shards.attached(blocks)
        self._weights = th.from_numpy(weights)

    @th.no_grad()
    def refresh(self) -> None:
        """See :meth:`BatchMaker.refresh`."""
        tensors = _batch_tensors(self._policy)
        for tensor, part in zip(tensors, self._weights.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def make(self, out: Batch) -> None:
        """See :meth:`BatchMaker.make`."""
        samples = low_batch(self._policy, self._buffer, self._config, self._batch_size)
        batch = with_targets(self._policy.low, samples, self._config)
        for name, tensor in batch._asdict().items():
            out[name][:] = tensor.numpy()


def _batch_tensors(policy: HierarchicalPolicy) -> list[th.Tensor]:
    """What the low level's batches depend on and that changes."""
    actor_target, critic_targets = policy.low.target_networks
    parameters = [parameter for network in (actor_target, *critic_targets) for parameter in network.parameters()]
    return [*parameters, policy.input_shift, policy.input_scale, policy.subgoal_threshold, *policy.box]


class Samplers:
    """
    Batches for both levels, with their targets.

    With ``depth`` the low level's are prepared ahead, in a process (once it has started, which takes seconds). It sees the
    policy's statistics and target networks as they were some updates earlier, twice ``depth`` at most.

    :param model: the algorithm
    :param batch_size: entries per batch, unless a level has its own
    :param depth: batches that are ready at most; 0: each is made when it is asked for
    """

    def __init__(self, model: "HierarchicalDDPG", batch_size: int, depth: int):
        self.batch_size = batch_size
        self._model, self._depth = model, depth
        self._low_batch_size = model._low.batch_size or batch_size
        self._n_low = 0
        self._prefetch: PrefetchSampler | None = None
        if depth > 0:
            buffer, seed = model.replay_buffer, int(model.replay_buffer.rng.integers(2**31))
            maker = LowBatchMaker(model.policy, buffer, model._low, self._low_batch_size, seed)
            self._prefetch = PrefetchSampler(maker, buffer.shards.blocks(), self._write_weights, depth)

    def _write_weights(self, vector: np.ndarray) -> None:
        tensors = _batch_tensors(self._model.policy)
        ends = np.cumsum([tensor.numel() for tensor in tensors])
        for tensor, end in zip(tensors, ends.tolist(), strict=True):
            vector[end - tensor.numel() : end] = tensor.detach().cpu().numpy().ravel()

    def low(self) -> TargetedSamples:
        """:return: a batch for the low level, valid until the next call"""
        model = self._model
        if self._prefetch is not None and self._prefetch.is_ready:
            self._n_low += 1
            if self._n_low % self._depth == 0:
                self._prefetch.publish(self._write_weights)
            batch = self._prefetch.get()
            if batch is not None:
                return TargetedSamples(**{name: th.from_numpy(array).to(model.device) for name, array in batch.items()})
            self.close()
        samples = low_batch(model.policy, model.replay_buffer, model._low, self._low_batch_size)
        return with_targets(model.policy.low, samples, model._low)

    def high(self) -> TargetedSamples:
        """:return: a batch for the high level"""
        model = self._model
        assert model._goal_task is not None
        samples = high_batch(
            model.policy,
            model.replay_buffer,
            model._high,
            model._high.batch_size or self.batch_size,
            task=model._goal_task,
            options=HighBatchOptions(
                hindsight_action_prob=model.hindsight_action_prob,
                off_policy_correction=model.off_policy_correction,
                smdp=model.smdp,
                trivial_segment_prob=model.trivial_segment_prob,
            ),
        )
        return with_targets(model.policy.high, samples, model._high)

    def close(self) -> None:
        """End the process; twice is fine."""
        if self._prefetch is not None:
            prefetch, self._prefetch = self._prefetch, None
            prefetch.close()
