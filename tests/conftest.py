"""Small goal-conditioned environments, and checks that tests leave no processes or files behind."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from processes import run as run
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl.visual import use_offscreen_renderer


class PointEnv(gym.Env):
    """
    A point in the plane that moves by its action, at most 0.1 per step and dimension; goals lie in the unit box.

    :param max_steps: time limit of an episode
    :param ends_at_success: whether an episode ends when the goal is reached
    :param dense: reward is the negative distance instead of -1/0
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    threshold = 0.1

    def __init__(self, max_steps: int = 20, ends_at_success: bool = False, dense: bool = False):
        goal = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        observation = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space = spaces.Dict(observation=observation, achieved_goal=goal, desired_goal=goal)
        self.action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)
        self.max_steps, self.ends_at_success, self.dense = max_steps, ends_at_success, dense

    def _obs(self) -> dict[str, np.ndarray]:
        observation = np.array([*self.position, self.steps / self.max_steps])
        return {"observation": observation, "achieved_goal": self.position.copy(), "desired_goal": self.goal.copy()}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        distance = np.linalg.norm(achieved - desired, axis=-1)
        return -distance if self.dense else (distance <= self.threshold).astype(np.float64) - 1.0

    def compute_terminated(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> bool:
        return self.ends_at_success and bool(np.linalg.norm(achieved - desired) <= self.threshold)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.steps = 0
        self.position, self.goal = self.np_random.uniform(-1.0, 1.0, (2, 2))
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.steps += 1
        self.position = np.clip(self.position + 0.05 * np.asarray(action), -1.5, 1.5)
        reward = float(self.compute_reward(self.position, self.goal, {}))
        success = bool(np.linalg.norm(self.position - self.goal) <= self.threshold)
        terminated = self.compute_terminated(self.position, self.goal, {})
        return self._obs(), reward, terminated, self.steps >= self.max_steps, {"is_success": success}


class UnjudgedEnv(PointEnv):
    """
    A dense reward, without anything else that defines success.

    :param info: info of every step
    """

    def __init__(self, info: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(dense=True, **kwargs)
        self.info = {"is_success": False} if info is None else info

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        return *super().step(action)[:4], dict(self.info)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort slow test files to the front, so that no process of pytest-xdist has to wait long for another at the end."""

    def is_quick(item: pytest.Item) -> bool:
        marks = getattr(item.getparent(pytest.Module).obj, "pytestmark", [])
        return "slow" not in [mark.name for mark in (marks if isinstance(marks, list) else [marks])]

    items.sort(key=is_quick)


NO_RENDERER = "no offscreen renderer here: apt-get install libegl1 libopengl0 libgl1-mesa-dri"


def renders_offscreen() -> bool:
    """:return: whether MuJoCo can render here; if so, ``MUJOCO_GL`` is set"""
    try:
        use_offscreen_renderer()
    except RuntimeError:
        return False
    return True


@pytest.fixture
def renderer() -> None:
    """Sets ``MUJOCO_GL`` to a renderer that works, or skips the test and names what to install."""
    if not renders_offscreen():
        pytest.skip(NO_RENDERER)


def point_vec_env(n_envs: int = 1, **kwargs: Any) -> DummyVecEnv:
    """:return: ``n_envs`` PointEnvs in this process"""
    return DummyVecEnv([lambda: PointEnv(**kwargs)] * n_envs)


@pytest.fixture
def small() -> dict[str, Any]:
    """Arguments of an agent that trains quickly, whose actor chooses subgoals for a fixed number of steps."""
    size = dict(learning_starts=20, batch_size=16, policy_kwargs=dict(net_arch=[16]), buffer_size=1000)
    return size | dict(subgoal_steps=5, planner=None, seed=0)


class FaultyEnv(PointEnv):
    """
    A PointEnv that fails at a certain step: ``raise``, ``hang``, or ``die`` (by SIGKILL).

    :param fault: kind of failure
    :param at: number of the step
    :param once: file that is created at the failure, after which the environment does not fail again; ``None``: it fails each
        time
    """

    def __init__(self, fault: str, at: int, once: str | None = None):
        super().__init__()
        self.fault, self.at, self.once, self.n_steps = fault, at, once, 0

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.n_steps += 1
        if self.n_steps == self.at and (self.once is None or not Path(self.once).exists()):
            if self.once is not None:
                Path(self.once).touch()
            if self.fault == "raise":
                raise ArithmeticError("the robot fell over")
            if self.fault == "hang":
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


gym.register("PointEnv-v0", entry_point=PointEnv)
gym.register("FaultyEnv-v0", entry_point=FaultyEnv)


def point_env_fn(env_id: str = "PointEnv-v0", **kwargs: Any) -> Callable[[], gym.Env]:
    """:return: a function that creates the environment in any process"""
    return lambda: Monitor(gym.make(f"conftest:{env_id}", **kwargs), info_keywords=("is_success",))


def shared_memory_files() -> set[str]:
    """:return: files in /dev/shm"""
    return set(os.listdir("/dev/shm"))


def running_workers() -> list[psutil.Process]:
    """:return: running child processes, without the helpers of multiprocessing"""
    processes = psutil.Process().children(recursive=True)
    helpers = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
    own = psutil.Process().pid
    return [
        process
        for process in processes
        if process.is_running()
        and process.status() != psutil.STATUS_ZOMBIE
        and not (process.ppid() == own and any(helper in " ".join(process.cmdline()) for helper in helpers))
    ]


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Check that the test leaves no additional processes and shared-memory files."""
    files, workers = shared_memory_files(), {process.pid for process in running_workers()}
    yield
    deadline = time.monotonic() + 10.0
    while (left := {process.pid for process in running_workers()} - workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, "processes are left"
    # Other tests may run at the same time: only the files of multiprocessing and of sb3-hrl are checked
    assert not {name for name in shared_memory_files() - files if name.startswith(("psm_", "sb3", "torch_"))}
