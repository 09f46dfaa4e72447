"""The learner's end of the pipe to an environment: each command has one answer, which may be an exception."""

import pickle
import select
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from sb3_hrl.parallel.collecting import RAISED, START_TIMEOUT

# Maximum time in seconds between two checks whether the worker is alive
_CHECK_INTERVAL = 1.0


class Raised(NamedTuple):
    """An exception, as a worker sends it to the learner."""

    trace: str
    pickled: bytes | None  # the exception, if it can be pickled

    @classmethod
    def of(cls, error: Exception) -> "Raised":
        """
        :param error: the exception that is being handled
        :return: the object to send
        """
        try:
            pickled = bytes(ForkingPickler.dumps(error))
        except Exception:
            pickled = None
        return cls(traceback.format_exc(), pickled)

    @property
    def error(self) -> Exception | None:
        """The exception, if it can be unpickled here."""
        try:
            return pickle.loads(self.pickled) if self.pickled is not None else None
        except Exception:
            return None


class Failure(NamedTuple):
    """The reason why a command has no answer."""

    what: str  # a predicate whose subject is the worker
    raised: Raised | None = None
    is_lost: bool = True  # whether the worker has ended or hangs; otherwise its environment has raised an exception
    hangs: bool = False


def dumps(command: str, content: Any) -> bytes | memoryview:
    """
    :param command: the command to which the content belongs
    :param content: the command itself, or its answer
    :return: the pickled content. Steps have no objects that need the slower pickler of multiprocessing
    """
    return pickle.dumps(content, pickle.HIGHEST_PROTOCOL) if command == "step" else ForkingPickler.dumps(content)


class Readiness:
    """
    Waits for messages, faster than ``multiprocessing.connection.wait``, which registers all pipes anew in every call.

    :param connections: the pipes
    """

    def __init__(self, connections: Sequence[Connection]):
        self._connections = connections
        self._poll: Callable[[float], list[tuple[int, int]]] | None = None
        if hasattr(select, "poll"):
            self._numbers = {connection.fileno(): i for i, connection in enumerate(connections)}
            poller = select.poll()
            for number in self._numbers:
                poller.register(number, select.POLLIN)
            self._poll = poller.poll

    def wait(self, timeout: float) -> list[int]:
        """
        :param timeout: maximum time in seconds
        :return: numbers of the pipes that have a message, or whose other end is closed
        """
        if self._poll is not None:
            return [self._numbers[number] for number, _ in self._poll(1000 * timeout)]
        ready = wait(self._connections, timeout)
        return [i for i, connection in enumerate(self._connections) if connection in ready]


class EnvRemote:
    """
    Replaces the pipe of ``SubprocVecEnv`` to an environment. After an exception in one environment, ``SubprocVecEnv`` does not
    fetch the answers of the others: each of these answers is dropped before the next command.

    A step has a time limit. The limit for other commands is that for the start of a worker, except for ``env_method`` and
    ``render``, whose duration only the caller knows.

    :param connection: the pipe
    :param process: the worker's process
    :param step_timeout: maximum time of a step in seconds
    :param lost: describes how the worker ended
    :param failed: creates the exception for a failure
    """

    def __init__(
        self,
        connection: Connection,
        process: BaseProcess,
        step_timeout: float,
        lost: Callable[[], Failure],
        failed: Callable[[Failure], Exception],
    ):
        self.connection = connection
        self._process, self._lost, self._failed = process, lost, failed
        self._wait = Readiness([connection]).wait
        self._step_timeout, self._interval = step_timeout, min(_CHECK_INTERVAL, step_timeout)
        # Reads an observation that is in shared memory
        self.read_observation: Callable[[Any], Any] | None = None
        self._asked: str | None = None  # the command that has not been answered yet

    def send(self, message: tuple[str, Any]) -> None:
        """
        :param message: a command and its arguments. If the worker has ended, there will be no answer
        """
        # Pickle first: if that fails, nothing is sent
        content = dumps(message[0], message)
        if self._asked is not None:
            self.take()
        try:  # noqa: SIM105 (`suppress` is slower, and this is done in every step)
            self.connection.send_bytes(content)
        except OSError:
            pass
        self._asked = message[0]

    def take(self, limit: float | None = None) -> Any:
        """
        :param limit: maximum time to wait in seconds, if it is not that of the command
        :return: the answer, or a :class:`Failure`
        """
        if self._asked is None:
            raise RuntimeError("Another command was sent to the environment between `step_async` and `step_wait`.")
        asked = self._asked
        if not self._wait(self._interval if limit is None else limit):
            failure = self._wait_longer(asked, limit)
            if failure is not None:
                self._asked = None
                return failure
        try:
            content = self.connection.recv_bytes()
        except (EOFError, OSError):
            return self._lost()
        finally:
            self._asked = None
        answer = pickle.loads(content)
        if isinstance(answer, Raised):
            return Failure(f"{RAISED} in `{asked}`", answer, is_lost=False)
        if asked == "step" and self.read_observation is not None:
            observation, *others = answer
            return self.read_observation(observation), *others
        return answer

    def _wait_longer(self, asked: str, limit: float | None) -> Failure | None:
        """Wait for a worker that has not answered yet. :return: the reason if it will not answer"""
        waited = self._interval if limit is None else limit
        if limit is None:
            limit = self._step_timeout
            if asked != "step":
                limit = float("inf") if asked in ("env_method", "render") else max(START_TIMEOUT, self._step_timeout)
        while waited < limit:
            # Other processes may hold the pipe open
            if not self._process.is_alive() and not self._wait(0.0):
                return self._lost()
            start = time.monotonic()
            if self._wait(min(self._interval, limit - waited)):
                return None
            # If the learner itself was suspended, the workers may have been suspended as well
            waited += min(time.monotonic() - start, self._interval)
        if asked == "step":
            return Failure(f"made no progress for {self._step_timeout:g} seconds (`step_timeout`)", hangs=True)
        return Failure(f"did not answer `{asked}` in time", hangs=True)

    def recv(self) -> Any:
        """
        :return: the answer
        :raises Exception: if the environment has raised an exception, or the worker has ended
        """
        answer = self.take()
        if isinstance(answer, Failure):
            failure = self._failed(answer)
            raise failure from failure.__cause__
        return answer

    def close(self) -> None:
        """Close the pipe; may be called twice."""
        self.connection.close()
        # The number of the pipe may be reused: do not wait for it
        self._wait = lambda timeout: [0]
