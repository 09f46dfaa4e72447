"""
Any goal and action spaces: the environment only gets its own shapes, types and bounds, and success is its own.

``SPACES_EXAMPLES=300 pytest tests/test_spaces_matrix.py`` samples more spaces, and different ones each time. Add failing cases
as an ``example`` here.
"""

import io
import os
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.parallel.serial import SerialCollector

N_EXAMPLES = int(os.environ.get("SPACES_EXAMPLES", 0))
# Distance of goals from their middle, independent of the declared space
REACH = 5.0


class Case(NamedTuple):
    """A sampled case."""

    goal: spaces.Box | spaces.MultiBinary
    middle: float  # of the real goals
    action: spaces.Box
    observation: spaces.Box | spaces.MultiBinary
    n_envs: int
    is_async: bool
    n_steps: int


SHAPES = st.lists(st.integers(1, 2), max_size=3).map(tuple)


@st.composite
def goals(draw: st.DrawFn) -> tuple[spaces.Box | spaces.MultiBinary, float]:
    shape = draw(SHAPES)
    kind: Any = draw(st.sampled_from([np.float32, np.float64, np.int64, np.int8, np.uint8, None]))
    if kind is None:
        return spaces.MultiBinary(shape or 2), 0.5
    is_real = issubclass(kind, np.floating)
    middle = float(draw(st.sampled_from([0.0, -40.0, 100.0] if kind is not np.uint8 else [10.0, 200.0])))
    declared = draw(st.sampled_from(["right", "too small", "elsewhere", "widest"]))
    if declared == "widest":
        low, high = (-np.inf, np.inf) if is_real else (np.iinfo(kind).min, np.iinfo(kind).max)
    else:
        low, high = {"right": (-REACH, REACH), "too small": (0.0, 1.0), "elsewhere": (6.0, 9.0)}[declared]
        low, high = low + middle, high + middle
    return spaces.Box(low, high, shape, kind), middle


@st.composite
def actions(draw: st.DrawFn) -> spaces.Box:
    shape, dtype = draw(SHAPES), draw(st.sampled_from([np.float32, np.float64, np.int64, np.int8]))
    if issubclass(dtype, np.integer):
        low, width = st.integers(-60, 0), st.integers(1, 60)
    else:
        low, width = st.floats(-100, 100, width=32), st.floats(0.125, 100, width=32)  # type: ignore[assignment]
    size = int(np.prod(shape))
    lows = np.array(draw(st.lists(low, min_size=size, max_size=size)), dtype).reshape(shape)
    widths = np.array(draw(st.lists(width, min_size=size, max_size=size)), dtype).reshape(shape)
    return spaces.Box(lows, lows + widths, shape, dtype)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    goal, middle = draw(goals())
    observation = draw(
        st.sampled_from(
            [
                spaces.Box(-np.inf, np.inf, (3,), np.float64),
                spaces.Box(-1, 1, (2, 2), np.float32),
                spaces.Box(-np.inf, np.inf, (), np.float32),
                spaces.MultiBinary((2, 1)),
                spaces.Box(0, 255, (2,), np.uint8),
            ]
        )
    )
    n_steps = draw(st.integers(25, 60))
    return Case(goal, middle, draw(actions()), observation, draw(st.integers(1, 2)), draw(st.booleans()), n_steps)


class MatrixEnv(gym.Env):
    """
    A point of any shape, moved by the sum of actions of any shape. Wrong shapes and types raise an error.

    :param case: its spaces
    """

    def __init__(self, case: Case):
        goal = case.goal
        self.observation_space = spaces.Dict(observation=case.observation, achieved_goal=goal, desired_goal=goal)
        self.action_space, self.middle = case.action, case.middle
        self.reach = 0.5 if isinstance(goal, spaces.MultiBinary) else REACH
        self.goal_shape: tuple[int, ...] = goal.shape
        self.is_real = np.issubdtype(goal.dtype, np.floating)
        self.visited: list[np.ndarray] = []

    def _as_goal(self, point: np.ndarray) -> np.ndarray:
        point = point + self.middle
        return (point if self.is_real else np.floor(point + 0.5)).astype(self.observation_space["desired_goal"].dtype)

    def _obs(self) -> dict[str, np.ndarray]:
        space = self.observation_space["observation"]
        observation = np.resize(np.abs(self.position) > 1, space.shape).astype(space.dtype)
        achieved, desired = self._as_goal(self.position), self._as_goal(self.target)
        return {"observation": observation, "achieved_goal": achieved, "desired_goal": desired}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.steps = 0
        self.position, self.target = self.np_random.uniform(-self.reach, self.reach * 0.99, (2, *self.goal_shape))
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        space = self.action_space
        assert (action.shape, action.dtype) == (space.shape, space.dtype)
        assert space.contains(np.asarray(action))
        share = (action.astype(float) - space.low) / (space.high.astype(float) - space.low)
        push = np.resize(2.0 * share - 1.0, self.position.shape)
        self.steps, self.position = self.steps + 1, np.clip(self.position + push, -self.reach, self.reach * 0.99)
        obs = self._obs()
        self.visited.append(obs["achieved_goal"])
        reward = float(self.compute_reward(obs["achieved_goal"][None], obs["desired_goal"][None], {})[0])
        return obs, reward, False, self.steps == 10, {"is_success": reward == 0.0}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        space = self.observation_space["desired_goal"]
        for goal in (achieved, desired):
            assert goal.shape[1:] == space.shape
            assert goal.dtype == space.dtype
        difference = np.abs(achieved.astype(float) - desired).reshape(len(achieved), -1)
        return (difference.max(axis=1) <= (0.7 if self.is_real else 0)) - 1.0


def own(goals: np.ndarray, space: Any) -> np.ndarray:
    """:return: the learner's goals in the environment's format"""
    goals = goals.reshape(-1, *space.shape)
    return (goals if np.issubdtype(space.dtype, np.floating) else np.rint(goals)).astype(space.dtype)


def check_steps(model: HierarchicalDDPG, env: MatrixEnv) -> None:
    """The stored steps and their success match those of the environment."""
    buffer, space = model.replay_buffer, env.observation_space["desired_goal"]
    columns, n = buffer.columns, min(len(env.visited), int(buffer.shards.head[0]))
    rows = buffer.shards.rows[0, :n]
    achieved = np.stack(env.visited[:n])
    np.testing.assert_array_equal(rows[:, columns["next_achieved_goal"]], achieved.reshape(n, -1).astype(np.float32))
    np.testing.assert_array_equal(own(rows[:, columns["next_achieved_goal"]], space), achieved.astype(np.float32))
    assert (np.abs(rows[:, columns["action"]]) <= 1).all()
    batch = buffer.sample_high(32, 4, max_steps=5)
    visited, goals = batch.visited_goals[:, -1], batch.goals.numpy()
    reward = env.compute_reward(own(visited, space), own(goals, space), {})
    np.testing.assert_array_equal(model._goal_task.success(visited, goals), reward == 0)


def check_subgoals(model: HierarchicalDDPG, env: MatrixEnv) -> None:
    """Subgoals are where the environment can be."""
    low, high, radius = (bound.numpy() for bound in model.policy.bounds)
    assert (low < high).all()
    assert (radius > 0).all()
    columns = model.replay_buffer.columns
    subgoals = model.replay_buffer.shards.rows[0, : len(env.visited), columns["subgoal"]]
    assert (np.abs(subgoals - env.middle) <= 3 * REACH).all()
    if not env.is_real:
        for whole in (low, high, subgoals):
            np.testing.assert_array_equal(whole, np.rint(whole))


def check_predict(model: HierarchicalDDPG, case: Case) -> None:
    """After saving and loading, the agent gives the same actions, in the environment's format."""
    file, buffer_file = io.BytesIO(), io.BytesIO()
    model.save(file)
    model.save_replay_buffer(buffer_file)
    buffer_file.seek(0)
    loaded = HierarchicalDDPG.load(file, env=DummyVecEnv([lambda: MatrixEnv(case)] * case.n_envs))
    loaded.load_replay_buffer(buffer_file)
    single, many = MatrixEnv(case).reset(seed=1)[0], DummyVecEnv([lambda: MatrixEnv(case)] * 3).reset()
    for obs, shape in ((single, case.action.shape), (many, (3, *case.action.shape))):
        action, state = model.predict(obs, deterministic=True)
        assert (action.shape, action.dtype) == (shape, case.action.dtype)
        assert all(case.action.contains(np.asarray(one)) for one in np.reshape(action, (-1, *case.action.shape)))
        same, same_state = loaded.predict(obs, deterministic=True)
        np.testing.assert_array_equal(action, same)
        np.testing.assert_array_equal(state.subgoals, same_state.subgoals)
    loaded.learn(10, reset_num_timesteps=False)


@settings(
    max_examples=N_EXAMPLES or 40,
    derandomize=not N_EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(case=cases())
def test_the_environment_sees_its_own_spaces_only(case: Case) -> None:
    make_env: Any = SerialCollector if case.is_async else DummyVecEnv
    vec_env = make_env([lambda: MatrixEnv(case)] * case.n_envs)
    model = HierarchicalDDPG(
        "MultiInputPolicy",
        vec_env,
        learning_starts=10,
        batch_size=8,
        subgoal_steps=5,
        policy_kwargs=dict(net_arch=[8]),
        seed=0,
        buffer_size=200,
        async_collection=case.is_async,
    ).learn(case.n_steps)
    env = vec_env.envs[0]
    check_steps(model, env)
    check_subgoals(model, env)
    model.async_collection = False
    check_predict(model, case)
