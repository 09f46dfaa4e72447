"""The environment defines what reaching a goal means, and is called in this process."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import PointEnv, UnjudgedEnv, point_vec_env
from gymnasium import spaces
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.common.env_goals import check_reward, goal_task_from_env
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.probes import unit_blocks
from sb3_hrl.hddpg.callbacks import HierarchicalEvalCallback

GOALS = np.array([[0.5, -0.5], [10.0, 3.0]])


def test_tolerance_is_found_by_probing():
    task = GoalTask(PointEnv().compute_reward, GOALS)
    assert task.is_sparse
    assert task.threshold == pytest.approx(PointEnv.threshold, rel=1e-3)
    assert task.best_reward == 0.0


def test_success_is_the_environments_own():
    task = GoalTask(PointEnv().compute_reward, GOALS)
    achieved = np.array([[0.0, 0.09], [0.0, 0.11], [0.08, 0.08]])
    assert task.success(achieved, np.zeros((3, 2))).tolist() == [True, False, False]


def test_reward_of_zero_and_one_is_sparse_too():
    reward = PointEnv().compute_reward
    task = GoalTask(lambda achieved, desired, info: 1.0 + reward(achieved, desired, info), GOALS)
    assert task.best_reward == 1.0
    assert task.success(GOALS, GOALS + 0.01).all()
    assert not task.success(GOALS, GOALS + 1.0).any()


def test_dense_reward_needs_a_threshold():
    env = PointEnv(dense=True)
    with pytest.raises(ValueError, match="`threshold` in `subgoal_kwargs`"):
        GoalTask(env.compute_reward, GOALS)
    task = GoalTask(env.compute_reward, GOALS, threshold=0.2)
    assert task.success(GOALS, GOALS + [0.0, 0.19]).all()
    assert not task.success(GOALS, GOALS + [0.0, 0.21]).any()


def test_reward_that_is_not_vectorised_is_refused():
    with pytest.raises(ValueError, match="vectorised"):
        GoalTask(lambda achieved, desired, info: -float(np.linalg.norm(achieved - desired) > 0.1), GOALS)


def within(achieved, desired, distance=0.1):
    return np.linalg.norm(achieved - desired, axis=-1) <= distance


@pytest.mark.parametrize(
    ("compute_reward", "match"),
    [
        (lambda a, g, info: 0.0 if np.linalg.norm(a - g, axis=-1) <= 0.1 else -1.0, "ValueError.*`np.where`"),
        (lambda a, g, info: float(np.linalg.norm(a - g, axis=-1) <= 0.1) - 1.0, "TypeError.*vectorised"),
        (lambda a, g, info: within(a, g) - info["cost"], "an array of .* empty infos.*leave out what needs `info`"),
        (lambda a, g, info: np.array([within(x, y) - i["cost"] for x, y, i in zip(a, g, info, strict=True)]), "KeyError"),
        (lambda a, g, info: None, "returned None"),
        (lambda a, g, info: ["far"] * len(a), "return numbers"),
        (lambda a, g, info: np.full(len(a), np.nan), "NaN"),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_rewards_that_say_nothing_are_refused(compute_reward, match, n):
    with pytest.raises(ValueError, match=match):
        GoalTask(compute_reward, GOALS[:n])


def test_nan_for_goals_of_the_environment_is_refused():
    task = GoalTask(lambda a, g, info: np.where(a[:, 0] == 7.0, np.nan, within(a, g) - 1.0), GOALS)
    with pytest.raises(ValueError, match="NaN for 1 of 2 pairs"):
        task.success(np.array([[7.0, 0.0], [0.0, 0.0]]), GOALS)


def test_infos_are_an_array_as_sb3_gives_them():
    asked = []

    def compute_reward(achieved, desired, infos):
        asked.append(infos)
        return within(achieved, desired) - 1.0

    GoalTask(compute_reward, GOALS)
    assert all(isinstance(infos, np.ndarray) and infos.dtype == object and infos[0] == {} for infos in asked)


def test_goals_are_matrices_where_the_space_says_so():
    space = spaces.Box(-np.inf, np.inf, (2, 2), np.float64)

    def compute_reward(achieved, desired, infos):
        assert achieved.shape[1:] == desired.shape[1:] == (2, 2)
        return (np.linalg.norm(achieved - desired, axis=(1, 2)) < 0.3) - 1.0

    goals = np.zeros((2, 4), np.float32)
    task = GoalTask(compute_reward, goals, goal_space=space)
    assert task.threshold == pytest.approx(0.3, rel=1e-3)
    assert task.success(goals, goals + 0.1).all()


def test_whole_numbers_are_looked_up_in_a_table():
    table = np.abs(np.arange(10)[:, None] - np.arange(10)) <= 2

    def compute_reward(achieved, desired, infos):
        return table[achieved, desired].all(axis=-1) - 1.0

    space = spaces.Box(0, 9, (2,), np.int64)
    goals = np.array([[0, 5], [9, 9]], np.float32)
    task = GoalTask(compute_reward, goals, goal_space=space)
    assert task.threshold == 2.0
    assert task.success(np.array([[2.4, 5.0], [9.4, 6.4]]), goals).tolist() == [True, False], "the nearest ones"


@pytest.mark.parametrize("space", [spaces.MultiBinary(3), spaces.MultiBinary((3, 1))])
def test_bits_are_rounded(space):
    def compute_reward(achieved, desired, infos):
        assert achieved.dtype == desired.dtype == space.dtype
        return (achieved == desired).reshape(len(achieved), -1).all(axis=1) - 1.0

    goals = np.array([[0, 1, 1]], np.float32)
    task = GoalTask(compute_reward, goals, goal_space=space)
    assert task.threshold == 0.5
    assert task.success(np.array([[0.2, 0.9, 1.4], [0.6, 1.0, 1.0]]), goals.repeat(2, axis=0)).tolist() == [True, False]


class MatrixEnv(PointEnv):
    """Its goals are matrices of shape (2, 1); other shapes raise an error."""

    def __init__(self):
        super().__init__(ends_at_success=True)
        goal = spaces.Box(-np.inf, np.inf, (2, 1), np.float64)
        self.observation_space = spaces.Dict(self.observation_space.spaces | dict(achieved_goal=goal, desired_goal=goal))

    def _obs(self):
        return {key: value if key == "observation" else value[:, None] for key, value in super()._obs().items()}

    def compute_reward(self, achieved, desired, info):
        if achieved.ndim == 1:  # called by its own `step`
            achieved, desired = achieved[:, None], desired[:, None]
        assert achieved.shape[-2:] == desired.shape[-2:] == (2, 1)
        return super().compute_reward(achieved[..., 0], desired[..., 0], info)

    def compute_terminated(self, achieved, desired, info):
        assert achieved.shape in [(2,), (2, 1)]
        return super().compute_terminated(achieved, desired, info)


def test_an_agent_learns_with_goals_that_are_matrices(small):
    evaluation = HierarchicalEvalCallback(
        DummyVecEnv([lambda: Monitor(MatrixEnv())]), n_eval_episodes=2, eval_freq=50, verbose=0
    )
    model = HierarchicalDDPG("MultiInputPolicy", MatrixEnv(), **small).learn(60, callback=evaluation)
    assert model.policy.subgoal_threshold.item() == pytest.approx(PointEnv.threshold, rel=1e-3)
    assert model._goal_task.ends_at_success


def rotations(n: int) -> np.ndarray:
    """:return: positions and quaternions, shape (n, 7)"""
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(n, 4))
    return np.hstack([rng.normal(size=(n, 3)), quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)])


def turned(achieved, desired, infos):
    """Whether the angle between two quaternions is at most 0.1, as in the hand environments; the position does not count."""
    cosine = (achieved[:, 3:] * desired[:, 3:]).sum(axis=1)
    return (2.0 * np.arccos(np.clip(cosine, -1.0, 1.0)) < 0.1) - 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quaternions_are_probed_on_their_sphere(dtype):
    goals = rotations(8).astype(dtype)
    assert unit_blocks(goals) == [slice(3, 7)]
    # An angle of 0.1 is 0.05 in the space of quaternions, with a chord of 2 sin(0.025)
    assert GoalTask(turned, goals[:1], achieved=goals[1:]).threshold == pytest.approx(0.05, rel=2e-3)


def test_hand_environments_have_the_tolerance_of_their_goals():
    gymnasium_robotics = pytest.importorskip("gymnasium_robotics")
    gym.register_envs(gymnasium_robotics)
    env = DummyVecEnv([lambda: gym.make("HandManipulateBlockRotateZ-v1")])
    obs = env.reset()
    goals, achieved = (obs[key].astype(np.float32) for key in ("desired_goal", "achieved_goal"))
    assert goal_task_from_env(env, goals, achieved=achieved).threshold == pytest.approx(0.05, rel=1e-2)
    env.close()


def test_ordinary_goals_are_on_no_sphere():
    assert unit_blocks(np.random.default_rng(0).uniform(-2, 2, (2, 6))) == []
    assert unit_blocks(np.array([[1.0, 0.0], [0.0, 1.0]])) == [], "by accident"
    angles = np.array([0.3, 2.0, 4.0])
    assert unit_blocks(np.stack([np.cos(angles), np.sin(angles), angles], axis=1)) == [slice(0, 2)]
    parked = np.stack([0.0 * angles, 0.0 * angles, np.cos(angles), np.sin(angles)], axis=1)
    assert unit_blocks(parked) == [slice(2, 4)], "a speed of 0 is not a part of the heading"


def test_real_numbers_that_never_meet_need_a_threshold():
    def equal(achieved, desired, infos):
        return (achieved == desired).all(axis=-1) - 1.0

    with pytest.raises(ValueError, match=r"No distance explains.*`threshold` in `subgoal_kwargs`"):
        GoalTask(equal, GOALS + 0.1)
    assert GoalTask(equal, GOALS + 0.1, threshold=0.2).threshold == 0.2
    assert GoalTask(equal, np.rint(GOALS)).threshold == 0.5


def raising(*args):
    raise KeyError("contact")


def changed(env, **methods):
    for name, method in methods.items():
        setattr(env, name, method)
    return env


@pytest.mark.parametrize(
    ("make_env", "match"),
    [
        (UnjudgedEnv, r"`subgoal_kwargs=dict\(threshold=0.05\)`"),
        (lambda: UnjudgedEnv(info={}), "`threshold` in `subgoal_kwargs`"),
        (lambda: changed(PointEnv(), compute_reward=raising), "`compute_reward` raised KeyError"),
        (lambda: changed(PointEnv(), compute_terminated=raising), "`compute_terminated` raised KeyError"),
        (lambda: changed(PointEnv(), compute_reward=lambda a, g, info: np.zeros(len(a))), "always reached"),
        (lambda: Rewardless(), "needs a method `compute_reward"),
    ],
)
def test_what_learn_would_refuse_is_refused_at_once(make_env, match):
    with pytest.raises(ValueError, match=match):
        HierarchicalDDPG("MultiInputPolicy", make_env())


class Rewardless(gym.Env):
    """It has goals, but no reward for them."""

    observation_space = PointEnv().observation_space
    action_space = PointEnv().action_space


@pytest.mark.timeout(60)
def test_unregistered_environments_of_workers_are_refused_at_once(leaves_nothing):
    """Collectors create a twin themselves, see test_twin.py; SB3's processes cannot."""
    env = SubprocVecEnv([PointEnv] * 2)
    try:
        with pytest.raises(ValueError, match="register your environment"):
            HierarchicalDDPG("MultiInputPolicy", env)
    finally:
        env.close()


def test_the_early_check_leaves_no_trace():
    vec_env = point_vec_env(2)
    vec_env.seed(3)
    before = vec_env.reset()
    env = vec_env.envs[0]
    state, own = np.random.get_state()[1].copy(), env.np_random.bit_generator.state
    spaces_before = str(env.observation_space["desired_goal"].np_random.bit_generator.state)
    check_reward(vec_env)
    check_reward(VecMonitor(vec_env), threshold=0.3)
    assert np.array_equal(np.random.get_state()[1], state)
    assert env.np_random.bit_generator.state == own
    assert str(env.observation_space["desired_goal"].np_random.bit_generator.state) == spaces_before
    np.testing.assert_array_equal(before["observation"][0], env._obs()["observation"])


def test_goals_that_are_always_reached_are_refused():
    with pytest.raises(ValueError, match="always reached"):
        GoalTask(lambda achieved, desired, info: np.zeros(len(achieved)), GOALS)


def test_bits_are_compared_exactly():
    env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=4, continuous=True)])
    goals = env.reset()["desired_goal"].astype(np.float32)
    task = goal_task_from_env(env, goals)
    assert task.threshold == 0.5
    assert task.success(goals, goals).all()
    assert not task.success(goals, 1 - goals).any()


@pytest.mark.parametrize("ends_at_success", [True, False])
def test_whether_success_ends_the_episode(ends_at_success):
    env = VecMonitor(point_vec_env(2, ends_at_success=ends_at_success))
    assert goal_task_from_env(env, GOALS).ends_at_success == ends_at_success


def test_environments_in_other_processes_get_a_local_twin():
    env = SubprocVecEnv([lambda: Monitor(gym.make("conftest:PointEnv-v0", ends_at_success=True))], start_method="fork")
    try:
        task = goal_task_from_env(env, GOALS)
    finally:
        env.close()
    assert task.ends_at_success
    assert task.threshold == pytest.approx(PointEnv.threshold, rel=1e-3)
    assert task.success(GOALS, GOALS).all(), "it works after the workers are gone"


def test_environments_without_a_spec_are_refused():
    env = SubprocVecEnv([PointEnv], start_method="fork")
    try:
        with pytest.raises(ValueError, match="register your environment"):
            goal_task_from_env(env, GOALS)
    finally:
        env.close()


def test_environments_without_a_reward_function_are_refused():
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1")])
    with pytest.raises(ValueError, match="compute_reward"):
        goal_task_from_env(env, GOALS)
