"""Every command and snippet of the README, every example and every benchmark runs, on a small scale."""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """:return: the README's code blocks in this language"""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]
ZOO_COMMANDS = [command for command in COMMANDS if command.startswith("python -m rl_zoo3")]


def in_miniature(command: str) -> list[str]:
    """The zoo's command, with a budget of seconds."""
    parts = shlex.split(command)
    budget = ["--num-threads", "1"]
    if "rl_zoo3.plots.plot_train" in parts:
        return parts
    if "rl_zoo3.enjoy" in parts or "rl_zoo3.record_video" in parts:
        return [*parts, "-n", "100"]
    if "-optimize" in parts:
        budget += ["--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    elif "--eval-freq" not in parts:
        budget += ["--eval-freq", "-1"]
    if "-params" not in parts:
        budget.append("-params")
    # Options of the command come last, as values of a single option
    cut = parts.index("-params") if "-params" in parts else len(parts)
    return [*parts[:cut], "-n", "400", *budget, *parts[cut:], "learning_starts:300"]


def own_environment_commands() -> list[str]:
    """:return: commands of the newcomer's page"""
    page = (ROOT / "docs/own_environment.md").read_text()
    text = "".join(re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL))
    return text.replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_the_readmes_commands_are_known():
    others = set(COMMANDS) - set(ZOO_COMMANDS)
    # `pip install .` is run by test_hook.py, `make test` by CI
    assert others == {"pip install .", "make train", "make gif", "make test"}
    assert len(ZOO_COMMANDS) >= 4


@pytest.mark.parametrize("command", ZOO_COMMANDS)
def test_zoo_commands(command, folder):
    run(in_miniature(command), folder)


def test_make_train(folder):
    lines = run(["make", "--dry-run", "train", f"PYTHON={sys.executable}"], ROOT).splitlines()
    command = next(line for line in lines if "rl_zoo3.train" in line)
    assert "--algo hddpg --env FetchReach-v2" in command
    output = run([*in_miniature(command), "--eval-freq", "400", "--eval-episodes", "2"], folder)
    assert "Success rate:" in output
    assert "400/400" in output


def test_make_gif(folder, renderer):
    lines = run(["make", "--dry-run", "gif", f"PYTHON={sys.executable}"], ROOT).splitlines()
    parts = shlex.split(next(line for line in lines if "sb3_hrl watch" in line))
    parts[parts.index("--train") + 1] = "550"
    assert "3 episodes ended in success" in run([*parts, "--frame-skip", "10"], folder)
    assert (folder / "agent.gif").read_bytes().startswith(b"GIF8")


def test_make_test_is_what_ci_calls():
    assert "make test" in (ROOT / ".ci/run").read_text()
    steps = run(["make", "--dry-run", "check"], ROOT)
    for step in ("ruff check", "ruff format --check", "mypy", "lint_imports", "pytest"):
        assert step in steps
    # test_docs.py builds the site, with the same options
    assert "sphinx -W --keep-going" in run(["make", "--dry-run", "docs"], ROOT)


@pytest.mark.parametrize("snippet", blocks("python"))
def test_snippets(snippet, folder):
    assert "3_000" in snippet
    run(["python", "-W", "ignore", "-c", snippet.replace("3_000", "200")], folder)


def test_the_table_is_that_of_the_results():
    rows = re.findall(r"^\| (\S+) \| ([\d,]+) \| ([\d., ]+) \| ([\d., ]+|not measured) \|$", README, flags=re.MULTILINE)
    assert len(rows) >= 3
    for env_id, steps, *columns in rows:
        for algo, seeds in zip(("hddpg", "flat"), columns, strict=True):
            path = ROOT / f"benchmarks/results/strangers/{algo}-{env_id}.csv"
            results = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
            rates = [float(row["success_rate"]) for row in results if row["timesteps"] == steps.replace(",", "")]
            written = [] if seeds == "not measured" else [float(rate) for rate in seeds.split(", ")]
            assert written == pytest.approx(rates)


def test_the_page_of_strangers_is_that_of_the_results():
    run(["python", "-W", "ignore", "benchmarks/strangers_report.py", "--check"], ROOT)


def test_the_results_page_is_that_of_the_results():
    run(["python", "-W", "ignore", "benchmarks/report.py", "--check"], ROOT)


def test_a_newcomers_own_environment(tmp_path):
    """In order, because commands use the results of those before."""
    shutil.copy(ROOT / "examples/custom_env.py", tmp_path)
    commands = own_environment_commands()
    kinds = [" ".join(command.split()[2:4]) for command in commands]
    doctor, train, watch, compare = "sb3_hrl doctor", "rl_zoo3.train --algo", "sb3_hrl watch", "sb3_hrl compare"
    assert kinds == [doctor, train, doctor, watch, compare]
    for command, kind in zip(commands, kinds, strict=True):
        parts = shlex.split(command)
        if kind == compare:
            parts[parts.index("-n") + 1] = "400"
            cut = parts.index("--seeds")
            parts[cut + 1 : cut + 3] = ["0", "--eval-episodes", "2"]
            parts.append("learning_starts:300")
        elif kind == train:
            parts = in_miniature(command)
        output = run(parts, tmp_path)
        assert kind != doctor or "Wall-v0" in output
    assert (tmp_path / "map.png").exists()
    assert (tmp_path / "compare/Wall-v0.png").exists()


# Arguments of the examples for a small run, in addition to --timesteps
ARGUMENTS = {"optuna_tuning.py": ["--trials", "2", "--timesteps", "300"]}

# Packages that are not installed with the test tools. Minari needs jax to write a dataset. ogbench may bring a MuJoCo
# in which the Fetch environments fail. panda-gym is left out from Python 3.12 on
REQUIRES = {"ogbench_maze.py": ["ogbench"], "minari_dataset.py": ["minari", "jax"], "panda_gym_reach.py": ["panda_gym"]}


def can_render() -> bool:
    """:return: whether MuJoCo can render without a screen"""
    probe = [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"]
    return subprocess.run(probe, env=os.environ | {"MUJOCO_GL": "egl"}, capture_output=True).returncode == 0


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(example, folder):
    for package in REQUIRES.get(example.name, []):
        pytest.importorskip(package)
    arguments, env = ARGUMENTS.get(example.name, []), {}
    records = example.name == "evaluate.py" and can_render()
    if records:
        arguments, env = ["--video"], {"MUJOCO_GL": "egl"}
    output = run(["python", str(example), "--timesteps", "700", *arguments], folder, env)
    assert "not wrapped with a ``Monitor``" not in output
    assert not records or list((folder / "videos").glob("*.mp4"))


SCRIPT = [line for line in (ROOT / "examples/zoo_commands.sh").read_text().splitlines() if "python" in line]


@pytest.fixture(scope="module")
def script_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("script")


@pytest.mark.parametrize("command", SCRIPT, ids=range(len(SCRIPT)))
def test_zoo_script(command, script_folder):
    """In order, because commands use the results of those before."""
    env = {}
    if command.startswith("MUJOCO_GL=egl "):
        command, env = command.removeprefix("MUJOCO_GL=egl "), {"MUJOCO_GL": "egl"}
        if not can_render():
            pytest.skip("no offscreen rendering here: MUJOCO_GL=egl finds no EGL library")
    run(in_miniature(command), script_folder, env)


RUN_NOTEBOOK = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=250).execute()
print(notebook)
"""


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks(notebook, folder):
    assert notebook.stat().st_size < 60_000, "pictures of few pixels"
    ids = [cell["id"] for cell in json.loads(notebook.read_text())["cells"]]
    assert len(ids) == len(set(ids)), "ids of cells are unique"
    # The backend of the tests does not show figures
    output = run(["python", "-c", RUN_NOTEBOOK, str(notebook)], folder, env={"TIMESTEPS": "1200", "MPLBACKEND": ""}, cold=True)
    assert "success rate" in output
    assert output.count("image/png") == 2


@pytest.mark.parametrize(
    "command",
    [
        "learning.py --env FetchReach-v2 --seeds 0 --eval-freq 150 --eval-episodes 1 --results out "
        "--params n_timesteps:150 learning_starts:100",
        f"learning.py --env FetchReach-v4 --seeds 0 --eval-freq 150 --eval-episodes 1 --results out --name flat "
        f"--conf-file {ROOT}/benchmarks/hyperparams/flat.yml --params n_timesteps:150 learning_starts:100",
        f"learning.py --env PointMaze_UMaze-v3 --seeds 0 --eval-freq 400 --eval-episodes 1 --results out --name sb3-ddpg "
        f"--algo ddpg --conf-file {ROOT}/benchmarks/hyperparams/ddpg.yml --params n_timesteps:400 learning_starts:350",
        "replan.py --steps 300 --episodes 2 --miss-cost 500",
        "replan.py --play-in AntMaze_Medium-v4 --steps 300 --episodes 2 --miss-cost 500",
        "speed.py --rounds 1 --steps 50",
        "buffer.py --sizes 500 1000 --rounds 1 --repeats 2",
        "buffer_bytes.py",
        "update.py --rounds 1 --updates 2",
        "startup.py --rounds 1",
        "collection.py --env FetchReach-v4 --rounds 1 --seconds 0.1",
        "collection.py --trained --env PointMaze_UMaze-v3 --envs-per-worker 2 --rounds 1 --seconds 0.1",
        "training.py --rounds 1 --seconds 1 --warm-up 0 --ratio 0.25",
        "training.py --algorithm SAC --env Pendulum-v1 --rounds 1 --seconds 1 --warm-up 0 --ratio 0.25",
        "async_curve.py --steps 240 --seeds 0 --results curves",
        "sharing.py --rounds 1 --steps 40000",
        "scale.py --env PointMaze_UMaze-v3 --net-arch 64,64 32",
        "soak.py --minutes 0.08 --every 2",
        f"compare.py --other {shlex.quote(str(ROOT))} --what collect --rounds 1 --steps 50",
    ],
)
def test_benchmarks(command, folder):
    script, *arguments = shlex.split(command)
    run(["python", "-W", "ignore", str(ROOT / "benchmarks" / script), *arguments], folder)


def test_seeds_that_run_one_at_a_time(tmp_path):
    write, path = runpy.run_path(str(ROOT / "benchmarks/learning.py"))["write"], tmp_path / "out.csv"
    seeds = {seed: [(seed, 200, 0.75, 7), (seed, 1000, 1.0, 7)] for seed in (3, 4, 5)}
    write(path, seeds[4] + seeds[5], add=True)
    write(path, [(4, 200, 0.25, 9)], add=True)
    write(path, seeds[3], add=True)
    lines = path.read_text().split()
    assert lines[1:] == ["3,200,0.75,7", "3,1000,1.0,7", "4,200,0.25,9", "5,200,0.75,7", "5,1000,1.0,7"]
    write(path, seeds[3], add=False)
    assert len(path.read_text().split()) == 3
