"""
Blocks of named arrays that processes share.

A block has no name: it is an anonymous file (``memfd`` on Linux, elsewhere a file that is unlinked at once) whose descriptor
travels to other processes over a pipe. So it goes with its last process, however that ends, and can never be left behind.
"""

import contextlib
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

import numpy as np

# Shape and dtype of each array of a block
Layout = Mapping[str, tuple[tuple[int, ...], str]]

# Arrays begin at multiples of a cache line: numbers of 8 bytes are written whole, writers do not disturb each other
_ALIGNMENT = 64

_fence_lock = threading.Lock()


def memory_fence() -> None:
    """
    Order memory accesses: what was written before is visible to other processes before what is written after. x86 keeps
    stores in order by itself, other processors need a pair of atomic operations, which taking a lock twice is.
    """
    with _fence_lock:
        pass
    with _fence_lock:
        pass


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


class SharedArrays:
    """
    Arrays in one block of shared memory, zeros at first. Pages are taken from the system when they are first written.

    :param layout: shape and dtype of each array, by name
    :param handle: descriptor of an existing block with this layout, from :meth:`receive`; ``None`` for a new block
    """

    def __init__(self, layout: Layout, handle: int | None = None):
        self.layout = dict(layout)
        sizes = {name: int(np.prod(shape)) * np.dtype(dtype).itemsize for name, (shape, dtype) in self.layout.items()}
        self.n_bytes = sum(_aligned(size) for size in sizes.values())
        if handle is None:
            handle = _new_block(self.n_bytes)
        self._handle = handle
        self._finalizer = weakref.finalize(self, os.close, handle)
        # Arrays keep the mapping alive, the descriptor is for sending it on
        memory = mmap.mmap(handle, max(self.n_bytes, 1))
        self._arrays: dict[str, np.ndarray] = {}
        offset = 0
        for name, (shape, dtype) in self.layout.items():
            self._arrays[name] = np.ndarray(shape, dtype, buffer=memory, offset=offset)
            offset += _aligned(sizes[name])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def send(self, connection: Connection) -> None:
        """
        Give another process access to the block.

        :param connection: duplex pipe to it, where it calls :meth:`receive`
        """
        connection.send(self.layout)
        send_handle(connection, self._handle, None)

    @classmethod
    def receive(cls, connection: Connection) -> "SharedArrays":
        """
        :param connection: duplex pipe to the process that calls :meth:`send`
        :return: the same arrays
        """
        layout = connection.recv()
        return cls(layout, recv_handle(connection))

    def close(self) -> None:
        """Let go of the block; its memory is freed when no array of it is in use any more, in any process."""
        self._arrays = {}
        self._finalizer()

    def __reduce__(self) -> str:
        raise TypeError("Shared memory is not pickled but sent over a pipe, by SharedArrays.send.")


def _new_block(n_bytes: int) -> int:
    """
    :param n_bytes: size of the block
    :return: its descriptor
    :raises MemoryError: if there is no room for it
    """
    folder = None if hasattr(os, "memfd_create") else _shared_folder()
    room = _free_memory() if folder is None else shutil.disk_usage(folder).free
    if n_bytes > room:
        where = "memory" if folder is None else f"{folder} (in Docker it has 64 MB unless `--shm-size` says more)"
        raise MemoryError(
            f"{n_bytes / 1e6:,.0f} MB of shared memory are needed, but there are only {room / 1e6:,.0f} MB in {where}: "
            "lower `buffer_size`, or make more room."
        )
    if folder is None:
        handle = os.memfd_create("sb3_hrl", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(dir=folder) as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, max(n_bytes, 1))
    return handle


def _shared_folder() -> str:
    return "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()


def _free_memory() -> int:
    """:return: bytes that can be had: what Linux calls available, within the limit of the container"""
    room = 2**63
    with contextlib.suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        room = int(fields["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):
        # "max" where there is no limit
        room = min(room, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return room
