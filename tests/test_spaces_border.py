"""Between the environment and the learner: shapes, types and bounds of the environment outside, flat float32 inside."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import PointEnv
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from rl_zoo3.wrappers import HistoryWrapperObsDict
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from sb3_hrl import HierarchicalDDPG, ParallelCollector
from sb3_hrl.common.env_goals import check_reward
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.spaces import ActionBorder, flatten, goal_space, in_goal_space
from sb3_hrl.common.subgoals import visited_bounds
from sb3_hrl.parallel.serial import SerialCollector
from sb3_hrl.visual.episodes import play


class ActionsEnv(PointEnv):
    """
    Moves by the first entries of its actions, for any action space, and checks that the actions belong to it.

    :param action_space: action space with at least one entry
    """

    def __init__(self, action_space: spaces.Box):
        super().__init__()
        self.action_space = action_space
        self.seen: list[np.ndarray] = []

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        space = self.action_space
        assert (action.shape, action.dtype) == (space.shape, space.dtype)
        assert (action >= space.low).all()
        assert (action <= space.high).all()
        self.seen.append(action.copy())
        return super().step(np.resize(action, 2).astype(np.float64))


ASYMMETRIC = spaces.Box(np.array([[-0.1, 3.0], [-7.7, 0.3]]), np.array([[2.3, 3.1], [-7.0, 0.9]]), dtype=np.float64)
ACTION_SPACES = [
    spaces.Box(-1, 1, (2, 2)),
    spaces.Box(-1, 1, (2, 1)),
    spaces.Box(-1, 1, (1, 2)),
    spaces.Box(-1, 1, ()),
    spaces.Box(-1, 1, (2, 1, 2), np.float64),
    spaces.Box(-100, 100, (2,), np.int8),
    ASYMMETRIC,
]


@pytest.mark.parametrize("space", ACTION_SPACES, ids=str)
@pytest.mark.parametrize("is_async", [False, True])
def test_actions_of_any_shape(small, space, is_async):
    env: Any = SerialCollector if is_async else DummyVecEnv
    env = env([lambda: ActionsEnv(space)] * 2)
    # SB3's noise is at least an array
    shape = space.shape or (1,)
    noise = NormalActionNoise(np.zeros(shape), np.full(shape, 0.3))
    model = HierarchicalDDPG("MultiInputPolicy", env, action_noise=noise, async_collection=is_async, **small).learn(80)
    # Scaled, in the order of the entries of the space
    columns, dim = model.replay_buffer.columns, int(np.prod(space.shape))
    seen = np.stack(env.envs[0].seen)
    if not np.issubdtype(space.dtype, np.integer):
        rows = model.replay_buffer.shards.rows[0, : len(seen), columns["action"]]
        low, high = space.low.ravel(), space.high.ravel()
        np.testing.assert_allclose(rows, 2 * (seen.reshape(-1, dim) - low) / (high - low) - 1, atol=1e-5)
    for obs, shape in ((env.reset(), (2, *space.shape)), (ActionsEnv(space).reset(seed=0)[0], space.shape)):
        for deterministic in (True, False):
            action, _ = model.predict(obs, deterministic=deterministic)
            assert (action.shape, action.dtype) == (shape, space.dtype)
    evaluate_policy(model, DummyVecEnv([lambda: ActionsEnv(space)]), n_eval_episodes=1, warn=False)
    assert sum(moment.is_last for moment in play(model, ActionsEnv(space), 1)) == 1


@pytest.mark.timeout(60)
def test_actions_of_any_shape_in_processes(small, leaves_nothing):
    env = ParallelCollector([lambda: ActionsEnv(ASYMMETRIC)] * 2, start_method="fork", flush_size=7)
    try:
        model = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, prefetch_depth=0, **small).learn(60)
        env.step(model.predict(env.reset())[0])
        model.async_collection = False
        assert model.learn(20, reset_num_timesteps=False).num_timesteps == 80
    finally:
        env.close()


def test_an_oracle_may_return_actions_in_their_own_shape(small):
    env = DummyVecEnv([lambda: ActionsEnv(ASYMMETRIC)])
    oracle = dict(oracle=lambda observation, achieved, subgoal: np.ones((len(observation), 2, 2)))
    action, _ = HierarchicalDDPG("MultiInputPolicy", env, low_kwargs=oracle, **small).predict(env.reset(), deterministic=True)
    np.testing.assert_array_equal(action[0], ASYMMETRIC.high)


def test_actions_stay_within_bounds_to_the_last_digit():
    rng = np.random.default_rng(0)
    low = rng.uniform(-5, 5, 1000).astype(np.float32)
    space = spaces.Box(low, low + rng.uniform(0.01, 5, 1000).astype(np.float32))
    for scaled in (-1.0, 1.0):
        action = ActionBorder(space).unflatten(np.full((1, 1000), scaled, np.float32))
        assert space.contains(action[0])


def test_goals_cross_the_border_and_come_back():
    matrix = spaces.Box(-1, 1, (2, 1, 3), np.float64)
    goals = np.random.default_rng(0).normal(size=(4, 2, 1, 3))
    outside = in_goal_space(flatten(goals, 4), matrix)
    assert (outside.shape, outside.dtype) == (goals.shape, matrix.dtype)
    np.testing.assert_allclose(outside, goals, rtol=1e-6, err_msg="not cut")
    whole = in_goal_space(np.array([[1e30, -1e30], [2.4, 300.0]], np.float32), spaces.Box(0, 9, (2,), np.int64))
    assert whole.tolist() == [[2**53, -(2**53)], [2, 300]]
    assert in_goal_space(np.array([[300.0, -3.0]]), spaces.Box(0, 9, (2,), np.uint8)).tolist() == [[255, 0]]
    assert in_goal_space(np.array([[1.4, -3.0]]), spaces.MultiBinary(2)).tolist() == [[1, 0]]


def test_goals_are_whole_numbers_only_where_both_are():
    whole, real = spaces.Box(0, 9, (2,), np.int64), spaces.Box(-1.5, 2.5, (2,), np.float32)
    both = goal_space(spaces.Dict(achieved_goal=real, desired_goal=whole))
    assert both == spaces.Box(-1.5, 9.0, (2,), np.float64)
    assert goal_space(spaces.Dict(achieved_goal=whole, desired_goal=whole)) == whole


class GridGoals(PointEnv):
    """Desired goals are points of a grid, but the point can be anywhere."""

    def __init__(self):
        super().__init__()
        goals = dict(achieved_goal=spaces.Box(-2, 2, (2,), np.float32), desired_goal=spaces.Box(-1, 1, (2,), np.int64))
        self.observation_space = spaces.Dict(self.observation_space.spaces | goals)

    def _obs(self) -> dict[str, np.ndarray]:
        self.goal = np.rint(self.goal)
        obs = super()._obs()
        return {key: obs[key].astype(space.dtype) for key, space in self.observation_space.spaces.items()}


def test_real_goals_are_not_rounded_because_desired_ones_are_whole(small):
    """Regression test: achieved goals were rounded, so that a point at 0.4 had reached its goal at 0."""
    env = GridGoals()
    task = HierarchicalDDPG("MultiInputPolicy", env, **small).learn(60)._goal_task
    assert task.threshold == pytest.approx(PointEnv.threshold, rel=1e-3)
    assert task.success(np.array([[0.4, 0.0], [0.05, 0.0]]), np.zeros((2, 2))).tolist() == [False, True]


# ----------------------------------------------------------------------------------------------- goals outside their space


class TableEnv(PointEnv):
    """
    A point far outside the declared space of goals.

    :param goal: declared space of goals
    """

    origin = np.array([6.0, -5.0])

    def __init__(self, goal: spaces.Box):
        super().__init__()
        self.observation_space = spaces.Dict(self.observation_space.spaces | dict(achieved_goal=goal, desired_goal=goal))
        self.goal_dtype = goal.dtype

    def _obs(self) -> dict[str, np.ndarray]:
        obs = super()._obs()
        for key in ("achieved_goal", "desired_goal"):
            obs[key] = (np.rint(5 * obs[key]) if self.goal_dtype == np.int64 else obs[key]) + self.origin
        return {key: value if key == "observation" else value.astype(self.goal_dtype) for key, value in obs.items()}


def bounds_of(model: HierarchicalDDPG) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(bound.numpy() for bound in model.policy.bounds)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_the_declared_space_does_not_cut_what_was_achieved(small, dtype, monkeypatch):
    """Regression test, with a table of 4 m and a Box of 1 m: bounds were reversed, and all subgoals were a corner of the
    Box."""
    monkeypatch.setattr("sb3_hrl.hddpg.statistics.BOUNDS_INTERVAL", 10)
    env = TableEnv(spaces.Box(-1, 1, (2,), dtype))
    model = HierarchicalDDPG("MultiInputPolicy", env, **small).learn(150)
    low, high, _ = bounds_of(model)
    rows, columns = model.replay_buffer.shards.rows[0, :150], model.replay_buffer.columns
    goals = np.concatenate([rows[:, columns[field]] for field in ("achieved_goal", "desired_goal")])
    assert (low <= np.quantile(goals, 0.02, axis=0)).all()
    assert (high >= np.quantile(goals, 0.98, axis=0)).all()
    subgoals = rows[:, columns["subgoal"]]
    assert np.abs(subgoals - TableEnv.origin).max() < 15
    assert len(np.unique(subgoals, axis=0)) > 3
    if dtype == np.int64:
        for whole in (low, high, subgoals):
            np.testing.assert_array_equal(whole, np.rint(whole))
    # Success is the same as in the environment
    task = model._goal_task
    achieved, desired = (rows[:, columns[field]] for field in ("next_achieved_goal", "desired_goal"))
    np.testing.assert_array_equal(task.success(achieved, desired), env.compute_reward(achieved, desired, {}) == 0)


def test_the_margin_stays_within_the_declared_space():
    goals = np.array([[0.0, 5.0], [0.9, 6.0]])
    low, high = visited_bounds(goals, margin=0.5, limits=(-0.2, 1.0), quantile=0.0)
    np.testing.assert_allclose(low, [-0.2, 4.5])
    np.testing.assert_allclose(high, [1.0, 6.0])


def test_bounds_of_bits_are_zero_and_one(small):
    env = BitsEnv()
    low, high, _ = bounds_of(HierarchicalDDPG("MultiInputPolicy", env, **small).learn(60))
    np.testing.assert_array_equal([low, high], [[0, 0, 0], [1, 1, 1]])


class BitsEnv(gym.Env):
    """The first bit is never set."""

    action_space = spaces.Box(-1, 1, (3,))
    observation_space = spaces.Dict({key: spaces.MultiBinary(3) for key in ("observation", "achieved_goal", "desired_goal")})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.bits = 0, np.zeros(3, np.int8)
        return self._obs(), {}

    def _obs(self):
        return {
            "observation": self.bits.copy(),
            "achieved_goal": self.bits.copy(),
            "desired_goal": np.array([0, 1, 1], np.int8),
        }

    def step(self, action):
        self.steps, self.bits = self.steps + 1, (action > 0).astype(np.int8) * np.array([0, 1, 1], np.int8)
        return self._obs(), float(self.compute_reward(self.bits, [0, 1, 1], {})), False, self.steps == 10, {}

    def compute_reward(self, achieved, desired, info):
        return (np.asarray(achieved) == desired).all(axis=-1) - 1.0


def test_probes_ask_a_table_for_what_exists_only():
    table = np.abs(np.arange(8)[:, None] - np.arange(8)) <= 1

    def compute_reward(achieved, desired, infos):
        assert (achieved >= 0).all(), "indices from behind"
        return table[achieved, desired].all(axis=-1) - 1.0

    # Goals that are seen but not declared exist, too
    for space in (spaces.Box(0, 7, (2,), np.int64), spaces.Box(0, 3, (2,), np.int64)):
        goals = np.array([[0, 7], [5, 7]], np.float32)
        assert GoalTask(compute_reward, goals, goal_space=space).threshold == 1.0


@pytest.mark.parametrize(
    "goal",
    [
        spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
        spaces.Box(-1e30, 1e30, (2,), np.float32),
        spaces.Box(1e4, 1e30, (2,), np.float64),
    ],
    ids=str,
)
def test_wide_spaces_are_not_taken_for_goals_that_are_always_reached(goal):
    env = PointEnv()
    env.observation_space = spaces.Dict(env.observation_space.spaces | dict(achieved_goal=goal, desired_goal=goal))
    check_reward(DummyVecEnv([lambda: env]))


# -------------------------------------------------------------------------------------------------------- stacked goals


@pytest.mark.parametrize(
    "make", [lambda: VecFrameStack(DummyVecEnv([PointEnv]), 3), lambda: FrameStackObservation(PointEnv(), 3)]
)
def test_stacked_goals_are_refused(small, make):
    """Regression test: goals were (0, 0, 0, 0, x, y) in the first steps, without an error."""
    with pytest.raises(ValueError, match=r"gives goals the shape .*\(2,\).*HistoryWrapperObsDict"):
        HierarchicalDDPG("MultiInputPolicy", make(), **small)


def test_an_environment_whose_goals_are_stacked_later_is_refused(small):
    model = HierarchicalDDPG("MultiInputPolicy", HistoryWrapperObsDict(PointEnv(), 2), **small)
    model.learn(30)
    assert model.predict(model.env.reset())[0].shape == (1, 2), "the cure"


class FirstCoordinate(gym.ObservationWrapper):
    """The goal is the first coordinate only, and the wrapper has its own reward for it."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        goal = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = spaces.Dict(env.observation_space.spaces | dict(achieved_goal=goal, desired_goal=goal))
        self.compute_reward = lambda achieved, desired, info: (np.abs(achieved - desired)[..., 0] <= 0.2) - 1.0

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: value if key == "observation" else value[:1] for key, value in observation.items()}


def test_a_wrapper_may_have_goals_and_a_reward_of_its_own(small):
    model = HierarchicalDDPG("MultiInputPolicy", FirstCoordinate(PointEnv()), **small).learn(30)
    assert model.policy.subgoal_threshold.item() == pytest.approx(0.2, rel=1e-3)
