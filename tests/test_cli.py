"""The command line: help, errors, and commands with a user's own environments."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run as run_command

import sb3_hrl
from sb3_hrl.zoo import cli
from sb3_hrl.zoo.commands import compare

pytestmark = pytest.mark.timeout(300)

# A user's module, which registers environments when it is imported
MY_ROBOTS = """
import gymnasium as gym
from conftest import PointEnv

class Silent(PointEnv):
    def step(self, action):
        return *super().step(action)[:4], {}

gym.register("MyRobot-v0", entry_point=PointEnv)
gym.register("Silent-v0", entry_point=Silent)
gym.register("Endless-v0", entry_point=PointEnv, kwargs={"max_steps": 10**9})
"""
SMALL = ["-params", "policy_kwargs:dict(net_arch=[16])", "learning_starts:20", "batch_size:16"]
# Makes the import of a package fail, as if it were not installed
WITHOUT = "import sys; sys.modules[{!r}] = None; sys.argv = {!r}; import sb3_hrl.zoo.cli as cli; cli.main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder, with a module that registers environments."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_robots.py").write_text(MY_ROBOTS)
    return folder


def run(*arguments: str, cwd: Path, **kwargs: Any) -> str:
    """:return: output of ``python <arguments>``, which can import modules of the tests"""
    search_path = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(sb3_hrl.__file__).parents[1]}"}
    return run_command(["python", *arguments], cwd, env=search_path, cold=True, **kwargs)


def without(package: str, *arguments: str, cwd: Path, **kwargs: Any) -> str:
    """:return: output of ``python -m sb3_hrl <arguments>`` without an installed package"""
    return run("-c", WITHOUT.format(package, ["sb3_hrl", *arguments]), cwd=cwd, **kwargs)


def main(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["sb3_hrl", *arguments])
    cli.main()


def test_version(monkeypatch, capsys):
    main(monkeypatch, "--version")
    assert capsys.readouterr().out == f"sb3-hrl {sb3_hrl.__version__}\n"


def test_an_unknown_command_gives_a_hint(monkeypatch, capsys):
    with pytest.raises(SystemExit) as refusal:
        main(monkeypatch, "wacth")
    assert refusal.value.code == 2
    said = capsys.readouterr()
    assert "error: unknown command: wacth (did you mean watch?)" in said.err
    assert said.out == ""
    for arguments, code in [((), 2), (("--help",), 0)]:
        with pytest.raises(SystemExit) as refusal:
            main(monkeypatch, *arguments)
        assert refusal.value.code == code
        said = capsys.readouterr()
        assert "unknown" not in said.out + said.err
        assert all(f"  {name} " in said.out for name in cli.COMMANDS | cli.OWN_COMMANDS)


@pytest.mark.parametrize("command", cli.OWN_COMMANDS)
def test_help_shows_defaults_and_is_plain_text(monkeypatch, capsys, command):
    with pytest.raises(SystemExit):
        main(monkeypatch, command, "--help")
    text = capsys.readouterr().out
    assert "`" not in text
    assert "default: None" not in text
    assert "(default: " in text
    assert "--gym-packages" in text
    assert "--env" in text
    # The same meaning as in rl_zoo3
    assert re.search(r"-n (?!N_TIMESTEPS)", text) is None or command not in ("watch", "compare")


def test_a_command_without_its_package_names_the_extra(folder):
    output = without("matplotlib", "watch", "--env", "MyRobot-v0", "--map", "map.png", cwd=folder, check=False)
    assert 'A map needs matplotlib: `pip install "sb3-hrl[visual]"`' in output
    assert "Traceback" not in output
    output = without("PIL", "watch", "--env", "MyRobot-v0", cwd=folder, check=False)
    assert 'watch needs PIL: pip install "sb3-hrl[visual]"' in output
    assert "Traceback" not in output


def test_pictures_are_imported_without_matplotlib(folder):
    assert "no matplotlib" in run(
        "-c",
        "import sys; sys.modules['matplotlib'] = None; from sb3_hrl.visual import record_agent; print('no matplotlib')",
        cwd=folder,
    )


def test_the_doctor_works_without_gymnasium_robotics(folder):
    arguments = ["doctor", "--env", "MyRobot-v0", "--gym-packages", "my_robots", "--n-episodes", "2"]
    output = without("gymnasium_robotics", *arguments, cwd=folder)
    assert "doctor: " in output
    assert "no problems found" in output
    output = without("gymnasium_robotics", "doctor", "--env", "FetchReach-v4", cwd=folder, check=False)
    assert "FetchReach-v4 is not registered" in output
    assert "(--gym-packages), or pip install gymnasium-robotics" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_watch_and_curves_with_an_own_environment(folder):
    own = ["--env", "MyRobot-v0", "--gym-packages", "my_robots"]
    output = run("-m", "sb3_hrl", "watch", *own, "--train", "150", "--map", "map.png", cwd=folder)
    assert "map.png: visited places from the replay buffer" in output
    run("-m", "sb3_hrl", "train", "--algo", "hddpg", *own, "-n", "100", "--eval-freq", "50", *SMALL, cwd=folder)
    run("-m", "sb3_hrl", "curves", *own, "-o", "curves.png", cwd=folder)
    assert (folder / "map.png").is_file()
    assert (folder / "curves.png").is_file()


@pytest.mark.slow
def test_compare(folder):
    """Two seeds of each agent: the figure, the csv file and the sentence are consistent."""
    arguments = ["compare", "MyRobot-v0", "--gym-packages", "my_robots", "-n", "200", "--seeds", "3", "5"]
    output = run("-m", "sb3_hrl", *arguments, "--eval-episodes", "4", *SMALL, cwd=folder)
    assert "Traceback" not in output
    with (folder / "compare/MyRobot-v0.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 10
    assert {(row["agent"], row["seed"], row["episodes"]) for row in rows} == {
        (agent, seed, "4") for agent in ("hierarchical", "flat") for seed in ("3", "5")
    }
    last = [row for row in rows if row["timesteps"] == "200"]
    rates = {
        agent: np.mean([float(row["success_rate"]) for row in last if row["agent"] == agent])
        for agent in ("hierarchical", "flat")
    }
    sentence = output.strip().splitlines()[-1]
    assert sentence.startswith("On MyRobot-v0")
    assert "2 seeds with 4 episodes each" in sentence
    assert all(f"{rate:.2f}" in sentence for rate in rates.values())
    assert (folder / "compare/MyRobot-v0.png").stat().st_size > 10_000
    # The runs have the layout of the zoo, so `curves`, `watch` and `enjoy` find them
    runs = ["-f", "compare/hierarchical", "compare/flat", "--labels", "two levels", "flat", "-o", "both.png"]
    assert "flat: 2 runs, seeds 3, 5" in run("-m", "sb3_hrl", "curves", "--env", "MyRobot-v0", *runs, cwd=folder)
    config = (folder / "compare/flat/hddpg/MyRobot-v0_4/MyRobot-v0/config.yml").read_text()
    assert "source: goal" in config


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("Silent-v0 -n 100", 'info["is_success"] is missing in the last step'),
        ("Endless-v0 -n 100", "no episode ended within 10,000 steps"),
        ("MyRobot-v0 -n 9", "-n must be at least 10"),
        ("MyRobot-v0 --seeds 1 1", "--seeds must be different numbers"),
        ("MyRobot-v0 --jobs 0", "--jobs must be at least 1"),
        ("MyRobot-v0 --csv out.txt", "--csv must end in one of .csv"),
        ("MyRobot-v0 -o out.csv", "-o must end in one of .png, .pdf, .svg"),
        ("MyRobt-v0", "MyRobt-v0 is not registered (did you mean MyRobot-v0?)"),
        ("MyRobot-v0 --env-kwargs wheels:4", "MyRobot-v0 cannot be created"),
        ("", "one of the arguments ENV --env is required"),
    ],
)
def test_compare_refuses_before_it_trains(folder, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(compare, "train", lambda *_: pytest.fail("the training started"))
    with pytest.raises(SystemExit) as refusal:
        compare.main([*arguments.split(), "--gym-packages", "my_robots"])
    assert sentence in str(refusal.value) + capsys.readouterr().err


def curves(*rates: tuple[float, float], n: int = 50) -> dict[str, dict[int, compare.Curve]]:
    """:return: final evaluations with these success rates (hierarchical, flat) for each seed"""
    by_agent: dict[str, dict[int, compare.Curve]] = {agent: {} for agent in compare.AGENTS}
    for seed, pair in enumerate(rates):
        for agent, rate in zip(compare.AGENTS, pair, strict=True):
            successes = (np.arange(n) < round(rate * n)).astype(float)
            by_agent[agent][seed] = compare.Curve(np.array([6000]), successes[None])
    return by_agent


def test_the_verdict():
    sentence = compare.verdict("Arm-v0", curves((0.9, 0.5), (0.94, 0.6), (0.92, 0.4)))
    start = "On Arm-v0 the hierarchical agent is better by 0.42: 0.92 against 0.50 success after 6,000 steps"
    assert sentence.startswith(start)
    assert "(3 seeds with 50 episodes each;" in sentence
    assert sentence.endswith("95 % bootstrap interval).")
    sentence = compare.verdict("Arm-v0", curves((0.5, 0.9), (0.6, 0.94), (0.4, 0.92)))
    assert "the flat agent is better by 0.42: 0.92 against 0.50" in sentence
    sentence = compare.verdict("Arm-v0", curves((0.9, 0.86), (0.8, 0.88)))
    assert "neither agent is clearly better: flat 0.87 against hierarchical 0.85" in sentence
    assert "use at least 3 seeds for a reliable result" in sentence
    assert "1 seed with 1 episode each" in compare.verdict("Arm-v0", curves((1.0, 0.0), n=1))


def test_the_interval_is_wide_if_seeds_disagree():
    low, high = compare.interval(np.ones((3, 100)), np.zeros((3, 100)))
    assert low == high == 1.0
    hierarchical = np.repeat([[1.0], [0.0], [1.0]], 100, axis=1)
    low, high = compare.interval(hierarchical, np.full((3, 100), 0.0))
    assert low == 0.0
    assert high == 1.0
