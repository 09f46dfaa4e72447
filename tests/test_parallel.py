"""Asynchronous collection: counts, clock and pace, compared with the serial collector."""

import csv
import json
import zipfile

import gymnasium as gym
import numpy as np
import pytest
from agents import Counter
from conftest import PointEnv, point_env_fn, point_vec_env
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_hrl import HierarchicalDDPG, ParallelCollector, SerialCollector
from sb3_hrl.parallel.async_rollouts import Untaken
from sb3_hrl.parallel.collector import shares

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("leaves_nothing")]


def collector(n_envs: int = 2, **kwargs) -> ParallelCollector:
    return ParallelCollector([point_env_fn()] * n_envs, start_method="fork", **kwargs)


@pytest.fixture
def make_model(small):
    """Creates models that learn asynchronously, and closes their environments at the end."""
    envs = []

    def make(env=None, **kwargs) -> HierarchicalDDPG:
        env = env if env is not None else collector(flush_size=7, sync_interval=20)
        envs.append(env)
        options = dict(async_collection=True, prefetch_depth=0) | small | kwargs
        return HierarchicalDDPG("MultiInputPolicy", env, **options)

    yield make
    for env in envs:
        env.close()


# ----------------------------------------------------------------- as a VecEnv


@pytest.mark.parametrize("envs_per_worker", [1, 2])
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_it_is_a_vec_env(envs_per_worker, start_method):
    env = ParallelCollector([point_env_fn()] * 2, start_method=start_method, envs_per_worker=envs_per_worker)
    twin = DummyVecEnv([point_env_fn()] * 2)
    assert isinstance(env, SubprocVecEnv)
    assert len(env.processes) == 2 // envs_per_worker
    for each in (env, twin):
        each.seed(3)
    obs, expected = env.reset(), twin.reset()
    for _ in range(25):
        for key in expected:
            np.testing.assert_array_equal(obs[key], expected[key])
        action = np.random.default_rng(0).uniform(-1, 1, (2, 2)).astype(np.float32)
        (obs, *results), (expected, *expected_results) = env.step(action), twin.step(action)
        for a, b in zip(results[:2], expected_results[:2], strict=True):
            np.testing.assert_array_equal(a, b)
        assert [set(info) for info in results[2]] == [set(info) for info in expected_results[2]]
    assert env.get_attr("max_steps") == [20, 20]
    env.set_attr("marker", 7, indices=1)
    assert env.has_attr("max_steps")
    assert not env.has_attr("nothing")
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_method("compute_reward", np.zeros(2), np.zeros(2), {}) == [0.0, 0.0]
    env.close()
    env.close()


def test_it_learns_synchronously_by_default(make_model):
    twin = make_model(point_vec_env(2), async_collection=False).learn(200)
    model = make_model(async_collection=False).learn(200)
    assert model.num_timesteps == 200
    np.testing.assert_array_equal(model.replay_buffer.shards.rows[:, :100], twin.replay_buffer.shards.rows[:, :100])


def test_an_environment_that_cannot_be_made_says_why():
    with pytest.raises(RuntimeError, match=r"could not make its environments[^$]*no_such_argument"):
        ParallelCollector([point_env_fn(no_such_argument=1)], start_method="fork")


# ------------------------------------------------------------------ the contract


@pytest.mark.parametrize(("n_envs", "envs_per_worker", "train_freq"), [(1, 1, 1), (2, 1, 4), (3, 1, 1), (4, 2, 2), (2, 2, 1)])
def test_every_step_counts_once(make_model, n_envs, envs_per_worker, train_freq):
    env = collector(n_envs, envs_per_worker=envs_per_worker, flush_size=7, sync_interval=20)
    model, callback = make_model(env, train_freq=train_freq), Counter()
    model.learn(400, callback=callback)
    per_rollout = n_envs * train_freq
    total = -(-400 // per_rollout) * per_rollout  # whole rollouts, as SB3
    assert model.num_timesteps == model.replay_buffer.n_added == total
    assert callback.steps == list(range(n_envs, total + 1, n_envs))
    # One update per rollout after the warm-up
    assert abs(model._n_updates - (total - 20) / per_rollout) <= 1
    # Episodes have 20 steps; a fast worker may have taken more steps than the other
    assert callback.n_done == len(model.ep_info_buffer) == (model.replay_buffer.shards.head // 20).sum()
    assert len(model.ep_success_buffer) == callback.n_done
    assert model._last_obs["observation"].shape == (n_envs, 3)


def test_workers_write_into_a_buffer_on_a_disk(make_model, tmp_path):
    model = make_model(collector(2), replay_buffer_kwargs=dict(folder=str(tmp_path))).learn(200)
    assert model.replay_buffer.n_added == model.num_timesteps
    assert model.replay_buffer.shards.folder == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_segments_and_episodes_are_as_when_collecting_synchronously(make_model):
    model = make_model().learn(600)
    shards = model.replay_buffer.shards
    columns = model.replay_buffer.columns
    for shard in range(2):
        starts, ends = shards.gather_segments(shard, np.arange(shards.segment_head[shard]))
        assert starts[0] == 0
        np.testing.assert_array_equal(starts[1:], ends[:-1])
        n = int(shards.head[shard])
        rows = shards.rows[shard, :n]
        for start, end in zip(starts, ends, strict=True):
            assert 1 <= end - start <= 5
            assert (rows[start:end, columns["subgoal"]] == rows[start, columns["subgoal"]]).all()
        # The next observation of a step is the observation of the following step, except at the end of an episode
        now, following = (rows[:, columns[field]] for field in ("observation", "next_observation"))
        same = (now[1:] == following[:-1]).all(axis=1)
        assert (~same).nonzero()[0].tolist() == list(range(19, n - 1, 20))


def test_learning_goes_on_where_it_stopped(make_model):
    model = make_model()
    model.learn(101, callback=Counter(stop_at=30))
    assert model.num_timesteps == 60
    assert model.replay_buffer.n_added == 60 + model._untaken.n_steps
    model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps == model.replay_buffer.n_added == 160
    assert model._untaken.n_steps == 0
    # In both modes
    model.async_collection = False
    model.learn(50, reset_num_timesteps=False)
    model.async_collection = True
    model.learn(50, reset_num_timesteps=False)
    assert model.num_timesteps == model.replay_buffer.n_added == 260
    model.learn(40)
    assert model.num_timesteps == 40
    assert model.replay_buffer.n_added == 300


def test_any_number_of_steps_may_be_left_over(make_model):
    """Regression test: with two environments and one step left, the learner waited forever."""
    model = make_model(serial(2, flush_size=7))
    model.learn(40)
    # As if a callback had stopped the run when one worker was a step ahead
    model.num_timesteps, model._untaken = 39, Untaken(n_steps=1)
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == model.replay_buffer.n_added == 59


def test_with_episodes_as_the_unit_of_rollouts(make_model):
    model, callback = make_model(collector(1, flush_size=7), train_freq=(1, "episode"), gradient_steps=-1), Counter()
    model.learn(200, callback=callback)
    assert model.num_timesteps == model.replay_buffer.n_added == 200
    # As many updates as steps
    assert abs(model._n_updates - 180) <= 20


@pytest.mark.parametrize(("train_freq", "gradient_steps"), [(1, 1), (2, 4), (8, 1)])
def test_the_ratio_of_updates_to_steps_is_kept(make_model, train_freq, gradient_steps):
    model = make_model(train_freq=train_freq, gradient_steps=gradient_steps)
    model.learn(2_000)
    n_after = model.num_timesteps - 20
    assert abs(model._n_updates / n_after - gradient_steps / (2 * train_freq)) < 0.05 * gradient_steps / (2 * train_freq)


def test_workers_are_not_ahead_for_more_than_their_lead(make_model):
    class Lead(BaseCallback):
        def _on_step(self) -> bool:
            lead = self.model.replay_buffer.n_added - self.num_timesteps
            assert lead <= 2 * 7 * 2
            return True

    make_model().learn(500, callback=Lead())


@pytest.mark.parametrize("noise", [NormalActionNoise, OrnsteinUhlenbeckActionNoise])
def test_action_noise_of_sb3(make_model, noise):
    env, quiet = collector(2, flush_size=10), dict(exploration_kwargs=dict(random_action_prob=0.0))
    model = make_model(env, action_noise=noise(np.zeros(2), 0.5 * np.ones(2)), learning_starts=0, **quiet)
    model.learn(200)
    rows = model.replay_buffer.shards.rows[:, :80, model.replay_buffer.columns["action"]]
    assert (rows[0] != rows[1]).any(), "workers have noises of their own"
    assert rows.std() > 0.1


def test_metrics_are_logged(make_model, tmp_path):
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(600, log_interval=4)
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    for name in ("subgoal_success_rate", "segment_length", "success_rate", "ep_len_mean", "policy_lag"):
        assert row[f"rollout/{name}"], name
    assert 0 < float(row["rollout/policy_lag"]) < 300
    assert float(row["rollout/ep_len_mean"]) == 20
    assert float(row["time/total_timesteps"]) > 400


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_callbacks_of_sb3(make_model, tmp_path):
    model = make_model()
    evaluate = EvalCallback(point_vec_env(1), eval_freq=50, n_eval_episodes=2, verbose=0, warn=False)
    save = CheckpointCallback(60, str(tmp_path), save_replay_buffer=True)
    model.learn(400, callback=CallbackList([evaluate, save]), progress_bar=True)
    assert evaluate.n_calls == 200
    assert (tmp_path / "rl_model_360_steps.zip").exists()
    with zipfile.ZipFile(tmp_path / "rl_model_120_steps.zip") as archive:
        data = json.loads(archive.read("data"))
    assert not {"_rollouts", "_batches", "replay_buffer", "env"} & set(data)
    loaded = HierarchicalDDPG.load(tmp_path / "rl_model_120_steps.zip", env=point_vec_env(2), async_collection=False)
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_120_steps.pkl")
    assert loaded.replay_buffer.n_added >= 120
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 160


def test_attributes_can_be_asked_for_while_it_collects(make_model):
    class Ask(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % 25 == 0:
                assert self.training_env.get_attr("max_steps") == [20, 20]
                self.training_env.set_attr("marker", self.n_calls)
                assert self.training_env.get_attr("marker") == [self.n_calls] * 2
            return True

    model = make_model().learn(200, callback=Ask())
    assert model.replay_buffer.n_added == 200


@pytest.mark.parametrize("cls", [ParallelCollector, SerialCollector])
@pytest.mark.parametrize("what", ["reset", "load"])
def test_the_buffer_cannot_be_emptied_or_replaced_while_workers_write(make_model, tmp_path, cls, what):
    class Empty(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 30:
                if what == "reset":
                    self.model.replay_buffer.reset()
                else:
                    self.model.load_replay_buffer(tmp_path / "buffer")
            return True

    model = make_model(cls([point_env_fn()] * 2, flush_size=7, sync_interval=20)).learn(100)
    model.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(RuntimeError, match="Workers are writing to the replay buffer"):
        model.learn(100, callback=Empty())
    # Afterwards it can
    if what == "reset":
        model.replay_buffer.reset()
        assert model.replay_buffer.size() == 0
    else:
        model.load_replay_buffer(tmp_path / "buffer")
    n_before = model.replay_buffer.n_added
    model.learn(100)
    assert model.replay_buffer.n_added == n_before + 100


@pytest.mark.parametrize("what", ["reset", "step"])
def test_stepping_from_a_callback_is_refused(make_model, what):
    class Step(BaseCallback):
        def _on_step(self) -> bool:
            if what == "reset":
                self.training_env.reset()
            else:
                self.training_env.step(np.zeros((2, 2)))
            return True

    model = make_model()
    with pytest.raises(RuntimeError, match="separate environments"):
        model.learn(100, callback=Step())
    # It is usable afterwards
    model.learn(100)
    assert model.num_timesteps == 100


# --------------------------------------------------------------- the serial twin


def serial(n_envs: int = 2, **kwargs) -> SerialCollector:
    return SerialCollector([point_env_fn()] * n_envs, **kwargs)


def test_the_serial_twin_is_reproducible(make_model):
    models = [make_model(serial(flush_size=7, sync_interval=20), prefetch_depth=2).learn(500) for _ in range(2)]
    first, second = (model.replay_buffer.shards.rows[:, :250] for model in models)
    np.testing.assert_array_equal(first, second)
    for a, b in zip(*(model.policy.parameters() for model in models), strict=True):
        assert (a == b).all()
    assert models[0].num_timesteps == 500


@pytest.mark.parametrize("envs_per_worker", [1])
@pytest.mark.parametrize("options", [{}, {"noise_spread": 4.0}])
def test_workers_do_what_their_serial_twins_do(make_model, envs_per_worker, options):
    """With constant weights timing does not matter, and processes must give exactly the same results as serial workers."""
    options = options | dict(flush_size=11)
    models = [
        make_model(env, gradient_steps=0, learning_starts=30, exploration_kwargs=dict(subgoal_test_prob=0.2))
        for env in (serial(**options), collector(**options))
    ]
    for model in models:
        model.learn(300)
    first, second = (model.replay_buffer.shards for model in models)
    columns = models[0].replay_buffer.columns
    for shard in range(2):
        # A fast worker may have taken more steps than the other, and spans may already contain the end of an episode
        n = min(first.head[shard], second.head[shard])
        assert n > 50
        fields = slice(0, columns["tested"].stop)
        np.testing.assert_array_equal(first.rows[shard, :n, fields], second.rows[shard, :n, fields])
        n = min(first.segment_head[shard], second.segment_head[shard])
        np.testing.assert_array_equal(first.segments[shard, :n], second.segments[shard, :n])


def test_workers_act_with_the_learners_weights(make_model):
    """A common bug of asynchronous code: weights are not really synchronized."""
    quiet = dict(exploration_kwargs=dict(noise_std=0.0, random_action_prob=0.0), learning_starts=0)
    model = make_model(collector(1, flush_size=5, sync_interval=5), **quiet)
    buffer, columns = model.replay_buffer, model.replay_buffer.columns

    def expected(rows):
        parts = (rows[:, columns[field]] for field in ("observation", "achieved_goal", "subgoal"))
        return model.policy.numpy_policy().act(*parts)

    model.gradient_steps = 0
    model.learn(50)
    rows = buffer.shards.rows[0]
    np.testing.assert_allclose(rows[:50, columns["action"]], expected(rows[:50]), atol=1e-5)
    before = rows[:50, columns["action"]].copy()
    # After an update of the learner's weights, the workers use the new ones
    model.gradient_steps = 5
    model.learn(200, reset_num_timesteps=False)
    model.gradient_steps = 0
    model.learn(50, reset_num_timesteps=False)
    np.testing.assert_allclose(rows[250:300, columns["action"]], expected(rows[250:300]), atol=1e-5)
    assert np.abs(before - expected(rows[:50])).max() > 1e-3


def test_weights_are_looked_up_while_it_learns(make_model):
    lags = []

    class Versions(BaseCallback):
        def _on_step(self) -> bool:
            lags.extend(lag for _, lag in self.model._rollouts._lags)
            return True

    # Ten updates per step: if the workers kept the first weights, the lag would reach thousands
    make_model(gradient_steps=10, batch_size=4).learn(600, callback=Versions())
    assert 0 < max(lags) < 1_000


def test_the_spread_of_noise():
    env = serial(3, noise_spread=2.0)
    np.testing.assert_allclose(env.config.noise_scales(3), [0.5, 1.0, 2.0])
    assert serial(1, noise_spread=2.0).config.noise_scales(1).tolist() == [1.0]


@given(
    workers=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8),
    more=st.integers(0, 200),
)
def test_leave_goes_to_those_with_the_least(workers, more):
    allowed = np.array([max(pair) for pair in workers])
    written = np.array([min(pair) for pair in workers])
    total = int(allowed.sum()) + more
    result = shares(allowed, written, total)
    assert result.sum() == total
    assert (result >= allowed).all()
    ahead, got = result - written, result > allowed
    if got.any():
        # A worker that got more rounds is not ahead of one that got none
        assert ahead[got].max() <= ahead.min() + 1


def test_leave_is_exact_while_workers_go_on():
    """Regression test: written rounds were read twice, so a worker that wrote in between got more rounds than allowed."""

    class Moving(np.ndarray):
        def __rsub__(self, other):
            lead = other - np.asarray(self)
            self[:] += 5
            return lead

    assert shares(np.array([10, 10]), np.array([3, 9]).view(Moving), 40).sum() == 40


# ----------------------------------------------------------------------- refusals


def test_what_cannot_collect_is_refused(make_model):
    with pytest.raises(ValueError, match="ParallelCollector"):
        make_model(point_vec_env(2)).learn(10)
    with pytest.raises(ValueError, match="VecFrameStack"):
        make_model(VecFrameStack(collector(), 1)).learn(10)
    model = make_model(VecNormalize(collector(flush_size=5), norm_obs=False)).learn(60)
    assert model.num_timesteps == 60


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (dict(envs_per_worker=3), "envs_per_worker"),
        (dict(flush_size=0), "flush_size"),
        (dict(sync_interval=0), "sync_interval"),
        (dict(noise_spread=0.5), "noise_spread"),
        (dict(step_timeout=0), "step_timeout"),
        (dict(max_restarts=-1), "max_restarts"),
    ],
)
def test_bad_arguments_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        collector(2, **kwargs)


def test_a_flush_must_fit_into_the_buffer(make_model):
    with pytest.raises(ValueError, match="flush_size"):
        make_model(collector(flush_size=50), buffer_size=60).learn(10)


def test_environments_of_gym_are_collected_from(make_model):
    """test_run covers termination, MultiBinary observations etc.; this is an environment from the registry."""
    env = ParallelCollector([lambda: gym.make("conftest:PointEnv-v0", ends_at_success=True)] * 2, start_method="fork")
    model = make_model(env).learn(300)
    assert model.replay_buffer.n_added == 300
    assert isinstance(env.get_attr("spec")[0].kwargs["ends_at_success"], bool)
    assert model.policy.subgoal_threshold.item() == pytest.approx(PointEnv.threshold, rel=0.01)
