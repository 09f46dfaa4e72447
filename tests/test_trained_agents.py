"""The trained agents reach their goals, and the zoo finds them."""

import shutil
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import pytest
import yaml
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


def test_each_is_listed_and_has_a_card():
    page = (FOLDER / "README.md").read_text()
    assert ENVS
    assert all(f"| {env_id} |" in page for env_id in ENVS)
    for run, env_id in zip(RUNS, ENVS, strict=True):
        _, metadata, card = (run / "README.md").read_text().split("---\n", 2)
        assert yaml.safe_load(metadata)["model-index"][0]["results"][0]["dataset"]["name"] == env_id
        assert "pip install sb3-hrl" in card


LOAD_FROM_HUB = """
import runpy, sys
from pathlib import Path
import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

def download(repo_id, filename, **kwargs):
    path = Path("hub", repo_id.removeprefix("me/"), filename)
    if not path.exists():
        raise EntryNotFoundError("404")
    return str(path)

huggingface_hub.hf_hub_download = download
sys.argv = ["load_from_hub", *"--algo hddpg --env FetchReach-v4 -f logs -orga me".split()]
runpy.run_module("rl_zoo3.load_from_hub", run_name="__main__", alter_sys=True)
"""


def test_it_comes_back_from_the_hub(tmp_path):
    """rl_zoo3.load_from_hub finds all files that it needs in a repository that is written for the Hub."""
    env_id = "FetchReach-v4"
    run = tmp_path / f"agents/hddpg/{env_id}_1"
    shutil.copytree(FOLDER / f"hddpg/{env_id}_1", run)
    script = [str(ROOT / "benchmarks/model_cards.py"), "--env", env_id, "--episodes", "2"]
    options = ["--folder", "agents", "--hub", "hub", "--organization", "me"]
    assert f"{env_id}: success rate 1.00" in run_command(["python", "-W", "ignore", *script, *options], tmp_path)
    card = (tmp_path / f"hub/hddpg-{env_id}/README.md").read_text()
    assert "TRUST_REMOTE_CODE=True python -m rl_zoo3.load_from_hub --algo hddpg --env FetchReach-v4 -orga me" in card
    assert "pip install rl_zoo3" not in card
    assert "1.00 in 2 episodes" in card
    assert card == (run / "README.md").read_text()

    run_command(["python", "-c", LOAD_FROM_HUB], tmp_path, {"TRUST_REMOTE_CODE": "True"})
    loaded = tmp_path / f"logs/hddpg/{env_id}_1"
    assert (loaded / f"{env_id}.zip").read_bytes() == (run / f"{env_id}.zip").read_bytes()
    assert get_saved_hyperparams(str(loaded / env_id)) == get_saved_hyperparams(str(run / env_id))
    unknown = ["python", "-W", "ignore", script[0], "--env", "FetchReech-v4", *options]
    assert "there is no run agents/hddpg/FetchReech-v4_1" in run_command(unknown, tmp_path, check=False)


def test_the_repository_clones_fast():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 10_000_000, "see sb3_hrl.hddpg.saving.drop_training_state"
