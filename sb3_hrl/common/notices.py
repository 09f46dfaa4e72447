"""What gymnasium-robotics prints when it is imported, a notice about the reward of AdroitHand, in every process anew."""

import contextlib
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

PACKAGE = "gymnasium_robotics"


def _notices() -> dict[str, Any]:
    """:return: what packages of Farama print when they are imported, by package"""
    try:
        from farama_notifications import notifications
    except ImportError:
        return {}
    assert isinstance(notifications, dict)
    return notifications


@contextlib.contextmanager
def without_notice() -> Iterator[None]:
    """Within it gymnasium-robotics is imported in silence; all other output and all warnings stay as they are."""
    notices = _notices()
    kept = notices.pop(PACKAGE, None)
    try:
        yield
    finally:
        if kept is not None:
            notices[PACKAGE] = kept


def drop_notice() -> None:
    """Never print it in this process: a worker, whose learner may have printed it."""
    _notices().pop(PACKAGE, None)


class WorkerPickle(CloudpickleWrapper):
    """What is sent to a worker's process, and may import gymnasium-robotics when it is unpickled there or used later."""

    def __setstate__(self, state: bytes) -> None:
        drop_notice()
        super().__setstate__(state)
