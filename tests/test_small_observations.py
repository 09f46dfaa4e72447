"""Observations of one or two bytes per value, such as images, are stored in their own dtype."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl import ParallelCollector, SerialCollector, SharedMemoryReplayBuffer, asynchronous
from sb3_hrl.common.step_storage import pack, unpack

pytestmark = [pytest.mark.timeout(100), pytest.mark.usefixtures("leaves_nothing")]
ACTIONS = spaces.Box(-1.0, 1.0, (1,))


class ImageEnv(gym.Env):
    """A bright column, which the action moves; a step counter is in the first pixel. Channels come first, as in torch."""

    observation_space = spaces.Box(0, 255, (3, 36, 37), np.uint8)
    action_space = ACTIONS

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        super().reset(**kwargs)
        self.t, self.x = 0, 18
        return self._image(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        self.x = int(np.clip(self.x + 5 * action[0], 0, 36))
        return self._image(), -abs(self.x - 30) / 10, False, self.t == 10, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((3, 36, 37), np.uint8)
        image[:, :, self.x] = 255
        image[:, 0, 0] = self.t
        return image


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([np.uint8, np.int8, np.bool_, np.uint16, np.int16]), st.integers(1, 9), st.integers(1, 4))
def test_packing_is_exact(dtype, size, n):
    raw = np.random.default_rng(size).integers(0, 256, n * size * np.dtype(dtype).itemsize, np.uint8)
    values = (raw % 2 if dtype is np.bool_ else raw).view(dtype).reshape(n, size)
    unpacked = unpack(pack(values, n, np.dtype(dtype)), size, np.dtype(dtype))
    assert unpacked.dtype == dtype
    np.testing.assert_array_equal(unpacked, values)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_all_bytes_come_back(dtype, n_envs, n_steps):
    """Some bytes are not a number as float32: they must be neither refused nor changed."""
    space = spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, (3, 5), dtype)
    buffer = SharedMemoryReplayBuffer(60 * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs, n_steps=n_steps)
    rng, seen = np.random.default_rng(0), {}
    kinds = rng.integers(0, 256, (60, n_envs, 15 * np.dtype(dtype).itemsize), np.uint8)
    kinds[::3] = 255
    images = kinds.view(dtype).reshape(60, n_envs, 3, 5)
    for t in range(59):
        for env in range(n_envs):
            seen[t, env] = images[t, env]
        numbers = np.array([t + 100 * env for env in range(n_envs)])
        buffer.add(images[t], images[t + 1], numbers[:, None] / 1e3, numbers, np.zeros(n_envs, bool), [{}] * n_envs)
    copied = pickle.loads(pickle.dumps(buffer))
    for each in (buffer, copied):
        batch = each.sample(200)
        assert batch.observations.numpy().dtype == batch.next_observations.numpy().dtype == dtype
        numbers = np.rint(batch.actions.numpy().ravel() * 1e3).astype(int)
        for number, now, following in zip(numbers, batch.observations, batch.next_observations, strict=True):
            t, env = number % 100, number // 100
            np.testing.assert_array_equal(now, images[t, env])
            np.testing.assert_array_equal(following, images[min(t + n_steps, 59), env])
    recent = buffer.recent(10 * n_envs, ("observation",))
    np.testing.assert_array_equal(recent[0]["observation"].reshape(-1, 3, 5), images[49:59, 0])


def test_rows_have_the_size_of_the_bytes():
    space = spaces.Box(0, 255, (84, 84, 3), np.uint8)
    buffer = SharedMemoryReplayBuffer(10, space, ACTIONS, device="cpu")
    n_bytes = 4 * buffer.shards.row_dim
    assert 2 * 84 * 84 * 3 <= n_bytes <= 2 * 84 * 84 * 3 + 40


@pytest.mark.parametrize("field", ["action", "reward"])
def test_numbers_that_are_not_finite_are_still_refused(field):
    space = spaces.Box(0, 255, (3, 5), np.uint8)
    buffer = SharedMemoryReplayBuffer(10, space, ACTIONS, device="cpu")
    obs, action, reward = np.full((1, 3, 5), 255), np.zeros((1, 1)), np.zeros(1)
    (action if field == "action" else reward)[:] = np.nan
    with pytest.raises(ValueError, match=field):
        buffer.add(obs, obs, action, reward, np.zeros(1, bool), [{}])


SMALL: Any = dict(learning_starts=16, batch_size=8, buffer_size=200, gradient_steps=1, train_freq=8, seed=0)
SMALL["policy_kwargs"] = dict(net_arch=[8], features_extractor_kwargs=dict(features_dim=8))


def check_stored_images(model: Any) -> None:
    batch = model.replay_buffer.sample(100)
    now, following = batch.observations.numpy(), batch.next_observations.numpy()
    assert now.dtype == np.uint8
    assert now.shape == (100, *model.observation_space.shape)
    np.testing.assert_array_equal(now[:, 0, 0, 0] + 1, following[:, 0, 0, 0])
    x = np.clip(np.trunc(now[:, 0, 1].argmax(1) + 5 * batch.actions.numpy().ravel()), 0, 36)
    np.testing.assert_array_equal(following[:, 0, 1].argmax(1), x)


def test_sac_learns_from_images():
    env = DummyVecEnv([ImageEnv])
    model = SAC("CnnPolicy", env, replay_buffer_class=SharedMemoryReplayBuffer, **SMALL).learn(48)
    check_stored_images(model)


@pytest.mark.parametrize("cls", [SerialCollector, ParallelCollector])
def test_sac_learns_from_images_asynchronously(cls):
    options: Any = dict(start_method="fork") if cls is ParallelCollector else {}
    env = cls([ImageEnv] * 2, flush_size=4, sync_interval=8, **options)
    try:
        model = asynchronous(SAC)("CnnPolicy", env, **SMALL).learn(64)
        assert model.num_timesteps == model.replay_buffer.n_added == 64
        check_stored_images(model)
        # Workers act as the learner does
        snapshot = model._acting().agent._snapshot
        vector = np.zeros(snapshot.n_weights, np.float32)
        snapshot.write(model.actor, vector)
        image = env.reset()
        acted = snapshot.bind(vector).act([image.reshape(2, -1)], np.random.default_rng(0), np.zeros((2, 1), np.float32))
        np.testing.assert_allclose(acted, model.predict(image, deterministic=True)[0], atol=1e-5)
    finally:
        env.close()
