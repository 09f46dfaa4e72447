"""A worker that fails while a VecEnv steps in step is replaced: the step goes on, and says that the episode was cut."""

import contextlib
import functools
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import FaultyEnv, PointEnv, point_env_fn, point_vec_env
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor, VecNormalize

from sb3_hrl import HierarchicalDDPG, ParallelCollector
from sb3_hrl.parallel.observation_slots import ObservationSlots

pytestmark = [pytest.mark.timeout(100), pytest.mark.usefixtures("leaves_nothing")]

ACTIONS = np.full((2, 2), 0.5, np.float32)


@pytest.fixture
def make_env():
    envs = []

    def make(env_fns=None, **kwargs: Any) -> ParallelCollector:
        envs.append(ParallelCollector(env_fns or [PointEnv] * 2, **dict(start_method="fork", flush_size=7) | kwargs))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def faulty(fault: str, at: int, once: Path | None = None) -> Callable[[], gym.Env]:
    return lambda: FaultyEnv(fault, at, None if once is None else str(once))


def flat(env_fn: Callable[[], gym.Env] = PointEnv) -> Callable[[], gym.Env]:
    """:return: the environment with a Box as observation space"""
    return lambda: gym.wrappers.FlattenObservation(env_fn())


class Wide(gym.ObservationWrapper):
    """Observations of 8,000 bytes and more, which go through shared memory."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        space = env.observation_space
        if isinstance(space, spaces.Dict):
            self.observation_space = spaces.Dict({**space.spaces, "observation": self._wide(space["observation"])})
        else:
            self.observation_space = self._wide(space)

    @staticmethod
    def _wide(space: spaces.Box) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (1_000, *space.shape), np.float64)

    def observation(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {**observation, "observation": self.observation(observation["observation"])}
        return np.tile(observation, (1_000, 1))


def wide(env_fn: Callable[[], gym.Env] = PointEnv) -> Callable[[], gym.Env]:
    return lambda: Wide(env_fn())


def kill(env: ParallelCollector, worker: int = 0) -> None:
    os.kill(env.processes[worker].pid, signal.SIGKILL)
    env.processes[worker].join()


def part(observations: Any, env: int) -> Any:
    """:return: the observation of one environment"""
    return {key: value[env] for key, value in observations.items()} if isinstance(observations, dict) else observations[env]


def assert_cut(env: int, last: Any, step: Any, reward: float | None = None) -> None:
    """The step ended the episode of an environment with the last observation."""
    _, rewards, dones, infos = step
    assert dones[env]
    assert reward is None or rewards[env] == reward
    assert infos[env]["worker_restarted"] is True
    assert infos[env]["TimeLimit.truncated"] is True
    np.testing.assert_equal(infos[env]["terminal_observation"], part(last, env))


def steps(env: ParallelCollector, n: int) -> None:
    for _ in range(n):
        env.step(ACTIONS)


class Kill(BaseCallback):
    """Kills a worker at certain steps."""

    def __init__(self, at: tuple[int, ...]):
        super().__init__()
        self.at = at
        self.n_cut = 0

    def _on_step(self) -> bool:
        self.n_cut += sum("worker_restarted" in info for info in self.locals["infos"])
        if self.n_calls in self.at:
            os.kill(self.training_env.unwrapped.processes[self.n_calls % 2].pid, signal.SIGKILL)
        return True


@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize, VecMonitor])
@pytest.mark.parametrize(("policy", "env_fn"), [("MlpPolicy", flat()), ("MultiInputPolicy", PointEnv)])
def test_ppo_goes_on_when_workers_are_killed(make_env, policy, env_fn, wrap):
    env, callback = make_env([env_fn] * 2), Kill(at=(20, 75))
    model = PPO(
        policy, wrap(env), n_steps=32, batch_size=32, n_epochs=1, policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu"
    )
    with pytest.warns(RuntimeWarning, match=r"Worker \d died \(exit code -9\)"):
        model.learn(192, callback=callback)
    assert model.num_timesteps == 192
    assert env.n_restarts == callback.n_cut == 2
    assert all(np.isfinite(parameter.detach()).all() for parameter in model.policy.parameters())


def test_the_hierarchy_goes_on_when_a_worker_is_killed(make_env, small):
    env = make_env([point_env_fn()] * 2)
    model = HierarchicalDDPG("MultiInputPolicy", env, **small)
    with pytest.warns(RuntimeWarning, match="died"):
        model.learn(200, callback=Kill(at=(33,)))
    assert model.num_timesteps == model.replay_buffer.n_added == 200
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == model.replay_buffer.n_added == 220


@pytest.mark.parametrize("env_fn", [flat(), PointEnv, wide(), wide(flat())])
def test_the_episode_of_a_killed_worker_ends_as_truncated(make_env, env_fn):
    env, twin = make_env([env_fn] * 2), point_vec_env(2)
    env.seed(3)
    twin.seed(3)
    first = env.reset()
    twin.reset()
    for _ in range(3):
        last = env.step(ACTIONS)[0]
        twin.step(ACTIONS)
    kept = part(last, 0)
    kill(env)
    with pytest.warns(RuntimeWarning, match="died") as caught:
        step = env.step(ACTIONS)
    assert len(caught) == 1
    assert_cut(0, last, step)
    np.testing.assert_equal(part(last, 0), kept)
    _, rewards, dones, infos = twin.step(ACTIONS)
    assert (step[1][1], step[2][1], set(step[3][1])) == (rewards[1], dones[1], set(infos[1]))
    # The new environment begins with another seed, and has its own episode of 20 steps
    assert not np.array_equal(_flatten(part(step[0], 0)), _flatten(part(first, 0)))
    ends = [env.step(ACTIONS)[2][0] for _ in range(20)]
    assert ends == [False] * 19 + [True]


def _flatten(observation: Any) -> np.ndarray:
    return np.concatenate([part.ravel() for part in observation.values()]) if isinstance(observation, dict) else observation


@pytest.mark.parametrize("env_fn", [PointEnv, wide()])
def test_all_environments_of_a_worker_are_replaced(make_env, env_fn):
    env = make_env([env_fn] * 4, envs_per_worker=2)
    env.reset()
    last = env.step(np.tile(ACTIONS, (2, 1)))[0]
    kill(env, 1)
    with pytest.warns(RuntimeWarning, match="Worker 1 died"):
        step = env.step(np.tile(ACTIONS, (2, 1)))
    assert step[2].tolist() == [False, False, True, True]
    assert_cut(2, last, step)
    assert_cut(3, last, step)


def test_the_new_seed_depends_on_the_old_one_only(make_env):
    firsts = []
    for _ in range(2):
        env = make_env()
        env.seed(5)
        env.reset()
        kill(env)
        with pytest.warns(RuntimeWarning, match="died"):
            firsts.append(env.step(ACTIONS)[0]["achieved_goal"][0])
    np.testing.assert_array_equal(*firsts)


def test_a_worker_that_hangs_is_replaced(make_env, tmp_path):
    env = make_env([faulty("hang", 3, tmp_path / "once"), PointEnv], step_timeout=4.0)
    env.reset()
    for _ in range(2):
        last = env.step(ACTIONS)[0]
    with pytest.warns(RuntimeWarning, match=r"Worker 0 made no progress for 4 seconds \(`step_timeout`\)"):
        step = env.step(ACTIONS)
    assert_cut(0, last, step)
    assert step[2].tolist() == [True, False]
    env.step(ACTIONS)


def test_workers_that_hang_together_are_waited_for_together(make_env):
    env = make_env(step_timeout=4.0)
    env.reset()
    limits = []
    take = env.remotes[1].take
    env.remotes[1].take = lambda limit=None: limits.append(limit) or take(limit)
    for process in env.processes:
        os.kill(process.pid, signal.SIGSTOP)
    with pytest.warns(RuntimeWarning, match="made no progress"):
        dones = env.step(ACTIONS)[2]
    assert dones.tolist() == [True, True]
    assert limits == [0.0]


def test_a_reset_that_hangs_is_repeated(make_env, monkeypatch):
    monkeypatch.setattr("sb3_hrl.parallel.remote.START_TIMEOUT", 3.0)
    env = make_env(step_timeout=3.0)
    os.kill(env.processes[1].pid, signal.SIGSTOP)
    with pytest.warns(RuntimeWarning, match="Worker 1 did not answer `reset` in time"):
        env.reset()
    assert env.step(ACTIONS)[2].tolist() == [False, False]


def test_an_exception_costs_an_episode(make_env, tmp_path):
    env = make_env([PointEnv, faulty("raise", 3, tmp_path / "once")])
    env.reset()
    for _ in range(2):
        last, rewards, _, _ = env.step(ACTIONS)
    with pytest.warns(RuntimeWarning, match="the robot fell over") as caught:
        step = env.step(ACTIONS)
    assert "conftest.py" in str(caught[0].message), "the traceback is that of the environment"
    assert rewards[1] == -1.0, "with 0, the step would look like a success"
    assert_cut(1, last, step, reward=rewards[1])
    assert step[2].tolist() == [False, True]


def test_what_is_known_of_the_step_is_kept(make_env, tmp_path):
    """The first environment of the worker has taken the step before the other one raises an exception."""
    env, twin = make_env([PointEnv, faulty("raise", 3, tmp_path / "once")], envs_per_worker=2), point_vec_env(2)
    for each in (env, twin):
        each.seed(3)
        each.reset()
        each.step(ACTIONS)
    last, expected = env.step(ACTIONS)[0], twin.step(ACTIONS)
    expected = twin.step(ACTIONS)
    with pytest.warns(RuntimeWarning, match="the robot fell over"):
        step = env.step(ACTIONS)
    assert_cut(0, expected[0], step, reward=expected[1][0])
    assert_cut(1, last, step)


def test_an_environment_that_keeps_raising_ends_the_run(make_env):
    env = make_env([faulty("raise", 3), PointEnv], max_restarts=2)
    env.reset()
    with pytest.raises(RuntimeError, match=r"after 2 restarts[^$]*the robot fell over") as info, pytest.warns(RuntimeWarning):
        steps(env, 20)
    assert isinstance(info.value.__cause__, ArithmeticError)
    assert env.closed


@pytest.mark.parametrize(("at", "goes_on"), [(12, True), (3, False)])
def test_crashes_after_a_block_of_steps_are_not_counted_together(make_env, at, goes_on):
    env = make_env([faulty("die", at), PointEnv], max_restarts=1)
    env.reset()
    ends = contextlib.nullcontext() if goes_on else pytest.raises(RuntimeError, match=r"died.*after 1 restarts")
    with ends, pytest.warns(RuntimeWarning, match="died"):
        steps(env, 40)
    assert env.n_restarts == (3 if goes_on else 1)


def test_without_restarts_failures_are_raised(make_env):
    env = make_env([faulty("raise", 3), PointEnv], max_restarts=0)
    env.reset()
    with pytest.raises(RuntimeError, match="the robot fell over"):
        steps(env, 3)
    # The worker keeps running
    env.reset()
    assert env.step(ACTIONS)[2].tolist() == [False, False]
    kill(env)
    with pytest.raises(RuntimeError, match=r"Worker 0 .* died \(exit code -9\)"):
        env.step(ACTIONS)
    assert env.n_restarts == 0


def test_without_restarts_a_worker_that_hangs_is_an_error(make_env):
    env = make_env(max_restarts=0, step_timeout=3.0)
    env.reset()
    os.kill(env.processes[1].pid, signal.SIGSTOP)
    with pytest.raises(RuntimeError, match=r"Worker 1 .* made no progress for 3 seconds"):
        env.step(ACTIONS)


@pytest.mark.parametrize(
    "ask",
    [
        lambda env: env.get_attr("max_steps") == [20, 20],
        lambda env: env.has_attr("max_steps"),
        lambda env: env.env_is_wrapped(Monitor) == [False, False],
        lambda env: env.env_method("compute_reward", np.zeros(2), np.zeros(2), {}) == [0.0, 0.0],
        lambda env: env.set_attr("max_steps", 20) is None,
    ],
    ids=["get_attr", "has_attr", "env_is_wrapped", "env_method", "set_attr"],
)
def test_a_question_to_a_dead_worker_is_asked_again(make_env, ask):
    env = make_env()
    env.reset()
    last = env.step(ACTIONS)[0]
    kill(env, 1)
    with pytest.warns(RuntimeWarning, match="Worker 1 died"):
        assert ask(env)
    # The next step tells what has happened
    step = env.step(ACTIONS)
    assert_cut(1, last, step)
    assert step[2].tolist() == [False, True]
    assert env.step(ACTIONS)[2].tolist() == [False, False]


def test_a_reset_replaces_dead_workers(make_env):
    env = make_env()
    env.reset()
    kill(env, 1)
    with pytest.warns(RuntimeWarning, match="Worker 1 died"):
        env.reset()
    assert env.step(ACTIONS)[2].tolist() == [False, False]


def test_attributes_are_set_again(make_env):
    env = make_env()
    env.set_attr("max_steps", 7, indices=1)
    env.reset()
    kill(env, 1)
    with pytest.warns(RuntimeWarning, match="died"):
        env.step(ACTIONS)
    assert env.get_attr("max_steps") == [20, 7]


def test_a_question_that_raises_is_no_failure_of_the_worker(make_env):
    env = make_env()
    env.reset()
    with pytest.raises(AttributeError, match="nosuch"):
        env.get_attr("nosuch")
    assert env.step(ACTIONS)[2].tolist() == [False, False]
    assert env.n_restarts == 0


def test_the_file_of_a_monitor_is_continued(make_env, tmp_path):
    env = make_env([lambda: Monitor(PointEnv(), str(tmp_path / "0"))])
    env.reset()
    for _ in range(25):
        env.step(ACTIONS[:1])
    kill(env)
    with pytest.warns(RuntimeWarning, match="died"):
        env.step(ACTIONS[:1])
    for _ in range(20):
        _, _, _, infos = env.step(ACTIONS[:1])
    assert infos[0]["episode"]["l"] == 20
    assert (tmp_path / "0.monitor.csv").read_text().count("#") == 1
    assert load_results(str(tmp_path))["l"].tolist() == [20, 20]
    times = [float(line.split(",")[2]) for line in (tmp_path / "0.monitor.csv").read_text().splitlines()[2:]]
    assert times[0] <= times[1]


def test_workers_are_killed_at_random(make_env):
    """Workers are killed at random times, also while they step: each step has a complete result."""
    rng = np.random.default_rng(0)
    env = make_env(max_restarts=1_000)
    env.reset()
    n_cut, length = 0, np.zeros(2, int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(150):
            env.step_async(ACTIONS)
            if rng.random() < 0.06:
                os.kill(env.processes[rng.integers(2)].pid, signal.SIGKILL)
            observations, _, dones, infos = env.step_wait()
            length += 1
            np.testing.assert_array_equal(observations["observation"][:, 2] == 0, dones)
            for i in np.flatnonzero(dones):
                assert infos[i].get("worker_restarted") or length[i] == 20
                n_cut += "worker_restarted" in infos[i]
                length[i] = 0
    assert n_cut == env.n_restarts > 0


@pytest.mark.parametrize("envs_per_worker", [1, 2])
@pytest.mark.parametrize("env_fn", [wide(), wide(flat())])
def test_large_observations_are_those_of_subproc_vec_env(make_env, env_fn, envs_per_worker):
    env, twin = make_env([env_fn] * 2, envs_per_worker=envs_per_worker), SubprocVecEnv([env_fn] * 2, start_method="fork")
    with contextlib.closing(twin):
        assert all(remote.read_observation is not None for remote in env.remotes)
        for each in (env, twin):
            each.seed(1)
        np.testing.assert_equal(env.reset(), twin.reset())
        # Longer than an episode
        taken = [(env.step(ACTIONS), twin.step(ACTIONS)) for _ in range(25)]
        # What was returned before is not overwritten
        for (obs, *_, infos), (expected, *_, expected_infos) in taken:
            np.testing.assert_equal(obs, expected)
            np.testing.assert_equal(infos, expected_infos)


class OtherType(Wide):
    """Its observations are not those of its space."""

    def observation(self, observation: Any) -> Any:
        return super().observation(observation).astype(np.float32)


def test_observations_of_another_type_keep_it(make_env):
    env = make_env([lambda: OtherType(flat()())] * 2)
    env.reset()
    obs = env.step(ACTIONS)[0]
    assert (obs.dtype, obs.shape) == (np.float32, (2, 1_000, 7))


def test_a_worker_that_dies_while_it_writes_does_not_change_the_last_observation(make_env, monkeypatch):
    write = ObservationSlots.write

    def die_in_the_middle(self: ObservationSlots, env: int, observation: Any) -> Any:
        if observation[0, 2] > 0.12:  # share of the episode: the third step
            self._arrays[""][env, 1 - self._slots[env], :500] = 7.0
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, env, observation)

    # Worker processes are forks of this one
    monkeypatch.setattr(ObservationSlots, "write", die_in_the_middle)
    env = make_env([wide(flat()), wide(flat(functools.partial(PointEnv, max_steps=1_000)))])
    env.reset()
    for _ in range(2):
        last = env.step(ACTIONS)[0]
    with pytest.warns(RuntimeWarning, match="died"):
        step = env.step(ACTIONS)
    assert_cut(0, last, step)
