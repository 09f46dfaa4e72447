"""
The shards of the replay buffer in shared memory: rings of packed steps and of segments. Each shard has one writer at a time,
in any process, and any number of readers. They do not use locks.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from sb3_hrl.common.shared_memory import SharedArrays, memory_fence

T = TypeVar("T")

# Columns of the counters: total numbers of steps and segments, one past the newest (head) and the oldest (tail)
HEAD, TAIL, SEGMENT_HEAD, SEGMENT_TAIL = range(4)
# A row of counters fills a cache line, because each row has its own writer
N_COUNTERS = 8
# The last columns of a step's row store the span of its episode as two integers
SPAN_COLUMNS = 4


def spans(rows: np.ndarray) -> np.ndarray:
    """
    :param rows: packed rows, float32, shape (..., row_dim)
    :return: a view of the span of each row's episode, shape (..., 2): its first step, and one past its last step (0 if it is
        still running)
    """
    return rows[..., -SPAN_COLUMNS:].view(np.int64)


class ShardWriter:
    """
    Writes steps into one shard. There is one writer per shard at a time.

    Step ``t`` (counted from the first one ever stored) is at index ``t % capacity``. Readers never see incomplete steps: the
    head only counts complete steps, and the tail drops old steps before they are overwritten. After reading, a reader checks
    the tail again.

    :param rows: the shard's ring of steps, float32, shape (capacity, row_dim)
    :param segments: the shard's ring of segments (start, end), int64, shape (capacity, 2)
    :param counters: int64, shape (N_COUNTERS,)
    :param trim_interval: number of steps for which room is made at once when the shard is full
    """

    def __init__(self, rows: np.ndarray, segments: np.ndarray, counters: np.ndarray, trim_interval: int = 100):
        self._rows, self._segments, self._counters = rows, segments, counters
        self._spans = spans(rows)
        self._capacity = len(rows)
        # At most a tenth of a small buffer
        self._room = min(trim_interval, self._capacity // 10)
        # Continue where the previous writer stopped. If it was killed, rows may have an end that was never reached
        head, tail = int(counters[HEAD]), int(counters[TAIL])
        start, end = (int(number) for number in self._spans[(head - 1) % self._capacity])
        self._start = start if head > tail and not 0 < end <= head else head
        self._segment_start = head

    def write(self, rows: np.ndarray, episode_ends: np.ndarray, segment_ends: np.ndarray | None = None) -> None:
        """
        Store consecutive steps.

        :param rows: packed rows, float32, shape (n, row_dim), n at most the capacity; their spans are filled in
        :param episode_ends: whether each step is the last one of its episode, shape (n,)
        :param segment_ends: whether each step is the last one of its segment, shape (n,); ``None`` without a hierarchy
        """
        n, head = len(rows), int(self._counters[HEAD])
        if head + n - self._counters[TAIL] > self._capacity:
            self._make_room(n)

        new_spans, done = spans(rows), 0
        for stop in (np.flatnonzero(episode_ends) + 1).tolist():
            new_spans[done:stop] = self._start, head + stop
            self._close_stored(head, head + stop)
            self._start, done = head + stop, stop
        new_spans[done:] = self._start, 0

        position = head % self._capacity
        n_first = min(n, self._capacity - position)
        self._rows[position : position + n_first] = rows[:n_first]
        if n_first < n:
            self._rows[: n - n_first] = rows[n_first:]
        memory_fence()
        self._counters[HEAD] = head + n
        if segment_ends is not None:
            self._add_segments(head + np.flatnonzero(segment_ends | episode_ends) + 1)

    def end_episode(self) -> None:
        """Close the running episode (its environment was reset from outside); an open segment is dropped."""
        head = int(self._counters[HEAD])
        self._close_stored(head, head)
        self._start = self._segment_start = head

    def _close_stored(self, head: int, end: int) -> None:
        """Store the end of the running episode in those of its steps that are still stored."""
        first = max(self._start, int(self._counters[TAIL]))
        if first < head:
            self._spans[np.arange(first, head) % self._capacity, 1] = end

    def _add_segments(self, ends: np.ndarray) -> None:
        if len(ends) == 0:
            return
        starts = np.append(self._segment_start, ends[:-1])
        self._segment_start = int(ends[-1])
        # The first steps of a segment may already be dropped
        kept = starts >= self._counters[TAIL]
        number = self._counters[SEGMENT_HEAD]
        positions = np.arange(number, number + kept.sum()) % self._capacity
        self._segments[positions, 0] = starts[kept]
        self._segments[positions, 1] = ends[kept]
        memory_fence()
        self._counters[SEGMENT_HEAD] = number + len(positions)

    def _make_room(self, n: int) -> None:
        """Drop the oldest episodes as a whole; if a single episode fills the shard, drop its oldest steps."""
        head, tail = int(self._counters[HEAD]), int(self._counters[TAIL])
        while head + max(n, self._room) - tail > self._capacity:
            end = int(self._spans[tail % self._capacity, 1])
            if not 0 < end <= head:
                tail = max(tail, head + n - self._capacity)
                break
            tail = end
        segment_tail, segment_head = int(self._counters[SEGMENT_TAIL]), int(self._counters[SEGMENT_HEAD])
        while segment_tail < segment_head and self._segments[segment_tail % self._capacity, 0] < tail:
            segment_tail += 1
        self._counters[TAIL] = tail
        self._counters[SEGMENT_TAIL] = segment_tail
        memory_fence()


class View(NamedTuple):
    """The range of the shards' contents at one moment, each of shape (n_shards,)."""

    tail: np.ndarray
    head: np.ndarray
    segment_tail: np.ndarray
    segment_head: np.ndarray


class Read(NamedTuple):
    """What a reader has read, to check that nothing was dropped in the meantime."""

    shards: np.ndarray | int
    steps: np.ndarray  # the oldest step that each entry depends on
    segments: np.ndarray | None = None  # the segment of each entry


class Shards:
    """
    All shards of a replay buffer, for reading. It owns the memory, which is allocated when it is first needed.

    :param n_shards: number of shards
    :param capacity: number of steps per shard
    :param row_dim: length of a packed row, including the columns of its span
    :param trim_interval: see :class:`ShardWriter`
    :param folder: folder on a disk that holds the steps; ``None``: memory
    """

    def __init__(self, n_shards: int, capacity: int, row_dim: int, trim_interval: int, folder: str | None = None):
        self.n_shards, self.capacity, self.row_dim, self.trim_interval = n_shards, capacity, row_dim, trim_interval
        self.folder = folder
        self._set_counters(SharedArrays({"counters": ((n_shards, N_COUNTERS), "int64")}))
        self._storage: SharedArrays | None = None
        self._writers: list[ShardWriter] | None = None
        self.is_lent = False  # to workers, which write

    def _set_counters(self, block: SharedArrays) -> None:
        """Counters are written in place and never replaced, because the readers of the shards use them."""
        self._counter_block = block
        counters = block["counters"]
        self.head, self.tail = counters[:, HEAD], counters[:, TAIL]
        self.segment_head, self.segment_tail = counters[:, SEGMENT_HEAD], counters[:, SEGMENT_TAIL]

    @classmethod
    def attached(cls, blocks: tuple[SharedArrays, SharedArrays]) -> "Shards":
        """
        :param blocks: result of :meth:`blocks` in another process
        :return: the same shards, for reading
        """
        counters, storage = blocks
        n_shards, capacity, row_dim = storage["rows"].shape
        shards = cls(n_shards, capacity, row_dim, trim_interval=1)
        shards._set_counters(counters)
        shards._set_storage(storage)
        return shards

    @property
    def is_allocated(self) -> bool:
        """Whether the memory has been allocated."""
        return self._storage is not None

    def allocate(self) -> None:
        """
        Allocate the memory.

        :raises MemoryError: if there is not enough memory, or space in the folder
        """
        shape = (self.n_shards, self.capacity)
        layout = {"rows": ((*shape, self.row_dim), "float32"), "segments": ((*shape, 2), "int64")}
        self._set_storage(SharedArrays(layout, folder=self.folder))

    def _set_storage(self, block: SharedArrays) -> None:
        self._storage = block
        self.rows, self.segments = block["rows"], block["segments"]
        # The same data as one table each, for gathering
        self._flat_rows, self._flat_segments = self.rows.reshape(-1, self.row_dim), self.segments.reshape(-1, 2)

    def blocks(self) -> tuple[SharedArrays, SharedArrays]:
        """:return: the shared memory of the counters and of the rings, for :func:`make_writers` in another process"""
        if self._storage is None:
            self.allocate()
        assert self._storage is not None
        return self._counter_block, self._storage

    def writers(self) -> list[ShardWriter]:
        """
        :return: this process's writer of each shard. After :meth:`release`, it continues where the last writer stopped, even
            if that writer was in another process
        """
        if self._writers is None:
            self._writers = make_writers(self.blocks(), range(self.n_shards), self.trim_interval)
        return self._writers

    def release(self) -> None:
        """Release the shards to other writers."""
        self._writers = None

    def roll_back(self, shard: int, head: int) -> None:
        """
        Drop the newest steps of a shard, whose writer died before it could report them, and close the running episode.

        :param shard: number of the shard
        :param head: one past the newest valid step
        """
        self.head[shard] = min(head, self.head[shard])
        while (
            self.segment_head[shard] > self.segment_tail[shard]
            and self.segments[shard, (self.segment_head[shard] - 1) % self.capacity, 1] > head
        ):
            self.segment_head[shard] -= 1
        make_writers(self.blocks(), [shard], self.trim_interval)[0].end_episode()

    def clear(self) -> None:
        """
        Delete all steps.

        :raises RuntimeError: while workers write: they would continue their episodes in the empty shards
        """
        if self.is_lent:
            raise RuntimeError(
                "Workers are writing to the replay buffer, so it cannot be reset now: let `learn` end first (a callback that "
                "returns False ends it)."
            )
        self._counter_block["counters"][:] = 0
        self.release()

    # ------------------------------------------------------------------ reading

    def read(self, read: Callable[[View], tuple[T, Read]]) -> T:
        """
        Read from shards that other processes may be writing. If steps are dropped meanwhile, they may be overwritten, so
        reading is repeated.

        :param read: function that reads within the range of a view, and returns what it has read
        :return: a consistent result
        """
        for attempt in itertools.count():
            tail, head, segment_tail, segment_head = self._view()
            if attempt > 0:
                # Avoid the steps that a fast writer is about to drop
                tail += (head - tail) // 8
                segment_tail += (segment_head - segment_tail) // 8
            result, (shards, steps, segments) = read(View(tail, head, segment_tail, segment_head))
            memory_fence()
            whole = bool((steps >= self.tail[shards]).all())
            if segments is not None:
                whole &= bool((segments >= self.segment_tail[shards]).all())
            if whole:
                break
        return result

    def _view(self) -> View:
        """
        :return: the current range. Tails are read first and heads last, segments before steps, so that a visible segment only
            has visible steps
        """
        segment_tail, segment_head = self.segment_tail.copy(), self.segment_head.copy()
        memory_fence()
        return View(self.tail.copy(), self.head.copy(), segment_tail, segment_head)

    def draw(
        self, head: np.ndarray, tail: np.ndarray, n: int, rng: np.random.Generator
    ) -> tuple[np.ndarray | int, np.ndarray]:
        """
        Sample uniform numbers in ``[tail, head)`` of all shards, for steps or segments.

        :param head: shape (n_shards,)
        :param tail: shape (n_shards,)
        :param n: number of samples
        :param rng: random number generator
        :return: the shard of each number (0 for all if there is only one shard), and the numbers, shape (n,)
        :raises RuntimeError: if the range is empty
        """
        counts = head - tail
        total = int(counts.sum())
        if total <= 0:
            raise RuntimeError("The replay buffer is empty, or has no finished segment: raise `learning_starts`.")
        numbers = rng.integers(total, size=n)
        if self.n_shards == 1:
            return 0, numbers + tail[0]
        ends = np.cumsum(counts)
        shards = np.searchsorted(ends, numbers, side="right")
        return shards, numbers - (ends - counts)[shards] + tail[shards]

    def gather(self, shards: np.ndarray | int, steps: np.ndarray) -> np.ndarray:
        """
        :param shards: shards of the steps
        :param steps: numbers of the steps, of any shape
        :return: packed rows, shape (*steps.shape, row_dim)
        """
        return np.take(self._flat_rows, self._locate(shards, steps), axis=0, mode="clip")

    def gather_columns(self, shards: np.ndarray | int, steps: np.ndarray, columns: slice) -> np.ndarray:
        """As :meth:`gather`, for some columns only."""
        return self._flat_rows[self._locate(shards, steps), columns]

    def gather_segments(self, shards: np.ndarray | int, numbers: np.ndarray) -> np.ndarray:
        """
        :param shards: shards of the segments
        :param numbers: numbers of the segments, shape (n,)
        :return: first step and one past the last step of each segment, shape (2, n)
        """
        return np.take(self._flat_segments, self._locate(shards, numbers), axis=0, mode="clip").T

    def _locate(self, shards: np.ndarray | int, steps: np.ndarray) -> np.ndarray:
        return shards * self.capacity + steps % self.capacity

    @staticmethod
    def episode_span(rows: np.ndarray, shards: np.ndarray | int, view: View) -> tuple[np.ndarray, np.ndarray]:
        """
        :param rows: packed rows, shape (n, row_dim)
        :param shards: shards of the rows
        :param view: range of the stored steps
        :return: first step and one past the last step of each row's episode, limited to stored steps, shapes (n,)
        """
        first, last = spans(rows).T
        head = view.head[shards]
        # The end may already be set when the last steps are not stored yet
        return np.maximum(first, view.tail[shards]), np.where(last > 0, np.minimum(last, head), head)

    def between(self, shard: int, first: int, last: int) -> np.ndarray:
        """
        :param shard: number of a shard
        :param first: number of a step
        :param last: one past the number of the last step, at most the shard's head
        :return: packed rows of these steps that are still stored, in chronological order
        """
        steps = np.arange(max(int(self.tail[shard]), first), last)
        if len(steps) == 0:
            return np.empty((0, self.row_dim), dtype=np.float32)
        rows = self.gather(shard, steps)
        memory_fence()
        # Steps that were dropped meanwhile may have been overwritten
        return rows[steps >= self.tail[shard]]

    # ----------------------------------------------------------------- pickling

    def __getstate__(self) -> dict[str, Any]:
        """Only the stored steps, in chronological order, as of one moment: workers may be writing meanwhile."""
        names = ("n_shards", "capacity", "row_dim", "trim_interval", "folder")
        state: dict[str, Any] = {name: getattr(self, name) for name in names}
        view, counters = self._view(), np.zeros((self.n_shards, N_COUNTERS), dtype=np.int64)
        if self.is_allocated:
            copies = [self._copy_shard(shard, *(int(count[shard]) for count in view)) for shard in range(self.n_shards)]
            state["rows"], state["segments"] = [rows for rows, _ in copies], [segments for _, segments in copies]
            # Counted from the heads, because steps that were dropped during the copy are missing
            view = view._replace(
                tail=view.head - [len(rows) for rows, _ in copies],
                segment_tail=view.segment_head - [len(segments) for _, segments in copies],
            )
        counters[:, [TAIL, HEAD, SEGMENT_TAIL, SEGMENT_HEAD]] = np.stack(view, axis=1)
        state["counters"] = counters
        return state

    def _copy_shard(
        self, shard: int, tail: int, head: int, segment_tail: int, segment_head: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: rows and segments of a view, without those that were dropped meanwhile and may have been overwritten. Reading
            again, as in :meth:`read`, does not help: copying the whole shard takes longer than it takes a writer to drop steps
        """
        rows = self.gather(shard, np.arange(tail, head))
        segments = self.gather_segments(shard, np.arange(segment_tail, segment_head)).T
        memory_fence()
        first, first_segment = int(self.tail[shard]), int(self.segment_tail[shard])
        rows, segments = rows[max(first - tail, 0) :], segments[max(first_segment - segment_tail, 0) :]
        # The tail of steps moves before that of segments, and an episode's end may be set before its last steps are stored
        segments = segments[segments[:, 0] >= first]
        ends = spans(rows)[:, 1]
        ends[ends > head] = 0
        return rows, segments

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = ("n_shards", "capacity", "row_dim", "trim_interval")
        # Buffers that were saved before they could be in a folder
        folder = state.get("folder")
        self.__init__(*(state[name] for name in names), folder=folder)  # type: ignore[misc]
        self._counter_block["counters"][:] = state["counters"]
        if "rows" in state:
            self.allocate()
            for name, array, head, tail in self._rings():
                for shard, values in enumerate(state[name]):
                    array[shard, np.arange(tail[shard], head[shard]) % self.capacity] = values

    def _rings(self) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """:return: name, array, head and tail of each ring"""
        return [
            ("rows", self.rows, self.head, self.tail),
            ("segments", self.segments, self.segment_head, self.segment_tail),
        ]


def make_writers(blocks: tuple[SharedArrays, SharedArrays], shards: Iterable[int], trim_interval: int) -> list[ShardWriter]:
    """
    :param blocks: result of :meth:`Shards.blocks`, in any process
    :param shards: numbers of the shards
    :param trim_interval: see :class:`ShardWriter`
    :return: one writer per shard
    """
    counters, storage = blocks
    return [
        ShardWriter(storage["rows"][shard], storage["segments"][shard], counters["counters"][shard], trim_interval)
        for shard in shards
    ]
