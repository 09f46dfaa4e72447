"""The next batches are prepared while the learner uses this one."""

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

# Places in the control array, on cache lines of their own: batches made, and batches that the learner is done with
_MADE, _USED = 0, 8
# Seconds between looks for a free place or for a batch; between looks whether the other side lives
_NAP, _ALIVE_INTERVAL = 0.0002, 0.2
# Seconds without a batch after which the process counts as hanging
_PATIENCE = 60.0


class BatchMaker(Protocol):
    """Makes batches in another process. It is pickled; memory that it shares with the learner is handed to it there."""

    n_weights: int

    def layout(self) -> Layout:
        """:return: shape and dtype of each array of a batch"""

    def start(self, blocks: tuple[SharedArrays, SharedArrays], weights: np.ndarray) -> None:
        """
        :param blocks: the replay buffer's shared memory, see ``Shards.blocks``
        :param weights: the weights that batches depend on, shape (n_weights,); looked at, not copied
        """

    def make(self, out: Batch) -> None:
        """
        :param out: where the batch is written
        """

    def refresh(self) -> None:
        """The weights have changed."""


class PrefetchSampler:
    """
    Prepares batches in a process, from the replay buffer in shared memory into slots of shared memory. (A thread, which would
    be simpler, slows the learner down by as much as it takes off it: the two pass the interpreter's lock to and fro at every
    small operation; see docs/scale.md.)

    If the process dies, hangs or raises an exception, :meth:`get` says so by ``None``, and warns.

    :param maker: makes batches
    :param blocks: the replay buffer's shared memory, see ``Shards.blocks``
    :param publish: writes the first weights into an array of shape (n_weights,)
    :param depth: how many batches are ready at most
    """

    def __init__(
        self,
        maker: BatchMaker,
        blocks: tuple[SharedArrays, SharedArrays],
        publish: Callable[[np.ndarray], None],
        depth: int = 2,
    ):
        require(depth >= 1, "depth", "at least 1 (batches that are ready)", depth)
        # The learner uses one more
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
        Whether :meth:`get` need not wait for the process to start, which takes seconds: its first batch is made, or it has
        failed.
        """
        if self._control[_MADE] > 0:
            return True
        try:
            if not self._connection.poll():
                return False
            if self._to_send is None:
                return True
            self._connection.recv()
            # It is there, and reads what it is sent
            (maker, blocks), self._to_send = self._to_send, None
            self._connection.send(WorkerPickle(maker))
            for block in (self._slots, *blocks, self._weights.block):
                block.send(self._connection)
        except (EOFError, OSError):
            return True
        return False

    def publish(self, write: Callable[[np.ndarray], None]) -> None:
        """
        :param write: writes new weights into an array of shape (n_weights,)
        """
        self._weights.publish(write)

    def get(self) -> Batch | None:
        """
        Wait for the next batch; the one before it is given up.

        :return: views of a slot, valid until the next call; ``None`` if there are no more
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
        """Whether the process has ended; if so, warn of it."""
        try:
            if not self._connection.poll():
                return False
            # An error of the batches themselves comes again where they are made from now on
            self._warn("has failed", self._connection.recv())
        except (EOFError, OSError):
            self._process.join(1.0)
            what = f"died (exit code {self._process.exitcode})"
            if self._control[_MADE] == 0:
                what += ' in its start, see its output above (does the script lack `if __name__ == "__main__":`?)'
            self._warn(what)
        return True

    @staticmethod
    def _warn(what: str, trace: str = "") -> None:
        message = f"The process that prepares batches {what}: from now on they are made when they are needed.\n{trace}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)

    def close(self) -> None:
        """End the process; twice is fine."""
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
