"""The zoo's real command lines, in separate processes, with nothing but the package installed."""

import importlib.metadata
import os
import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import yaml
from conftest import PointEnv
from conftest import run as run_command
from stable_baselines3.common.monitor import Monitor

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.common.wrappers import SuccessInfoWrapper, add_success_info
from sb3_hrl.zoo.envs import register_robotics
from sb3_hrl.zoo.hyperparams_opt import convert_hddpg_params, sample_hddpg_params
from sb3_hrl.zoo.registration import hyperparams_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]
TINY = ["--num-threads", "1", "--eval-freq", "-1", "-params", "learning_starts:100", "policy_kwargs:dict(net_arch=[16])"]


def run(*arguments: str, cwd: Path, **kwargs: Any) -> str:
    """:return: what ``python <arguments>`` printed, standard output and error"""
    return run_command(["python", *arguments], cwd, **kwargs)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with the logs of a short run on FetchReach-v2."""
    folder = tmp_path_factory.mktemp("zoo")
    arguments = ["-n", "300", "-f", "logs", "--save-replay-buffer", "-P", "-tb", "tb", "--seed", "1", *TINY]
    output = run("-m", "rl_zoo3.train", "--algo", "hddpg", "--env", "FetchReach-v2", *arguments, cwd=folder, cold=True)
    assert output.count("using FetchReach-v4 (the same task) instead") == 1
    assert "300/300" in output
    return folder


# Of the zoo, of SB3's logger and evaluation, and of ours
LINES = r"""=+ FetchReach-v2 =+|Seed: \d+|Loading hyperparameters from: .*hddpg\.yml|Default hyperparameters for environment .*
Using \d environments|Overwriting n_timesteps with n=\d+|Creating test environment|Using \w+ device|Log path: .*|Saving to .*
Eval num_timesteps=.*|Episode length: .*|Success rate: .*|New best mean reward!|[- ]*|\|.*\||.* 200/200 .*
sb3-hrl: FetchReach-v2 is no longer in gymnasium-robotics, using FetchReach-v4 \(the same task\) instead"""


def test_the_first_command_of_the_readme_prints_nothing_else(tmp_path):
    """No notice of an environment that nobody asked for, and no warning."""
    command = next(line for line in (ROOT / "README.md").read_text().splitlines() if "rl_zoo3.train" in line)
    arguments = [*shlex.split(command)[1:], "-n", "200", "--eval-freq", "100", "--eval-episodes", "1"]
    output = run(*arguments, cwd=tmp_path, cold=True)
    assert "Success rate" in output
    # The table of hyperparameters is one expression
    output = re.sub(r"OrderedDict\(\[.*?\]\)$", "", output, flags=re.DOTALL | re.MULTILINE)
    allowed = "|".join(LINES.splitlines())
    assert [line for line in re.split(r"[\r\n]+", output) if line and not re.fullmatch(allowed, line)] == []


def test_the_import_registers_no_environments(tmp_path):
    """Gymnasium's own errors are the right ones: before and after gymnasium-robotics is registered."""
    code = "import sb3_hrl, gymnasium as gym; print([env_id for env_id in gym.registry if 'Fetch' in env_id]); "
    assert run("-c", code, cwd=tmp_path) == "[]\n"
    code += "import gymnasium_robotics; gym.register_envs(gymnasium_robotics); print(gym.make('FetchReach-v4')); "
    output = run("-c", code + "gym.make('FetchReach-v2')", cwd=tmp_path, check=False)
    assert "MujocoFetchReachEnv<FetchReach-v4>" in output
    assert "Please use `FetchReach-v4` instead" in output
    assert "is no longer in gymnasium-robotics" not in output
    # The notice is only hidden in our own commands
    from farama_notifications import notifications

    assert ("AdroitHand" in output) == (
        importlib.metadata.version("gymnasium-robotics") in notifications["gymnasium_robotics"]
    )


def test_other_algorithms_train_with_older_ids(tmp_path):
    arguments = ["--algo", "ddpg", "--env", "FetchReach-v3", "-n", "120", "--eval-freq", "-1", "--num-threads", "1"]
    arguments += ["-params", "policy:'MultiInputPolicy'", "policy_kwargs:dict(net_arch=[16])", "normalize:False"]
    output = run("-m", "rl_zoo3.train", *arguments, cwd=tmp_path, cold=True)
    assert output.count("using FetchReach-v4 (the same task) instead") == 1
    assert (tmp_path / "logs/ddpg/FetchReach-v3_1/FetchReach-v3.zip").is_file()


def test_train(trained):
    run_folder = trained / "logs/hddpg/FetchReach-v2_1"
    assert (run_folder / "FetchReach-v2.zip").is_file()
    assert (run_folder / "replay_buffer.pkl").stat().st_size < 200_000
    assert list((trained / "tb").rglob("events.*"))
    config = (run_folder / "FetchReach-v2/config.yml").read_text()
    assert "flush_size: 10" in config, "our hyperparameters were not found"
    monitor = (run_folder / "0.monitor.csv").read_text().splitlines()
    assert "is_success" in monitor[1]
    assert len(monitor) == 2 + 6


def test_curves(trained):
    output = run("-m", "sb3_hrl", "curves", "-f", "logs", "--env", "FetchReach-v2", "-o", "curves.png", cwd=trained)
    assert "hddpg: 1 runs, seeds 1" in output
    # Its TensorBoard log was found from the zoo's files
    assert "no TensorBoard log" not in output
    assert "train with `--eval-freq N`" in output
    assert (trained / "curves.png").is_file()


def test_enjoy(trained):
    output = run(
        "-m",
        "rl_zoo3.enjoy",
        "--algo",
        "hddpg",
        "--env",
        "FetchReach-v2",
        "-f",
        "logs",
        "-n",
        "100",
        "--no-render",
        cwd=trained,
    )
    assert "Success rate" in output


def test_record_video(trained, renderer):
    arguments = ["--algo", "hddpg", "--env", "FetchReach-v2", "-f", "logs", "-n", "20"]
    run("-m", "rl_zoo3.record_video", *arguments, cwd=trained, env={"MUJOCO_GL": os.environ["MUJOCO_GL"]})
    assert list((trained / "logs/hddpg/FetchReach-v2_1/videos").glob("*.mp4"))


def test_continue(trained, tmp_path):
    model = trained / "logs/hddpg/FetchReach-v2_1/FetchReach-v2.zip"
    arguments = ["--algo", "hddpg", "--env", "FetchReach-v2", "-i", str(model), "-n", "100", "--save-replay-buffer"]
    output = run("-m", "rl_zoo3.train", *arguments, *TINY, "learning_starts:0", cwd=tmp_path)
    assert "Loading replay buffer" in output
    saved = HierarchicalDDPG.load(tmp_path / "logs/hddpg/FetchReach-v2_1/FetchReach-v2.zip")
    saved.load_replay_buffer(tmp_path / "logs/hddpg/FetchReach-v2_1/replay_buffer.pkl")
    # The zoo starts counting again; the buffer and the updates continue
    assert saved.replay_buffer.size() == 400
    assert saved._n_updates == 200 + 100


@pytest.mark.parametrize(("env_id", "asynchronous"), [("FetchReach-v2", True), ("FetchReach-v4", False)])
def test_subprocess_environments(tmp_path, env_id, asynchronous):
    arguments = ["--algo", "hddpg", "--env", env_id, "-n", "300", "--vec-env", "subproc", "--log-interval", "1"]
    arguments += ["--save-replay-buffer", *TINY, "n_envs:2"]
    arguments += [] if asynchronous else ["async_collection:False"]
    output = run("-m", "rl_zoo3.train", *arguments, cwd=tmp_path, cold=True)
    assert ("policy_lag" in output) == asynchronous
    assert "AdroitHand" not in output, "neither here nor in workers"
    assert output.count("is no longer in gymnasium-robotics") == (env_id == "FetchReach-v2")
    folder = tmp_path / f"logs/hddpg/{env_id}_1"
    assert len(list(folder.glob("*.monitor.csv"))) == 2
    if asynchronous:
        # Continues in one process
        arguments = ["--algo", "hddpg", "--env", env_id, "-n", "100", "-i", str(folder / f"{env_id}.zip")]
        output = run("-m", "rl_zoo3.train", *arguments, "--log-interval", "1", *TINY, "n_envs:2", cwd=tmp_path)
        assert "Loading replay buffer" in output
        assert "policy_lag" not in output


def test_arguments_of_the_collector_come_from_the_hyperparameters(tmp_path):
    arguments = ["--algo", "hddpg", "--env", "FetchReach-v4", "-n", "300", "--vec-env", "subproc", *TINY]
    output = run("-m", "rl_zoo3.train", *arguments, "collector_kwargs:dict(flush_size=0)", cwd=tmp_path, check=False)
    assert "`flush_size` must be at least 1" in output


def test_maze_logs_success(tmp_path):
    arguments = ["--algo", "hddpg", "--env", "PointMaze_UMaze-v3", "-n", "650", *TINY]
    output = run("-m", "rl_zoo3.train", *arguments, "--log-interval", "1", cwd=tmp_path)
    assert "success_rate" in output


@pytest.mark.parametrize(
    "env_id",
    [
        "FetchPush-v2",
        "FetchPickAndPlace-v3",
        "FetchSlideDense-v4",
        "PointMaze_LargeDense-v3",
        "AntMaze_UMaze-v4",
        "AntMaze_Medium-v5",
    ],
)
def test_every_family_trains(env_id, tmp_path):
    parameters = ["learning_starts:100", "policy_kwargs:dict(net_arch=[16])"]
    arguments = ["--algo", "hddpg", "--env", env_id, "-n", "150", "--eval-freq", "-1", "--num-threads", "1"]
    run("-m", "rl_zoo3.train", *arguments, "-params", *parameters, cwd=tmp_path)
    assert (tmp_path / f"logs/hddpg/{env_id}_1/{env_id}.zip").is_file()


def test_evaluation_uses_the_environment_of_the_file(tmp_path):
    """An episode of the maze ends at success; in rl_zoo3's own evaluation it would continue for 300 steps."""
    code = (
        f"import runpy, sys; sys.argv = {['train', '--algo', 'hddpg', '--env', 'PointMaze_UMaze-v3', '-n', '50', *TINY]}; "
        "import rl_zoo3.import_envs; from rl_zoo3.exp_manager import ExperimentManager; "
        "create = ExperimentManager.create_envs; learn = ExperimentManager.learn; "
        "ExperimentManager.learn = lambda self, model: print('ends:', [create(self, 1, eval_env=eval_env)"
        ".get_attr('continuing_task') for eval_env in (False, True)]); "
        "ExperimentManager.save_trained_model = lambda self, model: None; "
        "runpy.run_module('rl_zoo3.train', run_name='__main__')"
    )
    assert "ends: [[False], [False]]" in run("-c", code, cwd=tmp_path)


def test_evaluation(tmp_path):
    arguments = ["--algo", "hddpg", "--env", "FetchReach-v2", "-n", "200", *TINY]
    arguments[arguments.index("-1")] = "100"
    output = run("-m", "rl_zoo3.train", *arguments, "--eval-episodes", "2", "--n-eval-envs", "2", cwd=tmp_path)
    assert output.count("Success rate:") == 2
    assert output.count("subgoal_at_bounds") == 2


def test_optimize_and_read_a_trial_back(tmp_path):
    common = ["--algo", "hddpg", "--env", "FetchReach-v4", "--storage", "sqlite:///study.db", "--study-name", "reach"]
    optimize = ["-optimize", "--n-trials", "2", "--n-startup-trials", "1", "--n-evaluations", "1", "-n", "200"]
    optimize += ["--eval-episodes", "1", "--no-optim-plots", "--num-threads", "1", "-params", "learning_starts:150"]
    output = run("-m", "rl_zoo3.train", *common, *optimize, cwd=tmp_path)
    assert "Number of finished trials:  2" in output
    assert list((tmp_path / "logs/hddpg").glob("report_*.csv"))
    output = run("-m", "rl_zoo3.train", *common, "--trial-id", "1", "-n", "200", "--eval-freq", "-1", cwd=tmp_path)
    assert "Loading from Optuna study" in output
    assert (tmp_path / "logs/hddpg/FetchReach-v4_1/FetchReach-v4.zip").is_file() or list(tmp_path.rglob("FetchReach-v4.zip"))


def test_plots(trained):
    pytest.importorskip("seaborn", reason="pip install sb3-hrl[plots]")
    arguments = ["-a", "hddpg", "-e", "FetchReach-v2", "-f", "logs", "-y", "success", "-w", "10"]
    run("-m", "rl_zoo3.plots.plot_train", *arguments, cwd=trained)


HUB = """
import pathlib, runpy, sys
import huggingface_hub

class Hub:
    def create_repo(self, **kwargs):
        return "the hub"
    def snapshot_download(self, repo_id, local_dir):
        pathlib.Path(local_dir).mkdir(parents=True)
    def upload_folder(self, repo_id, folder_path, commit_message):
        print("uploaded", sorted(path.name for path in pathlib.Path(folder_path).iterdir()))

huggingface_hub.HfApi = Hub
sys.argv = ["push_to_hub", *"--algo hddpg --env FetchReach-v2 -f logs -orga me -m test --no-render".split()]
runpy.run_module("rl_zoo3.push_to_hub", run_name="__main__", alter_sys=True)
"""


def test_push_to_hub(trained):
    output = run("-c", HUB, cwd=trained)
    assert "uploaded" in output
    assert "hddpg-FetchReach-v2.zip" in output


def test_without_the_hook_the_module_does_the_same(tmp_path):
    env = {"SB3_HRL_NO_ZOO": "1"}
    arguments = ["--algo", "hddpg", "--env", "FetchReach-v2", "-n", "150", *TINY]
    run("-m", "sb3_hrl", "train", *arguments, cwd=tmp_path, env=env, cold=True)
    assert (tmp_path / "logs/hddpg/FetchReach-v2_1/FetchReach-v2.zip").is_file()
    output = run("-m", "sb3_hrl", "sing", cwd=tmp_path, check=False)
    assert "record_video" in output


def test_every_environment_named_is_there():
    register_robotics()
    with hyperparams_path().open() as file:
        hyperparams = yaml.safe_load(file)
    families = {"FetchReach-v2", "FetchPickAndPlaceDense-v3", "FetchSlide-v4", "PointMaze_Large-v3", "AntMaze_Medium-v5"}
    assert families | {"default"} <= set(hyperparams)
    for env_id in set(hyperparams) - {"default"}:
        assert gym.spec(env_id).max_episode_steps > 0
        if "Maze" in env_id:
            assert hyperparams[env_id]["env_kwargs"]["continuing_task"] is False
        if "Dense" in env_id:
            # Its success is defined by the environment itself
            assert "threshold" not in (hyperparams[env_id].get("subgoal_kwargs") or {})


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_aliases_are_todays_environments(version):
    register_robotics()
    alias = gym.make(f"FetchReachDense-{version}")
    today = gym.make("FetchReachDense-v4")
    assert type(alias.unwrapped) is type(today.unwrapped)
    assert alias.unwrapped.reward_type == "dense"
    assert alias.spec.max_episode_steps == today.spec.max_episode_steps
    obs, _ = alias.reset(seed=3)
    expected, _ = today.reset(seed=3)
    np.testing.assert_array_equal(obs["desired_goal"], expected["desired_goal"])


@pytest.fixture
def installed(monkeypatch) -> dict[str, str]:
    """Changes the reported versions of packages; afterwards the registry is restored."""
    register_robotics()
    versions = {"mujoco": "3.14.0", "gymnasium-robotics": "1.4.2"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    for spec in gym.registry.values():
        monkeypatch.setattr(spec, "entry_point", spec.entry_point)
    return versions


@pytest.mark.parametrize("env_id", ["FetchReach-v4", "FetchPushDense-v2", "HandReach-v3", "FrankaKitchen-v1"])
def test_environments_that_the_installed_mujoco_breaks_say_so(installed, env_id):
    """With MuJoCo 3.12, as installed by other packages: an AssertionError inside an environment would not help the user."""
    register_robotics()
    sentence = r"robotics 1\.4\.2 do not work with the installed mujoco 3\.14\.0.*`pip install \"mujoco<3\.12\"`"
    with pytest.raises(RuntimeError, match=sentence):
        gym.make(env_id)


def test_other_environments_and_versions_are_left_alone(installed):
    register_robotics()
    gym.make("PointMaze_UMaze-v3").close()
    assert "refuse" not in gym.spec("AntMaze_UMaze-v5").entry_point + gym.spec("AdroitHandDoor-v1").entry_point


@pytest.mark.parametrize("versions", [("3.11.0", "1.4.2"), ("3.14.0", "1.4.3"), ("4.0.0", "1.5.0a1")])
def test_pairs_of_versions_that_work_are_left_alone(installed, versions):
    installed["mujoco"], installed["gymnasium-robotics"] = versions
    register_robotics()
    gym.make("FetchReach-v4").close()


def test_sampled_hyperparameters_are_valid_and_read_back():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        trial = study.ask()
        sampled = sample_hddpg_params(trial, n_actions=2, n_envs=3, additional_args={})
        assert convert_hddpg_params(trial.params) == sampled
        HierarchicalDDPG("MultiInputPolicy", PointEnv(), **sampled)


class MazeLike(PointEnv):
    """Reports ``success`` instead of ``is_success``, and nothing in the first step."""

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"success": True} if self.steps > 1 else {}


@pytest.mark.parametrize("monitored", [True, False])
def test_success_info(monitored):
    env = MazeLike(max_steps=3)
    env = add_success_info(Monitor(env, info_keywords=("is_success",)) if monitored else env)
    env.reset(seed=0)
    infos = [env.step(np.zeros(2))[4] for _ in range(3)]
    assert [info.get("is_success") for info in infos] == [None, True, True], "where nothing is said nothing is known"
    assert not monitored or infos[-1]["episode"]["is_success"]


def test_success_of_the_environment_is_kept():
    env = SuccessInfoWrapper(PointEnv())
    env.reset(seed=0)
    env.unwrapped.goal = env.unwrapped.position
    assert env.step(np.zeros(2))[4]["is_success"]
