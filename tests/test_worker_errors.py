"""Errors in a worker are reported as in this process, and starting or closing a collector never stops halfway."""

import functools
import os
import re
import signal
import threading
import time
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pytest
import torch as th
from conftest import FaultyEnv, PointEnv, point_env_fn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import ActionNoise
from torch import nn

from sb3_hrl import HierarchicalDDPG, ParallelCollector, SerialCollector
from sb3_hrl.common.shared_memory import SharedArrays
from sb3_hrl.parallel.async_rollouts import collect_task

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("leaves_nothing")]


@pytest.fixture
def make_model(small):
    envs = []

    def make(env_fns=None, env_kwargs=None, **kwargs) -> HierarchicalDDPG:
        options = dict(flush_size=7, sync_interval=20, start_method="fork") | (env_kwargs or {})
        envs.append(ParallelCollector(env_fns or [point_env_fn()] * 2, **options))
        return HierarchicalDDPG("MultiInputPolicy", envs[-1], async_collection=True, prefetch_depth=0, **small | kwargs)

    yield make
    for env in envs:
        env.close()


# ------------------------------------------------------------------- as a VecEnv


class CustomError(Exception):
    """It can only be unpickled where the class is known."""


class Unruly(PointEnv):
    """Raises any requested error, or returns objects that cannot be pickled."""

    def __init__(self, error: Exception | None = None):
        super().__init__()
        self.error = error

    def provoke(self, error: Exception) -> None:
        raise error

    def secret(self) -> Any:
        return lambda: None

    def leave(self) -> None:
        os._exit(7)

    def reset(self, *, seed=None, options=None):
        if options:
            raise KeyError("no such map")
        return super().reset(seed=seed)

    def step(self, action: np.ndarray):
        if self.error is not None and action[0] > 1:
            raise self.error
        return super().step(action)


ACTIONS = np.zeros((3, 2), np.float32)


@pytest.fixture(params=[1, 3])
def unruly(request):
    make = lambda: Unruly(BrokenPipeError("the simulator is gone"))  # noqa: E731
    # Without restarts, exceptions of environments are raised
    env = ParallelCollector([make] * 3, start_method="fork", envs_per_worker=request.param, max_restarts=0)
    env.reset()
    yield env
    env.close()


def lock() -> Any:
    return threading.Lock()


@pytest.mark.parametrize(
    ("ask", "kind", "match"),
    [
        (lambda env: env.get_attr("nosuch"), AttributeError, "nosuch"),
        (lambda env: env.env_method("nosuch"), AttributeError, "nosuch"),
        (lambda env: env.env_method("provoke", ArithmeticError("fell"), indices=[1]), RuntimeError, "fell"),
        (lambda env: env.env_method("provoke", ValueError("fell")), ValueError, "fell"),
        (lambda env: env.env_method("provoke", CustomError("fell")), RuntimeError, "fell"),
        (lambda env: env.env_method("secret"), (RuntimeError, AttributeError), "lambda"),
        (lambda env: env.env_method("provoke", lock()), TypeError, "pickle"),
        (lambda env: env.set_attr("observation_space", lock()), TypeError, "pickle"),
        (lambda env: env.step(ACTIONS + [2, 0]), RuntimeError, "the simulator is gone"),
        (lambda env: (env.set_options([{}, {"map": 1}, {}]), env.reset()), RuntimeError, "no such map"),
        (lambda env: (env.set_options([{}, {"map": lock()}, {}]), env.reset()), TypeError, "pickle"),
    ],
)
def test_an_exception_comes_home_and_the_environments_go_on(unruly, ask, kind, match):
    with pytest.raises(kind, match=match) as info:
        ask(unruly)
    if kind is not TypeError:
        assert re.match(r"Worker \d \(environments? \d", str(info.value))
        assert "Traceback" in str(info.value)
    # No old answer is left that could be mistaken for the next one
    unruly.set_options()
    unruly.reset()
    _, rewards, dones, _ = unruly.step(ACTIONS)
    assert (rewards.shape, dones.tolist()) == ((3,), [False] * 3)
    assert unruly.get_attr("max_steps") == [20] * 3


def test_the_exception_itself_is_the_cause(unruly):
    with pytest.raises(RuntimeError, match=r"^Worker 0 .* raised an exception in `step`") as info:
        unruly.step(ACTIONS + [2, 0])
    assert type(info.value.__cause__) is BrokenPipeError
    assert "in step" in str(info.value)


def test_a_worker_that_dies_is_named(unruly):
    with pytest.raises(RuntimeError, match=r"Worker 0 .* died \(exit code 7\)"):
        unruly.env_method("leave", indices=[0])
    with pytest.raises(RuntimeError, match=r"Worker 0 .* died \(exit code 7\)"):
        unruly.get_attr("max_steps")
    unruly.close()
    with pytest.raises(RuntimeError, match="are closed"):
        unruly.get_attr("max_steps")


def test_only_what_was_asked_for_is_answered(unruly):
    unruly.step_async(ACTIONS)
    assert unruly.get_attr("max_steps") == [20] * 3
    with pytest.raises(RuntimeError, match="between `step_async` and `step_wait`"):
        unruly.step_wait()


def test_a_later_worker_that_cannot_make_its_environments_says_why():
    with pytest.raises(RuntimeError, match=r"Worker 1 .*could not make its environments[^$]*no_such_argument"):
        ParallelCollector([point_env_fn(), point_env_fn(no_such_argument=1)], start_method="fork")


def test_nothing_is_left_of_a_start_that_fails():
    with pytest.raises(TypeError, match="pickle"):
        ParallelCollector([point_env_fn(), functools.partial(PointEnv, lock())], start_method="forkserver")


class Stubborn(PointEnv):
    """It cannot be closed."""

    def close(self):
        raise ArithmeticError("it does not close")


def test_what_is_raised_at_the_end_is_printed(capfd):
    env = ParallelCollector([Stubborn] * 2, start_method="fork", envs_per_worker=2)
    env.close()
    assert capfd.readouterr().err.count("ArithmeticError: it does not close") == 2


def test_what_a_callback_asks_for_in_vain_does_not_end_the_run(make_model):
    class Ask(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % 20 == 0:
                with pytest.raises(AttributeError, match="nosuch"):
                    self.training_env.get_attr("nosuch")
            return True

    model = make_model().learn(200, callback=Ask())
    assert model.num_timesteps == model.replay_buffer.n_added == 200
    assert model.env.n_restarts == 0


def test_priority_falls_when_workers_collect(make_model):
    model = make_model()
    before = psutil.Process().nice()
    niceness = [psutil.Process(process.pid).nice() for process in model.env.processes]
    assert niceness == [before] * 2
    for _ in range(2):
        model.learn(100)
        niceness = [psutil.Process(process.pid).nice() for process in model.env.processes]
        assert niceness == [min(before + 10, 19)] * 2


# ------------------------------------------------------- starting, stopping, closing


def start(model: HierarchicalDDPG, held: Any = None, publish: Any = None) -> None:
    acting = model._acting()
    task = collect_task(acting.agent, model.replay_buffer, n_warm_up=0)
    task.agent.held = held
    model.env.start_collecting(task, model.replay_buffer.shards, publish or acting.write_weights)


def test_a_start_that_fails_leaves_the_environments_as_they_were(make_model, monkeypatch):
    model = make_model().learn(100)

    def fail(*args):
        raise ArithmeticError("no weights")

    with pytest.raises(ArithmeticError, match="no weights"):
        start(model, publish=fail)
    with pytest.raises(TypeError, match="`oracle`"):
        start(model, held=lock())
    assert not model.env.is_collecting
    model.env.step(np.zeros((2, 2), np.float32))
    # A task that was sent only in part
    monkeypatch.setattr(SharedArrays, "send", fail)
    with pytest.raises(ArithmeticError):
        start(model)
    monkeypatch.undo()
    model.env.reset()
    model.env.step(np.zeros((2, 2), np.float32))
    model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps == 200


def test_an_oracle_may_be_a_local_function(make_model):
    def zeros(observation, achieved_goal, subgoal):
        return np.zeros((len(observation), 2), np.float32)

    model = make_model(low_kwargs=dict(oracle=zeros))
    assert model.learn(100).num_timesteps == 100


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_noise_and_activation_may_be_local_classes(make_model, start_method):
    class Noise(ActionNoise):
        def __call__(self) -> np.ndarray:
            return np.array([0.25, -0.25])

    class Swish(nn.Module):
        def forward(self, x: th.Tensor) -> th.Tensor:
            return x * th.sigmoid(x)

    model = make_model(
        env_kwargs=dict(start_method=start_method),
        policy_kwargs=dict(net_arch=[16], activation_fn=Swish),
        action_noise=Noise(),
        exploration_kwargs=dict(random_action_prob=0.0),
        learning_starts=0,
    )
    # With actions of 0, only the noise is left
    for parameter in model.policy.low.actor.mu[-2].parameters():
        th.nn.init.zeros_(parameter)
    # Also prepare batches in a process
    model.prefetch_depth = 2
    model.learn(100)
    assert model.num_timesteps == 100
    rows = model.replay_buffer.shards.rows[0, :5, model.replay_buffer.columns["action"]]
    np.testing.assert_allclose(rows, np.tile([0.25, -0.25], (5, 1)), atol=1e-6)


@pytest.mark.parametrize("where", ["callback", "thread"])
@pytest.mark.parametrize("kind", [functools.partial(ParallelCollector, start_method="fork"), SerialCollector])
def test_closing_the_environments_ends_the_run_with_a_sentence(make_model, small, where, kind):
    """Regression test: it waited forever."""

    class Close(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 30:
                if where == "callback":
                    self.training_env.close()
                else:
                    threading.Thread(target=self.training_env.close).start()
            return True

    env = kind([point_env_fn()] * 2, flush_size=7)
    model = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, prefetch_depth=0, **small)
    with pytest.raises(RuntimeError, match="close them after `learn`"):
        model.learn(1_000_000, callback=Close())
    with pytest.raises(RuntimeError):
        model.learn(100)
    env.close()


def test_environments_closed_while_they_are_asked_are_not_taken_for_a_bad_reward(small):
    env = ParallelCollector([point_env_fn()] * 2, start_method="fork")
    model = HierarchicalDDPG("MultiInputPolicy", env, **small)
    model.learn(20)
    reset = env.reset
    with (
        mock.patch.object(env, "reset", side_effect=lambda: (reset(), env.close())[0]),
        pytest.raises(RuntimeError, match="close them after `learn`"),
    ):
        model.learn(20)


class SlowStart(FaultyEnv):
    """Creating it takes longer than the time limit of a step."""

    def __init__(self, **kwargs):
        time.sleep(1.0)
        super().__init__(**kwargs)


def test_the_time_to_start_is_not_that_of_a_step(make_model, tmp_path):
    """Regression test: one hang used up all restarts, because new workers counted as hanging while they started."""
    make = lambda: Monitor(SlowStart(fault="hang", at=30, once=str(tmp_path / "once")), info_keywords=("is_success",))  # noqa: E731
    model = make_model([make], dict(step_timeout=0.5))
    with pytest.warns(RuntimeWarning, match=r"made no progress for 0.5 seconds"):
        model.learn(200)
    assert model.num_timesteps == model.replay_buffer.n_added == 200
    assert model.env.n_restarts == 1


def test_a_start_takes_no_longer_than_it_may(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_hrl.parallel.collector.START_TIMEOUT", 0.6)
    marker, learner = tmp_path / "started", os.getpid()

    def make():
        if marker.exists() and os.getpid() != learner:
            time.sleep(1000)
        return point_env_fn("FaultyEnv-v0", fault="die", at=30)()

    model = make_model([make], dict(step_timeout=0.5, max_restarts=2))
    model.env.reset()
    marker.touch()
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="did not come to its first step within"):
        model.learn(200)


def test_a_worker_that_dies_when_it_is_to_stop_is_replaced(make_model):
    """The replacement sends the first observations of its environments."""
    model = make_model()
    start(model)
    model.env.grant(20)
    while model.env.n_written() < 20:
        model.env.poll()
    os.kill(model.env.processes[0].pid, signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="died"):
        observations, _ = model.env.stop_collecting()
    assert observations["observation"].shape == (2, 3)
    assert observations["observation"][0, 2] == 0
    model.env.step(np.zeros((2, 2), np.float32))
