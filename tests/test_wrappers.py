"""Ordinary environments with goals from their observations, in all ways to use them with an agent."""

import gymnasium as gym
import numpy as np
import pytest
import yaml
from conftest import PointEnv, run
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hrl import HierarchicalDDPG, ParallelCollector
from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.env_goals import goal_task_from_env
from sb3_hrl.common.wrappers import GoalFromObservationWrapper, SuccessInfoWrapper, add_goals

pytestmark = pytest.mark.timeout(120)

CAR = dict(goal_indices=[0], threshold=0.05, goals=[[0.5]])


class LineEnv(gym.Env):
    """The observation is (n, -n, 10 n) for the number of steps n, or without the sign; it ends by itself after step 5."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, signed=True):
        self.signs = np.array([1, -1, 1] if signed else [1, 1, 1])
        self.observation_space = spaces.Box(*((-100.0, 100.0, (3,), np.float32) if signed else (0, 100, (3,), np.uint8)))

    def _obs(self):
        return (self.n_steps * self.signs * [1, 1, 10]).astype(self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return self._obs(), {"color": "red"}

    def step(self, action):
        self.n_steps += 1
        return self._obs(), 7.0, self.n_steps >= 5, False, {"color": "blue"}


def test_by_hand():
    env = GoalFromObservationWrapper(LineEnv(), [2, 1], threshold=5.0, goals=[[33.0, -7.0]], ends_at_success=False)
    obs, info = env.reset(seed=0)
    assert info == {"color": "red"}
    assert obs["desired_goal"].tolist() == [33.0, -7.0]
    # From (10 n, -n) to (33, -7): the square of the distance is (33 - 10 n)^2 + (7 - n)^2, and 9 + 16 = 5^2 for n = 3 only
    steps = [env.step(env.action_space.sample()) for _ in range(5)]
    assert [obs["achieved_goal"].tolist() for obs, *_ in steps] == [[10.0 * n, -n] for n in range(1, 6)]
    assert [obs["observation"].tolist() for obs, *_ in steps] == [[n, -n, 10.0 * n] for n in range(1, 6)]
    assert [reward for _, reward, *_ in steps] == [-1.0, -1.0, 0.0, -1.0, -1.0]
    assert [info["is_success"] for *_, info in steps] == [False, False, True, False, False]
    assert all(info["original_reward"] == 7.0 and info["color"] == "blue" for *_, info in steps)
    assert [terminated for _, _, terminated, *_ in steps] == [False] * 4 + [True], "the environment still ends by itself"


def test_an_episode_ends_at_its_goal():
    env = GoalFromObservationWrapper(LineEnv(), [0], threshold=0.5, goals=[[2.0]])
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[2] for _ in range(2)] == [False, True]


def test_the_reward_is_vectorised():
    env = GoalFromObservationWrapper(LineEnv(), [0, 1], threshold=5.0, low=-1.0, high=1.0)
    desired = np.zeros((2, 3, 2))
    achieved = desired + [3.0, 4.0]
    achieved[1] += 0.01
    rewards = env.compute_reward(achieved, desired, {})
    assert rewards.tolist() == [[0.0] * 3, [-1.0] * 3]
    assert env.compute_reward(achieved[0, 0], desired[0, 0], {}) == 0.0


def test_goals_are_drawn_from_the_box():
    env = GoalFromObservationWrapper(LineEnv(), [0, 2], threshold=0.1, low=[-3.0, 5.0], high=[1.0, 5.0])
    goals = np.array([env.reset(seed=seed)[0]["desired_goal"] for seed in range(200)])
    assert goals[:, 0].min() == pytest.approx(-3.0, abs=0.1)
    assert goals[:, 0].max() == pytest.approx(1.0, abs=0.1)
    assert goals[:, 0].mean() == pytest.approx(-1.0, abs=0.3)
    assert (goals[:, 1] == 5.0).all()
    np.testing.assert_array_equal(env.reset(seed=3)[0]["desired_goal"], goals[3])
    assert not np.array_equal(env.reset()[0]["desired_goal"], env.reset()[0]["desired_goal"])


def test_goals_are_drawn_from_points():
    points = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    env = GoalFromObservationWrapper(gym.make("Pendulum-v1"), [0, 1], threshold=0.1, goals=points)
    goals = {tuple(env.reset(seed=seed)[0]["desired_goal"].tolist()) for seed in range(40)}
    assert goals == {tuple(point) for point in points}


def test_the_box_is_that_of_the_observation_if_not_given():
    env = GoalFromObservationWrapper(gym.make("MountainCarContinuous-v0"), [0], threshold=0.05)
    goals = np.array([env.reset(seed=seed)[0]["desired_goal"] for seed in range(200)])
    assert goals.min() == pytest.approx(-1.2, abs=0.05)
    assert goals.max() == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize(("ends_at_success", "is_success"), [(True, True), (False, False)])
def test_a_fall_at_the_goal_is_no_success_if_the_agent_has_to_stay_there(ends_at_success, is_success):
    """The environment terminates after five steps, where the goal is."""
    env = GoalFromObservationWrapper(LineEnv(), [2], threshold=5.0, goals=[[50.0]], ends_at_success=ends_at_success)
    env.reset(seed=0)
    for _ in range(4):
        *_, terminated, _, info = env.step(env.action_space.sample())
        assert not terminated
    *_, terminated, _, info = env.step(env.action_space.sample())
    assert terminated
    assert info["is_success"] == is_success


def test_whole_numbers_are_goals_too():
    env = GoalFromObservationWrapper(LineEnv(signed=False), [0], threshold=1.0, goals=[[2.0]], ends_at_success=False)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[1] for _ in range(4)] == [0.0, 0.0, 0.0, -1.0]


@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric:UserWarning")
@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("MountainCarContinuous-v0", CAR),
        ("MountainCarContinuous-v0", dict(goal_indices=[0, 1], threshold=0.05, ends_at_success=False)),
        ("Pendulum-v1", dict(goal_indices=[0, 1], threshold=0.1, goals=[[1.0, 0.0]])),
    ],
)
def test_sb3_checks_it(env_id, options):
    env = GoalFromObservationWrapper(gym.make(env_id), **options)
    check_env(env)
    # The check skips goals if the environment is wrapped, so they are checked here
    env.reset(seed=0)
    obs, reward, _, _, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs)
    achieved, desired = (np.stack([obs[key]] * 2) for key in ("achieved_goal", "desired_goal"))
    assert env.compute_reward(achieved, desired, np.array([info, info])).tolist() == [reward] * 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(goal_indices=[3]), "from 0 to 2"),
        (dict(goal_indices=[-1]), "from 0 to 2"),
        (dict(goal_indices=[]), "list of different whole numbers"),
        (dict(goal_indices=[0, 0]), "different"),
        (dict(goal_indices=[0.5]), "whole numbers"),
        (dict(goal_indices=0), "a list"),
        (dict(threshold=0.0), "positive distance"),
        (dict(threshold=np.inf), "positive distance"),
        (dict(threshold=[0.1, 0.1]), "positive distance"),
        (dict(threshold="far"), "positive distance"),
        (dict(low=1.0, high=-1.0), "must not be above"),
        (dict(low=[0.0, 0.0]), "a number or 1 of them"),
        (dict(high="far"), "`high` must be finite"),
        (dict(high=np.nan), "`high` must be finite"),
        (dict(high=101.0), "`high` is outside"),
        (dict(goals=[[1.0]], low=0.0), "leave one of them out"),
        (dict(goals=[1.0]), "list of points of 1 finite"),
        (dict(goals=[]), "list of points"),
        (dict(goals=[[1.0, 2.0]]), "list of points of 1 finite"),
        (dict(goals=[[1.0], [1.0, 2.0]]), "list of points of 1 finite"),
        (dict(goals=[[np.nan]]), "finite"),
        (dict(goals=[[-101.0]]), "`goals` is outside"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        GoalFromObservationWrapper(LineEnv(), **(dict(goal_indices=[0], threshold=0.1) | options))


@pytest.mark.parametrize(
    ("env", "match"),
    [
        (PointEnv(), "already goal-conditioned"),
        (Monitor(LineEnv()), "add_goals"),
        (gym.make("FrozenLake-v1"), "FlattenObservation"),
        (gym.make("CartPole-v1"), r"`low` must be finite.*or the goals themselves"),
    ],
)
def test_environments_that_do_not_fit_are_refused(env, match):
    with pytest.raises(ValueError, match=match):
        GoalFromObservationWrapper(env, [1], threshold=0.1)


def test_flattened_observations_have_goals():
    env = GoalFromObservationWrapper(FlattenObservation(gym.make("FrozenLake-v1")), [15], threshold=0.1, goals=[[1.0]])
    assert env.reset(seed=0)[0]["achieved_goal"].tolist() == [0.0]


def test_monitor_sees_the_episode_end():
    env = add_goals(Monitor(LineEnv(), info_keywords=("is_success",)), goal_indices=[0], threshold=0.5, goals=[[2.0]])
    assert isinstance(env, Monitor)
    env.reset(seed=0)
    env.step(np.zeros(1))
    episode = env.step(np.zeros(1))[4]["episode"]
    assert episode["l"] == 2
    assert episode["r"] == -1.0
    assert episode["is_success"]
    assert isinstance(add_goals(LineEnv(), goal_indices=[0], threshold=0.5), GoalFromObservationWrapper)


def test_a_two_level_agent_learns_from_it(small):
    env = make_vec_env("MountainCarContinuous-v0", n_envs=2, seed=0, wrapper_class=add_goals, wrapper_kwargs=CAR)
    model = HierarchicalDDPG("MultiInputPolicy", env, **small).learn(100)
    assert model.policy.subgoal_threshold.item() == pytest.approx(0.05, rel=1e-3)
    assert model._goal_task.ends_at_success
    assert model._n_updates > 0
    assert model.replay_buffer.size() * env.num_envs >= 100
    reward, _ = evaluate_policy(model, env, n_eval_episodes=1)
    assert -999.0 <= reward <= 0.0


def test_sb3s_own_hindsight_learns_from_it():
    env = make_vec_env("MountainCarContinuous-v0", wrapper_class=add_goals, wrapper_kwargs=CAR)
    # HerReplayBuffer only samples from complete episodes
    model = DDPG(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        learning_starts=1000,
        policy_kwargs=dict(net_arch=[16]),
    ).learn(1005)
    assert model._n_updates > 0


class Telling(gym.Wrapper):
    """Adds a given info to each step, and ends the episode."""

    told: dict[str, object] = {}  # noqa: RUF012

    def step(self, action):
        obs, reward, _, _, _ = self.env.step(action)
        return obs, reward, True, False, dict(self.told)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"success": True}, {"success": True, "is_success": True}),
        ({"success": np.float64(0.0)}, {"success": 0.0, "is_success": False}),
        ({"success": True, "is_success": False}, {"success": True, "is_success": False}),
        ({}, {}),
    ],
)
def test_success_is_taken_over_and_not_made_up(told, expected):
    env = Telling(PointEnv())
    env.told = told
    env = SuccessInfoWrapper(env)
    obs, _ = env.reset(seed=0)
    next_obs, _, _, _, info = env.step(np.zeros(2))
    assert info == expected
    # An end with unknown success is not a failure, which would have the value -1 / (1 - gamma)
    buffer = SharedMemoryReplayBuffer(10, env.observation_space, env.action_space)
    obs, next_obs = ({key: value[None] for key, value in o.items()} for o in (obs, next_obs))
    buffer.add(obs, next_obs, np.zeros((1, 2)), np.zeros(1), np.ones(1, bool), [info])
    assert buffer.sample_low(1, 0, 1).failed.item() == (expected.get("is_success") is False)


class Generous(gym.Wrapper):
    """A wrapper that cannot be created from a spec, and has a goal method."""

    def compute_reward(self, achieved, desired, info):
        return np.zeros(len(achieved))


def make_car(threshold=0.05):
    return add_goals(Monitor(FlattenObservation(gym.make("MountainCarContinuous-v0"))), **CAR | dict(threshold=threshold))


def test_the_learner_has_a_twin_with_the_wrapper():
    env = SubprocVecEnv([lambda: make_car(0.2)], start_method="fork")
    try:
        task = goal_task_from_env(env, np.array([[0.5]], dtype=np.float32))
    finally:
        env.close()
    assert task.threshold == pytest.approx(0.2, rel=1e-3)
    assert task.ends_at_success


def test_other_wrappers_may_come_from_anywhere():
    class Local(gym.Wrapper):
        """It cannot be imported."""

    env = SubprocVecEnv([lambda: Local(Monitor(gym.make("conftest:PointEnv-v0")))], start_method="fork")
    try:
        task = goal_task_from_env(env, np.array([[0.5, 0.5]]))
    finally:
        env.close()
    assert task.threshold == pytest.approx(PointEnv.threshold, rel=1e-3)


def test_wrappers_with_goals_that_cannot_be_made_again_are_refused():
    env = SubprocVecEnv([lambda: Generous(make_car())], start_method="fork")
    try:
        with pytest.raises(ValueError, match=r"Generous.*RecordConstructorArgs"):
            goal_task_from_env(env, np.array([[0.5]], dtype=np.float32))
    finally:
        env.close()


def test_workers_collect_from_it(small, leaves_nothing):
    env = make_vec_env(make_car, n_envs=2, vec_env_cls=ParallelCollector)
    try:
        model = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, **small).learn(100)
        assert model.num_timesteps >= 100
        assert model.policy.subgoal_threshold.item() == pytest.approx(0.05, rel=1e-3)
    finally:
        env.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_the_zoo_trains_on_it(tmp_path, vec_env):
    hyperparams = dict(
        n_timesteps=300,
        policy="MultiInputPolicy",
        env_wrapper=[{"sb3_hrl.common.wrappers.add_goals": CAR}],
        monitor_kwargs="dict(info_keywords=('is_success',))",
        learning_starts=200,
        policy_kwargs="dict(net_arch=[16])",
    )
    (tmp_path / "car.yml").write_text(yaml.safe_dump({"MountainCarContinuous-v0": hyperparams}))
    arguments = "--algo hddpg --env MountainCarContinuous-v0 --conf-file car.yml --num-threads 1 --eval-freq 300"
    output = run(
        ["python", "-m", "sb3_hrl", "train", *arguments.split(), "--eval-episodes", "1", "--vec-env", vec_env], tmp_path
    )
    assert "Success rate:" in output
    monitor = (tmp_path / "logs/hddpg/MountainCarContinuous-v0_1/0.monitor.csv").read_text().splitlines()
    assert monitor[1] == "r,l,t,is_success"
