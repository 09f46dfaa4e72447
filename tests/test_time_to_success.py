"""The benchmark of the time to 90 %: it resumes by seed, its clock starts with the process, and its table is right."""

import importlib
import time
from pathlib import Path

import pytest
from conftest import run
from stable_baselines3.common.vec_env import VecNormalize

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "benchmarks/time_to_success.py")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("time_to_success")


def write(folder: Path, name: str, *curves: list[tuple[int, float, float]]) -> Path:
    lines = [f"{seed},{steps},{rate},{seconds}" for seed, curve in enumerate(curves) for steps, rate, seconds in curve]
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["seed,timesteps,success_rate,seconds", *lines]))
    return path


@pytest.mark.usefixtures("leaves_nothing")
def test_a_run_is_timed_from_the_start_of_its_process(tmp_path):
    command = ["python", "-W", "ignore", SCRIPT, "--env", "StrangerArmTip-v0", "--agent", "hddpg-async", "--seeds", "3"]
    command += ["--timesteps", "120", "--spacing", "60", "--eval-episodes", "20", "--results", "out"]
    output = run(command, tmp_path)
    header, *rows = [line.split(",") for line in (tmp_path / "out/hddpg-async-StrangerArmTip-v0.csv").read_text().split()]
    assert header == ["seed", "timesteps", "success_rate", "seconds"]
    assert [row[:2] for row in rows] == [["3", "60"], ["3", "120"]]
    assert all(float(row[2]) < 0.9 for row in rows)
    # It contains the imports and the start of the workers
    assert 1.0 < float(rows[0][3]) <= float(rows[1][3])
    assert output.count("seed 3: (60") == 1
    assert "seed 3" not in run(command, tmp_path), "this seed is measured already"


def test_the_run_ends_at_success_and_the_clock_stops_in_evaluations(benchmark, monkeypatch):
    evaluation = importlib.import_module("evaluation")
    rates = iter([0.5, 0.9, 1.0])

    def success_rate(self):
        time.sleep(0.5)
        return next(rates)

    monkeypatch.setattr(evaluation.Evaluation, "success_rate", success_rate)
    started = time.monotonic()
    callback = evaluation.Evaluation(None, "tqc", range(10, 60, 10), 7, 2, started - 100.0, benchmark.SUCCESS)
    model = benchmark.make_agent("tqc", "StrangerArmTip-v0", 7, {"learning_starts": 500, "buffer_size": 1_000})
    assert (model.tau, model.learning_rate) == (0.02, 1e-3)
    assert isinstance(model.get_env(), VecNormalize)
    model.learn(60, callback=callback)
    assert [row[:3] for row in callback.rows] == [(7, 10, 0.5), (7, 20, 0.9)]
    assert model.num_timesteps == 20
    seconds = [row[3] for row in callback.rows]
    assert 100.0 <= seconds[0] <= seconds[1]
    assert seconds[1] - 100.0 <= time.monotonic() - started - 1.0 + 0.1


def test_the_table_has_medians_and_says_what_is_missing(benchmark, tmp_path):
    reaches = [[(250, 0.0, 5.0), (500, 0.95, 9.0)], [(250, 0.91, 6.0)], [(250, 0.4, 5.5), (750, 0.9, 14.4)]]
    assert benchmark.cell(write(tmp_path, "all", *reaches)) == "9 s (500 steps)"
    fails = [(250, 0.0, 5.0), (10_000, 0.89, 400.0)]
    assert benchmark.cell(write(tmp_path, "two", *reaches[:2])) == "9 s (500 steps, 2 seeds)"
    assert benchmark.cell(write(tmp_path, "one fails", fails, *reaches[:2])) == "9 s (500 steps)"
    assert benchmark.cell(write(tmp_path, "two fail", fails, fails, reaches[0])) == "not within 10,000 steps"
    assert benchmark.cell(write(tmp_path, "slow", [(250, 1.0, 360.0)])) == "6 min (250 steps, 1 seed)"
    assert benchmark.cell(tmp_path / "none.csv") == "not measured"


def test_the_page_is_what_the_csv_files_say(tmp_path):
    run(["python", "-W", "ignore", SCRIPT, "--check"], tmp_path)
