"""Prepares the next batches while the learner uses the current one."""

import contextlib
import multiprocessing as mp
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np
import threadpoolctl
import torch as th

from sb3_hrl.common.checks import require
from sb3_hrl.common.notices import WorkerPickle
from sb3_hrl.common.shared_memory import Layout, SharedArrays, memory_fence
from sb3_hrl.common.weight_sync import WeightPublisher, WeightSubscriber
from sb3_hrl.parallel.process import ParentWatch

Batch = Mapping[str, np.ndarray]

# Indices in the control array, on separate cache lines: number of batches made, and number of batches that the learner has
# used
_MADE, _USED = 0, 8
# Seconds to sleep while waiting for a free slot or a batch; seconds between checks whether the other process is alive
_NAP, _ALIVE_INTERVAL = 0.0002, 0.2
# Seconds without a batch after which the process counts as hanging
_PATIENCE = 60.0


class BatchMaker(Protocol):
    """Makes batches in another process. It is pickled; shared memory is sent to it in that process."""

    n_weights: int

    def layout(self) -> Layout:
        """:return: shape and dtype of each array of a batch"""

    def start(self, blocks: tuple[SharedArrays, SharedArrays], weights: np.ndarray) -> None:
        """
        :param blocks: the replay buffer's shared memory, see ``Shards.blocks``
        :param weights: the weights that the batches depend on, shape (n_weights,); not copied
        """

    def make(self, out: Batch) -> None:
        """
        :param out: arrays to write the batch into
        """

    def refresh(self) -> None:
        """Called when the weights have changed."""


class PrefetchSampler:
    """
    Prepares batches in a process: it samples from the replay buffer in shared memory, and writes to slots of shared memory. A
    thread would be simpler, but would slow the learner down as much as it helps, because both would compete for the
    interpreter lock (see docs/scale.md).

    If the process crashes, hangs or raises an exception, :meth:`get` returns ``None`` and warns.

    :param maker: object that makes the batches
    :param blocks: the replay buffer's shared memory, see ``Shards.blocks``
    :param publish: function that writes the initial weights into an array of shape (n_weights,)
    :param depth: maximum number of batches that are prepared in advance
    """

    def __init__(
        self,
        maker: BatchMaker,
        blocks: tuple[SharedArrays, SharedArrays],
        publish: Callable[[np.ndarray], None],
        depth: int = 2,
    ):
        require(depth >= 1, "depth", "at least 1 (batches that are ready)", depth)
        # One more slot for the batch that the learner uses
        self._n_slots = depth + 1
        layout: dict[str, tuple[tuple[int, ...], str]] = {
            name: ((self._n_slots, *shape), dtype) for name, (shape, dtype) in maker.layout().items()
        }
        self._slots = SharedArrays({"control": ((16,), "int64"), **layout})
        self._control, self._names = self._slots["control"], list(layout)
        self._weights = WeightPublisher(maker.n_weights)
        self._weights.publish(publish)
        self._n_taken = 0
        context = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(  # type: ignore[attr-defined]
            target=_main, args=(theirs, self._n_slots), daemon=True
        )
        self._process.start()
        theirs.close()
        self._to_send: tuple[BatchMaker, tuple[SharedArrays, SharedArrays]] | None = maker, blocks

    @property
    def is_ready(self) -> bool:
        """
        Whether :meth:`get` does not have to wait until the process has started, which takes seconds: the first batch is ready,
        or the process has failed.
        """
        if self._control[_MADE] > 0:
            return True
        try:
            if not self._connection.poll():
                return False
            if self._to_send is None:
                return True
            self._connection.recv()
            # The process has started, and now receives its input
            (maker, blocks), self._to_send = self._to_send, None
            self._connection.send(WorkerPickle(maker))
            for block in (self._slots, *blocks, self._weights.block):
                block.send(self._connection)
        except (EOFError, OSError):
            return True
        return False

    def publish(self, write: Callable[[np.ndarray], None]) -> None:
        """
        :param write: function that writes new weights into an array of shape (n_weights,)
        """
        self._weights.publish(write)

    def get(self) -> Batch | None:
        """
        Wait for the next batch. This invalidates the previous batch.

        :return: views of a slot, valid until the next call; ``None`` if there will be no more batches
        """
        self._control[_USED] = self._n_taken
        start = time.monotonic()
        next_check = start + _ALIVE_INTERVAL
        while self._control[_MADE] <= self._n_taken:
            time.sleep(_NAP)
            if time.monotonic() > next_check:
                next_check = time.monotonic() + _ALIVE_INTERVAL
                if self._has_ended():
                    return None
                if next_check - start > _PATIENCE:
                    self._warn("hangs")
                    return None
        memory_fence()
        slot = self._n_taken % self._n_slots
        self._n_taken += 1
        return {name: self._slots[name][slot] for name in self._names}

    def _has_ended(self) -> bool:
        """Whether the process has ended; if so, warn."""
        try:
            if not self._connection.poll():
                return False
            # If making the batches raises an error, the learner will raise it again when it makes them itself
            self._warn("has failed", self._connection.recv())
        except (EOFError, OSError):
            self._process.join(1.0)
            what = f"died (exit code {self._process.exitcode})"
            if self._control[_MADE] == 0:
                what += ' at its start, see its output above (does the script lack `if __name__ == "__main__":`?)'
            self._warn(what)
        return True

    @staticmethod
    def _warn(what: str, trace: str = "") -> None:
        message = f"The process that prepares batches {what}: the learner now makes them itself when needed.\n{trace}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)

    def close(self) -> None:
        """End the process; may be called twice."""
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._slots.close()
        self._weights.block.close()


def _main(connection: Connection, n_slots: int) -> None:
    """Target of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    th.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)
    try:
        connection.send("ready")
        maker: BatchMaker = connection.recv().var
        slots, counters, storage, weights_block = (SharedArrays.receive(connection) for _ in range(4))
        control, names = slots["control"], list(maker.layout())
        weights = WeightSubscriber(weights_block)
        vector = np.empty(maker.n_weights, dtype=np.float32)
        version = weights.fetch(vector)
        maker.start((counters, storage), vector)
        maker.refresh()
        watch = ParentWatch()
        made = 0
        while watch.learner_lives():
            if made - control[_USED] >= n_slots:
                time.sleep(_NAP)
                continue
            if weights.version != version:
                version = weights.fetch(vector)
                maker.refresh()
            maker.make({name: slots[name][made % n_slots] for name in names})
            memory_fence()
            made += 1
            control[_MADE] = made
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the learner is gone
    except Exception:
        with contextlib.suppress(OSError):
            connection.send(traceback.format_exc())
