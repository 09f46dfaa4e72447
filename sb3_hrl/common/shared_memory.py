"""
Blocks of named arrays that are shared between processes.

A block has no name: it is an anonymous file (``memfd`` on Linux, elsewhere a file that is deleted immediately), and its
descriptor is sent to other processes through a pipe. So it disappears with the last process that uses it, however that process
ends. A block that is larger than the memory can be a file in a folder on disk, which has no name either.
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

# Arrays start at multiples of a cache line: 8-byte numbers are written atomically, and writers do not slow each other down
_ALIGNMENT = 64

_fence_lock = threading.Lock()


def memory_fence() -> None:
    """
    Order memory accesses: other processes see the writes before the fence before those after it. x86 keeps stores in order by
    itself; other processors need a pair of atomic operations, such as locking twice.
    """
    with _fence_lock:
        pass
    with _fence_lock:
        pass


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


class SharedArrays:
    """
    Arrays in one block of shared memory, initially zero. The system allocates a page when it is first written.

    :param layout: shape and dtype of each array, by name
    :param handle: descriptor of an existing block with this layout, from :meth:`receive`; ``None`` for a new block
    :param folder: folder on a disk that holds a new block; ``None``: memory
    """

    def __init__(self, layout: Layout, handle: int | None = None, folder: str | None = None):
        self.layout = dict(layout)
        sizes = {name: int(np.prod(shape)) * np.dtype(dtype).itemsize for name, (shape, dtype) in self.layout.items()}
        self.n_bytes = sum(_aligned(size) for size in sizes.values())
        if handle is None:
            handle = _new_block(self.n_bytes) if folder is None else _new_file(self.n_bytes, folder)
        self._handle = handle
        self._finalizer = weakref.finalize(self, os.close, handle)
        # The arrays keep the mapping alive; the descriptor is only needed to send the block
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

        :param connection: duplex pipe to the process, which calls :meth:`receive`
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
        """Release the block; its memory is freed when no process uses its arrays any more."""
        self._arrays = {}
        self._finalizer()

    def __reduce__(self) -> str:
        raise TypeError("Shared memory cannot be pickled: send it through a pipe with SharedArrays.send.")


def _new_block(n_bytes: int) -> int:
    """
    :param n_bytes: size of the block
    :return: its descriptor
    :raises MemoryError: if there is not enough memory
    """
    folder = None if hasattr(os, "memfd_create") else _shared_folder()
    room = _free_memory() if folder is None else shutil.disk_usage(folder).free
    if n_bytes > room:
        where = "memory" if folder is None else f"{folder} (64 MB in Docker, unless `--shm-size` is larger)"
        raise MemoryError(
            f"{n_bytes / 1e6:,.0f} MB of shared memory are needed, but there are only {room / 1e6:,.0f} MB in {where}: "
            "lower `buffer_size`, or free some memory."
        )
    handle = os.memfd_create("sb3_hrl", os.MFD_CLOEXEC) if folder is None else _file_without_name(folder)
    os.ftruncate(handle, max(n_bytes, 1))
    return handle


def _new_file(n_bytes: int, folder: str) -> int:
    """
    :param n_bytes: size of the block
    :param folder: folder on a disk
    :return: its descriptor
    :raises ValueError: if the folder does not exist
    :raises MemoryError: if there is not enough space
    """
    if not os.path.isdir(folder):
        raise ValueError(f"The `folder` of the replay buffer, {folder!r}, does not exist: create it, or pass another one.")
    handle = _file_without_name(folder)
    try:
        # Reserve the space: a write to a full disk would end the process without an exception
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, max(n_bytes, 1))
        else:
            os.ftruncate(handle, max(n_bytes, 1))
    except OSError as error:
        os.close(handle)
        raise MemoryError(
            f"{n_bytes / 1e6:,.0f} MB are needed in {folder}, but there are only "
            f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB ({error}): lower `buffer_size`, or pass another `folder`."
        ) from error
    return handle


def _file_without_name(folder: str) -> int:
    """:return: descriptor of a new file, which disappears when it is closed everywhere"""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def _shared_folder() -> str:
    return "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()


def _free_memory() -> int:
    """:return: available memory in bytes, according to Linux and within the limit of the container"""
    room = 2**63
    with contextlib.suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        room = int(fields["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):
        # "max" if there is no limit
        room = min(room, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return room
