"""The replay buffer: what goes in comes out, once, and from the right episode."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
from conftest import PointEnv, point_vec_env, run
from gymnasium import spaces
from stable_baselines3 import DDPG, SAC, TD3

from sb3_hrl import SharedMemoryReplayBuffer
from sb3_hrl.common.shards import make_writers

SPACE = spaces.Dict({key: spaces.Box(-np.inf, np.inf, (1,)) for key in ("observation", "achieved_goal", "desired_goal")})
ACTIONS = spaces.Box(-1.0, 1.0, (1,))


def make_buffer(size: int = 100, n_envs: int = 1, **kwargs) -> SharedMemoryReplayBuffer:
    return SharedMemoryReplayBuffer(size, SPACE, ACTIONS, device="cpu", n_envs=n_envs, **kwargs)


def fill(buffer: SharedMemoryReplayBuffer, episodes: list[int], segment: int = 3, start: int = 0) -> int:
    """
    Store episodes of these lengths. All values of step ``t`` (counted over all episodes) depend on t: observation and achieved
    goal are t, the next ones t + 1, subgoal and action t / 1000. The desired goal is the number of the episode.

    :return: number of the next step
    """
    t, n = start, buffer.n_envs
    for episode, length in enumerate(episodes):
        for k in range(length):
            obs = {
                "observation": np.full((n, 1), t),
                "achieved_goal": np.full((n, 1), t),
                "desired_goal": np.full((n, 1), episode),
            }
            next_obs = {**obs, "observation": np.full((n, 1), t + 1), "achieved_goal": np.full((n, 1), t + 1)}
            done = np.full(n, k == length - 1)
            segment_done = done | ((k + 1) % segment == 0)
            small = np.full((n, 1), t / 1000)
            buffer.add(obs, next_obs, small, np.full(n, -1.0), done, [{}] * n, small, segment_done, np.full(n, k % 2 == 0))
            t += 1
    return t


def test_steps_are_consistent():
    buffer = make_buffer()
    fill(buffer, [10, 7, 4])
    assert buffer.size() == 21
    samples = buffer.sample_low(500, n_sampled_goal=0, window=5)
    t = samples.observations
    assert set(t.ravel().tolist()) == set(range(21))
    assert (samples.achieved_goals == t).all()
    assert (samples.next_observations == t + 1).all()
    assert (samples.next_achieved_goals == t + 1).all()
    np.testing.assert_allclose(samples.subgoals, t / 1000, rtol=1e-6)
    np.testing.assert_allclose(samples.actions, t / 1000, rtol=1e-6)


def test_hindsight_subgoals_come_from_the_window_and_the_episode():
    buffer = make_buffer()
    fill(buffer, [10, 7])
    samples = buffer.sample_low(1000, n_sampled_goal=4, window=3)
    t, goal = samples.observations[:800].ravel().numpy(), samples.subgoals[:800].ravel().numpy()
    end = np.where(t < 10, 10, 17)
    assert (goal >= t + 1).all()
    assert (goal <= np.minimum(t + 3, end)).all()
    assert (samples.subgoals[800:].ravel().numpy() < 1).all(), "the others keep the subgoal that was in force"


def test_running_episodes_are_sampled_up_to_now():
    buffer = make_buffer()
    fill(buffer, [4])
    obs = {key: np.full((1, 1), 50.0) for key in SPACE.spaces}
    buffer.add(obs, obs, np.zeros((1, 1)), np.zeros(1), np.zeros(1, bool), [{}])
    samples = buffer.sample_low(200, n_sampled_goal=4, window=100)
    running = samples.observations.ravel() == 50
    assert running.any()
    assert (samples.subgoals[running][:10] == 50).all()


def test_segments_are_consistent():
    buffer = make_buffer()
    fill(buffer, [10, 7, 4], segment=3)
    assert buffer.n_segments() == 4 + 3 + 2
    samples = buffer.sample_high(500, n_sampled_goal=0, max_steps=3)
    spans = {(int(a), int(b)) for a, b in zip(samples.observations, samples.next_observations, strict=True)}
    assert spans == {(0, 3), (3, 6), (6, 9), (9, 10), (10, 13), (13, 16), (16, 17), (17, 20), (20, 21)}
    np.testing.assert_allclose(samples.subgoals, samples.observations / 1000, rtol=1e-6)
    assert (samples.visited_goals[:, 0, 0] == samples.observations[:, 0].numpy() + 1).all()
    assert (samples.visited_goals[:, -1] == samples.next_achieved_goals.numpy()).all()
    assert set(samples.goals.ravel().tolist()) == {0.0, 1.0, 2.0}


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_hindsight_goals_follow_the_strategy(strategy):
    buffer = make_buffer(goal_selection_strategy=strategy)
    fill(buffer, [10, 7], segment=3)
    samples = buffer.sample_high(1000, n_sampled_goal=4, max_steps=1)
    start, goal = samples.observations[:800].ravel().numpy(), samples.goals[:800].ravel().numpy()
    first, end = np.where(start < 10, 0, 10), np.where(start < 10, 10, 17)
    if strategy == "final":
        assert (goal == end).all()
    else:
        assert (goal > (start if strategy == "future" else first)).all()
        assert (goal <= end).all()
        assert (goal <= start).any() == (strategy == "episode")
    assert (samples.goals[800:] <= 1).all()


@pytest.mark.parametrize("n_envs", [1, 3])
def test_capacity_is_a_bound_and_whole_oldest_episodes_go(n_envs):
    buffer = make_buffer(20 * n_envs, n_envs)
    fill(buffer, [8] * 5)
    # 40 steps in a ring of 20: the stored steps start with a complete episode
    assert buffer.size() <= 20 * n_envs
    samples = buffer.sample_low(500, n_sampled_goal=4, window=8)
    t, goal = samples.observations.ravel().numpy(), samples.subgoals[:400].ravel().numpy()
    assert t.min() == 24
    assert t.max() == 39
    assert (goal <= (t[:400] // 8 + 1) * 8).all()
    segments = buffer.sample_high(500, n_sampled_goal=4, max_steps=3)
    assert segments.observations.min() == 24
    assert (segments.next_observations - segments.observations <= 3).all()


def test_an_episode_longer_than_the_buffer_keeps_its_newest_steps():
    buffer = make_buffer(10)
    fill(buffer, [35])
    samples = buffer.sample_low(300, n_sampled_goal=4, window=5)
    assert buffer.size() == 10
    assert set(samples.observations.ravel().tolist()) == set(range(25, 35))
    assert buffer.sample_high(100, 4, 3).observations.min() >= 25


def test_shards_are_sampled_in_proportion():
    buffer = make_buffer(100, n_envs=2)
    fill(buffer, [10])
    buffer.shards.tail[0] = 9  # as if nearly all steps of the first shard had been dropped
    samples = buffer.sample_low(5000, n_sampled_goal=0, window=1)
    share_of_step_9 = (samples.observations == 9).float().mean().item()
    assert abs(share_of_step_9 - 2 / 11) < 0.03


def test_storage_is_allocated_at_the_first_add():
    buffer = make_buffer(10**12)
    assert not buffer.shards.is_allocated
    with pytest.raises(RuntimeError, match="learning_starts"):
        buffer.sample(4)


def test_counters_are_written_in_place():
    buffer = make_buffer(20, n_envs=2)
    counters = {name: getattr(buffer.shards, name) for name in ("head", "tail", "segment_head", "segment_tail")}
    fill(buffer, [8] * 5)
    buffer.reset()
    for name, counter in counters.items():
        assert getattr(buffer.shards, name) is counter
    assert buffer.size() == 0
    fill(buffer, [5])
    assert buffer.size() == 10


@pytest.mark.parametrize("n_envs", [1, 2])
def test_pickles_hold_the_filled_part_and_continue(n_envs):
    buffer = make_buffer(1_000_000, n_envs, compute_reward=lambda achieved, desired, infos: achieved.ravel())
    next_step = fill(buffer, [8, 5])
    data = pickle.dumps(buffer)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    for both in (buffer, copy):
        fill(both, [6], start=next_step)
    buffer.compute_reward = None
    expected, actual = buffer.sample_low(100, 4, 5), copy.sample_low(100, 4, 5)
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(buffer.sample_high(50, 4, 3).goals, copy.sample_high(50, 4, 3).goals)


def test_pickle_of_a_wrapped_ring():
    buffer = make_buffer(20)
    fill(buffer, [8] * 5)
    copy = pickle.loads(pickle.dumps(buffer))
    np.testing.assert_array_equal(buffer.sample_low(100, 4, 5).subgoals, copy.sample_low(100, 4, 5).subgoals)


def test_a_saved_buffer_is_loaded_in_another_process(tmp_path):
    buffer = make_buffer(1_000_000)
    fill(buffer, [8] * 5)
    path = tmp_path / "buffer.pkl"
    path.write_bytes(pickle.dumps(buffer))
    assert path.stat().st_size < 20_000
    script = f"import pickle; print(pickle.load(open({str(path)!r}, 'rb')).sample_low(50, 4, 5).subgoals.sum().item())"
    output = run(["python", "-W", "ignore", "-c", script], tmp_path)
    assert float(output) == pytest.approx(buffer.sample_low(50, 4, 5).subgoals.sum().item())


def test_ending_episodes_from_outside():
    buffer = make_buffer()
    next_step = fill(buffer, [5])
    obs = {key: np.full((1, 1), 5.0) for key in SPACE.spaces}
    buffer.add(obs, obs, np.zeros((1, 1)), np.zeros(1), np.zeros(1, bool), [{}], np.zeros((1, 1)), np.zeros(1, bool))
    buffer.end_episodes()
    buffer.end_episodes()
    fill(buffer, [4], start=next_step + 1)
    samples = buffer.sample_low(500, n_sampled_goal=4, window=100)
    cut = samples.observations[:400].ravel() == 5
    assert (samples.subgoals[:400][cut] == 5).all(), "a goal came from after the reset"
    assert buffer.sample_high(200, 0, 3).observations.ravel().unique().tolist() == [0.0, 3.0, 6.0, 9.0]


def test_time_limits_are_no_terminations():
    for truncated in (True, False):
        buffer = make_buffer()
        obs = {key: np.zeros((1, 1)) for key in SPACE.spaces}
        buffer.add(obs, obs, np.zeros((1, 1)), np.zeros(1), np.ones(1, bool), [{"TimeLimit.truncated": truncated}])
        assert buffer.sample(1).dones.item() == float(not truncated)


@pytest.mark.parametrize("field", ["observation", "achieved_goal", "next_observation", "action"])
def test_values_that_are_not_finite_are_refused(field):
    buffer = make_buffer()
    obs = {key: np.zeros((1, 1)) for key in SPACE.spaces}
    next_obs, action = dict(obs), np.zeros((1, 1))
    bad = np.full((1, 1), np.nan)
    if field == "action":
        action = bad
    elif field == "next_observation":
        next_obs["observation"] = bad
    else:
        obs[field] = bad
    with pytest.raises(ValueError, match=field):
        buffer.add(obs, next_obs, action, np.zeros(1), np.zeros(1, bool), [{}])


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("hindsight", [True, False])
@pytest.mark.parametrize("algorithm", [DDPG, TD3, SAC])
def test_plain_sb3_takes_it(n_envs, hindsight, algorithm):
    env = PointEnv()
    kwargs = dict(compute_reward=env.compute_reward) if hindsight else {}
    model = algorithm(
        "MultiInputPolicy",
        point_vec_env(n_envs),
        replay_buffer_class=SharedMemoryReplayBuffer,
        replay_buffer_kwargs=kwargs,
        policy_kwargs=dict(net_arch=[16]),
        learning_starts=30,
        batch_size=32,
        buffer_size=500,
        seed=0,
    )
    model.learn(100)
    samples = model.replay_buffer.sample(400)
    assert samples.observations["observation"].shape == (400, 3)
    expected = env.compute_reward(
        samples.next_observations["achieved_goal"].numpy(), samples.observations["desired_goal"].numpy(), None
    )
    np.testing.assert_allclose(samples.rewards.numpy().ravel(), expected)
    # The strategy `future` includes the step itself: with hindsight, some steps reach their own goal
    assert (expected == 0).mean() > 0.1 if hindsight else (expected == 0).mean() < 0.3


def reached(achieved, desired, infos):
    return (np.abs(achieved - desired) < 0.5).all(axis=-1) - 1.0


def make_ddpg(n_envs: int = 1, **buffer_kwargs) -> DDPG:
    return DDPG(
        "MultiInputPolicy",
        point_vec_env(n_envs),
        replay_buffer_class=SharedMemoryReplayBuffer,
        replay_buffer_kwargs=buffer_kwargs,
        policy_kwargs=dict(net_arch=[16]),
        learning_starts=30,
        buffer_size=500,
        seed=0,
    )


def test_a_loaded_buffer_does_not_forget_hindsight_in_silence(tmp_path):
    """SB3 passes its environment to HerReplayBuffer only."""
    kwargs = dict(compute_reward=PointEnv().compute_reward)
    model = make_ddpg(**kwargs).learn(100)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make_ddpg(**kwargs)
    other.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"model.replay_buffer.compute_reward ="):
        other.learn(100, reset_num_timesteps=False)
    # The cure in the message works
    other.replay_buffer.compute_reward = other.replay_buffer_kwargs["compute_reward"]
    other.learn(100, reset_num_timesteps=False)
    rewards = [m.replay_buffer.sample(1000).rewards.numpy() for m in (model, other)]
    assert np.mean(rewards[1] == 0) > 0.5 * np.mean(rewards[0] == 0) > 0.05
    other.replay_buffer.compute_reward, other.replay_buffer.n_sampled_goal = None, 0
    assert other.replay_buffer.sample(10).rewards.shape == (10, 1)


def test_a_deep_copy_keeps_hindsight():
    buffer = make_buffer(compute_reward=reached)
    fill(buffer, [10, 7])
    copied = copy.deepcopy(buffer)
    assert copied.compute_reward is buffer.compute_reward
    a, b = buffer.sample(200), copied.sample(200)
    np.testing.assert_array_equal(a.rewards, b.rewards)
    assert (b.rewards == 0).any()
    fill(copied, [5], start=17)
    assert (buffer.size(), copied.size()) == (17, 22), "the memory is not shared"


def test_hindsight_is_on_if_and_only_if_there_is_a_reward():
    assert make_buffer().n_sampled_goal == 0
    assert make_buffer(compute_reward=reached).n_sampled_goal == 4
    assert make_buffer(compute_reward=reached, n_sampled_goal=0).n_sampled_goal == 0
    with pytest.raises(ValueError, match=r"`n_sampled_goal=4` needs .* `compute_reward`"):
        make_buffer(n_sampled_goal=4)
    with pytest.raises(ValueError, match="at least 0"):
        make_buffer(n_sampled_goal=-1)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_position_and_fullness_are_those_of_sb3(n_envs):
    buffer = make_buffer(20 * n_envs, n_envs)
    assert (buffer.pos, buffer.full) == (0, False)
    expected = [(8, False), (16, False), (4, True), (12, True)]
    for k, (pos, full) in enumerate(expected):
        fill(buffer, [8], start=8 * k)
        assert (buffer.pos, buffer.full) == (pos, full)
    copied = pickle.loads(pickle.dumps(buffer))
    assert (copied.pos, copied.full) == (12, True)
    buffer.reset()
    assert (buffer.pos, buffer.full) == (0, False)


def write_rows(blocks, n: int) -> None:
    """Code of a worker in its process."""
    writer = make_writers(blocks, [0], trim_interval=1)[0]
    for _ in range(n):
        writer.write(np.zeros((1, blocks[1]["rows"].shape[-1]), np.float32), np.zeros(1, bool))


@pytest.mark.timeout(60)
def test_position_counts_what_other_processes_write(leaves_nothing):
    buffer = make_buffer(20)
    process = multiprocessing.get_context("fork").Process(target=write_rows, args=(buffer.shards.blocks(), 27))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert (buffer.pos, buffer.full) == (7, True)


def test_rewards_are_asked_for_in_the_goals_own_space():
    """Goals that are a matrix of integers, used as indices of a table."""
    space = spaces.Box(0, 9, (2, 2), np.int64)
    asked = []

    def compute_reward(achieved, desired, infos):
        asked.append((achieved, desired, infos))
        return np.eye(10)[achieved, desired].all(axis=(1, 2)) - 1.0

    observation_space = spaces.Dict(observation=SPACE["observation"], achieved_goal=space, desired_goal=space)
    buffer = SharedMemoryReplayBuffer(50, observation_space, ACTIONS, device="cpu", compute_reward=compute_reward)
    for k in range(10):
        goals = dict(achieved_goal=np.full((1, 2, 2), k), desired_goal=np.full((1, 2, 2), 9))
        obs = {"observation": np.zeros((1, 1)), **goals}
        buffer.add(obs, obs, np.zeros((1, 1)), -np.ones(1), np.array([k == 9]), [{}])
    samples = buffer.sample(100)
    assert samples.observations["desired_goal"].shape == (100, 2, 2)
    assert (samples.rewards == 0).any()
    ((achieved, desired, infos),) = asked
    for goals in (achieved, desired):
        assert goals.shape == (80, 2, 2)
        assert goals.dtype == np.int64
    assert infos.shape == (80,)
    assert infos.dtype == object
    assert infos.tolist() == [{}] * 80


@pytest.mark.parametrize(
    ("compute_reward", "match"),
    [
        (lambda achieved, desired, infos: 0.0 if abs(achieved - desired) < 1 else -1.0, "`np.where`"),
        (lambda achieved, desired, infos: -float(abs(achieved - desired)), "vectorised"),
        (lambda achieved, desired, infos: -np.abs(achieved - desired) * infos["cost"], "leave out what needs `info`"),
        (lambda achieved, desired, infos: -np.abs(achieved - desired) * infos[0]["cost"], "KeyError"),
        (lambda achieved, desired, infos: None, "returned None"),
        (lambda achieved, desired, infos: "good", "return numbers"),
        (lambda achieved, desired, infos: np.linalg.norm(achieved - desired), "vectorised"),
        (lambda achieved, desired, infos: np.full(len(achieved), np.nan), "NaN"),
    ],
)
def test_rewards_that_cannot_be_computed_in_hindsight_are_refused(compute_reward, match):
    buffer = make_buffer(compute_reward=compute_reward)
    fill(buffer, [10])
    with pytest.raises(ValueError, match=match):
        buffer.sample(20)


def test_bad_arguments_are_refused():
    for space in (spaces.Discrete(3), spaces.Dict(observation=spaces.Box(-1, 1, (2,)))):
        with pytest.raises(ValueError, match="keys"):
            SharedMemoryReplayBuffer(10, space, ACTIONS)
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        make_buffer(optimize_memory_usage=True)
    with pytest.raises(ValueError, match="buffer_size"):
        make_buffer(1, n_envs=2)
    with pytest.raises(ValueError, match="goal_selection_strategy"):
        make_buffer(goal_selection_strategy="past")
