"""Collection by Ray actors on a local cluster of two nodes."""

import os
import sys

import numpy as np
import pytest
from conftest import PointEnv, point_env_fn
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from sb3_hrl import HierarchicalDDPG, SerialCollector, asynchronous

ray = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2))
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": environment})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def make_env(cluster):
    from sb3_hrl.parallel.ray_collector import RayCollector

    envs = []

    def make(n_envs: int = 2, **kwargs) -> RayCollector:
        options = dict(flush_size=7, sync_interval=20) | kwargs
        envs.append(RayCollector([point_env_fn()] * n_envs, **options))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def make_model(env, small, **kwargs) -> HierarchicalDDPG:
    return HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, **dict(prefetch_depth=0) | small | kwargs)


def test_it_is_a_vec_env_and_collects(make_env, small):
    env = make_env()
    env.seed(1)
    assert env.reset()["observation"].shape == (2, 3)
    _, rewards, _, _ = env.step(np.zeros((2, 2), np.float32))
    assert rewards.shape == (2,)
    assert env.get_attr("max_steps") == [20, 20]
    model = make_model(env, small)
    model.learn(600)
    assert model.num_timesteps == model.replay_buffer.n_added == 600
    assert len(model.ep_info_buffer) == (model.replay_buffer.shards.head // 20).sum()
    model.async_collection = False
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 620


def test_actors_do_what_their_serial_twins_do(make_env, small):
    options = dict(gradient_steps=0, learning_starts=30)
    models = [
        make_model(env, small, **options).learn(300)
        for env in (SerialCollector([point_env_fn()] * 2, flush_size=7, sync_interval=20), make_env())
    ]
    first, second = (model.replay_buffer.shards for model in models)
    fields = slice(0, models[0].replay_buffer.columns["tested"].stop)
    for shard in range(2):
        n = min(first.head[shard], second.head[shard])
        assert n > 50
        np.testing.assert_array_equal(first.rows[shard, :n, fields], second.rows[shard, :n, fields])


def test_sb3s_own_algorithms_collect_with_actors(make_env):
    options = dict(n_sampled_goal=4, compute_reward=PointEnv().compute_reward)
    small = dict(learning_starts=30, gradient_steps=0, batch_size=16, policy_kwargs=dict(net_arch=[16]), buffer_size=1000)
    models = [
        asynchronous(SAC)("MultiInputPolicy", env, replay_buffer_kwargs=options, seed=0, **small).learn(300)
        for env in (SerialCollector([point_env_fn()] * 2, flush_size=7, sync_interval=20), make_env())
    ]
    first, second = (model.replay_buffer.shards for model in models)
    # Without the span of the episode: the end of the last one may not be known yet
    fields = slice(0, models[0].replay_buffer.columns["segment_end"].stop)
    for shard in range(2):
        n = min(first.head[shard], second.head[shard])
        assert n > 50
        np.testing.assert_array_equal(first.rows[shard, :n, fields], second.rows[shard, :n, fields])
    model = models[1]
    model.gradient_steps = 2
    model.learn(200, reset_num_timesteps=False)
    assert model.num_timesteps == model.replay_buffer.n_added == 500
    assert model._n_updates > 0


def test_a_lost_node_does_not_end_the_run(cluster, make_env, small):
    node = cluster.add_node(num_cpus=2, resources={"lost": 2})
    env = make_env(2, actor_options={"scheduling_strategy": "SPREAD"})

    class Lose(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 150:
                cluster.remove_node(node)
            return True

    model = make_model(env, small)
    nodes = {handle.actor._ray_actor_id.hex() for handle in env._handles}
    with pytest.warns(RuntimeWarning, match="was lost"):
        model.learn(3_000, callback=Lose())
    assert {handle.actor._ray_actor_id.hex() for handle in env._handles} != nodes
    assert model.num_timesteps == model.replay_buffer.n_added == 3_000
    for shard in model.replay_buffer.recent(10_000, ("next_observation",)):
        steps = (20 * shard["next_observation"][:, 2]).round().astype(int)
        ends = (steps[1:] != steps[:-1] + 1).nonzero()[0]
        assert (steps[ends + 1] == 1).all(), "an episode goes on that was lost"


def test_an_environment_that_keeps_raising_ends_the_run(cluster, small):
    from sb3_hrl.parallel.ray_collector import RayCollector

    env_fns = [point_env_fn("FaultyEnv-v0", fault="raise", at=30)] * 2
    env = RayCollector(env_fns, flush_size=7, max_restarts=1)
    with pytest.raises(RuntimeError, match="the robot fell over"), pytest.warns(RuntimeWarning):
        make_model(env, small).learn(2_000)
    assert env.closed


def test_an_exception_comes_home_and_the_environments_go_on(make_env):
    env = make_env(1)
    env.reset()
    with pytest.raises(AttributeError, match=r"Worker 0 \(environment 0\) raised an exception in `get_attr`[^$]*nosuch"):
        env.get_attr("nosuch")
    assert env.get_attr("max_steps") == [20]
    ray.kill(env._handles[0].actor)

    def ask_until_it_is_lost() -> None:
        # The actor dies a moment later
        while True:
            env.get_attr("max_steps")

    with pytest.raises(RuntimeError, match=r"Worker 0 \(environment 0\) was lost at `get_attr`"):
        ask_until_it_is_lost()


def test_environments_that_cannot_be_made_say_why(cluster):
    from sb3_hrl.parallel.ray_collector import RayCollector

    with pytest.raises(RuntimeError, match="no_such_argument"):
        RayCollector([point_env_fn(no_such_argument=1)])


def test_the_time_to_start_is_not_that_of_a_step_and_closing_ends_the_run(make_env, small):
    # An actor starts in more than a second, and a block of steps takes much less
    env = make_env(1, step_timeout=1.0)
    model = make_model(env, small)

    class Close(BaseCallback):
        def _on_step(self) -> bool:
            self.training_env.close()
            return True

    with pytest.raises(RuntimeError, match="close them after `learn`"):
        model.learn(1_000_000, callback=Close())
    assert env.n_restarts == 0, "the time to start is not that of a step"
