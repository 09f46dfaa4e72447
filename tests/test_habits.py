"""Typical environments and options of users work, in this process and in workers."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import PointEnv
from rl_zoo3.wrappers import ActionNoiseWrapper, DelayedRewardWrapper, FrameSkip, HistoryWrapperObsDict
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl import HierarchicalDDPG, ParallelCollector, SerialCollector

MakeEnv = Callable[[], gym.Env]


def learn(make_env: MakeEnv, small: dict[str, Any], vec_env_cls: Any = DummyVecEnv, **kwargs: Any) -> HierarchicalDDPG:
    """:return: an agent that has learnt for 60 steps in two such environments, which are closed"""
    options: Any = {} if vec_env_cls is DummyVecEnv else dict(async_collection=True, prefetch_depth=0)
    env = vec_env_cls([lambda: Monitor(make_env())] * 2)
    try:
        model = HierarchicalDDPG("MultiInputPolicy", env, **(small | options | kwargs)).learn(60)
    finally:
        env.close()
    assert model.num_timesteps == 60
    assert all(np.isfinite(parameter.detach()).all() for parameter in model.policy.parameters())
    return model


SMALL_WORKERS: list[Any] = [DummyVecEnv, lambda fns: SerialCollector(fns, flush_size=7)]


@pytest.mark.parametrize("vec_env_cls", SMALL_WORKERS)
@pytest.mark.parametrize("max_steps", [1, 10**9])
def test_episodes_of_one_step_and_without_end(small, vec_env_cls, max_steps):
    model = learn(lambda: PointEnv(max_steps=max_steps), small, vec_env_cls)
    assert model._episode_num == (60 if max_steps == 1 else 0)
    # Workers may have written additional steps
    buffer = model.replay_buffer
    assert buffer.size() >= 60
    if max_steps == 1:
        assert buffer.n_segments() == buffer.size()


@pytest.mark.parametrize("vec_env_cls", SMALL_WORKERS)
def test_a_buffer_smaller_than_an_episode(small, vec_env_cls):
    model = learn(lambda: PointEnv(max_steps=20), small, vec_env_cls, buffer_size=2 * 8)
    assert 0 < model.replay_buffer.size() <= 16


WRAPPERS: list[Callable[[gym.Env], gym.Env]] = [
    lambda env: TimeFeatureWrapper(env, max_steps=20),
    HistoryWrapperObsDict,
    lambda env: FrameSkip(env, 2),
    lambda env: DelayedRewardWrapper(env, 3),
    ActionNoiseWrapper,
]


def wrapped() -> gym.Env:
    """:return: a PointEnv in all of these wrappers"""
    env: gym.Env = PointEnv()
    for wrap in WRAPPERS:
        env = wrap(env)
    return env


# Some of the wrappers change rewards
@pytest.mark.filterwarnings("ignore:`step` returned another reward:UserWarning")
@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("vec_env_cls", SMALL_WORKERS)
def test_wrappers_of_the_zoo(small, wrap, vec_env_cls):
    learn(lambda: wrap(PointEnv()), small, vec_env_cls)


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:`step` returned another reward:UserWarning")
def test_wrappers_of_the_zoo_in_workers(small, leaves_nothing):
    learn(wrapped, small, lambda fns: ParallelCollector(fns, start_method="fork", flush_size=7))


def test_a_schedule_may_be_a_closure(small, tmp_path):
    start = 1e-3

    def halved(progress_remaining: float) -> float:
        return start * (0.5 + 0.5 * progress_remaining)

    model = learn(PointEnv, small, learning_rate=halved)
    assert model.policy.low.actor.optimizer.param_groups[0]["lr"] == pytest.approx(halved(0.0), rel=0.1)
    model.save(tmp_path / "agent")
    loaded = HierarchicalDDPG.load(tmp_path / "agent", env=DummyVecEnv([PointEnv] * 2))
    assert loaded.learning_rate(0.5) == halved(0.5)
    loaded.learn(10)
