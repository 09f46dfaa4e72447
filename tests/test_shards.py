"""Shards: blocks are written completely, readers in other processes see complete steps, and another writer can take over."""

import contextlib
import gc
import multiprocessing as mp
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_hrl.common import shared_memory
from sb3_hrl.common.shards import SPAN_COLUMNS, Read, Shards, View, make_writers, spans
from sb3_hrl.common.shared_memory import SharedArrays

pytestmark = pytest.mark.timeout(60)


def write(shards: Shards, lengths: list[int], sizes: list[int], segment: int = 3) -> None:
    """Write episodes of these lengths in blocks of these sizes; the first column numbers the steps."""
    n = sum(lengths)
    rows = np.zeros((n, shards.row_dim), np.float32)
    rows[:, 0] = np.arange(n)
    episode_ends, segment_ends = np.zeros(n, bool), np.zeros(n, bool)
    start = 0
    for length in lengths:
        segment_ends[start : start + length][segment - 1 :: segment] = True
        start += length
        episode_ends[start - 1] = segment_ends[start - 1] = True
    writer, start = shards.writers()[0], 0
    for size in sizes:
        part = slice(start, min(start + size, n))
        if part.stop > part.start:
            writer.write(rows[part], episode_ends[part], segment_ends[part])
        start += size


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=10),
    capacity=st.integers(9, 60),
)
def test_blocks_are_as_good_as_single_steps(lengths, sizes, capacity):
    n = sum(lengths)
    blocks, single = (Shards(1, capacity, 1 + SPAN_COLUMNS + 1, trim_interval=1) for _ in range(2))
    write(blocks, lengths, (sizes * n)[:n])
    write(single, lengths, [1] * n)
    assert blocks.head[0] == single.head[0] == n
    # With blocks, a few more steps may be dropped; the other steps are identical
    tail = max(int(blocks.tail[0]), int(single.tail[0]))
    assert n - tail <= capacity
    positions = np.arange(tail, n) % capacity
    np.testing.assert_array_equal(blocks.rows[0, positions, 0], np.arange(tail, n))
    first, last = (spans(each.rows[0, positions]) for each in (blocks, single))
    np.testing.assert_array_equal(first[:, 1], last[:, 1])
    np.testing.assert_array_equal(first[:, 0], last[:, 0])
    for each in (blocks, single):
        numbers = np.arange(each.segment_tail[0], each.segment_head[0])
        starts, ends = each.gather_segments(0, numbers)
        assert (starts >= each.tail[0]).all()
        assert (ends > starts).all()
        np.testing.assert_array_equal(ends[:-1], starts[1:])


def test_an_episode_goes_as_a_whole():
    shards = Shards(1, 20, 6, trim_interval=1)
    write(shards, [8, 8, 8], [8, 8, 8])
    assert (shards.tail[0], shards.head[0]) == (8, 24)


def test_room_is_made_for_many_steps_at_once():
    shards = Shards(1, 1000, 6, trim_interval=100)
    write(shards, [10] * 101, [1] * 1010)
    assert 1000 - 100 - 10 <= shards.head[0] - shards.tail[0] <= 1000 - 90 + 10
    assert shards.tail[0] % 10 == 0


def test_a_successor_goes_on_where_a_writer_was_killed():
    shards = Shards(1, 100, 6, trim_interval=10)
    write(shards, [10, 10], [5, 5, 5, 3])
    # The writer died after it had stored an end for the running episode that was never reached
    spans(shards.rows[0, 10:18])[:, 1] = 20
    shards.roll_back(0, 18)
    shards.release()
    row = np.zeros((2, 6), np.float32)
    row[:, 0] = 18, 19
    shards.writers()[0].write(row, np.array([False, True]), np.array([False, True]))
    np.testing.assert_array_equal(spans(shards.rows[0, :20]), [[0, 10]] * 10 + [[10, 18]] * 8 + [[18, 20]] * 2)
    starts, ends = shards.gather_segments(0, np.arange(shards.segment_head[0]))
    assert (starts[-1], ends[-1]) == (18, 20)


def test_steps_that_do_not_count_are_rolled_back():
    shards = Shards(2, 100, 6, trim_interval=10)
    write(shards, [9, 9], [6, 6, 6])
    shards.roll_back(0, 12)
    assert shards.head[0] == 12
    _, ends = shards.gather_segments(0, np.arange(shards.segment_head[0]))
    assert ends.tolist() == [3, 6, 9, 12]
    np.testing.assert_array_equal(spans(shards.rows[0, 9:12]), [[9, 12]] * 3)


# ----------------------------------------------------------------- other processes


def checksummed(numbers: np.ndarray, writer: int, row_dim: int) -> np.ndarray:
    """:return: rows that contain the number of the step in every column"""
    rows = np.empty((len(numbers), row_dim), np.float32)
    rows[:, 0], rows[:, 1] = numbers % 4096, numbers // 4096
    rows[:, 2:] = (numbers % 4096)[:, None] + writer
    return rows


def assert_whole(rows: np.ndarray, shards: np.ndarray, steps: np.ndarray) -> None:
    """Every row is the expected step, and so is each of its columns."""
    rows = rows[:, :-SPAN_COLUMNS]
    np.testing.assert_array_equal(rows[:, 0] + 4096 * rows[:, 1], steps)
    np.testing.assert_array_equal(rows[:, 2:], np.repeat(rows[:, :1] + shards[:, None], rows.shape[1] - 2, axis=1))


def keep_writing(connection: Connection, shard: int, n: int, size: int) -> None:
    blocks = SharedArrays.receive(connection), SharedArrays.receive(connection)
    writer = make_writers(blocks, [shard], 100)[0]
    row_dim = blocks[1]["rows"].shape[2]
    for start in range(0, n, size):
        rows = checksummed(np.arange(start, start + size), shard, row_dim)
        ends = np.arange(start + 1, start + size + 1) % 37 == 0
        writer.write(rows, ends, ends)


@contextlib.contextmanager
def writing(shards: Shards, n_steps: int, size: int) -> Iterator[Sequence[BaseProcess]]:
    """Processes that write a number of steps into each shard; the context waits for their end."""
    context, processes = mp.get_context("fork"), []
    for shard in range(shards.n_shards):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=keep_writing, args=(theirs, shard, n_steps, size), daemon=True))
        processes[-1].start()
        for block in shards.blocks():
            block.send(ours)
    yield processes
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * shards.n_shards


def stress(n_writers: int, n_steps: int, size: int, capacity: int) -> int:
    """
    Several writers and a reader that samples; raises an error if a step is incomplete, missing or duplicated.

    :return: number of steps that were read
    """
    shards = Shards(n_writers, capacity, 30 + SPAN_COLUMNS, trim_interval=100)
    rng, n_read = np.random.default_rng(0), 0

    def read(view: View) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Read]:
        numbers, steps = shards.draw(view.head, view.tail, 256, rng)
        numbers = np.broadcast_to(numbers, steps.shape)
        return (shards.gather(numbers, steps), numbers, steps), Read(numbers, steps)

    with writing(shards, n_steps, size) as processes:
        running = True
        while running:
            running = any(process.is_alive() for process in processes)
            if (shards.head == 0).all():
                time.sleep(0.001)
                continue
            assert_whole(*shards.read(read))
            n_read += 256
    # None is missing and none is duplicated: the newest steps are consecutive
    assert shards.head.tolist() == [n_steps] * n_writers
    for shard in range(n_writers):
        steps = np.arange(shards.tail[shard], shards.head[shard])
        assert len(steps) <= capacity
        assert_whole(shards.gather(shard, steps), np.full(len(steps), shard), steps)
    return n_read


@pytest.mark.parametrize("moment", ["gather", "gather_segments"])
@pytest.mark.parametrize("n_written", [20, 350, 1000])
def test_what_is_written_while_it_is_pickled_does_no_harm(moment, n_written, monkeypatch):
    """Regression test: a block written between the copies of the counters and the rows led to an invalid pickle."""
    shards, n_stored = Shards(1, 1000, 30 + SPAN_COLUMNS, trim_interval=100), 0

    def write_on(n: int) -> None:
        nonlocal n_stored
        for start in range(n_stored, n_stored + n, 10):
            numbers = np.arange(start, start + 10)
            ends = (numbers + 1) % 35 == 0
            shards.writers()[0].write(checksummed(numbers, 0, shards.row_dim), ends, ends | (numbers % 3 == 0))
        n_stored += n

    write_on(1990)
    copy = getattr(shards, moment)

    def copy_meanwhile(*args):
        copied = copy(*args)
        write_on(n_written)
        return copied

    monkeypatch.setattr(shards, moment, copy_meanwhile)
    loaded = pickle.loads(pickle.dumps(shards))
    head, tail = int(loaded.head[0]), int(loaded.tail[0])
    assert head == 1990
    assert (tail == head) == (n_written == 1000)
    steps = np.arange(tail, head)
    rows = loaded.gather(0, steps)
    assert_whole(rows, np.zeros(len(steps)), steps)
    assert (spans(rows)[:, 1] <= head).all()
    starts, ends = loaded.gather_segments(0, np.arange(loaded.segment_tail[0], loaded.segment_head[0]))
    assert (len(starts) > 0) == (n_written < 1000)
    assert (starts >= tail).all()
    assert (ends <= head).all()
    # Another writer takes over
    loaded.writers()[0].write(checksummed(np.arange(head, head + 10), 0, loaded.row_dim), np.zeros(10, bool))
    assert loaded.head[0] == head + 10


def test_it_is_pickled_under_writers(leaves_nothing):
    shards, n_pickled = Shards(1, 20_000, 30 + SPAN_COLUMNS, trim_interval=100), 0
    with writing(shards, n_steps=400_000, size=10) as processes:
        while processes[0].is_alive():
            n_pickled += 1
            loaded = pickle.loads(pickle.dumps(shards))
            steps = np.arange(loaded.tail[0], loaded.head[0])
            assert_whole(loaded.gather(0, steps), np.zeros(len(steps)), steps)
            starts, ends = loaded.gather_segments(0, np.arange(loaded.segment_tail[0], loaded.segment_head[0]))
            assert (starts >= loaded.tail[0]).all()
            assert (ends <= loaded.head[0]).all()
    assert n_pickled > 20


def test_readers_see_whole_steps_only(leaves_nothing):
    assert stress(n_writers=2, n_steps=200_000, size=50, capacity=2_000) > 1000


# ------------------------------------------------------------------------ memory


def test_counters_are_shared_with_other_processes(leaves_nothing):
    """A common bug of asynchronous code: a counter is replaced instead of written, and no longer shared."""
    shards = Shards(1, 100, 30 + SPAN_COLUMNS, trim_interval=10)
    write(shards, [10], [10])
    shards.clear()
    context = mp.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=keep_writing, args=(theirs, 0, 40, 10), daemon=True)
    process.start()
    for block in shards.blocks():
        block.send(ours)
    process.join()
    assert shards.head.tolist() == [40]


def test_too_little_memory_is_a_sentence(monkeypatch):
    monkeypatch.setattr(shared_memory, "_free_memory", lambda: 64_000_000)
    with pytest.raises(MemoryError, match="`buffer_size`"):
        Shards(1, 10_000_000, 30, 1).allocate()


def test_without_memfd_the_room_in_the_folder_counts(monkeypatch, tmp_path):
    monkeypatch.delattr(shared_memory.os, "memfd_create")
    monkeypatch.setattr(shared_memory, "_shared_folder", lambda: str(tmp_path))
    shards = Shards(1, 100, 6, trim_interval=1)
    write(shards, [9, 9], [6, 6, 6])
    assert shards.head[0] == 18
    assert not list(tmp_path.iterdir()), "the file has no name"
    usage = shared_memory.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda folder: usage._replace(free=64_000_000))
    with pytest.raises(MemoryError, match="--shm-size"):
        Shards(1, 10_000_000, 30, 1).allocate()


def test_a_buffer_in_a_folder(tmp_path, monkeypatch):
    shards = Shards(1, 100, 6, trim_interval=1, folder=str(tmp_path))
    write(shards, [9, 9], [6, 6, 6])
    assert shards.head[0] == 18
    assert not list(tmp_path.iterdir()), "the file has no name"
    copied = pickle.loads(pickle.dumps(shards))
    assert copied.folder == str(tmp_path)
    np.testing.assert_array_equal(copied.rows, shards.rows)
    with pytest.raises(ValueError, match="does not exist: create it"):
        Shards(1, 100, 6, 1, folder=str(tmp_path / "other")).allocate()

    def full(handle: int, offset: int, n_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory.os, "posix_fallocate", full)
    handles = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError, match="lower `buffer_size`, or pass another `folder`"):
        Shards(1, 100, 6, 1, folder=str(tmp_path)).allocate()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= handles


def test_arrays_outlive_the_block():
    block = SharedArrays({"a": ((3,), "float32"), "b": ((2, 2), "int64")})
    array = block["b"]
    block.close()
    block.close()
    array[:] = 7
    assert array.sum() == 28
    with pytest.raises(TypeError, match="send"):
        mp.reduction.ForkingPickler.dumps(block)
