"""The trained agents reach their goals, and the zoo finds them."""

from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import pytest
from conftest import run as run_command
from rl_zoo3.utils import get_saved_hyperparams, get_wrapper_class
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hrl import HierarchicalDDPG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "trained_agents"
RUNS = sorted(FOLDER.glob("hddpg/*_1"))
ENVS = [run.name.removesuffix("_1") for run in RUNS]


@pytest.mark.parametrize("run", RUNS, ids=ENVS)
def test_it_reaches_its_goals(run):
    gym.register_envs(gymnasium_robotics)
    env_id = run.name.removesuffix("_1")
    hyperparams, _ = get_saved_hyperparams(str(run / env_id))
    env = make_vec_env(
        env_id, 5, seed=77, env_kwargs=hyperparams.get("env_kwargs"), wrapper_class=get_wrapper_class(hyperparams)
    )
    successes = []

    def count(locals_, _):
        if locals_["done"]:
            successes.append(locals_["info"]["is_success"])

    model = HierarchicalDDPG.load(run / f"{env_id}.zip")
    evaluate_policy(model, env, n_eval_episodes=20, callback=count)
    assert len(successes) == 20
    assert sum(successes) >= 14
    env.close()


@pytest.mark.parametrize("env_id", ["FetchReach-v4"])
def test_the_zoo_finds_it(env_id, tmp_path):
    arguments = ["--algo", "hddpg", "--env", env_id, "-f", str(FOLDER), "--no-render", "-n", "100"]
    assert "Success rate" in run_command(["python", "-m", "sb3_hrl", "enjoy", *arguments], tmp_path)


def test_each_is_listed():
    page = (FOLDER / "README.md").read_text()
    assert ENVS
    assert all(f"| {env_id} |" in page for env_id in ENVS)


def test_the_repository_clones_fast():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 10_000_000, "see sb3_hrl.hddpg.saving.drop_training_state"
