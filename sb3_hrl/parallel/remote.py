"""The learner's end of the pipe to an environment: each command has one answer, and an exception is an answer as well."""

import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple


class Raised(NamedTuple):
    """What a worker sends home of an exception."""

    trace: str
    pickled: bytes | None  # the exception, if it survives pickling

    @classmethod
    def of(cls, error: Exception) -> "Raised":
        """
        :param error: what was raised and is being handled
        :return: what to send
        """
        try:
            pickled = bytes(ForkingPickler.dumps(error))
        except Exception:
            pickled = None
        return cls(traceback.format_exc(), pickled)

    @property
    def error(self) -> Exception | None:
        """The exception, if it can be made again here."""
        try:
            return pickle.loads(self.pickled) if self.pickled is not None else None
        except Exception:
            return None


class EnvRemote:
    """
    What ``SubprocVecEnv`` takes for the pipe to an environment. After an exception of one environment nobody fetches the
    answers of the others: each is dropped before something else is asked.

    :param connection: the pipe
    :param lost: makes the exception that says how the worker ended
    :param failed: makes the exception that says what was raised at a command
    """

    def __init__(self, connection: Connection, lost: Callable[[], Exception], failed: Callable[[str, Raised], Exception]):
        self.connection = connection
        self._lost, self._failed = lost, failed
        self._asked: str | None = None  # the command that has not been answered yet

    def send(self, message: tuple[str, Any]) -> None:
        """
        :param message: a command and its arguments
        """
        # What cannot be pickled is refused before anything is sent
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
        :raises Exception: if the environment has raised one, or if the worker is gone
        """
        if self._asked is None:
            raise RuntimeError("The environment was asked for something else between `step_async` and `step_wait`.")
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
        """Let go of the pipe; twice is fine."""
        self.connection.close()
