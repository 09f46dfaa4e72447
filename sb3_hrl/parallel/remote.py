"""The learner's end of the pipe to an environment: each command has one answer, which may be an exception."""

import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple


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


class EnvRemote:
    """
    Replaces the pipe of ``SubprocVecEnv`` to an environment. After an exception in one environment, ``SubprocVecEnv`` does not
    fetch the answers of the others: each of these answers is dropped before the next command.

    :param connection: the pipe
    :param lost: creates the exception that reports how the worker ended
    :param failed: creates the exception for an error raised during a command
    """

    def __init__(self, connection: Connection, lost: Callable[[], Exception], failed: Callable[[str, Raised], Exception]):
        self.connection = connection
        self._lost, self._failed = lost, failed
        self._asked: str | None = None  # the command that has not been answered yet

    def send(self, message: tuple[str, Any]) -> None:
        """
        :param message: a command and its arguments
        """
        # Pickle first: if that fails, nothing is sent
        content = ForkingPickler.dumps(message)
        try:
            if self._asked is not None:
                self.connection.recv_bytes()
            self.connection.send_bytes(content)
        except (EOFError, OSError):
            failure = self._lost()
            raise failure from failure.__cause__
        self._asked = message[0]

    def recv(self) -> Any:
        """
        :return: the answer
        :raises Exception: if the environment has raised an exception, or the worker has ended
        """
        if self._asked is None:
            raise RuntimeError("Another command was sent to the environment between `step_async` and `step_wait`.")
        asked, self._asked = self._asked, None
        try:
            content = self.connection.recv_bytes()
        except (EOFError, OSError):
            failure = self._lost()
            raise failure from failure.__cause__
        answer = pickle.loads(content)
        if isinstance(answer, Raised):
            failure = self._failed(asked, answer)
            raise failure from failure.__cause__
        return answer

    def close(self) -> None:
        """Close the pipe; may be called twice."""
        self.connection.close()
