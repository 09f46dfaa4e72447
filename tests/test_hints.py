"""Hints that `learn` prints once, about environments in which learning is impossible."""

import gymnasium as gym
import numpy as np
import pytest
from agents import make_model
from conftest import PointEnv
from stable_baselines3.common.monitor import Monitor

from sb3_hrl.hddpg import hints


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Checks for hints after few steps."""
    monkeypatch.setattr(hints, "N_STEPS", 60)
    monkeypatch.setattr(hints, "CHECK_INTERVAL", 10)
    monkeypatch.setattr(hints, "N_EPISODES", 3)
    monkeypatch.setattr(hints, "N_SEGMENTS", 20)


class Silent(gym.Wrapper):
    """An environment that does not report success."""

    def step(self, action):
        *step, info = self.env.step(action)
        return *step, {key: value for key, value in info.items() if key != "is_success"}


class Stuck(gym.Wrapper):
    """An environment in which nothing moves."""

    def step(self, action):
        return self.env.step(np.zeros_like(action))


def said(small, capsys, env, **kwargs):
    """:return: hints of a short run"""
    make_model(small, env, verbose=1, **kwargs).learn(200, log_interval=None)
    return [line for line in capsys.readouterr().out.splitlines() if "`" in line]


def test_nothing_is_said_of_an_environment_that_is_all_right(small, capsys):
    assert said(small, capsys, Monitor(PointEnv(10)), planner=None, subgoal_steps=5) == []


def test_missing_success_is_said_once(small, capsys):
    (hint,) = said(small, capsys, Monitor(Silent(PointEnv(10))), planner=None, subgoal_steps=5)
    assert "add_success_info" in hint


def test_a_missing_time_limit_is_said_once(small, capsys):
    lines = said(small, capsys, Monitor(PointEnv(10**9)), planner=None, subgoal_steps=5)
    assert sum("max_episode_steps" in line for line in lines) == 1


def test_subgoals_that_are_all_missed_are_said_once(small, capsys):
    lines = said(small, capsys, Monitor(Stuck(PointEnv(10))), subgoal_steps=5, subgoal_kwargs=dict(source=[5.0, 5.0]))
    assert sum("source" in line for line in lines) == 1


def test_nothing_is_said_without_verbose(small, capsys):
    make_model(small, Monitor(Silent(PointEnv(10))), verbose=0).learn(200, log_interval=None)
    assert capsys.readouterr().out == ""
