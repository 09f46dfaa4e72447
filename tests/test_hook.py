"""The start-up hook: it works after any installation, prints nothing, and is easy to disable."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sb3_hrl.zoo.registration import PATCHES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]
COMMANDS = ["train", "enjoy", "record_video", "load_from_hub", "record_training", "push_to_hub"]
# Each command runs in a fork of an interpreter that has imported slow modules, but neither rl_zoo3 nor sb3_hrl
HELP = f"""
import os, runpy, sys
import gymnasium.envs.mujoco, matplotlib.pyplot, optuna.visualization.matplotlib, sb3_contrib, stable_baselines3, torch

assert not {{"rl_zoo3", "sb3_hrl"}} & set(sys.modules)
for command in {COMMANDS}:
    if os.fork() == 0:
        print(f"<<{{command}}>>", flush=True)
        sys.argv = [command, "--help"]
        runpy.run_module(f"rl_zoo3.{{command}}", run_name="__main__")
    os.wait()
"""


def run(python: Path | str, *arguments: str, **env: str) -> str:
    result = subprocess.run(
        [str(python), *arguments],
        cwd="/",
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    return result.stdout


def install(what: str, folder: Path) -> Path:
    """
    :param what: ``wheel`` or ``editable``
    :param folder: folder for a virtual environment with sb3-hrl, which uses the dependencies of this environment
    :return: its interpreter
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    source = ["--editable", str(ROOT)] if what == "editable" else [str(ROOT)]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed"]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *options, *source], check=True)
    return python


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The hook works in the same way after each kind of installation."""
    return install("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def editable_python(tmp_path_factory) -> Path:
    return install("editable", tmp_path_factory.mktemp("editable"))


@pytest.fixture(params=["python", "editable_python"])
def any_python(request) -> Path:
    return request.getfixturevalue(request.param)


def test_installed_by_wheel_and_editable(any_python):
    """All commands list the algorithm, without changes of files and without options, also in isolated mode."""
    assert "hddpg" in run(any_python, "-I", "-m", "rl_zoo3.train", "--help")
    output = run(any_python, "-I", "-c", HELP)
    helps = dict(re.findall(r"<<(\w+)>>(.*?)(?=<<|\Z)", output, flags=re.DOTALL))
    assert list(helps) == COMMANDS, output
    assert all("hddpg" in text for text in helps.values()), helps


def test_the_package_finds_its_own_files(any_python):
    code = "import sb3_hrl; from sb3_hrl.zoo.registration import hyperparams_path as path; "
    output = run(any_python, "-c", code + "print(sb3_hrl.__version__, sb3_hrl.__file__, path(), sep='\\n')").splitlines()
    version, package, hyperparams = output[-3:]
    assert version == (ROOT / "sb3_hrl/version.txt").read_text().strip()
    # The wheel contains a copy; an editable installation uses the repository
    editable = Path(package).parents[1] == ROOT
    assert Path(hyperparams) == (ROOT if editable else Path(package).parent) / "hyperparams/hddpg.yml"
    assert Path(hyperparams).read_text() == (ROOT / "hyperparams/hddpg.yml").read_text()


def test_it_can_be_switched_off(python):
    assert "hddpg" not in run(python, "-m", "rl_zoo3.train", "--help", SB3_HRL_NO_ZOO="1")


def test_it_imports_nothing_at_start_up(any_python):
    modules = run(any_python, "-c", "import sys; print(sorted(sys.modules))")
    assert "_sb3_hrl_hook" in modules
    assert not {"'sb3_hrl'", "'torch'", "'numpy'", "'gymnasium'"} & set(modules.strip("[]\n").split(", "))


def test_other_algorithms_are_left_alone(python, tmp_path):
    arguments = ["--algo", "ppo", "--env", "CartPole-v1", "-n", "10", "--eval-freq", "-1", "-f", str(tmp_path)]
    arguments += ["-params", "n_envs:1", "n_steps:8", "batch_size:8", "n_epochs:1"]
    code = f"import runpy, sys; sys.argv = {['train', *arguments]}; runpy.run_module('rl_zoo3.train', run_name='__main__'); "
    output = run(python, "-W", "error::UserWarning:_sb3_hrl_hook", "-c", code + "print(sorted(sys.modules))")
    assert (tmp_path / "ppo/CartPole-v1_1/CartPole-v1.zip").is_file(), output
    assert "gymnasium_robotics" not in output
    assert "sb3-hrl:" not in output


def test_a_failure_is_told_and_breaks_nothing(python):
    code = (
        "import sys, warnings; sys.modules['sb3_hrl.zoo.registration'] = None; import rl_zoo3; "
        "print('ppo' in rl_zoo3.ALGOS, 'hddpg' in rl_zoo3.ALGOS)"
    )
    output = run(python, "-c", code)
    assert "could not register with rl_zoo3.utils" in output
    assert "True False" in output


def test_the_hook_waits_for_what_is_patched(monkeypatch):
    """The hook must not import anything, so it has its own list of the names."""
    # Importing the hook installs it
    monkeypatch.setenv("SB3_HRL_NO_ZOO", "1")
    from sb3_hrl._startup import _sb3_hrl_hook as hook

    assert set(PATCHES) == hook.MODULES


def test_importing_the_package_registers_too(python):
    """It works without .pth files (``-S``, ``--target``, zip files), and after rl_zoo3 was imported."""
    code = (
        "import sys; sys.meta_path = [finder for finder in sys.meta_path if 'sb3_hrl' not in type(finder).__module__]; "
        "import rl_zoo3; before = 'hddpg' in rl_zoo3.ALGOS; import sb3_hrl; after = 'hddpg' in rl_zoo3.ALGOS; "
        "import rl_zoo3.hyperparams_opt as opt; print(before, after, 'hddpg' in opt.HYPERPARAMS_SAMPLER)"
    )
    assert "False True True" in run(python, "-c", code)
