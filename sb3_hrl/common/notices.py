"""Hides the notice about AdroitHand's reward that gymnasium-robotics prints when it is imported, in every process."""

import contextlib
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

PACKAGE = "gymnasium_robotics"


def _notices() -> dict[str, Any]:
    """:return: the notices of Farama's packages, which these print when they are imported"""
    try:
        from farama_notifications import notifications
    except ImportError:
        return {}
    assert isinstance(notifications, dict)
    return notifications


@contextlib.contextmanager
def without_notice() -> Iterator[None]:
    """Within this context gymnasium-robotics is imported without its notice. Other output and warnings do not change."""
    notices = _notices()
    kept = notices.pop(PACKAGE, None)
    try:
        yield
    finally:
        if kept is not None:
            notices[PACKAGE] = kept


def drop_notice() -> None:
    """Hide the notice for the rest of this process, which is a worker."""
    _notices().pop(PACKAGE, None)


class WorkerPickle(CloudpickleWrapper):
    """A pickle for a worker process. It can import gymnasium-robotics there, when it is unpickled or used."""

    def __setstate__(self, state: bytes) -> None:
        drop_notice()
        super().__setstate__(state)
