"""n-step returns of the replay buffer, against SB3's NStepReplayBuffer and against a model of plain lists."""

import warnings
from typing import Any

import numpy as np
import pytest
from conftest import PointEnv, point_vec_env
from gymnasium import spaces
from sb3_contrib import TQC
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_hrl import SerialCollector, SharedMemoryReplayBuffer, asynchronous
from sb3_hrl.common.n_step import n_step_ends

GAMMA = 0.9
ACTIONS = spaces.Box(-1.0, 1.0, (1,))
GOALS = spaces.Dict({key: spaces.Box(-np.inf, np.inf, (1,)) for key in ("observation", "achieved_goal", "desired_goal")})
# Length of an episode, and whether a time limit ends it; the last one is still running
EPISODES = [(10, True), (7, False), (1, False), (12, True), (2, True), (9, None)]


def steps_of(episodes: list) -> list[tuple[int, bool, bool]]:
    """:return: number, done and truncated of each step"""
    steps = []
    for length, truncated in episodes:
        for k in range(length):
            done = k == length - 1 and truncated is not None
            steps.append((len(steps), done, done and bool(truncated)))
    return steps


def reward_of(t: int, env: int) -> float:
    return np.sin(t) + 10.0 * env


@pytest.mark.parametrize("handle_timeout_termination", [True, False])
@pytest.mark.parametrize("n_steps", [2, 3, 5, 20])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_returns_are_those_of_sb3(n_envs, n_steps, handle_timeout_termination):
    space = spaces.Box(-np.inf, np.inf, (1,))
    shared: Any = dict(device="cpu", n_envs=n_envs, handle_timeout_termination=handle_timeout_termination)
    shared |= dict(n_steps=n_steps, gamma=GAMMA)
    ours, sb3 = (cls(100, space, ACTIONS, **shared) for cls in (SharedMemoryReplayBuffer, NStepReplayBuffer))
    scales = np.arange(n_envs)
    for t, done, truncated in steps_of(EPISODES):
        obs = (t + 1000.0 * scales)[:, None]
        rewards = np.array([reward_of(t, env) for env in range(n_envs)])
        for buffer in (ours, sb3):
            infos = [{"TimeLimit.truncated": truncated}] * n_envs
            buffer.add(obs, obs + 1, obs / 1e4, rewards, np.full(n_envs, done), infos)
    batch = ours.sample(300)
    steps = (batch.observations % 1000).long().numpy().ravel()
    envs = (batch.observations // 1000).long().numpy().ravel()
    assert set(steps) >= {0, 9, 17, 31, 40}
    expected = _sb3_samples(sb3, steps, envs)
    for name, value in batch._asdict().items():
        np.testing.assert_array_equal(value, getattr(expected, name), err_msg=name)


def _sb3_samples(buffer: NStepReplayBuffer, steps: np.ndarray, envs: np.ndarray) -> Any:
    """SB3's samples of these steps; SB3 itself draws the environments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "randint", lambda *args, **kwargs: envs)
        return buffer._get_samples(steps)


def reached(achieved: np.ndarray, desired: np.ndarray, infos: Any) -> np.ndarray:
    """A dense reward, so that every step of a return differs."""
    return -np.abs(achieved - desired)[..., 0] / 7.0


def fill_goals(buffer: SharedMemoryReplayBuffer, episodes: list) -> None:
    """Step t goes from t to t + 1; the stored reward is 100 + t, the goal 500."""
    for t, done, truncated in steps_of(episodes):
        obs, next_obs = ({key: np.full((1, 1), value) for key in GOALS.spaces} for value in (t, t + 1))
        obs["desired_goal"] = next_obs["desired_goal"] = np.full((1, 1), 500)
        infos = [{"TimeLimit.truncated": truncated}]
        buffer.add(obs, next_obs, np.zeros((1, 1)), np.array([100.0 + t]), np.array([done]), infos)


def expected_sample(t: int, goal: int, n_steps: int, steps: list) -> tuple[int, float, float, float]:
    """:return: next observation, return, done and discount of a transition, from plain lists"""
    total = 0.0
    for k in range(n_steps):
        number, done, truncated = steps[t + k]
        total += GAMMA**k * (100.0 + number if goal == 500 else -abs(number + 1 - goal) / 7.0)
        is_last = number == len(steps) - 1
        if done or is_last or number + 1 == goal or k == n_steps - 1:
            break
    return number + 1, total, float(done and not truncated), GAMMA ** (k + 1)


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 8])
def test_goals_in_hindsight_get_the_rewards_of_all_steps(n_steps, strategy):
    kwargs: Any = dict(compute_reward=reached, goal_selection_strategy=strategy, n_steps=n_steps, gamma=GAMMA)
    buffer, steps = SharedMemoryReplayBuffer(100, GOALS, ACTIONS, device="cpu", **kwargs), steps_of(EPISODES)
    fill_goals(buffer, EPISODES)
    batch = buffer.sample(600)
    starts, goals = (batch.observations[key].ravel().long().tolist() for key in ("observation", "desired_goal"))
    assert (np.array(goals[:480]) != 500).all()
    assert (np.array(goals[480:]) == 500).all()
    expected = np.array([expected_sample(t, goal, n_steps, steps) for t, goal in zip(starts, goals, strict=True)])
    for key in ("observation", "achieved_goal"):
        np.testing.assert_array_equal(batch.next_observations[key].ravel(), expected[:, 0])
    np.testing.assert_array_equal(batch.next_observations["desired_goal"], batch.observations["desired_goal"])
    np.testing.assert_allclose(batch.rewards.ravel(), expected[:, 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(batch.dones.ravel(), expected[:, 2])
    if n_steps == 1:
        assert batch.discounts is None, "SB3's algorithms then use their own gamma"
    else:
        np.testing.assert_allclose(batch.discounts.ravel(), expected[:, 3], rtol=1e-6)


def test_returns_stop_where_the_ring_has_dropped_or_the_episode_was_cut():
    buffer = SharedMemoryReplayBuffer(20, GOALS, ACTIONS, device="cpu", n_steps=4, gamma=GAMMA, compute_reward=reached)
    fill_goals(buffer, [(8, False)] * 5)
    fill_goals(buffer, [(3, None)])
    buffer.end_episodes()
    fill_goals(buffer, [(3, None)])
    batch = buffer.sample(500)
    start, end = (obs["observation"].ravel() for obs in (batch.observations, batch.next_observations))
    lengths = end - start
    assert (lengths >= 1).all()
    assert (lengths <= 4).all()
    # After the ring has wrapped, the only steps below 8 are those of the two cut episodes of three steps
    assert (end[start < 8] <= 3).all()


def test_a_return_ends_when_its_goal_is_achieved():
    steps, last = np.array([5, 5, 5, 5]), np.array([20, 7, 20, 20])
    np.testing.assert_array_equal(n_step_ends(steps, last, 4), [9, 7, 9, 9])
    # Achieved by the first step, after the end, and before the first step
    np.testing.assert_array_equal(n_step_ends(steps, last, 4, np.array([5, 19, 2])), [6, 7, 9, 9])


def test_rewards_are_normalised_before_they_are_added_up():
    env = VecNormalize(DummyVecEnv([PointEnv]), norm_obs=False, clip_reward=0.5)
    buffer = SharedMemoryReplayBuffer(100, GOALS, ACTIONS, device="cpu", n_steps=3, gamma=GAMMA)
    fill_goals(buffer, [(10, True)])
    assert buffer.sample(50, env).rewards.max() == pytest.approx(0.5 * (1 + GAMMA + GAMMA**2))


@pytest.mark.parametrize("algorithm", [TD3, TQC])
def test_sb3_learns_from_them(algorithm):
    small: Any = dict(learning_starts=20, batch_size=16, policy_kwargs=dict(net_arch=[8]), buffer_size=1000, seed=0)
    kwargs = dict(compute_reward=PointEnv().compute_reward, n_steps=3, gamma=0.95)
    model = algorithm(
        "MultiInputPolicy",
        point_vec_env(2),
        replay_buffer_class=SharedMemoryReplayBuffer,
        replay_buffer_kwargs=kwargs,
        gamma=0.95,
        **small,
    )
    model.learn(100)
    assert model._n_updates > 0
    assert model.replay_buffer.sample(200).discounts.min() == pytest.approx(0.95**3)


def test_asynchronous_algorithms_pass_them_on(leaves_nothing):
    env = SerialCollector([lambda: PointEnv()] * 2)
    kwargs: Any = dict(replay_buffer_kwargs=dict(compute_reward=PointEnv().compute_reward), n_steps=3, gamma=0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = asynchronous(SAC)("MultiInputPolicy", env, buffer_size=1000, learning_starts=20, batch_size=16, **kwargs)
    model.learn(150)
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (3, 0.95)
    assert model.replay_buffer.sample(200).discounts.min() == pytest.approx(0.95**3)
    env.close()


@pytest.mark.parametrize(("kwargs", "match"), [(dict(n_steps=0), "n_steps"), (dict(n_steps=2, gamma=1.1), "gamma")])
def test_bad_arguments_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        SharedMemoryReplayBuffer(10, GOALS, ACTIONS, **kwargs)
