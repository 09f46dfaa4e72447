"""Which generators are used for which random numbers, and that everything is counted once."""

import copy

import numpy as np
import pytest
import torch as th
from conftest import PointEnv, point_env_fn, point_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn

from sb3_hrl import HierarchicalDDPG, SerialCollector
from sb3_hrl.common.env_goals import goal_task_from_env
from sb3_hrl.common.networks import NetworkCopy, NumpyModule, weights_vector
from sb3_hrl.hddpg.batch_source import LowBatchMaker
from sb3_hrl.hddpg.exploration import WorkerAgent
from sb3_hrl.hddpg.inference import PolicySnapshot
from sb3_hrl.hddpg.statistics import Statistics


def stored_actions(model: HierarchicalDDPG) -> np.ndarray:
    return model.replay_buffer.recent(1000, ("action",))[0]["action"]


def test_batches_do_not_change_exploration(small):
    """With a learning rate of 0, only the generators could make a difference."""
    kwargs = [dict(batch_size=16), dict(batch_size=64), dict(gradient_steps=2)]
    models = [HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **(small | dict(learning_rate=0.0) | k)) for k in kwargs]
    first, *others = (stored_actions(model.learn(100)) for model in models)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_set_random_seed_reaches_exploration_and_batches(small):
    results, parameters = [], None
    for seed in (0, 1):
        model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **(small | dict(seed=seed)))
        if parameters is not None:
            model.set_parameters(parameters)
        else:
            parameters = copy.deepcopy(model.get_parameters())
        model.set_random_seed(7)
        model.learn(60)
        results.append((stored_actions(model), th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().numpy()))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_noise_of_serial_workers_is_apart_from_the_learners_generator(small):
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small).learn(30)
    snapshot = PolicySnapshot(model.policy)
    agent = WorkerAgent(snapshot, 2, 2, NormalActionNoise(np.zeros(2), np.ones(2)))
    weights = np.zeros(agent.n_weights, dtype=np.float32)
    snapshot.write(model.policy, weights)
    np.random.seed(3)
    expected = np.random.random(3)
    np.random.seed(3)
    agent.start(1, weights, np.random.default_rng(0), np.ones(1))
    arrays = (np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32))
    first, second = (agent.act(arrays, is_warm_up=False) for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_workers_in_one_process_have_modules_of_their_own():
    network = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2))
    copied, x = NetworkCopy(network), np.ones((1, 3), np.float32)
    vector = weights_vector(network).numpy().copy()
    one, other = copied.bind(vector), copied.bind(np.zeros_like(vector))
    assert isinstance(one, NumpyModule)
    other.refresh()
    np.testing.assert_allclose(one(x), network(th.from_numpy(x)).detach().numpy(), rtol=1e-6)
    assert (other(x) == 0.0).all()


def test_every_step_is_normalised_once(small):
    """When workers collect, shards grow at different speeds."""
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(2), **(small | dict(buffer_size=2000)))
    statistics, writers, rng = Statistics(), model.replay_buffer.shards.writers(), np.random.default_rng(0)
    columns = model.replay_buffer.columns
    task, total = goal_task_from_env(model.get_env(), np.zeros((1, 2))), 0
    statistics.begin(model.policy, np.zeros((1, 2)), task)
    for sizes in ((120, 10), (200, 3), (0, 150), (7, 1)):
        for writer, n in zip(writers, sizes, strict=True):
            if n > 0:
                rows = rng.random((n, model.replay_buffer.shards.row_dim), dtype=np.float32)
                goals = (rows[:, columns[field]] for field in ("next_achieved_goal", "desired_goal"))
                rows[:, columns["reward"]] = task.rewards(*goals)[:, None]
                writer.write(rows, np.zeros(n, bool), np.zeros(n, bool))
        total += sum(sizes)
        statistics.update(model.policy, model.replay_buffer, task)
        assert model.policy.observation_moments.count.item() in (total, total - 8), "fewer than 100 new steps wait"
    shards = [steps["observation"] for steps in model.replay_buffer.recent(2000, ("observation",))]
    seen = np.concatenate([rows[:-n] for rows, n in zip(shards, sizes, strict=True)])
    np.testing.assert_allclose(model.policy.observation_moments.mean, seen.mean(0), atol=1e-4)


def test_episodes_of_steps_that_were_not_taken_in_are_counted_in_the_next_run(small):
    """When the learner stops, workers are ahead of it: none of their episodes is lost."""
    env = SerialCollector([point_env_fn(max_steps=4)] * 2, flush_size=20)
    model = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, **(small | dict(stats_window_size=1000)))
    for _ in range(4):
        model.learn(30, callback=lambda *_: model.num_timesteps % 30 < 22, reset_num_timesteps=False)
    model.learn(40, reset_num_timesteps=False)
    assert model._episode_num == model.num_timesteps // 8 * 2
    env.close()


def test_the_process_that_prepares_batches_gets_no_high_level_and_no_optimizers(small):
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small).learn(40)
    lean = LowBatchMaker(model.policy, model.replay_buffer, seed=0)._policy
    assert lean.high is None
    assert lean.low.actor.optimizer is None
    assert lean.low.critic.optimizer is None
    assert model.policy.low.actor.optimizer is not None
    for own, copied in zip(model.policy.low.target_tensors, lean.low.target_tensors, strict=True):
        assert th.equal(own, copied)
        assert own.data_ptr() != copied.data_ptr()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(subgoal_step=5), "did you mean `subgoal_steps`"),
        (dict(noise_std=0.2), "`exploration_kwargs`, pass `exploration_kwargs=dict\\(noise_std="),
        (dict(radius=0.2), "subgoal_kwargs"),
        (dict(qwertz=1), "Known arguments: .*subgoal_steps"),
    ],
)
def test_misspelled_arguments_are_refused_with_the_nearest_one(small, kwargs, message):
    with pytest.raises(TypeError, match=message):
        HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **(small | kwargs))


def test_an_environment_with_discrete_actions_is_refused():
    class Discrete(PointEnv):
        def __init__(self):
            super().__init__()
            import gymnasium as gym

            self.action_space = gym.spaces.Discrete(3)

    with pytest.raises(ValueError, match="continuous actions"):
        HierarchicalDDPG("MultiInputPolicy", Discrete())
