"""Guarantees that involve several parts, and the page that lists all of them (docs/guarantees.md)."""

import ast
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import KillWorkers
from conftest import PointEnv, point_env_fn, point_vec_env
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_hrl import HierarchicalDDPG, ParallelCollector, asynchronous
from sb3_hrl.common.shards import spans

pytestmark = [pytest.mark.timeout(100), pytest.mark.usefixtures("leaves_nothing")]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make_env():
    envs = []

    def make(env_fn: Any = None, n_envs: int = 2, **kwargs: Any) -> ParallelCollector:
        options = dict(flush_size=7, sync_interval=20, start_method="fork") | kwargs
        envs.append(ParallelCollector([env_fn or point_env_fn()] * n_envs, **options))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


# ------------------------------------------------------------------------- pace


@pytest.mark.parametrize("algorithm", [HierarchicalDDPG, TD3])
def test_the_ratio_of_updates_to_steps_is_exact_over_files_and_killed_workers(make_env, small, tmp_path, algorithm):
    if algorithm is HierarchicalDDPG:
        cls, options = HierarchicalDDPG, small | dict(async_collection=True, prefetch_depth=0)
    else:
        cls = asynchronous(algorithm)
        options = {key: small[key] for key in ("learning_starts", "batch_size", "policy_kwargs", "buffer_size", "seed")}
    # Three gradient steps per eight steps, after the first two of these blocks (20 steps of warm-up)
    model = cls("MultiInputPolicy", make_env(), train_freq=4, gradient_steps=3, **options)
    with pytest.warns(RuntimeWarning, match="died"):
        model.learn(400, callback=KillWorkers(every=80))
    assert model.env.n_restarts == 2
    assert model._n_updates == 3 * (400 // 8 - 2)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = cls.load(tmp_path / "model", env=make_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    with pytest.warns(RuntimeWarning, match="died"):
        loaded.learn(400, reset_num_timesteps=False, callback=KillWorkers(every=150))
    assert loaded.num_timesteps == loaded.replay_buffer.n_added == 800
    assert loaded._n_updates == 3 * (800 // 8 - 2)


# --------------------------------------------------------------------- episodes


def test_episodes_are_contiguous_and_unique_and_seeds_differ(make_env, small):
    """Also after restarts: a new worker must not repeat the episodes and the noise of the old one."""
    env = make_env(n_envs=4, envs_per_worker=2)
    options = small | dict(buffer_size=10_000, gradient_steps=0, learning_starts=10_000)
    model = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, prefetch_depth=0, **options)
    with pytest.warns(RuntimeWarning, match="died"):
        model.learn(2_400, callback=KillWorkers(every=150))
    assert env.n_restarts >= 3
    columns, goals, actions, n_episodes = model.replay_buffer.columns, set(), set(), 0
    for shard, head in enumerate(model.replay_buffer.shards.head):
        rows = model.replay_buffer.shards.between(shard, 0, int(head))
        assert len(rows) == head, "the buffer is large enough for all steps"
        steps, number = spans(rows), 0
        while number < head:
            first, end = steps[number].tolist()
            last = end or head
            # One span follows the other, and all steps of an episode have the same one
            assert first == number < last <= first + 20
            assert (steps[first:last] == [first, end]).all()
            episode = rows[first:last]
            clock = (20 * episode[:, columns["next_observation"]][:, 2]).round()
            assert clock.tolist() == list(range(1, last - first + 1))
            now, after = (episode[:, columns[key]] for key in ("achieved_goal", "next_achieved_goal"))
            np.testing.assert_array_equal(now[1:], after[:-1])
            goal = episode[:, columns["desired_goal"]]
            assert (goal == goal[0]).all()
            goals.add(tuple(goal[0]))
            n_episodes, number = n_episodes + 1, last
        actions |= {tuple(action) for action in rows[:, columns["action"]]}
    # Goals are random numbers of the environments, actions those of the workers
    assert len(goals) == n_episodes >= 120
    assert len(actions) == model.replay_buffer.n_added


# ------------------------------------------------------------------ concurrency


def test_a_reader_samples_while_runs_stop_start_and_are_closed(make_env, small):
    """Every step that is read is complete, and nobody waits for anybody forever."""
    model = HierarchicalDDPG(
        "MultiInputPolicy", make_env(), async_collection=True, prefetch_depth=0, **small | dict(buffer_size=300)
    )
    model.learn(40)
    buffer, columns = model.replay_buffer, model.replay_buffer.columns
    over, errors, n_read = threading.Event(), [], 0

    def read() -> None:
        nonlocal n_read
        rng = np.random.default_rng(0)
        try:
            while not over.is_set():
                # Episodes of the observations are those of the goals, which a row stores apart
                states = buffer.sample_states(64, rng)
                np.testing.assert_array_equal(states["observation"][:, :2], states["achieved_goal"])
                for rows in (buffer.shards.between(shard, 0, int(buffer.shards.head[shard])) for shard in range(2)):
                    moved = rows[:, columns["next_achieved_goal"]] - rows[:, columns["achieved_goal"]]
                    # The environment's own dynamics
                    inside = np.abs(rows[:, columns["next_achieved_goal"]]) < 1.5
                    expected = 0.1 * rows[:, columns["action"]]
                    np.testing.assert_allclose(moved[inside], expected[inside], atol=1e-5)
                n_read += 1
                time.sleep(0.001)
        except BaseException as error:
            errors.append(error)

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 60

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for reset in (True, False, True):
            model.learn(1_000, callback=Stop(), reset_num_timesteps=reset)
        closing = threading.Timer(0.2, model.env.close)
        closing.start()
        with pytest.raises(RuntimeError, match="closed"):
            model.learn(1_000_000)
        closing.join()
    finally:
        over.set()
        reader.join(20)
    assert not reader.is_alive()
    assert not errors, errors[0]
    assert n_read > 5


# ------------------------------------------------------------------------ faults


class CrashingPoint(PointEnv):
    """
    A PointEnv whose process crashes at random.

    :param probability: of a crash in a step; in a reset it is ten times that
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability, self.chance = probability, np.random.default_rng()

    def _crash(self, probability: float) -> None:
        if self.chance.random() < probability:
            os._exit(1)

    def reset(self, **kwargs: Any) -> Any:
        self._crash(10 * self.probability)
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        self._crash(self.probability)
        return super().step(action)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("probability", [0.0, 0.002])
@pytest.mark.filterwarnings("ignore:Worker .* died")
def test_it_learns_while_its_workers_crash(make_env, probability):
    """As well as without crashes. The probability is four times that of the peers' tests (RLlib: 0.0005)."""
    env = make_env(lambda: Monitor(CrashingPoint(probability)), flush_size=10, max_restarts=10)
    model = HierarchicalDDPG(
        "MultiInputPolicy",
        env,
        async_collection=True,
        prefetch_depth=0,
        learning_starts=200,
        batch_size=64,
        buffer_size=10_000,
        policy_kwargs=dict(net_arch=[32, 32]),
        seed=0,
    )
    model.learn(2_000)
    assert model.num_timesteps == model.replay_buffer.n_added == 2_000
    assert model._n_updates == 900
    # On average 6 crashes: in 2,000 steps, and in more than 100 resets
    assert (env.n_restarts > 0) == (probability > 0)
    evaluation = point_vec_env(5)
    evaluation.seed(1)
    returns, _ = evaluate_policy(model, evaluation, n_eval_episodes=50, return_episode_rewards=True, warn=False)
    # Without success the return is -20
    assert np.mean(np.array(returns) > -20) >= 0.9


# ----------------------------------------------------------------------- the page


def named_tests(page: str) -> list[tuple[str, str]]:
    """:return: file and name of every test that a page names"""
    return re.findall(r"`(test_\w+\.py)::(\w+)`", page)


def test_every_guarantee_names_a_test_that_exists():
    page = (ROOT / "docs/guarantees.md").read_text()
    for file, name in named_tests(page):
        tree = ast.parse((ROOT / "tests" / file).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        names |= {target.id for target in assigned if isinstance(target, ast.Name)}
        assert name in names, f"{file}::{name}"
    # Each row of a table is a guarantee, and names its test
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| guarantee", "|---"))]
    assert len(rows) > 20
    assert [row for row in rows if not named_tests(row)] == []
