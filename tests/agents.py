"""Small agents, callbacks that count and that kill workers, a buffer filled by hand, and environments that need subgoals."""

import os
import signal
from typing import Any

import numpy as np
import pytest
from conftest import point_vec_env
from stable_baselines3.common.callbacks import BaseCallback

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.common.subgoals import N_MISSED, SegmentEnd, SubgoalBounds
from sb3_hrl.hddpg.choosers import HighNoise, Situation, SubgoalDecision, choose_subgoals
from sb3_hrl.hddpg.inference import NumpyPolicy


class Counter(BaseCallback):
    """Counts its calls, and stops the run at a certain number."""

    def __init__(self, stop_at: int = -1):
        super().__init__()
        self.stop_at, self.n_done, self.steps = stop_at, 0, []

    def _on_step(self) -> bool:
        self.steps.append(self.num_timesteps)
        self.n_done += int(np.sum(self.locals["dones"]))
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            assert done == ("episode" in info)
        return self.n_calls != self.stop_at


class KillWorkers(BaseCallback):
    """Kills a worker at regular intervals, in turn."""

    def __init__(self, every: int):
        super().__init__()
        self.every = every

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            processes = self.training_env.processes
            os.kill(processes[self.n_calls // self.every % len(processes)].pid, signal.SIGKILL)
        return True


def make_model(small: dict[str, Any], env: Any = None, **kwargs: Any) -> HierarchicalDDPG:
    """:return: an agent in a PointEnv, with the arguments of the fixture ``small`` and additional ones"""
    return HierarchicalDDPG("MultiInputPolicy", env if env is not None else point_vec_env(), **(small | kwargs))


# A low level whose values do not predict steps: no goal counts as near, so the actor chooses the subgoals
WITHOUT_STEPS: dict[str, Any] = dict(low_kwargs=dict(reward="dense"))


def float32(*rows: Any) -> np.ndarray:
    """:return: an array of these rows"""
    return np.array(rows, dtype=np.float32)


def with_bounds(model: HierarchicalDDPG, threshold: float = 0.15, radius: float = 1.0) -> HierarchicalDDPG:
    """:return: the agent, with subgoals within 9 of the origin, and a known threshold"""
    model.policy.subgoal_threshold.fill_(threshold)
    model.policy.set_bounds(SubgoalBounds(np.full(2, -9.0), np.full(2, 9.0), np.full(2, radius)))
    return model


def predict_steps(monkeypatch: pytest.MonkeyPatch, steps_per_unit: float) -> None:
    """Makes the low level predict a fixed number of steps per unit of distance."""

    def steps(self: NumpyPolicy, observations: np.ndarray, achieved: np.ndarray, subgoals: np.ndarray) -> np.ndarray:
        return float32(steps_per_unit * np.linalg.norm(subgoals - achieved[:, 0], axis=1))[0]

    monkeypatch.setattr(NumpyPolicy, "steps", steps)


def made_by(decision: SubgoalDecision, chooser: Any) -> int:
    """:return: how many of the subgoals this chooser has chosen"""
    return int(decision.made_by(chooser).sum())


def missed_ways(*ways: Any) -> np.ndarray:
    """:return: starts and subgoals of missed segments, the most recent one last, shape (N_MISSED, 2, 2)"""
    missed = np.full((N_MISSED, 2, 2), np.inf, np.float32)
    if ways:
        missed[-len(ways) :] = ways
    return missed


def choose(
    model: HierarchicalDDPG, achieved: np.ndarray, goal: np.ndarray, missed: Any = None, noise: HighNoise | None = None
) -> SubgoalDecision:
    """
    :param model: an agent in PointEnvs
    :param achieved: their positions, shape (n, 2)
    :param goal: desired goals, shape (n, 2)
    :param missed: missed segments, see :func:`missed_ways`; ``None``: there are none
    :param noise: exploration noise; ``None`` for none
    :return: the chosen subgoals
    """
    n = len(goal)
    missed = np.stack([missed_ways()] * n) if missed is None else np.asarray(missed)
    return choose_subgoals(model.policy.numpy_policy(), Situation(np.zeros((n, 3), np.float32), achieved, goal, missed, noise))


def fill(
    model: HierarchicalDDPG,
    subgoal: Any = (1.0, 0.0),
    n: int = 12,
    step: float = 0.1,
    segment: int = 4,
    info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> None:
    """
    Add an episode along the first axis, with a distant goal, to the replay buffer.

    :param model: owner of the buffer
    :param subgoal: the only subgoal
    :param n: number of environment steps
    :param step: length of a step
    :param segment: number of steps per segment
    :param info: info of all steps
    :param kwargs: additional arguments of the buffer's ``add``
    """
    threshold = model.policy.subgoal_threshold.item()
    for i in range(n):
        obs, next_obs = (
            {
                "observation": np.zeros((1, 3)),
                "achieved_goal": np.array([[j * step, 0.0]]),
                "desired_goal": np.array([[5.0, 5.0]]),
            }
            for j in (i, i + 1)
        )
        done, end = i == n - 1, SegmentEnd.NONE
        if (i + 1) % segment == 0 or done:
            end = SegmentEnd.OUT_OF_STEPS if (i + 1) % segment == 0 else SegmentEnd.EPISODE_OVER
            if np.linalg.norm(next_obs["achieved_goal"][0] - subgoal) <= threshold:
                end = SegmentEnd.REACHED
        model.replay_buffer.add(
            obs,
            next_obs,
            np.full((1, 2), 0.1 * i),
            np.zeros(1),
            np.array([done]),
            [info or {}],
            subgoal=float32(subgoal),
            segment_ends=np.array([end], dtype=np.int8),
            **kwargs,
        )
