"""SB3's own off-policy algorithms with asynchronous collection."""

import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from agents import Counter
from conftest import PointEnv, point_env_fn
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her import HerReplayBuffer
from torch import nn

from sb3_hrl import HierarchicalDDPG, ParallelCollector, SerialCollector, SharedMemoryReplayBuffer, asynchronous
from sb3_hrl.common.networks import NumpyMLP, NumpyModule
from sb3_hrl.parallel.actors import ActorSnapshot

pytestmark = [pytest.mark.timeout(100), pytest.mark.usefixtures("leaves_nothing")]

ALGORITHMS = [DDPG, TD3, SAC, TQC, CrossQ]


def pendulum(max_steps: int = 20) -> gym.Env:
    return Monitor(gym.make("Pendulum-v1", max_episode_steps=max_steps))


def collector(env_fn=pendulum, n_envs: int = 2, cls: Any = ParallelCollector, **kwargs: Any) -> Any:
    options = dict(flush_size=7, sync_interval=20) | kwargs
    return cls([env_fn] * n_envs, **options, **(dict(start_method="fork") if cls is ParallelCollector else {}))


@pytest.fixture
def make_model():
    """Creates models that learn asynchronously, and closes their environments at the end."""
    envs = []

    def make(algorithm: Any = SAC, env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
        envs.append(collector() if env is None else env)
        small = dict(learning_starts=20, batch_size=16, policy_kwargs=dict(net_arch=[8]), buffer_size=1000, seed=0)
        return asynchronous(algorithm)(policy, envs[-1], **(small | kwargs))

    yield make
    for env in envs:
        env.close()


def weights(model: Any) -> np.ndarray:
    return np.concatenate([tensor.numpy().ravel() for tensor in model.policy.state_dict().values()])


# ------------------------------------------------------------------ the contract


@pytest.mark.parametrize("cls", [ParallelCollector, SerialCollector])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_takes_exactly_the_steps_and_updates_that_were_asked_for(make_model, algorithm, cls):
    model, callback = make_model(algorithm, collector(cls=cls), train_freq=4, gradient_steps=3), Counter()
    model.learn(198, callback=callback)
    # Whole rollouts of 8 steps; two of them are over before learning starts
    assert model.num_timesteps == model.replay_buffer.n_added == model.replay_buffer.size() == 200
    assert callback.steps == list(range(2, 201, 2))
    assert model._n_updates == 3 * (25 - 2)
    # Episodes have 20 steps; a fast worker may have taken more steps than the other
    assert callback.n_done == len(model.ep_info_buffer) == (model.replay_buffer.shards.head // 20).sum()
    assert isinstance(model, algorithm)
    model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps == model.replay_buffer.n_added == 304


def test_stored_steps_are_those_of_the_environment(make_model):
    model = make_model(SAC, collector(flush_size=30), gradient_steps=0).learn(200)
    columns, n_ends = model.replay_buffer.columns, 0
    for rows in (model.replay_buffer.shards.rows[shard, :head] for shard, head in enumerate(model.replay_buffer.shards.head)):
        now, following, action = (rows[:, columns[field]] for field in ("observation", "next_observation", "action"))
        assert (np.abs(action) <= 1).all()
        # A time limit is not a termination
        assert not rows[:, columns["terminated"]].any()
        goes_on = (now[1:] == following[:-1]).all(axis=1)
        assert set(np.flatnonzero(~goes_on)) == set(range(19, len(rows) - 1, 20))
        # Pendulum-v1's own dynamics
        speed = now[:, 2] + 0.05 * (15.0 * now[:, 1] + 3.0 * 2.0 * action[:, 0])
        np.testing.assert_allclose(following[:, 2], speed.clip(-8, 8), atol=1e-4)
        n_ends += (~goes_on).sum()
    assert n_ends >= 4


@pytest.mark.parametrize("algorithm", [TD3, SAC])
def test_a_serial_run_is_reproducible(make_model, algorithm):
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.3 * np.ones(1))
    first, second, other = (
        make_model(algorithm, collector(cls=SerialCollector), seed=seed, action_noise=noise).learn(200) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(weights(first), weights(second))
    assert (weights(first) != weights(other)).any()


class UntilEachShardHas(BaseCallback):
    """Ends the run when each worker has written some steps: on a loaded machine one of them may write most of the steps."""

    def __init__(self, n_steps: int):
        super().__init__()
        self.n_steps = n_steps

    def _on_step(self) -> bool:
        return bool((self.model.replay_buffer.shards.head < self.n_steps).any())


@pytest.mark.parametrize("algorithm", [TD3, SAC, CrossQ])
def test_workers_do_what_their_serial_twins_do(make_model, algorithm):
    """With constant weights timing does not matter, and processes must give exactly the same results as serial workers."""
    options = dict(flush_size=11, noise_spread=3.0)
    noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
    envs = [collector(cls=cls, **options) for cls in (SerialCollector, ParallelCollector)]
    models = [make_model(algorithm, env, gradient_steps=0, action_noise=noise, buffer_size=10_000) for env in envs]
    for model in models:
        model.learn(5_000, callback=UntilEachShardHas(60))
    first, second = (model.replay_buffer.shards for model in models)
    for shard in range(2):
        n = min(first.head[shard], second.head[shard])
        assert n > 50
        fields = slice(0, models[0].replay_buffer.columns["terminated"].stop)
        np.testing.assert_array_equal(first.rows[shard, :n, fields], second.rows[shard, :n, fields])


def test_steps_that_were_written_before_a_stop_count_in_the_next_run(make_model):
    model = make_model(TD3).learn(400, callback=Counter(stop_at=30))
    assert model.num_timesteps == 60 < model.replay_buffer.n_added
    assert model._untaken.n_steps == model.replay_buffer.n_added - 60
    model.learn(340, reset_num_timesteps=False)
    assert model.num_timesteps == model.replay_buffer.n_added == 400


def test_a_killed_worker_is_replaced(make_model):
    class Kill(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 100:
                os.kill(self.training_env.processes[0].pid, signal.SIGKILL)
            return True

    model = make_model(SAC, train_freq=8, buffer_size=4000)
    with pytest.warns(RuntimeWarning, match="died"):
        model.learn(1600, callback=Kill())
    assert model.num_timesteps == model.replay_buffer.n_added == 1600
    assert model.env.n_restarts == 1


def test_it_logs_what_sb3_logs(make_model, tmp_path):
    model = make_model(SAC, collector(cls=SerialCollector))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(200)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"rollout/ep_rew_mean", "rollout/policy_lag", "train/critic_loss", "train/ent_coef", "time/fps"} <= set(header)


# -------------------------------------------------------------------- the actors


class Extractor(BaseFeaturesExtractor):
    """Features that are not the observation itself."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, features_dim=4)
        self.layer = nn.Linear(observation_space.shape[0], 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations).tanh()


KWARGS = [{}, dict(net_arch=[]), dict(activation_fn=nn.ELU), dict(features_extractor_class=Extractor)]


@pytest.mark.parametrize("policy_kwargs", KWARGS, ids=["perceptron", "linear", "elu", "extractor"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_workers_act_with_the_learners_weights(make_model, algorithm, policy_kwargs):
    model = make_model(
        algorithm, collector(cls=SerialCollector), policy_kwargs=dict(net_arch=[8]) | policy_kwargs, learning_rate=0.01
    )
    is_gaussian = algorithm in (SAC, TQC, CrossQ)
    snapshot = ActorSnapshot(model.actor, None)
    vector = np.zeros(snapshot.n_weights, np.float32)
    actor = snapshot.bind(vector)
    model.learn(200)
    snapshot.write(model.actor, vector)
    actor.refresh()
    is_perceptron = all(isinstance(network, NumpyMLP) for network in actor._networks.values())
    assert is_perceptron == ("net_arch" in policy_kwargs or not policy_kwargs) or algorithm is CrossQ
    assert is_perceptron or all(isinstance(network, NumpyModule) for network in actor._networks.values())
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    acted = actor.act([x], np.random.default_rng(1), np.ones((5, 1), np.float32))
    model.policy.set_training_mode(False)
    with th.no_grad():
        expected = model.actor(th.from_numpy(x), **(dict(deterministic=True) if is_gaussian else {})).numpy()
        if is_gaussian:
            mean, log_std, _ = model.actor.get_action_dist_params(th.from_numpy(x))
            gaussian = th.from_numpy(np.random.default_rng(1).standard_normal((5, 1), dtype=np.float32))
            np.testing.assert_allclose(acted, th.tanh(mean + log_std.exp() * gaussian).numpy(), atol=1e-5)
            acted = actor.act([x], np.random.default_rng(1), np.zeros((5, 1), np.float32))
    np.testing.assert_allclose(acted, expected, atol=1e-5)


def test_stored_actions_are_those_of_the_newest_weights(make_model):
    """A common bug of asynchronous code: weights are not really synchronized."""
    model = make_model(TD3, collector(n_envs=1, flush_size=5, sync_interval=5), learning_starts=0, learning_rate=0.01)
    columns, rows = model.replay_buffer.columns, model.replay_buffer.shards

    def error(part: slice) -> float:
        steps = rows.rows[0, part]
        expected, _ = model.predict(steps[:, columns["observation"]], deterministic=True)
        return float(np.abs(steps[:, columns["action"]] - expected / 2.0).max())

    model.gradient_steps = 0
    model.learn(50)
    assert error(slice(50)) < 1e-5
    model.gradient_steps = 5
    model.learn(100, reset_num_timesteps=False)
    model.gradient_steps = 0
    model.learn(50, reset_num_timesteps=False)
    assert error(slice(150, 200)) < 1e-5
    assert error(slice(50)) > 1e-3


def test_action_noise_is_added_and_differs_between_environments(make_model):
    noise = NormalActionNoise(np.zeros(1), 0.01 * np.ones(1))
    model = make_model(TD3, collector(noise_spread=10.0), action_noise=noise, learning_starts=0, gradient_steps=0).learn(400)
    spreads = []
    for rows in model.replay_buffer.shards.rows[:, :100]:
        expected, _ = model.predict(rows[:, model.replay_buffer.columns["observation"]], deterministic=True)
        spreads.append((rows[:, model.replay_buffer.columns["action"]] - expected / 2.0).std())
    np.testing.assert_allclose(spreads, [0.001, 0.1], rtol=0.4)


# --------------------------------------------------------------- goals, and other


# CrossQ has no MultiInputPolicy
@pytest.mark.parametrize("algorithm", [DDPG, TD3, SAC, TQC])
def test_goals_with_hindsight(make_model, algorithm):
    model = make_model(
        algorithm,
        collector(point_env_fn()),
        policy="MultiInputPolicy",
        replay_buffer_kwargs=dict(n_sampled_goal=4, compute_reward=PointEnv().compute_reward),
        train_freq=4,
    )
    model.learn(200)
    assert model.num_timesteps == model.replay_buffer.n_added == 200
    assert model.replay_buffer.n_segments() == 0
    assert model._n_updates == 25 - 2
    assert len(model.ep_success_buffer) > 0
    # The parts of an observation reach the actor in the right order
    snapshot = model._acting().agent._snapshot
    vector = np.zeros(snapshot.n_weights, np.float32)
    snapshot.write(model.actor, vector)
    actor = snapshot.bind(vector)
    parts = dict(observation=np.float32([[1, 2, 3]]), achieved_goal=np.float32([[4, 5]]), desired_goal=np.float32([[6, 7]]))
    acted = actor.act(list(parts.values()), np.random.default_rng(0), np.zeros((1, 1), np.float32))
    expected, _ = model.predict(parts, deterministic=True)
    np.testing.assert_allclose(2.0 * acted, expected, atol=1e-5)


def test_without_collecting_in_the_background_it_is_sb3(make_model):
    kwargs = dict(learning_starts=20, batch_size=16, policy_kwargs=dict(net_arch=[8]), buffer_size=1000, seed=0)
    model = make_model(SAC, DummyVecEnv([pendulum] * 2), async_collection=False).learn(200)
    twin = SAC("MlpPolicy", DummyVecEnv([pendulum] * 2), replay_buffer_class=SharedMemoryReplayBuffer, **kwargs).learn(200)
    np.testing.assert_array_equal(weights(model), weights(twin))


def test_save_and_load(make_model, tmp_path):
    model = make_model(SAC).learn(200)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected, _ = model.predict(obs, deterministic=True)
    for cls in (asynchronous(SAC), SAC):
        loaded = cls.load(tmp_path / "model")
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
        assert loaded.num_timesteps == 200
    env = collector()
    try:
        loaded = asynchronous(SAC).load(tmp_path / "model", env=env)
        loaded.load_replay_buffer(tmp_path / "buffer")
        assert loaded.replay_buffer.size() == 200
        loaded.learn(100, reset_num_timesteps=False)
        assert loaded.num_timesteps == loaded.replay_buffer.n_added == 300
    finally:
        env.close()


@pytest.mark.parametrize(
    ("error", "message", "kwargs"),
    [
        (ValueError, "does not support `use_sde=True`", dict(use_sde=True)),
        (ValueError, "needs `optimize_memory_usage=False`", dict(optimize_memory_usage=True)),
        (ValueError, "not HerReplayBuffer", dict(replay_buffer_class=HerReplayBuffer)),
        (ValueError, "Hindsight .* needs a goal-conditioned environment", dict(replay_buffer_kwargs=dict(n_sampled_goal=4))),
        (ValueError, "needs a single environment", dict(train_freq=(1, "episode"))),
    ],
)
def test_what_it_cannot_do_is_refused(make_model, error, message, kwargs):
    with pytest.raises(error, match=message):
        make_model(SAC, collector(cls=SerialCollector), **kwargs)


@pytest.mark.parametrize("algorithm", [DQN, PPO, HierarchicalDDPG, asynchronous(SAC), "SAC"])
def test_other_algorithms_are_refused(algorithm):
    with pytest.raises(TypeError, match="`asynchronous` extends DDPG, TD3, SAC, TQC or CrossQ"):
        asynchronous(algorithm)


def test_environments_that_cannot_step_in_the_background_are_refused(make_model):
    model = make_model(SAC, DummyVecEnv([pendulum]))
    with pytest.raises(ValueError, match="needs environments that step in the background, not DummyVecEnv"):
        model.learn(100)
    # Workers would store the rewards as they are
    model = make_model(SAC, VecNormalize(collector(cls=SerialCollector), norm_obs=False))
    with pytest.raises(ValueError, match="bypasses VecNormalize"):
        model.learn(100)


def test_make_vec_env(make_model):
    env = make_vec_env("Pendulum-v1", 4, seed=0, vec_env_cls=ParallelCollector, vec_env_kwargs=dict(envs_per_worker=2))
    model = make_model(TD3, env).learn(400)
    assert model.num_timesteps == 400
    assert model.observation_space.contains(model._last_obs[3])


# -------------------------------------------------------------------- the buffer


def test_the_buffer_stores_boxes_like_sb3s(make_model):
    """Every sampled transition is one of those that were added."""
    space, action = spaces.Box(-10, 10, (2, 3), np.float64), spaces.Box(-1, 1, (2,), np.float32)
    buffer = SharedMemoryReplayBuffer(40, space, action, n_envs=2)
    assert sum(part.stop - part.start for part in buffer.columns.values()) == 6 + 6 + 2 + 1 + 1
    rng = np.random.default_rng(0)
    for i in range(30):
        obs, next_obs = (rng.uniform(-9, 9, (2, 2, 3)) for _ in range(2))
        obs[:, 0, 0] = i
        dones, infos = np.array([i % 4 == 3, i % 4 == 3]), [{"TimeLimit.truncated": i % 4 == 3}, {}]
        buffer.add(obs, next_obs, np.full((2, 2), i / 40), np.array([i, -i]), dones, infos)
    batch = buffer.sample(200)
    assert batch.observations.shape == batch.next_observations.shape == (200, 2, 3)
    assert batch.rewards.shape == batch.dones.shape == (200, 1)
    numbers = batch.observations[:, 0, 0]
    assert set(numbers.long().tolist()) <= set(range(8, 30)), "the oldest episodes are dropped as a whole"
    th.testing.assert_close(batch.rewards[:, 0].abs(), numbers)
    th.testing.assert_close(batch.actions, (numbers / 40)[:, None].expand(-1, 2))
    is_end = (numbers % 4 == 3) & (batch.rewards[:, 0] < 0)
    th.testing.assert_close(batch.dones[:, 0], is_end.float(), msg="time limits are not terminations")
