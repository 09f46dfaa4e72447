"""The benchmark of strangers: its environments are valid, and its runner and its report write correct files."""

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hrl.doctor import diagnose_env

ROOT = Path(__file__).parents[1]
OWN = {
    "StrangerArmTip-v0": 50,
    "StrangerArm-v0": 50,
    "StrangerPoint3D-v0": 60,
    "StrangerQuadrotor-v0": 100,
    "StrangerRooms-v0": 100,
}
# Random actions make it fall
FALLING = {"StrangerQuadrotor-v0", "InvertedPendulum-v5"}


@pytest.fixture
def envs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("stranger_envs")


@pytest.mark.parametrize("env_id", OWN)
def test_own_environments_are_sound(env_id, envs):
    env = envs.make(env_id)
    check_env(env.unwrapped)
    assert [finding.check for finding in diagnose_env(env, n_episodes=3)] == ["ends_without_success"] * (env_id in FALLING)
    assert envs.episode_steps(env) == OWN[env_id]


@pytest.mark.parametrize(
    ("env_id", "warnings"),
    [("MountainCarContinuous-v0", []), ("Pendulum-v1", ["same_goal"]), ("InvertedPendulum-v5", ["ends_without_success"])],
)
def test_environments_with_goals_from_their_observations_are_sound(env_id, warnings, envs):
    assert [finding.check for finding in diagnose_env(envs.make(env_id), n_episodes=1)] == warnings


def check_that_it_solves(env, act, n_episodes: int) -> None:
    """Play episodes with a hand-written controller, a function of the observation and the goal."""
    for seed in range(n_episodes):
        obs, _ = env.reset(seed=seed)
        truncated = False
        while not truncated:
            action = act(obs["observation"], obs["desired_goal"])
            obs, _, terminated, truncated, info = env.step(action.astype(np.float32))
            assert not terminated
        assert info["is_success"]


def test_the_quadrotor_can_fly_to_every_goal_and_hover_there(envs):
    def fly(observation, goal):
        x, z, cos, sin, vx, vz, spin = observation
        right, up = 1.5 * (goal - [x, z]) - 2.0 * np.array([vx, vz])
        tilt = np.clip(-right / 9.81, -0.4, 0.4)
        torque = (30.0 * (tilt - np.arctan2(sin, cos)) - 8.0 * spin) / 12.0
        return up / 9.81 + np.array([torque, -torque]) / 2.0

    check_that_it_solves(envs.make("StrangerQuadrotor-v0"), fly, n_episodes=30)


def test_the_quadrotor_fails_outside_its_square(envs):
    env = envs.make("StrangerQuadrotor-v0")
    env.reset(seed=0)
    *_, terminated, _, info = env.step(np.zeros(2, np.float32))
    assert not terminated, "it hovers"
    env.unwrapped.position = env.unwrapped.goal = np.array([2.1, 0.0])
    *_, terminated, _, info = env.step(np.zeros(2, np.float32))
    assert terminated
    assert not info["is_success"]


def test_rooms_are_connected_by_their_doors_alone(envs):
    env = envs.make("StrangerRooms-v0").unwrapped

    def moves(start, action) -> np.ndarray:
        env.reset(seed=0)
        env.position = np.array(start)
        for _ in range(5):
            env.step(np.array(action, np.float32))
        return env.position

    for door in (2.5, 7.5):
        np.testing.assert_allclose(moves([4.0, door], [1.0, 0.0]), [6.0, door])
        np.testing.assert_allclose(moves([door, 6.0], [0.0, -1.0]), [door, 4.0])
        assert moves([4.0, door + 0.7], [1.0, 0.0])[0] < 4.71, "beside the door"
        assert moves([door - 0.7, 6.0], [0.0, -1.0])[1] > 5.29
    assert moves([4.0, 4.0], [1.0, 1.0]).max() < 4.71, "the corner of a room"
    assert moves([0.1, 0.1], [-1.0, -1.0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("env_id", OWN)
def test_rewards_are_those_of_many_goals_at_once(env_id, envs):
    env = envs.make(env_id)
    obs, _ = env.reset(seed=0)
    goals = np.stack([obs["achieved_goal"], obs["desired_goal"]])
    np.testing.assert_array_equal(env.unwrapped.compute_reward(goals, goals[::-1], None), [-1.0, -1.0])
    np.testing.assert_array_equal(env.unwrapped.compute_reward(goals, goals, None), [0.0, 0.0])


def test_the_point_reaches_and_holds_every_goal(envs):
    def move(observation, goal):
        position, velocity = np.split(observation, 2)
        wanted = 0.12 * (goal - position)
        return np.clip(50.0 * (wanted - 0.9 * velocity), -1.0, 1.0)

    check_that_it_solves(envs.make("StrangerPoint3D-v0"), move, n_episodes=100)


def test_parking_is_observed_as_highway_env_does(envs):
    observation = pytest.importorskip("highway_env.envs.common.observation").KinematicsGoalObservation
    theirs = observation.observe
    try:
        env = envs.make("parking-v0")
        env.reset(seed=0)
        for action in np.random.default_rng(0).uniform(-1.0, 1.0, (20, 2)):
            obs, *_ = env.step(action.astype(np.float32))
            for key, value in theirs(env.unwrapped.observation_type).items():
                np.testing.assert_array_equal(obs[key], value)
        assert envs.episode_steps(env) == 500
    finally:
        observation.observe = theirs


def test_an_environment_that_is_not_there(envs):
    with pytest.raises(ValueError, match="add it to MAKERS"):
        envs.make("CartPole-v1")


def test_a_run_writes_its_curve_and_a_failed_one_stops_no_other(tmp_path):
    command = ["python", "-W", "ignore", str(ROOT / "benchmarks/strangers.py"), "--env", "StrangerArmTip-v0", "--seeds", "1"]
    # SB3's DDPG does not have this argument
    command += ["--algo", "ddpg", "flat", "--params", "low_kwargs:{}", "--jobs", "2"]
    command += ["--timesteps", "60", "--eval-episodes", "2", "--results", "out"]
    output = run(command, tmp_path, check=False)
    assert "unexpected keyword argument 'low_kwargs'" in output
    assert "ddpg StrangerArmTip-v0 seed 1: FAILED" in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["flat-StrangerArmTip-v0.csv"]
    header, *rows = [line.split(",") for line in (tmp_path / "out/flat-StrangerArmTip-v0.csv").read_text().split()]
    assert header == ["seed", "timesteps", "success_rate", "seconds"]
    assert [row[:2] for row in rows] == [["1", str(steps)] for steps in range(6, 61, 6)]
    assert all(float(row[2]) in (0.0, 0.5, 1.0) for row in rows)


@pytest.mark.parametrize("algo", ["ddpg", "sac", "tqc"])
def test_controls_learn_with_hindsight_from_normalized_observations(algo, envs):
    strangers = importlib.import_module("strangers")
    model = strangers.make_model(algo, "StrangerArmTip-v0", 0, {"buffer_size": 1_000})
    assert model.learning_starts == 100
    assert isinstance(model.replay_buffer, HerReplayBuffer)
    assert isinstance(model.get_env(), VecNormalize)
    rows = strangers.train(algo, "StrangerArmTip-v0", 0, 60, 2, {"buffer_size": 1_000, "learning_starts": 55})
    assert [steps for _, steps, _, _ in rows] == list(range(6, 61, 6))


@pytest.mark.filterwarnings("ignore:The last trajectory in the replay buffer")  # SB3's, at the break
@pytest.mark.parametrize("algo", ["hddpg", "tqc"])
def test_an_interrupted_run_goes_on_from_its_checkpoint(algo, envs, tmp_path):
    strangers = importlib.import_module("strangers")
    rest = ({"buffer_size": 1_000, "learning_starts": 150}, tmp_path)
    first = strangers.train(algo, "StrangerArmTip-v0", 0, 200, 2, *rest)
    rows = strangers.train(algo, "StrangerArmTip-v0", 0, 400, 2, *rest)
    assert rows[:10] == first
    assert [steps for _, steps, _, _ in rows] == [*range(20, 201, 20), *range(240, 401, 40)]
    assert all(later[3] >= earlier[3] for earlier, later in itertools.pairwise(rows)), "the clock goes on"
    model, saved = strangers.load_checkpoint(algo, "StrangerArmTip-v0", tmp_path / f"{algo}-StrangerArmTip-v0-0")
    assert saved == rows
    assert model.num_timesteps == 400
    assert model.replay_buffer.size() > 300


def test_the_report_compares_with_flat(tmp_path):
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    for algo, rates in (("hddpg", (0.0, 0.5, 0.9)), ("flat", (1.0, 0.58, 0.9)), ("sac", (0.0, 0.0, 1.0))):
        lines = [f"{seed},{1_000 * (n + 1) ** 2},{rate},5.0" for seed in (0, 1) for n, rate in enumerate(rates)]
        (results / f"{algo}-FetchReach-v4.csv").write_text("\n".join(["seed,timesteps,success_rate,seconds", *lines]))
    (results / "hddpg-Pendulum-v1.csv").write_text("seed,timesteps,success_rate,seconds\n0,6000,0.7,5.0\n")
    page.write_text("Above\n<!-- results: written by benchmarks/strangers_report.py --><!-- end of results -->\nBelow\n")
    command = ["python", "-W", "ignore", str(ROOT / "benchmarks/strangers_report.py")]
    command += ["--results", str(results), "--page", str(page)]
    run([*command, "--check"], tmp_path, check=False)
    run(command, tmp_path)
    run([*command, "--check"], tmp_path)
    text = page.read_text()
    assert "| FetchReach-v4 | 2,000 | 0.90 (0.90) | 0.90 (0.90) |  | 1.00 (1.00) |  |" in text
    assert "| Pendulum-v1 | 6,000 | 0.70 (one seed) |  |  |  |  |" in text
    # The first evaluation is in the first fifth of the run
    assert "| FetchReach-v4 | -4.0 | -8.0 | **no** | -10.0 |" in text
    assert "| parking-v0 |  |  |  |  |" in text
    assert (tmp_path / "images/strangers.svg").exists()


def test_the_page_is_what_the_csv_files_say(tmp_path):
    run(["python", "-W", "ignore", str(ROOT / "benchmarks/strangers_report.py"), "--check"], tmp_path)
