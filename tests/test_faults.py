"""If anything crashes, raises an error or hangs, the run continues or ends with a reason, and nothing is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from agents import KillWorkers
from conftest import PointEnv, point_env_fn, run
from stable_baselines3.common.callbacks import BaseCallback

from sb3_hrl import HierarchicalDDPG, ParallelCollector
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.hddpg.batch_source import BatchSource, PrefetchedBatchSource
from sb3_hrl.parallel.prefetch import PrefetchSampler

pytestmark = [pytest.mark.timeout(100), pytest.mark.usefixtures("leaves_nothing")]


@pytest.fixture
def make_model(small):
    envs = []

    def make(env_fns=None, env_kwargs=None, **kwargs) -> HierarchicalDDPG:
        options = dict(flush_size=7, sync_interval=20, start_method="fork") | (env_kwargs or {})
        envs.append(ParallelCollector(env_fns or [point_env_fn()] * 2, **options))
        return HierarchicalDDPG("MultiInputPolicy", envs[-1], async_collection=True, **dict(prefetch_depth=0) | small | kwargs)

    yield make
    for env in envs:
        env.close()


def faulty(fault: str, at: int, once: Path | None = None):
    return point_env_fn("FaultyEnv-v0", fault=fault, at=at, once=None if once is None else str(once))


def assert_consistent(model: HierarchicalDDPG, n_steps: int) -> None:
    """Every step counts once, is part of an episode of at most 20 steps, and continues the step before it."""
    assert model.num_timesteps == model.replay_buffer.n_added == n_steps
    shards, columns = model.replay_buffer.shards, model.replay_buffer.columns
    for shard in range(model.n_envs):
        rows = shards.rows[shard, shards.tail[shard] : shards.head[shard]]
        clock = (20 * rows[:, columns["next_observation"]][:, 2]).round().astype(int)
        assert set(clock) <= set(range(1, 21))
        ends = (clock[1:] != clock[:-1] + 1).nonzero()[0]
        assert (clock[ends + 1] == 1).all()


@pytest.mark.parametrize("envs_per_worker", [1, 2])
def test_a_killed_worker_is_replaced_and_every_step_counts(make_model, envs_per_worker):
    model = make_model([point_env_fn()] * 4, dict(envs_per_worker=envs_per_worker), buffer_size=40_000)
    with pytest.warns(RuntimeWarning, match="died"):
        model.learn(8_000, callback=KillWorkers(every=400))
    assert_consistent(model, 8_000)
    assert model.env.n_restarts >= 3
    model.learn(100, reset_num_timesteps=False)
    assert_consistent(model, 8_100)


def test_a_worker_that_kills_itself_in_its_environment_is_replaced(make_model, tmp_path):
    model = make_model([faulty("die", 30, tmp_path / "once"), point_env_fn()])
    with pytest.warns(RuntimeWarning, match=r"Worker 0 died \(exit code -9\)"):
        model.learn(600)
    assert_consistent(model, 600)


def test_a_worker_that_dies_again_and_again_ends_the_run(make_model):
    model = make_model([faulty("die", 3)] * 2, dict(max_restarts=2))
    with pytest.raises(RuntimeError, match=r"died.*after 2 restarts"), pytest.warns(RuntimeWarning):
        model.learn(600)


def test_an_exception_is_survived_once(make_model, tmp_path):
    model = make_model([faulty("raise", 30, tmp_path / "once"), point_env_fn()])
    with pytest.warns(RuntimeWarning, match="the robot fell over"):
        model.learn(600)
    assert_consistent(model, 600)


def test_an_environment_that_keeps_raising_ends_the_run_with_its_traceback(make_model):
    model = make_model([point_env_fn(), faulty("raise", 30)])
    with pytest.raises(RuntimeError, match="after 3 restarts") as info, pytest.warns(RuntimeWarning):
        model.learn(100_000)
    assert "the robot fell over" in str(info.value)
    assert "conftest.py" in str(info.value), "the traceback is that of the environment"
    assert isinstance(info.value.__cause__, ArithmeticError)
    assert model.env.closed


def test_a_worker_that_hangs_is_replaced(make_model, tmp_path):
    model = make_model([faulty("hang", 30, tmp_path / "once"), point_env_fn()], dict(step_timeout=1.5))
    with pytest.warns(RuntimeWarning, match=r"made no progress for 1.5 seconds"):
        model.learn(600)
    assert_consistent(model, 600)


def test_a_learner_that_takes_its_time_is_no_reason_to_replace_workers(make_model):
    class Slow(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 50:
                time.sleep(3)
            return True

    model = make_model(env_kwargs=dict(step_timeout=1.0)).learn(400, callback=Slow())
    assert model.env.n_restarts == 0
    assert_consistent(model, 400)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_in_a_callback_stops_the_workers(make_model, error):
    class Fail(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 40:
                raise error
            return True

    model = make_model()
    with pytest.raises(error):
        model.learn(10_000, callback=Fail())
    assert not model.env.is_collecting
    n_added = model.replay_buffer.n_added
    time.sleep(0.1)
    assert model.replay_buffer.n_added == n_added, "workers go on"
    model.learn(100, reset_num_timesteps=False)
    assert_consistent(model, 180)


def test_values_that_are_not_finite_end_the_run(make_model):
    model = make_model()
    model.learn(100)
    for parameter in model.policy.low.actor.mu.parameters():
        parameter.data.fill_(float("nan"))
    model.gradient_steps = 0
    # A ValueError, as in the synchronous mode: the zoo then prunes the trial
    with pytest.raises(ValueError, match="not finite"), pytest.warns(RuntimeWarning):
        model.learn(200, reset_num_timesteps=False)


# ---------------------------------------------------------------- the learner dies

SCRIPT = """
import signal
import sys
# Processes that a shell starts in the background ignore Ctrl-C, and so do their children
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
from conftest import point_env_fn
from sb3_hrl import HierarchicalDDPG, ParallelCollector
from stable_baselines3.common.callbacks import BaseCallback

class Say(BaseCallback):
    def _on_step(self):
        if self.n_calls == 50 or self.n_calls % 500 == 0:
            print("learning", flush=True)
        return True

if __name__ == "__main__":
    env = ParallelCollector([point_env_fn()] * 2, start_method={method!r})
    model = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, learning_starts=20, batch_size=16,
                             policy_kwargs=dict(net_arch=[16]), prefetch_depth={depth})
    model.learn(10_000_000, callback=Say())
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_learner_that_is_killed(method, kill):
    script = SCRIPT.format(tests=str(Path(__file__).parent), method=method, depth=2)
    learner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "learning" in learner.stdout.readline()
    time.sleep(0.5)
    family = psutil.Process(learner.pid).children(recursive=True)
    assert len(family) >= 2
    learner.send_signal(kill)
    learner.wait(timeout=20)
    # Ctrl-C also reaches the workers of a terminal, but they ignore it
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, f"{[process.cmdline() for process in alive]} outlive the learner"
    if kill == signal.SIGINT:
        assert "KeyboardInterrupt" in learner.stderr.read()
    learner.stdout.close()
    learner.stderr.close()


# -------------------------------------------------------------------- prefetching


def wait_until_ready(source: PrefetchedBatchSource) -> None:
    deadline = time.monotonic() + 30
    while not source._prefetch.is_ready:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def learner(make_model) -> HierarchicalDDPG:
    return make_model(batch_size=32).learn(300)


@pytest.fixture
def source(learner) -> Iterator[PrefetchedBatchSource]:
    source = PrefetchedBatchSource(learner.policy, learner.replay_buffer, TASK, depth=2)
    wait_until_ready(source)
    yield source
    source.close()


TASK = GoalTask(PointEnv().compute_reward, np.zeros((1, 2), np.float32))


def test_prefetched_batches_are_as_good_as_serial_ones(source, learner):
    process, serial = source._prefetch._process, BatchSource(learner.policy, learner.replay_buffer, TASK)
    rewards, batches = {0.0, -1.0}, []
    for _ in range(10):
        batch, expected = source.low(), serial.low()
        assert batch.imitated is expected.imitated is None, "the low level imitates nothing"
        for array, twin in zip(batch[:-1], expected[:-1], strict=True):
            assert array.shape == twin.shape
            assert array.dtype == twin.dtype
            assert array.isfinite().all()
        assert set(batch.rewards.ravel().tolist()) <= rewards
        # Targets come from the target networks, which have not changed
        assert (batch.target_q_values <= 0).all()
        batches.append(batch.inputs.clone())
    assert (batches[0] != batches[1]).any()
    source.close()
    source.close()
    assert not process.is_alive()


def test_prefetching_uses_the_newest_targets(source, learner):
    for network in learner.policy.low.critic_target.q_networks:
        for parameter in network.parameters():
            parameter.data.zero_()
        network[-1].bias.data.fill_(-3.0)
    for _ in range(10):
        batch = source.low()
    config = learner.policy.config.low
    expected = (batch.rewards + (batch.rewards < 0) * config.gamma * -3.0).clamp(config.min_value, 0.0)
    assert (batch.target_q_values - expected).abs().max() < 1e-5


def test_a_learner_on_a_gpu_computes_the_targets_of_prefetched_batches_itself(learner, monkeypatch):
    monkeypatch.setattr("sb3_hrl.hddpg.batch_source._needs_targets", lambda policy: False)
    source = PrefetchedBatchSource(learner.policy, learner.replay_buffer, TASK, depth=2)
    wait_until_ready(source)
    for network in learner.policy.low.critic_target.q_networks:
        for parameter in network.parameters():
            parameter.data.zero_()
        network[-1].bias.data.fill_(-3.0)
    # The first batch was prepared before
    batch, config = source.low(), learner.policy.config.low
    expected = (batch.rewards + (batch.rewards < 0) * config.gamma * -3.0).clamp(config.min_value, 0.0)
    assert (batch.target_q_values - expected).abs().max() < 1e-5
    assert source._prefetch is not None
    source.close()


@pytest.mark.parametrize(("signal_", "what"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "hangs")])
def test_without_the_prefetching_process_it_goes_on(source, signal_, what, monkeypatch):
    monkeypatch.setattr("sb3_hrl.parallel.prefetch._PATIENCE", 1.0)
    os.kill(source._prefetch._process.pid, signal_)
    # Some batches are already prepared
    with pytest.warns(RuntimeWarning, match=f"prepares batches {what}"):
        source.low(), source.low(), source.low(), source.low()
    assert source._prefetch is None
    assert source.low().inputs.shape == (32, 9)


def test_learning_with_prefetched_batches(make_model):
    class Ready(BaseCallback):
        n_prefetched = 0

        def _on_step(self) -> bool:
            source = self.model._batches
            self.n_prefetched += source is not None and source._prefetch is not None and source._prefetch.is_ready
            return self.n_prefetched < 200

    callback = Ready()
    model = make_model(prefetch_depth=2)
    model.learn(1_000_000, callback=callback)
    assert callback.n_prefetched == 200
    assert model._batches is None


@contextlib.contextmanager
def prefetching(learner: HierarchicalDDPG, maker: Any) -> Iterator[PrefetchSampler]:
    prefetch = PrefetchSampler(maker, learner.replay_buffer.shards.blocks(), lambda vector: None)
    yield prefetch
    prefetch.close()


def wait_for(prefetch: PrefetchSampler) -> None:
    deadline = time.monotonic() + 30
    while not prefetch.is_ready:
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Maker:
    """Makes nothing."""

    n_weights = 1

    def layout(self):
        return {}


def test_an_error_while_preparing_is_a_warning(learner):
    """If the batches themselves cause the error, it is raised again when the learner makes them."""
    with prefetching(learner, Maker()) as prefetch:
        wait_for(prefetch)
        with pytest.warns(RuntimeWarning, match="no attribute 'start'"):
            assert prefetch.get() is None


def test_a_prefetching_process_that_dies_in_its_start_is_a_warning(learner):
    """Regression test: it used to be an EOFError without a message."""
    for is_started in (False, True):
        with prefetching(learner, Maker()) as prefetch:
            while is_started and prefetch._to_send is not None:
                assert not prefetch.is_ready
            prefetch._process.kill()
            wait_for(prefetch)
            with pytest.warns(RuntimeWarning, match=r"died \(exit code -9\) at its start"):
                assert prefetch.get() is None


UNGUARDED = """
import sys
import warnings
sys.path.insert(0, {tests!r})
from conftest import point_env_fn
from sb3_hrl import HierarchicalDDPG, ParallelCollector
from stable_baselines3.common.callbacks import BaseCallback

class UntilItFails(BaseCallback):
    def _on_step(self):
        batches = self.model._batches
        return batches is None or batches._prefetch is not None

env = ParallelCollector([point_env_fn()], start_method="fork")
model = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, learning_starts=20, batch_size=16,
                         policy_kwargs=dict(net_arch=[16]), prefetch_depth=2)
model.learn(1_000_000, callback=UntilItFails())
print("steps", model.num_timesteps)
env.close()
"""


def test_a_script_without_a_guard_learns_without_the_prefetching_process(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED.format(tests=str(Path(__file__).parent)))
    output = run(["python", "script.py"], cwd=tmp_path)
    assert "steps" in output
    assert "RuntimeWarning" in output
    assert "does the script lack `if __name__" in output
