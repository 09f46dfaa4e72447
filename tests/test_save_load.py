"""Saved data is restored, and a run continues where it stopped."""

import copy
import io
import zipfile

import numpy as np
import pytest
import torch as th
from conftest import PointEnv, point_vec_env
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.save_util import load_from_zip_file, save_to_pkl

from sb3_hrl import HierarchicalDDPG, SharedMemoryReplayBuffer
from sb3_hrl.hddpg.saving import drop_training_state

OPTIMIZERS = [f"policy.{level}.{network}.optimizer" for level in ("high", "low") for network in ("actor", "critic")]


@pytest.fixture
def model(small):
    return HierarchicalDDPG("MultiInputPolicy", point_vec_env(2), high_update_interval=2, **small).learn(200)


def assert_equal_parameters(a: HierarchicalDDPG, b: HierarchicalDDPG) -> None:
    first, second = a.policy.state_dict(), b.policy.state_dict()
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert th.equal(value, second[key]), key
    for name in OPTIMIZERS:
        states = [model.get_parameters()[name]["state"] for model in (a, b)]
        assert states[0].keys() == states[1].keys() != set()
        for index, state in states[0].items():
            for key, value in state.items():
                assert th.equal(value, states[1][index][key]), f"{name} {key}"


@pytest.mark.parametrize("with_env", [True, False])
def test_everything_comes_back(model, tmp_path, with_env):
    model.save(tmp_path / "model")
    loaded = HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env(2) if with_env else None)
    assert_equal_parameters(model, loaded)
    for key in ("subgoal_steps", "high_update_interval", "num_timesteps", "_n_updates", "gamma"):
        assert getattr(model, key) == getattr(loaded, key)
    assert loaded.policy.goal_moments.count > 0
    for a, b in zip(model.policy.bounds, loaded.policy.bounds, strict=True):
        assert th.equal(a, b)
    obs = point_vec_env(3).reset()
    (action, state), (loaded_action, loaded_state) = (m.predict(obs, deterministic=True) for m in (model, loaded))
    np.testing.assert_array_equal(action, loaded_action)
    np.testing.assert_array_equal(state[0], loaded_state[0])


def test_a_loaded_model_goes_on(model, tmp_path):
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    radius, low = model.policy.subgoal_radius.clone(), model.policy.subgoal_low.clone()
    moments = model.policy.goal_moments.count.item()
    loaded = HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env(2))
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 200
    updates = loaded._n_updates
    loaded.learn(100, reset_num_timesteps=False)
    assert loaded.num_timesteps == 300
    assert loaded._n_updates == updates + 50
    assert loaded.replay_buffer.size() == 300
    assert (loaded.policy.subgoal_radius >= radius).all()
    assert (loaded.policy.subgoal_low <= low).all()
    # The moments use each step once
    assert moments < loaded.policy.goal_moments.count.item() <= 2 * 300


def test_a_loaded_model_goes_on_without_its_buffer_and_with_other_environments(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env(3))
    loaded.learn(99, reset_num_timesteps=False)
    assert loaded.num_timesteps == 299
    assert loaded.replay_buffer.size() == 99


def test_a_buffer_of_other_environments_is_refused(model, tmp_path):
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env(3))
    own = loaded.replay_buffer
    with pytest.raises(ValueError, match="-params n_envs:2"):
        loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer is own
    loaded.learn(30, reset_num_timesteps=False)


class WideEnv(PointEnv):
    """Its observation has 5 numbers."""

    def __init__(self):
        super().__init__()
        wide = spaces.Box(-np.inf, np.inf, (5,), np.float64)
        self.observation_space = spaces.Dict(self.observation_space.spaces | dict(observation=wide))

    def _obs(self):
        obs = super()._obs()
        return obs | dict(observation=np.append(obs["observation"], [0.0, 0.0]))


class OtherBuffer(SharedMemoryReplayBuffer):
    pass


@pytest.mark.parametrize("what", ["shape", "subclass", "sb3", "no buffer"])
def test_buffers_that_do_not_fit_are_refused(small, tmp_path, what):
    options = dict(replay_buffer_class=OtherBuffer) if what == "subclass" else {}
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **options, **small).learn(30)
    match = "was saved with the same environment" if what == "shape" else "`save_replay_buffer`"
    if what == "sb3":
        saved = DictReplayBuffer(10, model.observation_space, model.action_space)
    elif what == "no buffer":
        saved = [1, 2]
    else:
        env = WideEnv() if what == "shape" else PointEnv()
        saved = HierarchicalDDPG("MultiInputPolicy", env, **small).learn(30).replay_buffer
    save_to_pkl(tmp_path / "buffer.pkl", saved)
    own = model.replay_buffer
    with pytest.raises(ValueError, match=match):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is own
    model.learn(30, reset_num_timesteps=False)


def test_the_zip_holds_networks_only(model):
    file = io.BytesIO()
    model.save(file)
    assert file.tell() < 200_000
    file.seek(0)
    data, parameters, _ = load_from_zip_file(file)
    assert set(parameters) == {"policy", *OPTIMIZERS}
    assert not {"replay_buffer", "_goal_task", "_explorer", "env"} & set(data)
    assert zipfile.is_zipfile(file)


def test_a_file_without_training_state_is_smaller_and_acts_the_same(model, tmp_path, recwarn):
    model.save(tmp_path / "model")
    drop_training_state(tmp_path / "model.zip", tmp_path / "small.zip")
    assert (tmp_path / "small.zip").stat().st_size < 0.5 * (tmp_path / "model.zip").stat().st_size
    parameters = load_from_zip_file(tmp_path / "small")[1]
    assert set(parameters) == {"policy"}
    names = set(model.policy.state_dict())
    assert set(parameters["policy"]) == {name for name in names if "_target." not in name} < names
    loaded = HierarchicalDDPG.load(tmp_path / "small", env=point_vec_env(2))
    obs = point_vec_env(3).reset()
    np.testing.assert_array_equal(*(agent.predict(obs, deterministic=True)[0] for agent in (model, loaded)))
    assert len(recwarn) == 0, "acting needs no optimizer"
    with pytest.warns(UserWarning, match="fresh optimizers"):
        loaded.learn(50, reset_num_timesteps=False)
    loaded.learn(50, reset_num_timesteps=False)
    assert len(recwarn) == 0, "said once"
    loaded.save(tmp_path / "model")
    HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env(2)).learn(30, reset_num_timesteps=False)
    # The file can be overwritten
    drop_training_state(tmp_path / "model.zip", tmp_path / "model.zip")
    assert set(load_from_zip_file(tmp_path / "model")[1]) == {"policy"}


def test_fresh_training_state_with_the_networks_of_a_file_without_it(model, small, tmp_path):
    model.save(tmp_path / "model")
    drop_training_state(tmp_path / "model.zip", tmp_path / "small.zip")
    other = HierarchicalDDPG("MultiInputPolicy", point_vec_env(2), **{**small, "seed": 1}).learn(100)
    other.set_parameters(tmp_path / "small")
    assert all(other.get_parameters()[name]["state"] == {} for name in OPTIMIZERS)
    weights, loaded = model.policy.state_dict(), other.policy.state_dict()
    assert all(th.equal(value, weights[name.replace("_target.", ".")]) for name, value in loaded.items())
    assert all(
        value.data_ptr() != loaded[name.replace("_target.", ".")].data_ptr()
        for name, value in loaded.items()
        if "_target." in name
    )
    with pytest.warns(UserWarning, match="fresh optimizers"):
        other.learn(20, reset_num_timesteps=False)


def test_a_model_that_never_learned_can_be_saved(small, tmp_path):
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **small)
    model.save(tmp_path / "model")
    loaded = HierarchicalDDPG.load(tmp_path / "model", env=PointEnv())
    loaded.learn(50)
    assert loaded.num_timesteps == 50


def test_set_parameters_of_another_model(model, small):
    other = HierarchicalDDPG("MultiInputPolicy", point_vec_env(2), **{**small, "seed": 1}).learn(100)
    other.set_parameters(model.get_parameters(), exact_match=True)
    assert_equal_parameters(model, other)


def test_parameters_of_another_architecture_change_nothing(model, small, tmp_path):
    options = {**small, "policy_kwargs": dict(net_arch=[24]), "seed": 1}
    other = HierarchicalDDPG("MultiInputPolicy", point_vec_env(2), **options).learn(100)
    kept = copy.deepcopy(other)
    parameters = model.get_parameters()
    only_an_optimizer = {OPTIMIZERS[0]: parameters[OPTIMIZERS[0]]}
    without_one = {name: value for name, value in kept.get_parameters().items() if name != OPTIMIZERS[0]}
    for given, exact_match in [
        (parameters, True),
        (parameters, False),
        (only_an_optimizer, False),
        (without_one, True),
        ({**other.get_parameters(), "nothing": {}}, True),
    ]:
        with pytest.raises(RuntimeError, match="`policy_kwargs`"):
            other.set_parameters(given, exact_match=exact_match)
        assert_equal_parameters(kept, other)
    other.learn(30, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    with pytest.raises(RuntimeError, match="unless other ones are passed"):
        HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env(2), low_kwargs=dict(net_arch=[24]))


def test_changed_arguments_at_load(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env(2), gamma=0.5, high_kwargs=dict(gamma=0.7))
    assert loaded.policy.config.low.gamma == 0.5
    assert loaded.policy.config.high.gamma == 0.7


def test_set_env_drops_the_running_segments(model):
    size = model.replay_buffer.size()
    model.set_env(point_vec_env(2))
    model.learn(20, reset_num_timesteps=False)
    assert model.replay_buffer.size() == size + 20
    samples = model.replay_buffer.sample_high(300, 0, 1)
    clock, next_clock = samples.observations[:, 2], samples.next_observations[:, 2]
    assert (next_clock > clock).all(), "a segment goes across the reset"


def test_learning_twice_without_a_reset_keeps_the_episode(small):
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **small)
    model.learn(33)
    model.learn(33, reset_num_timesteps=False)
    whole = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **small)
    whole.learn(66)
    np.testing.assert_array_equal(model.replay_buffer.shards.rows[0, :66], whole.replay_buffer.shards.rows[0, :66])
